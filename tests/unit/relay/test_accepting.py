"""Accepting: who is taken, who is hung up on, and when it pauses."""

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from sshunt.relay.accepting import SPENT, Acceptor
from sshunt.relay.sockets import RESERVED_DESCRIPTORS
from tests.descriptors import no_more_descriptors

PAUSE_S = 0.05


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Door:
    """A listening socket with an acceptor, its callers, and what was taken in."""

    def __init__(self, *, per_round: int = 4, **more: object) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.taken: list[socket.socket] = []
        self.said: list[str] = []
        self.callers: list[socket.socket] = []
        self.refused = ""
        self.acceptor = Acceptor(
            asyncio.get_running_loop(),
            self.sock,
            self.taken.append,
            per_round=per_round,
            pause_s=PAUSE_S,
            why_not=lambda: self.refused,
            on_pause=self.said.append,
            **more,  # type: ignore[arg-type]
        )

    def call(self, count: int = 1) -> list[socket.socket]:
        new = [socket.create_connection(self.sock.getsockname(), timeout=5) for _ in range(count)]
        self.callers += new
        return new

    async def until_taken(self, count: int) -> None:
        async def look() -> None:
            while len(self.taken) < count:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(look(), 5)

    def close(self) -> None:
        self.acceptor.close()
        for sock in (*self.taken, *self.callers):
            sock.close()


def run(visit: Callable[[Door], Awaitable[None]], **more: object) -> None:
    async def whole() -> None:
        door = Door(**more)  # type: ignore[arg-type]
        try:
            await visit(door)
        finally:
            door.close()

    asyncio.run(whole())


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open ``count`` descriptors more, if those that are open have no gaps."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nobody_is_taken_before_the_start_and_everybody_after_it() -> None:
    async def visit(door: Door) -> None:
        door.call(10)
        await asyncio.sleep(0.02)
        assert not door.taken
        door.acceptor.start()
        await door.until_taken(10)
        assert not any(sock.getblocking() for sock in door.taken)
        assert not door.said

    run(visit)


def test_a_round_takes_no_more_than_it_may() -> None:
    async def visit(door: Door) -> None:
        door.call(10)
        counts = []
        door.acceptor.start()
        while len(door.taken) < 10:
            await asyncio.sleep(0)
            counts.append(len(door.taken))
        assert {4, 8, 10} <= set(counts) <= {0, 4, 8, 10}

    run(visit)


def test_strangers_are_hung_up_on_and_a_friend_among_them_is_taken() -> None:
    friends: set[int] = set()

    def is_welcome(sock: socket.socket) -> bool:
        return sock.getpeername()[1] in friends

    async def visit(door: Door) -> None:
        *strangers, friend = door.call(4)
        friends.add(friend.getsockname()[1])
        door.acceptor.start()
        await door.until_taken(1)
        assert door.taken[0].getpeername() == friend.getsockname()
        assert [stranger.recv(1) for stranger in strangers] == [b""] * 3
        friends.add(door.call()[0].getsockname()[1])
        await asyncio.sleep(0.02)
        assert len(door.taken) == 1  # left alone for a moment
        await door.until_taken(2)
        assert not door.said

    run(visit, is_welcome=is_welcome)


def test_while_no_more_can_be_taken_callers_wait_and_the_owner_hears_why() -> None:
    async def visit(door: Door) -> None:
        door.refused = "full"
        door.acceptor.start()
        door.call()
        await asyncio.sleep(PAUSE_S / 2)
        assert door.said == ["full"]
        door.refused = ""
        await door.until_taken(1)

    run(visit)


def test_resuming_ends_a_pause_at_once_and_does_nothing_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def visit(door: Door) -> None:
        door.acceptor.resume()  # it has not even started
        door.call()
        await asyncio.sleep(0.01)
        assert not door.taken
        door.refused = "full"
        door.acceptor.start()
        await asyncio.sleep(PAUSE_S / 2)
        door.refused = ""
        begin = asyncio.get_running_loop().time()
        door.acceptor.resume()
        await door.until_taken(1)
        assert asyncio.get_running_loop().time() - begin < PAUSE_S / 2

    monkeypatch.setitem(globals(), "PAUSE_S", 2.0)
    run(visit)


def test_out_of_descriptors_it_pauses_and_goes_on() -> None:
    async def visit(door: Door) -> None:
        [caller] = door.call()
        with descriptors_left(0):
            door.acceptor.start()
            await asyncio.sleep(PAUSE_S / 2)
            assert not door.taken
            assert door.said == [SPENT]
        await door.until_taken(1)
        caller.sendall(b"it has waited")

    run(visit)


def test_the_last_descriptors_are_not_for_callers_where_they_are_kept() -> None:
    async def visit(door: Door) -> None:
        door.call(3)
        with descriptors_left(RESERVED_DESCRIPTORS):
            door.acceptor.start()
            await asyncio.sleep(PAUSE_S / 2)
            assert len(door.taken) <= 1
            assert door.said[0] == SPENT
        await door.until_taken(3)

    run(visit, keeps_reserve=True)


def test_where_every_call_fails_it_does_not_spin() -> None:
    async def visit() -> None:
        no_listener, other = socket.socketpair()  # accept(2) fails on it with EINVAL
        said: list[str] = []
        acceptor = Acceptor(
            asyncio.get_running_loop(),
            no_listener,
            lambda sock: None,
            per_round=4,
            pause_s=10,
            on_pause=said.append,
        )
        with other:
            acceptor.start()
            other.send(b"x")
            await asyncio.sleep(0.02)
            assert len(said) == 1
            acceptor.close()

    asyncio.run(visit())


def test_the_callback_may_close_the_acceptor() -> None:
    async def visit(door: Door) -> None:
        door.call(3)
        taken: list[socket.socket] = []

        def take(sock: socket.socket) -> None:
            taken.append(sock)
            acceptor.close()

        door.acceptor.close()
        sock = socket.create_server(("127.0.0.1", 0))
        acceptor = Acceptor(asyncio.get_running_loop(), sock, take, per_round=4, pause_s=1)
        acceptor.start()
        callers = [socket.create_connection(sock.getsockname()) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert len(taken) == 1
        for each in (*taken, *callers):
            each.close()

    run(visit)


def test_closing_twice_ends_a_pause_too() -> None:
    async def visit(door: Door) -> None:
        door.refused = "full"
        door.acceptor.start()
        door.call()
        await asyncio.sleep(0.01)
        door.acceptor.close()
        door.acceptor.close()
        door.refused = ""
        await asyncio.sleep(PAUSE_S * 1.5)
        assert not door.taken

    run(visit)
