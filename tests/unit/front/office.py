"""Resolvers on loopback, that answer, refuse, are silent, slow or forgetful, or lie."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

#: What is said to a query, message by message; b"": nothing, ever.
Answer = Callable[[dns.message.Message], bytes | list[bytes]]


class Raw(bytes):
    """What is said by TCP without a length in front."""


def knows(address: str) -> Answer:
    """Every name has this address."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        name = query.question[0].name
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
        return response.to_wire()

    return answer


def says(code: dns.rcode.Rcode, *, flags: int = dns.flags.RA) -> Answer:
    """Every name fails so."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.flags |= flags
        response.set_rcode(code)
        return response.to_wire()

    return answer


def silent(_query: dns.message.Message) -> bytes:
    """Nothing is ever said."""
    return b""


def lies(query: dns.message.Message) -> bytes:
    """An answer to something else."""
    other = dns.message.make_query("other.example", "A", id=query.id ^ 1)
    said = knows("203.0.113.9")(other)
    assert isinstance(said, bytes)
    return said


def slow(seconds: float, answer: Answer) -> Answer:
    """The same, later."""

    def answer_later(query: dns.message.Message) -> bytes | list[bytes]:
        time.sleep(seconds)
        return answer(query)

    return answer_later


def forgetful(answer: Answer) -> Answer:
    """The first of every two datagrams is lost."""
    numbers = itertools.count()
    return lambda query: answer(query) if next(numbers) % 2 else b""


@contextmanager
def resolver(address: str, port: int, answer: Answer) -> Iterator[list[str]]:
    """Answers on (address, port), UDP and TCP; the list says how it was asked, as it happens."""
    asked: list[str] = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as tcp:
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.bind((address, port))

            def say(wire: bytes, program: Any) -> None:
                with suppress(OSError):
                    for said in _messages(answer(dns.message.from_wire(wire))):
                        udp.sendto(said, program)

            def by_udp() -> None:
                with suppress(OSError):
                    while True:
                        wire, program = udp.recvfrom(65535)
                        if not wire:
                            return
                        asked.append("udp")
                        _begin(partial(say, wire, program))

            def serve(sock: socket.socket) -> None:
                with suppress(OSError), sock, sock.makefile("rb") as file:
                    while head := file.read(2):
                        wire = file.read(int.from_bytes(head, "big"))
                        asked.append("tcp")
                        for said in _messages(answer(dns.message.from_wire(wire))):
                            # In pieces, as a slow network would bring it.
                            head = b"" if isinstance(said, Raw) else len(said).to_bytes(2, "big")
                            sock.sendall(head + said[:5])
                            sock.sendall(said[5:])

            def by_tcp() -> None:
                with suppress(OSError):
                    while True:
                        sock = tcp.accept()[0]
                        _begin(partial(serve, sock))

            threads = [_begin(by_udp), _begin(by_tcp)]
            try:
                yield asked
            finally:
                _end(udp)
                _end(tcp)
                for thread in threads:
                    thread.join(5)


def _begin(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _messages(said: bytes | list[bytes]) -> list[bytes]:
    if isinstance(said, bytes):
        return [said] if said else []
    return said


def _end(sock: socket.socket) -> None:
    """Wake whoever waits for it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
