"""Interactive traffic beside a load: how long 16 bytes take there and back, and a new connection.

A process of its own, with one thread and one epoll loop: the load's threads are busy, and a probe
that waited for its turn among them would measure them. Both ends are in it: the probes live in the
client host, the echo server's socket belongs to the target. A probe is sent on time whether the one
before it has come back or not, so a stalled link shows as late probes and not as fewer of them.
"""

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.load import ECHO_PORT, PING, EchoServer
from sshunt.lab.hosts import Host

ECHO_EVERY_S = 0.05
CONNECT_EVERY_S = 0.25

#: How long the first answer may take, and how long what is under way at the end is waited for.
READY_DEADLINE_S = 20.0
PATIENCE_S = 2.0

_ROOT = Path(__file__).resolve().parent.parent


class Sample(NamedTuple):
    """When a probe was sent (seconds since the beginning) and how long it took."""

    at_s: float
    took_s: float


class Probes:
    """Sends probes until ``stop``; then ``echoes`` and ``connects`` are complete. ``since`` is when
    it began, on the monotonic clock.
    """

    def __init__(
        self, client: Host, server: Host, address_of: Callable[[int], tuple[str, int]]
    ) -> None:
        self.echoes: list[Sample] = []
        self.connects: list[Sample] = []
        address, port = address_of(ECHO_PORT)
        with server.listen("0.0.0.0", ECHO_PORT) as listener:
            fd = listener.fileno()
            self._process = client.popen(
                [sys.executable, "-m", "bench.probe", address, str(port), str(fd)],
                env={"PYTHONPATH": f"{_ROOT}:{_ROOT / 'src'}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[fd],
            )
        assert self._process.stdout
        answers = select.select([self._process.stdout], [], [], READY_DEADLINE_S)[0]
        begun = self._process.stdout.readline() if answers else b""
        if not begun:
            raise RuntimeError("the echo does not answer")
        self.since = float(begun)

    def stop(self) -> None:
        """Send no more, wait a little for what is under way, end."""
        said, _ = self._process.communicate(timeout=PATIENCE_S + READY_DEADLINE_S)
        found = json.loads(said)
        self.echoes = [Sample(*each) for each in found["echoes"]]
        self.connects = [Sample(*each) for each in found["connects"]]


class _Prober:
    """The process: probes until its input ends."""

    def __init__(self, address: tuple[str, int], listener: socket.socket) -> None:
        self._address = address
        self._poll = select.epoll()
        self._server = EchoServer(listener, self._poll)
        self._echoes: list[Sample] = []
        self._connects: list[Sample] = []
        self._sent: list[float] = []  # when each echo was sent
        self._buffered = b""
        self._since = 0.0  # 0: the first echo, which is not counted, is still under way
        self._pending: dict[int, tuple[socket.socket, float]] = {}
        self._echo = self._start()

    def run(self) -> dict[str, list[Sample]]:
        """Probe; what was seen."""
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        next_echo = next_connect = end = float("inf")
        while (now := time.monotonic()) < end:
            if end < float("inf") and len(self._echoes) == len(self._sent) and not self._pending:
                break
            if now >= next_echo:
                next_echo += ECHO_EVERY_S
                self._sent.append(now)
                self._echo.send(b"%016d" % len(self._sent))
            if now >= next_connect:
                next_connect += CONNECT_EVERY_S
                sock = self._start()
                self._pending[sock.fileno()] = (sock, now)
            for fd, event in self._poll.poll(
                max(min(next_echo, next_connect, now + 0.05) - now, 0)
            ):
                if fd == sys.stdin.fileno():
                    self._poll.unregister(fd)
                    next_echo = next_connect = float("inf")
                    end = time.monotonic() + PATIENCE_S
                elif fd == self._echo.fileno():
                    is_whole = self._on_echo(event)
                    if is_whole and not self._since:
                        self._since = next_echo = next_connect = time.monotonic()
                        print(self._since, flush=True)
                elif fd in self._pending:
                    self._on_connection(fd, event)
                else:
                    self._server.step(fd)
        return self._results()

    def _start(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(self._address)
        self._poll.register(sock, select.EPOLLOUT)
        return sock

    def _on_echo(self, event: int) -> bool:
        """The long connection is up, or has something to say; True for a whole answer."""
        if event & select.EPOLLOUT:
            self._echo.send(b"%016d" % 0)
            self._poll.modify(self._echo, select.EPOLLIN)
            return False
        data = self._echo.recv(4096)
        if not data:
            raise RuntimeError("the echo's connection was closed")
        self._buffered += data
        whole = len(self._buffered) // len(PING)
        self._buffered = self._buffered[whole * len(PING) :]
        if self._since:
            for when in self._sent[len(self._echoes) : len(self._echoes) + whole]:
                self._echoes.append(self._sample(when))
        return whole > 0

    def _on_connection(self, fd: int, event: int) -> None:
        sock, when = self._pending[fd]
        if event & select.EPOLLIN:
            if sock.recv(64):
                self._connects.append(self._sample(when))
            del self._pending[fd]
            sock.close()
        else:
            sock.send(PING)
            self._poll.modify(sock, select.EPOLLIN)

    def _sample(self, when: float) -> Sample:
        return Sample(when - self._since, time.monotonic() - when)

    def _results(self) -> dict[str, list[Sample]]:
        # What never came back took at least until now.
        for when in self._sent[len(self._echoes) :]:
            self._echoes.append(self._sample(when))
        for _, when in self._pending.values():
            self._connects.append(self._sample(when))
        return {"echoes": self._echoes, "connects": self._connects}


def main(argv: list[str]) -> None:
    """ADDRESS PORT FD, as ``Probes`` gives them."""
    address, port, fd = argv
    found = _Prober((address, int(port)), socket.socket(fileno=int(fd))).run()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
