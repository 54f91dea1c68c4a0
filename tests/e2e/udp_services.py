"""Services for datagrams on a host of the lab, in threads of the test."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from sshunt.lab.hosts import Host, family_of

#: What a service is asked, besides echoing everything else.
FROM_ANOTHER_PORT = b"from another port"
LATER_S = b"after "  # and seconds

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def udp(host: Host, address: str, port: int = 0, *, timeout_s: float = 10.0) -> socket.socket:
    """A socket of the host, at one of its addresses."""
    sock = host.make_socket(family_of(address), socket.SOCK_DGRAM)
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    sock.bind((address, port))
    return sock


class Echo:
    """Answers what comes; ``peers`` are the addresses that have sent something."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        self.sock = udp(host, address, port, timeout_s=0.1)
        self._other = udp(host, address)
        self.peers: list[tuple[str, int]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending.is_set():
            try:
                data, peer = self.sock.recvfrom(70_000)
            except TimeoutError:
                continue
            self.peers.append(peer[:2])
            if data == FROM_ANOTHER_PORT:
                self._other.sendto(data, peer)
            elif data.startswith(LATER_S):
                after_s = float(data[len(LATER_S) :])
                threading.Timer(after_s, self.sock.sendto, (data, peer)).start()
            else:
                self.sock.sendto(data, peer)

    @property
    def other_port(self) -> int:
        return int(self._other.getsockname()[1])

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self.sock.close()
        self._other.close()


@contextlib.contextmanager
def echo(host: Host, address: str, port: int) -> Iterator[Echo]:
    service = Echo(host, address, port)
    try:
        yield service
    finally:
        service.close()
