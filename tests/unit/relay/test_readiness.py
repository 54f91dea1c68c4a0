"""Who is told what about a socket: by the epoll set, and by asyncio's own readers and writers."""

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from sshunt.relay.readiness import (
    ENDED,
    ERROR,
    HUNG_UP,
    READ,
    URGENT,
    WRITE,
    LevelReadiness,
    Readiness,
)
from sshunt.relay.sockets import error_of

READING = READ | URGENT | ENDED

#: Enough for a loop to tell what it has to tell.
A_MOMENT_S = 0.02

Any = Readiness | LevelReadiness


class Watched:
    """One end of a TCP connection in a set, and what was told of it."""

    def __init__(self, readiness: Any, events: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = socket.create_connection(listener.getsockname())
            self.near, _ = listener.accept()
        self.near.setblocking(False)
        self.told: list[int] = []
        self.readiness = readiness
        readiness.add(self.near.fileno(), self.told.append, events)

    async def hears(self) -> list[int]:
        """What was told since the last time."""
        await asyncio.sleep(A_MOMENT_S)
        told, self.told[:] = list(self.told), []
        return told

    def fill(self) -> int:
        """Write until no more is taken."""
        filled = 0
        while True:
            try:
                filled += self.near.send(bytes(65536))
            except BlockingIOError:
                return filled

    def close(self) -> None:
        self.readiness.forget(self.near.fileno())
        self.near.close()
        self.far.close()


def run(kind: type[Any], conversation: Callable[[Any], Awaitable[None]]) -> None:
    async def whole() -> None:
        before = len(os.listdir("/proc/self/fd"))
        readiness = kind(asyncio.get_running_loop())
        await conversation(readiness)
        readiness.close()
        readiness.close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(whole())


@pytest.mark.parametrize("kind", [Readiness, LevelReadiness])
def test_data_that_was_there_before_is_reported_too(kind: type[Any]) -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        assert await watched.hears() == []
        watched.far.send(b"one")
        assert (await watched.hears())[0] & READ
        readiness.change(watched.near.fileno(), 0)
        assert await watched.hears() == []
        watched.far.send(b"two")
        assert await watched.hears() == []
        readiness.change(watched.near.fileno(), READING)
        assert (await watched.hears())[0] & READ
        watched.close()

    run(kind, conversation)


@pytest.mark.parametrize("kind", [Readiness, LevelReadiness])
def test_a_socket_with_room_again_is_reported(kind: type[Any]) -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        left = watched.fill()
        readiness.change(watched.near.fileno(), READING | WRITE)
        assert await watched.hears() == []
        while left:
            left -= len(watched.far.recv(1 << 20))
        assert (await watched.hears())[0] & WRITE
        watched.close()

    run(kind, conversation)


def test_unread_data_is_reported_once_and_its_end_again() -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        watched.far.send(b"unread")
        assert await watched.hears() == [READ]
        assert await watched.hears() == []
        watched.far.send(b"!", socket.MSG_OOB)
        assert await watched.hears() == [READ | URGENT]
        watched.far.shutdown(socket.SHUT_WR)
        (events,) = await watched.hears()
        assert events & ENDED
        watched.close()

    run(Readiness, conversation)


def test_without_epoll_readiness_is_reported_as_long_as_it_lasts() -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        watched.far.send(b"unread")
        assert len(await watched.hears()) > 1
        watched.close()

    run(LevelReadiness, conversation)


def test_a_dead_socket_is_reported_though_no_event_was_asked_for() -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, 0)
        watched.far.send(b"unread")
        assert await watched.hears() == []
        watched.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        watched.far.close()
        (events,) = await watched.hears()
        assert events & (ERROR | HUNG_UP)
        assert error_of(watched.near) != 0
        assert error_of(watched.near) == 0
        watched.close()

    run(Readiness, conversation)


@pytest.mark.parametrize("kind", [Readiness, LevelReadiness])
def test_a_removed_socket_is_not_reported_and_may_be_added_again(kind: type[Any]) -> None:
    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        readiness.remove(watched.near.fileno())
        watched.far.send(b"one")
        assert await watched.hears() == []
        readiness.add(watched.near.fileno(), watched.told.append, READING)
        assert (await watched.hears())[0] & READ
        watched.close()

    run(kind, conversation)


@pytest.mark.parametrize("kind", [Readiness, LevelReadiness])
def test_what_is_removed_only_when_all_is_closed_is_no_error(kind: type[Any]) -> None:
    """As by a look-up that is given up with everything else: it ends a round of the loop later."""

    async def conversation(readiness: Any) -> None:
        watched = Watched(readiness, READING)
        readiness.close()
        readiness.remove(watched.near.fileno())
        watched.close()

    run(kind, conversation)


@pytest.mark.parametrize("kind", [Readiness, LevelReadiness])
def test_an_event_of_a_closed_socket_does_not_reach_the_next_with_its_number(
    kind: type[Any],
) -> None:
    async def conversation(readiness: Any) -> None:
        before, after = Watched(readiness, READING), Watched(readiness, READING)
        number = before.near.fileno()
        before.far.send(b"in the set's list when it is closed")
        readiness.remove(after.near.fileno())
        before.close()
        again = fcntl.fcntl(after.near.fileno(), fcntl.F_DUPFD, number)
        assert again == number
        readiness.add(again, after.told.append, READING)
        assert await after.hears() == []
        after.far.send(b"x")
        assert (await after.hears())[0] & READ
        assert before.told == []
        readiness.forget(again)
        os.close(again)
        after.close()

    run(kind, conversation)
