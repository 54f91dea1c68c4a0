"""What stays on this host: a program's socket, this host as its carrier, and a host's socket."""

import asyncio
import errno
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from sshunt.direct import dial
from sshunt.direct.carrier import Direct
from sshunt.front.splice import READ_BYTES, Splices
from sshunt.relay import reactor as reactor_module
from sshunt.relay.flow import (
    DNS,
    NOT_PERMITTED,
    TCP,
    Association,
    Flow,
    Question,
    SocketConnection,
)
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import LevelReadiness
from sshunt.relay.sockets import reset_code
from tests.descriptors import no_more_descriptors
from tests.unit.relay.ends import DEADLINE_S, accept, listen, read_all, threaded

BULK = os.urandom(3_000_000)
LINGER_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


@pytest.fixture(autouse=True, params=["epoll", "elsewhere"])
def _readiness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "elsewhere":
        monkeypatch.setattr(reactor_module, "readiness", LevelReadiness)


class Told(SocketConnection):
    """A connection whose program wants to be told, as with SOCKS: what it is told is noted."""

    said: list[str]

    def opened(self) -> None:
        self.said.append("opened")

    def refused(self, code: int) -> None:
        self.said.append(f"refused {code}")
        super().refused(code)


class Here:
    """Programs of this host, and this host as their carrier."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.direct = Direct(self.reactor)
        self.over = 0
        self.splices = Splices(self.reactor, self._on_over)
        self.said: list[str] = []

    def _on_over(self) -> None:
        self.over += 1

    async def connect(
        self, destination: tuple[str, int], network: int = TCP, *, says: bytes = b""
    ) -> socket.socket:
        """What a program gets that connects to ``destination``."""
        with listen() as door:
            program = await threaded(lambda: socket.create_connection(door.getsockname()))
            ours = await threaded(lambda: door.accept()[0])
        if says:
            program.sendall(says)
        ours.setblocking(False)
        connection = Told(self.splices, Flow(network, destination), ours, wants_opened=True)
        connection.said = self.said
        self.direct.connect(connection)
        program.settimeout(DEADLINE_S)
        return program

    async def joined(self, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        program = await self.connect(listener.getsockname())
        return program, await threaded(lambda: accept(listener))

    async def until_over(self, count: int = 1) -> None:
        async def look() -> None:
            while self.over < count:
                await asyncio.sleep(0.002)

        await asyncio.wait_for(look(), DEADLINE_S)

    def close(self) -> None:
        self.direct.close()
        self.splices.close()
        self.reactor.close()


def run(visit: Callable[[Here], Awaitable[None]]) -> None:
    async def whole() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(16))
        problems: list[object] = []
        loop.set_exception_handler(lambda _, what: problems.append(what))
        here = Here()
        try:
            await visit(here)
        finally:
            here.close()
        await asyncio.sleep(0)
        assert not problems, "a callback has failed"

    asyncio.run(whole())


def write_until_it_fails(sock: socket.socket) -> None:
    with suppress(ConnectionError):
        for _ in range(1000):
            sock.sendall(b"x")
            time.sleep(0.005)
        raise AssertionError("it never fails")


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_bulk_goes_both_ways_at_once_whole_and_ends_in_order() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program, host = await here.joined(listener)
        results = await asyncio.gather(
            threaded(lambda: send_all(program, BULK)),
            threaded(lambda: send_all(host, BULK[::-1])),
            threaded(lambda: read_all(host)),
            threaded(lambda: read_all(program)),
        )
        assert list(results[2:]) == [BULK, BULK[::-1]]
        await here.until_over()
        assert not here.splices.relays
        assert here.said == ["opened"]
        program.close()
        host.close()

    run(visit)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_size_at_any_speed_arrive_whole(seed: int) -> None:
    rng = random.Random(seed)

    def write(sock: socket.socket, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = rng.choice((1, 700, 40_000, 400_000))
            sock.sendall(data[at : at + size])
            at += size
            if rng.random() < 0.2:
                time.sleep(0.002)
        sock.shutdown(socket.SHUT_WR)

    def read(sock: socket.socket) -> bytes:
        parts = []
        while part := sock.recv(rng.choice((500, 60_000, 1_000_000))):
            parts.append(part)
            if rng.random() < 0.05:
                time.sleep(0.002)
        return b"".join(parts)

    async def visit(here: Here) -> None:
        data = BULK[: rng.randrange(len(BULK))]
        with listen() as listener:
            program, host = await here.joined(listener)
        _, _, up, down = await asyncio.gather(
            threaded(lambda: write(program, data)),
            threaded(lambda: write(host, data[::-1])),
            threaded(lambda: read(host)),
            threaded(lambda: read(program)),
        )
        assert (up, down) == (data, data[::-1])
        await here.until_over()
        program.close()
        host.close()

    run(visit)


@pytest.mark.parametrize("first", ["program", "host"])
def test_one_half_may_end_long_before_the_other(first: str) -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program, host = await here.joined(listener)
        one, other = (program, host) if first == "program" else (host, program)
        send_all(one, b"question")
        assert await threaded(lambda: read_all(other)) == b"question"
        await asyncio.sleep(0.02)
        assert not here.over
        send_all(other, b"answer")
        assert await threaded(lambda: read_all(one)) == b"answer"
        await here.until_over()
        program.close()
        host.close()

    run(visit)


@pytest.mark.parametrize("who", ["program", "host"])
@pytest.mark.parametrize("ended", [False, True], ids=["whole", "half-closed"])
def test_a_reset_on_one_side_resets_the_other(who: str, ended: bool) -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program, host = await here.joined(listener)
        one, other = (program, host) if who == "program" else (host, program)
        if ended:
            one.shutdown(socket.SHUT_WR)
            assert await threaded(lambda: other.recv(1)) == b""
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        one.close()
        if ended:  # where errors are told only to who reads or writes, writing it is
            await threaded(lambda: write_until_it_fails(other))
        else:
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: other.recv(1))
        await here.until_over()
        other.close()

    run(visit)


def test_a_reader_that_has_stopped_stops_its_writer_and_nobody_else() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            (program, host), (other, other_host) = [await here.joined(listener) for _ in range(2)]
        program.setblocking(False)
        sent = 0
        idle = 0
        while idle < 20:
            try:
                sent += program.send(BULK[:65536])
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0.01)
            assert sent < 200_000_000, "nothing stops the writer"
        ours = host.getpeername()
        [relay] = [each for each in here.splices.relays if each.sock.getsockname() == ours]
        waiting = relay._far.pending  # type: ignore[union-attr]
        assert waiting is not None
        assert len(waiting) <= READ_BYTES
        send_all(other, b"still served")
        assert await threaded(lambda: read_all(other_host)) == b"still served"
        program.settimeout(DEADLINE_S)
        program.shutdown(socket.SHUT_WR)
        assert len(await threaded(lambda: read_all(host))) == sent
        for sock in (program, host, other, other_host):
            sock.close()

    run(visit)


def test_what_was_said_before_the_far_end_was_there_arrives_first() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program = await here.connect(listener.getsockname(), says=b"hello, ")
            host = await threaded(lambda: accept(listener))
        program.sendall(b"host")
        program.shutdown(socket.SHUT_WR)
        assert await threaded(lambda: read_all(host)) == b"hello, host"
        program.close()
        host.close()

    run(visit)


def test_a_name_is_looked_up_here() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program = await here.connect(("localhost", listener.getsockname()[1]))
            host = await threaded(lambda: accept(listener))
        host.sendall(b"welcome")
        assert await threaded(lambda: program.recv(100)) == b"welcome"
        assert here.said == ["opened"]
        program.close()
        host.close()

    run(visit)


def test_a_refused_connection_is_reset_and_its_program_told_why() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            closed = listener.getsockname()
        program = await here.connect(closed, says=b"anybody?")
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        assert here.said == [f"refused {reset_code(errno.ECONNREFUSED)}"]
        assert here.over == 1
        program.close()

    run(visit)


@pytest.mark.parametrize("destination", [("127.0.0.1", 0), ("no such name.invalid", 80)])
def test_what_leads_nowhere_is_refused(destination: tuple[str, int]) -> None:
    async def visit(here: Here) -> None:
        program = await here.connect(destination)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        assert len(here.said) == 1
        program.close()

    run(visit)


def test_dns_by_tcp_is_not_answered_for_a_socket() -> None:
    async def visit(here: Here) -> None:
        program = await here.connect(("resolver", 53), DNS)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        assert here.said == [f"refused {NOT_PERMITTED}"]
        program.close()

    run(visit)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a full backlog drops SYNs")
def test_a_program_that_resets_while_its_host_is_being_connected_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dial, "SWEEP_EVERY_S", 0.05)
    monkeypatch.setattr(dial, "ABANDONED_DEADLINE_S", 0.05)

    async def visit(here: Here) -> None:
        # A backlog that is full does not answer: what connects goes on connecting.
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                with suppress(BlockingIOError):
                    filler.connect(full.getsockname())
            program = await here.connect(full.getsockname())
            [relay] = here.splices.relays
            assert relay.is_connecting
            assert not relay.is_abandoned
            program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            program.close()
            await here.until_over()
            assert relay.is_over
            assert not relay.is_connecting
            for filler in fillers:
                filler.close()

    run(visit)


def test_stopping_resets_what_is_joined_and_what_waits() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            program, host = await here.joined(listener)
        here.splices.close()
        for sock in (program, host):
            with pytest.raises(ConnectionResetError):
                await threaded(lambda s=sock: s.recv(1))  # type: ignore[misc]
            sock.close()

    run(visit)


def test_a_hundred_connections_at_once_each_get_their_own_answer() -> None:
    async def visit(here: Here) -> None:
        with listen() as listener:
            listener.listen(128)

            def serve() -> None:
                for _ in range(100):
                    sock, _ = listener.accept()
                    sock.settimeout(DEADLINE_S)
                    threading.Thread(target=echo, args=(sock,), daemon=True).start()

            def echo(sock: socket.socket) -> None:
                with sock:
                    sock.sendall(read_all(sock))

            serving = asyncio.ensure_future(threaded(serve))
            programs = [await here.connect(listener.getsockname()) for _ in range(100)]
            for number, program in enumerate(programs):
                send_all(program, b"%d" % number)
            answers = [await threaded(lambda p=program: read_all(p)) for program in programs]  # type: ignore[misc]
            assert answers == [b"%d" % number for number in range(100)]
            await serving
        await here.until_over(100)
        for program in programs:
            program.close()

    run(visit)


def test_datagrams_are_not_carried_yet_and_what_is_no_query_is_refused() -> None:
    class Ended(Association):
        codes: list[int] = []

        def ended(self, code: int) -> None:
            self.codes.append(code)

    class Refused(Question):
        codes: list[int] = []

        def refused(self, code: int) -> None:
            self.codes.append(code)

    async def visit(here: Here) -> None:
        outlet = here.direct.associate(Ended(Flow(TCP, ("192.0.2.1", 9)), 30))
        outlet.send(b"into the void")
        outlet.close()
        assert Ended.codes == [NOT_PERMITTED]
        asked = here.direct.ask(Refused(b"no query", 0))
        asked.give_up()
        assert Refused.codes == [NOT_PERMITTED]
        assert here.direct.is_up
        Ended.codes.clear()
        Refused.codes.clear()

    run(visit)
