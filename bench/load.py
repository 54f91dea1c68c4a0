"""The load: bulk flows and short echoing connections, as cheap for the two cores as can be.

Both ends live in this process, with sockets that belong to the hosts of the lab. A source sends
pages of a memory file with sendfile(2), which copies nothing; a sink discards with MSG_TRUNC, which
copies nothing either (tcp(7): "received bytes are discarded"). So nearly all of the machine is left
to what is measured. Bytes are counted where they arrive, never where they are sent: buffers on the
way hold megabytes.

The threads spend their time in system calls, which release Python's lock.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab

#: What one system call moves. More does not fit into a socket's buffers.
CHUNK_BYTES = 1024 * 1024

#: What the echoing connections send: one keystroke's worth.
PING = b"0123456789abcdef"

BULK_PORT = 5001
ECHO_PORT = 5002

CONNECT_DEADLINE_S = 20.0

#: The length of a piece of throughput over time: a few round trips, and what the eye sees.
TICK_S = 0.1

#: The paced stream, 5 Mbit/s for 8 s: what a video call or a film sends.
PIECE_BYTES = 25_000
PIECE_EVERY_S = 0.04
PIECES = 200


class Target:
    """The servers on the target host: bulk (by the first byte: send or take) and echo."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.taken_bytes = 0
        self._arrivals: list[tuple[float, int]] = []
        self._pages = os.memfd_create("load")
        os.truncate(self._pages, CHUNK_BYTES)
        self._bulk = host.listen("0.0.0.0", BULK_PORT)
        self._bulk.settimeout(None)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        for sock in (self._bulk, *list(self._open)):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._bulk.close()

    def lateness(self) -> list[float]:
        """How late each read of the last paced stream was, in seconds."""
        time.sleep(1.0)
        begin = self._arrivals[0][0]
        return [lateness(at - begin, total) for at, total in self._arrivals]

    def send_to(self, sock: socket.socket) -> None:
        """Send without end, until the connection breaks."""
        with suppress(OSError):
            while True:
                os.sendfile(sock.fileno(), self._pages, 0, CHUNK_BYTES)

    def _accept(self) -> None:
        while True:
            try:
                sock = self._bulk.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        with sock, suppress(OSError):
            wanted = sock.recv(1)
            if wanted == b"d":
                self.send_to(sock)
            elif wanted == b"u":
                for size in discard(sock):
                    self.taken_bytes += size
            elif wanted == b"p":
                send_paced(sock)
            elif wanted == b"t":  # one that is sent here
                self._arrivals = []
                total = 0
                while data := sock.recv(65536):
                    total += len(data)
                    self._arrivals.append((time.monotonic(), total))
            elif wanted == b"s":  # stopped reader: takes nothing until the other side gives up
                select.select([], [], [], 3600)
        self._open.discard(sock)


def send_paced(sock: socket.socket) -> None:
    """Send the paced stream."""
    begin = time.monotonic()
    for number in range(PIECES):
        time.sleep(max(begin + number * PIECE_EVERY_S - time.monotonic(), 0))
        sock.sendall(bytes(PIECE_BYTES))


def lateness(after_s: float, total_bytes: int) -> float:
    """How late byte ``total_bytes`` of the paced stream is when it comes ``after_s`` the first."""
    return after_s - (total_bytes // PIECE_BYTES) * PIECE_EVERY_S


def discard(sock: socket.socket) -> Iterator[int]:
    """Take everything that arrives without copying it; yield how much."""
    buffer = bytearray(CHUNK_BYTES)
    with suppress(OSError):
        while size := sock.recv_into(buffer, CHUNK_BYTES, socket.MSG_TRUNC):
            yield size


class Flows:
    """``count`` bulk flows in one direction; ``moved_bytes`` says how much has arrived so far."""

    def __init__(
        self, target: Target, connect: Callable[[int], socket.socket], *, down: bool, count: int
    ) -> None:
        self._target = target
        self._down = down
        self._received = [0] * count
        self._socks = []
        for _ in range(count):
            sock = connect(BULK_PORT)
            sock.settimeout(None)
            sock.sendall(b"d" if down else b"u")
            self._socks.append(sock)
        work = self._receive if down else self._send
        self._threads = [
            threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def moved_bytes(self) -> int:
        """Bytes that have arrived at the far end of the flows."""
        return sum(self._received) if self._down else self._target.taken_bytes

    def received_bytes(self) -> list[int]:
        """What each flow has received so far, downwards."""
        return list(self._received)

    def stop(self) -> None:
        """Break the connections and wait for the threads."""
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._socks:
            sock.close()

    def _receive(self, number: int) -> None:
        for size in discard(self._socks[number]):
            self._received[number] += size

    def _send(self, number: int) -> None:
        self._target.send_to(self._socks[number])


class Tick(NamedTuple):
    """What arrived in the ``TICK_S`` that ended at ``at_s`` of the monotonic clock."""

    at_s: float
    mbit_s: float


def watch(flows: Mapping[str, Flows], seconds: float) -> dict[str, list[Tick]]:
    """Wait for ``seconds``; return the throughput of each entry in every tick."""
    ticks: dict[str, list[Tick]] = {name: [] for name in flows}
    last_s = time.monotonic()
    moved = {name: flow.moved_bytes for name, flow in flows.items()}
    for _ in range(round(seconds / TICK_S)):
        time.sleep(TICK_S)
        now_s = time.monotonic()
        for name, flow in flows.items():
            count = flow.moved_bytes
            ticks[name].append(Tick(now_s, (count - moved[name]) * 8 / (now_s - last_s) / 1e6))
            moved[name] = count
        last_s = now_s
    return ticks


class EchoResult(NamedTuple):
    """What ``echo_load`` saw."""

    seconds: float
    latencies_s: list[float]
    failed: int

    @property
    def per_second(self) -> float:
        """Connections that were opened, echoed and closed, per second."""
        return len(self.latencies_s) / self.seconds


class EchoServer:
    """Accepts and echoes inside somebody else's epoll loop (``step``). Owns ``listener``."""

    def __init__(self, listener: socket.socket, poll: select.epoll) -> None:
        self._poll = poll
        self._listener = listener
        self._listener.setblocking(False)
        self._socks: dict[int, socket.socket] = {}
        poll.register(self._listener, select.EPOLLIN)

    def step(self, fd: int) -> bool:
        """Serve ``fd`` if it is one of ours."""
        if fd == self._listener.fileno():
            with suppress(BlockingIOError):
                while True:
                    sock = self._listener.accept()[0]
                    sock.setblocking(False)
                    self._socks[sock.fileno()] = sock
                    self._poll.register(sock, select.EPOLLIN)
            return True
        if fd not in self._socks:
            return False
        sock = self._socks[fd]
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        if data:
            sock.send(data)
        else:
            del self._socks[fd]
            sock.close()
        return True

    def close(self) -> None:
        """Stop serving."""
        for sock in (self._listener, *self._socks.values()):
            sock.close()


def make_room_for_connections(lab: Lab) -> None:
    """Let the hosts open tens of thousands of connections a minute to one address.

    A closed connection keeps its port for a minute. Once most of the 28,000 ports are taken, each
    connect(2) searches for a free one for milliseconds, and the benchmark measures that search.
    """
    for host in lab.hosts:
        host.write_sysctl("net/ipv4/ip_local_port_range", "1024 65535")
        # 1: a port may be used again one second after its connection was closed (tcp(7)).
        host.write_sysctl("net/ipv4/tcp_tw_reuse", "1")


class Echoes:
    """Echoing connections, many at once, both ends in one epoll loop."""

    def __init__(
        self, client: Host, server: Host, address_of: Callable[[int], tuple[str, int]]
    ) -> None:
        self._client = client
        self._poll = select.epoll()
        self._server = EchoServer(server.listen("0.0.0.0", ECHO_PORT), self._poll)
        self._address = address_of(ECHO_PORT)
        self.idle: list[socket.socket] = []

    def close(self) -> None:
        """Close every connection and the server."""
        for sock in self.idle:
            sock.close()
        self._server.close()
        self._poll.close()

    def load(self, *, at_once: int, seconds: float) -> EchoResult:
        """Open, echo, close, ``at_once`` of them at any moment, for ``seconds``."""
        started: dict[int, tuple[socket.socket, float]] = {}
        latencies: list[float] = []
        failed = 0
        begin = time.monotonic()
        with self._client.entered():
            for _ in range(at_once):
                self._start_one(started)
            while (now := time.monotonic()) - begin < seconds:
                for fd, event in self._poll.poll(0.2):
                    if self._server.step(fd) or fd not in started:
                        continue
                    outcome = self._advance(started[fd][0], event)
                    if outcome is None:
                        continue
                    sock, since = started.pop(fd)
                    sock.close()
                    if outcome:
                        latencies.append(time.monotonic() - since)
                    else:
                        failed += 1
                    self._start_one(started)
        for sock, _ in started.values():
            sock.close()
        return EchoResult(now - begin, latencies, failed)

    def hold(self, count: int, *, at_once: int = 50) -> int:
        """Open ``count`` connections, let each echo once, keep them; return how many were had."""
        opening: dict[int, tuple[socket.socket, float]] = {}
        left = count
        deadline = time.monotonic() + CONNECT_DEADLINE_S + count / 200
        with self._client.entered():
            while (left or opening) and time.monotonic() < deadline:
                while left and len(opening) < at_once:
                    self._start_one(opening)
                    left -= 1
                for fd, event in self._poll.poll(0.2):
                    if self._server.step(fd) or fd not in opening:
                        continue
                    outcome = self._advance(opening[fd][0], event)
                    if outcome is None:
                        continue
                    sock, _ = opening.pop(fd)
                    self._poll.unregister(sock)
                    if outcome:
                        self.idle.append(sock)
                    else:
                        sock.close()
        for sock, _ in opening.values():
            sock.close()
        return len(self.idle)

    def ask_idle(self, *, deadline_s: float = 30.0) -> int:
        """Let every held connection echo once more; return how many answered."""
        waiting = set()
        answered = 0
        for sock in self.idle:
            with suppress(OSError):
                sock.send(PING)
                self._poll.register(sock, select.EPOLLIN)
                waiting.add(sock.fileno())
        socks = {sock.fileno(): sock for sock in self.idle}
        echoed = dict.fromkeys(socks, b"")
        deadline = time.monotonic() + deadline_s
        while waiting and time.monotonic() < deadline:
            for fd, _ in self._poll.poll(0.2):
                if self._server.step(fd) or fd not in waiting:
                    continue
                try:
                    echoed[fd] += socks[fd].recv(4096)
                except OSError:
                    echoed[fd] = b""
                # TCP has no messages: an echo may come in pieces.
                if not echoed[fd] or len(echoed[fd]) >= len(PING):
                    waiting.discard(fd)
                    self._poll.unregister(fd)
                    answered += echoed[fd] == PING
        return answered

    def _start_one(self, started: dict[int, tuple[socket.socket, float]]) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(self._address)
        started[sock.fileno()] = (sock, time.monotonic())
        self._poll.register(sock, select.EPOLLOUT)

    def _advance(self, sock: socket.socket, event: int) -> bool | None:
        """Return True when the echo came, False when it failed, None while it goes on."""
        try:
            if event & select.EPOLLIN:
                return sock.recv(4096) == PING
            sock.send(PING)
            self._poll.modify(sock, select.EPOLLIN)
        except OSError:
            return False
        return None


@contextmanager
def serving(host: Host) -> Iterator[Target]:
    """Run the bulk servers on ``host``."""
    target = Target(host)
    try:
        yield target
    finally:
        target.close()


def echo_once(sock: socket.socket) -> bool:
    """Send a ping over a blocking socket and wait for it to come back."""
    sock.sendall(PING)
    got = b""
    while len(got) < len(PING) and (data := sock.recv(64)):
        got += data
    return got == PING
