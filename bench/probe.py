"""Interactive traffic beside a load: how long 16 bytes take there and back, and a new connection.

One thread, one epoll loop, both ends: the echo server lives in the target host, the probes in the
client host. A probe is sent on time whether the one before it has come back or not, so a stalled
link shows as late probes and not as fewer of them.
"""

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.load import ECHO_PORT, EchoServer
from sshunt.lab.hosts import Host

ECHO_EVERY_S = 0.05
CONNECT_EVERY_S = 0.25

_PROBE_BYTES = 16


class Sample(NamedTuple):
    """When a probe was sent (seconds since the beginning) and how long it took."""

    at_s: float
    took_s: float


class Probes:
    """Sends probes until ``stop``; then ``echoes`` and ``connects`` are complete."""

    def __init__(
        self, client: Host, server: Host, address_of: Callable[[int], tuple[str, int]]
    ) -> None:
        self.echoes: list[Sample] = []
        self.connects: list[Sample] = []
        self._client = client
        self._server = server
        self._address = address_of(ECHO_PORT)
        self._ending = threading.Event()
        self._ready = threading.Event()
        self.since = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(20.0):
            raise RuntimeError("the echo does not answer")

    def stop(self, *, patience_s: float = 2.0) -> None:
        """Send no more, wait a little for what is under way, end."""
        self._patience_s = patience_s
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        poll = select.epoll()
        server = EchoServer(self._server, poll)
        try:
            with self._client.entered():
                self._serve_and_probe(poll, server)
        finally:
            server.close()
            poll.close()

    def _serve_and_probe(self, poll: select.epoll, server: EchoServer) -> None:
        echo = self._start(poll, {})
        buffered = b""
        pending: dict[int, tuple[socket.socket, float]] = {}
        sent: list[float] = []  # when each probe under way was sent
        answered = 0
        begun = False
        next_echo = next_connect = float("inf")
        end = float("inf")
        while (now := time.monotonic()) < end:
            if self._ending.is_set() and end == float("inf"):
                end = now + self._patience_s
                next_echo = next_connect = float("inf")
            if end < float("inf") and answered == len(sent) and not pending:
                break
            if now >= next_echo:
                next_echo += ECHO_EVERY_S
                sent.append(now)
                echo.send(b"%016d" % len(sent))
            if now >= next_connect:
                next_connect += CONNECT_EVERY_S
                self._start(poll, pending)
            for fd, event in poll.poll(max(min(next_echo, next_connect, now + 0.05) - now, 0)):
                if fd == echo.fileno():
                    if not begun:
                        begun = True
                        echo.send(b"%016d" % 0)
                        poll.modify(echo, select.EPOLLIN)
                        continue
                    data = echo.recv(4096)
                    if not data:
                        raise RuntimeError("the echo's connection was closed")
                    buffered += data
                    while len(buffered) >= _PROBE_BYTES:
                        buffered = buffered[_PROBE_BYTES:]
                        if not self._ready.is_set():
                            self.since = next_echo = next_connect = time.monotonic()
                            self._ready.set()
                            continue
                        when = sent[answered]
                        answered += 1
                        self.echoes.append(Sample(when - self.since, time.monotonic() - when))
                elif fd in pending:
                    sock, when = pending[fd]
                    if event & select.EPOLLIN:
                        if sock.recv(64):
                            took = time.monotonic() - when
                            self.connects.append(Sample(when - self.since, took))
                        del pending[fd]
                        sock.close()
                    else:
                        sock.send(b"0123456789abcdef")
                        poll.modify(sock, select.EPOLLIN)
                else:
                    server.step(fd)
        # What never came back took at least so long.
        for when in sent[answered:]:
            self.echoes.append(Sample(when - self.since, time.monotonic() - when))
        for sock, when in pending.values():
            self.connects.append(Sample(when - self.since, time.monotonic() - when))
            sock.close()
        echo.close()

    def _start(
        self, poll: select.epoll, pending: dict[int, tuple[socket.socket, float]]
    ) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(self._address)
        pending[sock.fileno()] = (sock, time.monotonic())
        poll.register(sock, select.EPOLLOUT)
        return sock
