"""Held connections, with real sockets: which are held, which are reset, and when."""

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from sshunt.relay.flow import (
    NO_RESOURCES,
    TCP,
    Flow,
    LateConnection,
    Relays,
    SocketConnection,
)
from sshunt.relay.reactor import Reactor
from sshunt.remote import holding
from sshunt.remote.holding import HeldConnections, Holdable
from tests.descriptors import no_more_descriptors

SOMEWHERE = Flow(TCP, ("192.0.2.1", 80))


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Hall:
    """Held connections, the programs behind them, and what was released."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.held = HeldConnections(self.reactor)
        self.released: list[socket.socket] = []
        self.programs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    def program(self, says: bytes = b"") -> socket.socket:
        """One that has connected, and said something, and waits."""
        program = socket.create_connection(self._listener.getsockname(), timeout=5)
        self.programs.append(program)
        if says:
            program.sendall(says)
        ours, _ = self._listener.accept()
        ours.setblocking(False)
        self.held.hold(SocketConnection(Relays(), SOMEWHERE, ours))
        return program

    def release(self) -> list[bytes]:
        """What each of those that were released has said, in that order."""

        def open_one(connection: Holdable) -> None:
            assert isinstance(connection, SocketConnection)
            assert connection.flow == SOMEWHERE
            self.released.append(connection.take())

        self.held.release(open_one)
        return [sock.recv(100) for sock in self.released]

    def close(self) -> None:
        self.held.reset_all()
        self.reactor.close()
        for sock in (self._listener, *self.programs, *self.released):
            sock.close()


def run(visit: Callable[[Hall], Awaitable[None]]) -> None:
    async def whole() -> None:
        hall = Hall()
        try:
            await visit(hall)
        finally:
            hall.close()

    asyncio.run(whole())


def reset(program: socket.socket) -> None:
    program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    program.close()


def is_reset(program: socket.socket) -> bool:
    try:
        program.recv(1)
    except ConnectionResetError:
        return True
    return False


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 10)


def test_held_connections_are_released_in_order_with_the_data_they_sent() -> None:
    async def visit(hall: Hall) -> None:
        said = [b"%d" % number for number in range(5)]
        for words in said:
            hall.program(words)
        assert len(hall.held) == 5
        assert hall.release() == said
        assert len(hall.held) == 0

    run(visit)


def test_a_held_connection_that_resets_frees_its_place_and_descriptor_at_once() -> None:
    async def visit(hall: Hall) -> None:
        hall.program(b"stays")
        before = len(os.listdir("/proc/self/fd"))
        for words in (b"", b"words"):
            reset(hall.program(words))
        await until(lambda: len(hall.held) == 1)
        assert len(os.listdir("/proc/self/fd")) == before
        assert hall.release() == [b"stays"]

    run(visit)


def test_a_held_connection_that_is_half_closed_still_waits() -> None:
    async def visit(hall: Hall) -> None:
        program = hall.program(b"a question")
        program.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.1)
        assert hall.release() == [b"a question"]
        hall.released[0].sendall(b"an answer")
        assert program.recv(100) == b"an answer"

    run(visit)


def test_one_timer_resets_all_that_were_held_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LONGEST_WAIT_S", 0.3)

    async def visit(hall: Hall) -> None:
        begin = time.monotonic()
        first = hall.program()
        await asyncio.sleep(0.2)
        second = hall.program()
        await until(lambda: len(hall.held) == 1)
        assert time.monotonic() - begin >= 0.3
        assert is_reset(first)
        await until(lambda: len(hall.held) == 0)
        assert time.monotonic() - begin >= 0.5
        assert is_reset(second)
        third = hall.program()  # the timer is set again
        await until(lambda: len(hall.held) == 0)
        assert is_reset(third)

    run(visit)


def test_a_stale_timer_times_out_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holding, "LONGEST_WAIT_S", 0.3)

    async def visit(hall: Hall) -> None:
        reset(hall.program())
        await asyncio.sleep(0.2)
        hall.program(b"later")
        await asyncio.sleep(0.2)
        assert hall.release() == [b"later"]

    run(visit)


def test_without_room_a_new_connection_is_reset_and_the_held_ones_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holding, "MOST_HELD", 3)

    async def visit(hall: Hall) -> None:
        for number in range(3):
            hall.program(b"%d" % number)
        assert is_reset(hall.program())
        assert hall.release() == [b"0", b"1", b"2"]

    run(visit)


def test_without_room_the_oldest_half_closed_connection_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holding, "MOST_HELD", 3)

    async def visit(hall: Hall) -> None:
        hall.program(b"0")
        for number in (1, 2):
            hall.program(b"%d" % number).shutdown(socket.SHUT_WR)
        hall.program(b"3")
        assert is_reset(hall.programs[1])
        assert hall.release() == [b"0", b"2", b"3"]

    run(visit)


def test_emptying_resets_all_held_connections_and_may_be_repeated() -> None:
    async def visit(hall: Hall) -> None:
        programs = [hall.program(b"words") for _ in range(3)]
        hall.held.reset_all()
        hall.held.reset_all()
        assert [is_reset(program) for program in programs] == [True] * 3

    run(visit)


def test_a_connection_that_can_not_be_watched_is_reset() -> None:
    async def visit(hall: Hall) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        hall.reactor.readiness.add = full  # type: ignore[assignment, method-assign]
        program = hall.program()
        assert len(hall.held) == 0
        with pytest.raises(ConnectionResetError):
            program.recv(1)
        assert hall.release() == []

    run(visit)


# --- connections whose socket is still to come ----------------------------------------------------


class Late(LateConnection):
    """A SYN that is held back."""

    def __init__(self) -> None:
        super().__init__(SOMEWHERE, wants_opened=True)
        self.gone = False
        self.said: list[int] = []

    @property
    def is_over(self) -> bool:
        return self.gone

    def refused(self, code: int) -> None:
        self.said.append(code)


def test_without_sockets_they_wait_among_the_others_and_those_that_left_do_not_go_on() -> None:
    async def visit(hall: Hall) -> None:
        waits, left = Late(), Late()
        hall.held.hold(waits)
        hall.program()
        hall.held.hold(left)
        assert len(hall.held) == 3
        assert len(list(hall.held.sockets)) == 1
        left.gone = True
        released: list[Holdable] = []
        hall.held.release(released.append)
        assert released[0] is waits
        assert len(released) == 2
        for connection in released[1:]:
            connection.refused(NO_RESOURCES)

    run(visit)


def test_those_that_left_make_room_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MOST_HELD", 2)

    async def visit(hall: Hall) -> None:
        waits, left, late, too_late = Late(), Late(), Late(), Late()
        for connection in (waits, left):
            hall.held.hold(connection)
        left.gone = True
        hall.held.hold(late)
        hall.held.hold(too_late)
        assert [each.said for each in (waits, left, late)] == [[], [], []]
        assert too_late.said == [NO_RESOURCES]
        hall.held.reset_all()
        assert waits.said == late.said == [NO_RESOURCES]

    run(visit)


def test_they_wait_no_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LONGEST_WAIT_S", 0.05)

    async def visit(hall: Hall) -> None:
        waits = Late()
        hall.held.hold(waits)
        await until(lambda: waits.said == [NO_RESOURCES])

    run(visit)
