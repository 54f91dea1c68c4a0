"""Resolvers on loopback, that answer, refuse, are silent, or lie."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import dns.message
import dns.rcode
import dns.rrset

Answer = Callable[[dns.message.Message], bytes]


def knows(address: str) -> Answer:
    """Every name has this address."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        name = query.question[0].name
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
        return response.to_wire()

    return answer


def says(code: dns.rcode.Rcode) -> Answer:
    """Every name fails so."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return response.to_wire()

    return answer


def silent(_query: dns.message.Message) -> bytes:
    """Nothing is ever said."""
    return b""


def lies(query: dns.message.Message) -> bytes:
    """An answer to something else."""
    other = dns.message.make_query("other.example", "A", id=query.id ^ 1)
    return knows("203.0.113.9")(other)


@contextmanager
def resolver(address: str, port: int, answer: Answer) -> Iterator[list[str]]:
    """Answers on (address, port), UDP and TCP; the list says how it was asked, as it happens."""
    asked: list[str] = []
    with socket.create_server((address, port)) as tcp:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((address, port))

            def by_udp() -> None:
                with suppress(OSError):
                    while True:
                        wire, program = udp.recvfrom(65535)
                        if not wire:
                            return
                        asked.append("udp")
                        if said := answer(dns.message.from_wire(wire)):
                            udp.sendto(said, program)

            def by_tcp() -> None:
                with suppress(OSError):
                    while True:
                        sock = tcp.accept()[0]
                        with sock, sock.makefile("rb") as file:
                            wire = file.read(int.from_bytes(file.read(2), "big"))
                            asked.append("tcp")
                            if said := answer(dns.message.from_wire(wire)):
                                # In pieces, as a slow network would bring it.
                                sock.sendall(len(said).to_bytes(2, "big") + said[:5])
                                sock.sendall(said[5:])

            threads = [threading.Thread(target=act, daemon=True) for act in (by_udp, by_tcp)]
            for thread in threads:
                thread.start()
            try:
                yield asked
            finally:
                _end(udp)
                _end(tcp)
                for thread in threads:
                    thread.join(5)


def _end(sock: socket.socket) -> None:
    """Wake whoever waits for it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
