"""Splice, tee and timers by the C library: what moves, what stays, and nothing ever waits."""

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sshunt.relay import linux
from sshunt.relay.linux import Timer, can_splice, can_tee, splice, tee

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux' own")

Pipe = tuple[int, int]


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    two = os.pipe(), os.pipe()
    yield two
    for pipe in two:
        for end in pipe:
            os.close(end)


@pytest.fixture(params=["of Python", "of the C library"])
def any_splice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has one from 3.10 on."""
    if request.param == "of the C library":
        monkeypatch.delattr(os, "splice", raising=False)
    elif not hasattr(os, "splice"):
        pytest.skip("this Python has none")


def test_splice_moves_what_is_there_up_to_a_size(
    any_splice: None, pipes: tuple[Pipe, Pipe]
) -> None:
    (source, feed), (drain, sink) = pipes
    os.write(feed, b"hello world")
    assert splice(source, sink, 5) == 5
    assert os.read(drain, 100) == b"hello"
    assert splice(source, sink, 100) == 6
    assert os.read(drain, 100) == b" world"


def test_splice_moves_from_a_pipe_into_a_socket_and_back(
    any_splice: None, pipes: tuple[Pipe, Pipe]
) -> None:
    (source, feed), (drain, sink) = pipes
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.write(feed, b"there")
        assert splice(source, ours.fileno(), 100) == 5
        assert theirs.recv(100) == b"there"
        theirs.sendall(b"and back")
        assert splice(ours.fileno(), sink, 100) == 8
        assert os.read(drain, 100) == b"and back"


def test_splice_does_not_wait_for_bytes_or_for_room(
    any_splice: None, pipes: tuple[Pipe, Pipe]
) -> None:
    (source, feed), (_, sink) = pipes
    with pytest.raises(BlockingIOError):
        splice(source, sink, 100)
    os.write(feed, b"x")
    os.set_blocking(sink, False)
    with suppress(BlockingIOError):
        while True:
            os.write(sink, bytes(4096))
    with pytest.raises(BlockingIOError):
        splice(source, sink, 100)


def test_splice_needs_a_pipe_at_one_end(any_splice: None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="Invalid argument"):
        splice(ours.fileno(), theirs.fileno(), 100)


def test_what_was_teed_is_in_both_pipes(pipes: tuple[Pipe, Pipe]) -> None:
    (source, feed), (drain, sink) = pipes
    os.write(feed, b"twice")
    assert tee(source, sink, 100) == 5
    assert os.read(drain, 100) == os.read(source, 100) == b"twice"


def test_tee_does_not_wait_and_says_what_is_wrong(pipes: tuple[Pipe, Pipe]) -> None:
    (source, _), (_, sink) = pipes
    with pytest.raises(BlockingIOError):
        tee(source, sink, 100)
    with pytest.raises(OSError, match="Bad file descriptor"):
        tee(-1, sink, 100)


def test_what_can_be_called_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_splice()
    assert can_tee()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "splice", raising=False)
    linux._library.cache_clear()
    try:
        assert not can_splice()
        assert not can_tee()
    finally:
        linux._library.cache_clear()


# --- timers ---------------------------------------------------------------------------------------


@pytest.fixture
def timer() -> Iterator[Timer]:
    timer = Timer()
    yield timer
    os.close(timer.fd)


def is_readable(timer: Timer, within_s: float) -> bool:
    return bool(select.select([timer.fd], [], [], within_s)[0])


def test_a_timer_is_readable_after_its_time_and_until_it_is_started_or_stopped(
    timer: Timer,
) -> None:
    assert not is_readable(timer, 0)
    timer.start(0.001)
    assert is_readable(timer, 20.0)
    assert is_readable(timer, 0)
    timer.start(0.9)
    assert not is_readable(timer, 0)
    timer.start(0.001)
    assert is_readable(timer, 20.0)
    timer.stop()
    assert not is_readable(timer, 0)


def test_a_timer_that_was_stopped_does_not_ring(timer: Timer) -> None:
    timer.start(0.01)
    timer.stop()
    assert not is_readable(timer, 0.1)


def test_a_timer_s_descriptor_neither_waits_nor_is_inherited(timer: Timer) -> None:
    assert not os.get_blocking(timer.fd)
    assert not os.get_inheritable(timer.fd)
