"""What waits for a socket: kept as it came, written as the socket takes it."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sshunt.relay.backlog import JOINED_BYTES, Backlog

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A small socket that does not wait, and its other end."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def backlog_of(*pieces: bytes) -> Backlog:
    backlog = Backlog()
    for piece in pieces:
        backlog.keep(memoryview(piece))
    return backlog


def test_what_is_kept_does_not_change_with_the_buffer_that_it_came_in(pair: Pair) -> None:
    ours, theirs = pair
    buffer = bytearray(b"words")
    backlog = Backlog()
    backlog.keep(memoryview(buffer))
    buffer[:] = b"other"
    assert backlog.write(ours) == 5
    assert theirs.recv(100) == b"words"


def test_bytes_that_come_one_by_one_share_an_object(pair: Pair) -> None:
    ours, theirs = pair
    backlog = backlog_of(*[b"x"] * 1000)
    assert (len(backlog), len(backlog._pieces)) == (1000, 1)
    backlog.keep(memoryview(bytes(JOINED_BYTES)))
    backlog.keep(memoryview(b"behind a large one"))
    assert len(backlog._pieces) == 2
    backlog.write(ours)
    assert theirs.recv(1000) == b"x" * 1000


def test_everything_is_written_in_order_whatever_the_socket_takes_at_a_time(pair: Pair) -> None:
    ours, theirs = pair
    whole = bytes(range(256)) * 2000
    backlog = backlog_of(whole[:3], whole[3:300_000], whole[300_000:])
    came = bytearray()
    written = 0
    while backlog:
        written += backlog.write(ours)
        assert len(backlog) == len(whole) - written
        came += theirs.recv(1 << 20)
    theirs.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            came += theirs.recv(1 << 20)
    assert (bytes(came), len(backlog)) == (whole, 0)


def test_nothing_that_waits_is_false(pair: Pair) -> None:
    ours, _ = pair
    assert not Backlog()
    backlog = backlog_of(b"words")
    assert backlog
    backlog.write(ours)
    assert not backlog


def test_a_socket_that_takes_nothing_is_no_error_and_one_that_is_dead_is(pair: Pair) -> None:
    ours, theirs = pair
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(4096))
    backlog = backlog_of(b"words")
    assert (backlog.write(ours), len(backlog)) == (0, 5)
    theirs.close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        backlog.write(ours)
