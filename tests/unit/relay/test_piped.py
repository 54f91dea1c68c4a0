"""Payloads in pipes: whatever is done to them, in whatever order, the bytes are those of memory."""

import asyncio
import os
import random
import socket
import sys
from collections.abc import Iterator

import pytest

from sshunt.mux.payload import Payload
from sshunt.relay import piped
from sshunt.relay.piped import PIPED_BYTES, PipedPayload, Pipes, widen_pipe

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tee(2) is Linux")


#: What an event loop has open: its epoll set, and the pair that wakes it.
LOOP_DESCRIPTORS = 3


class Sink:
    """A lane's pipe and the ssh behind it."""

    def __init__(self, size: int = 65536) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        widen_pipe(self.write_fd, size)

    def read(self, size: int = 1 << 20) -> bytes:
        try:
            return os.read(self.read_fd, size)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pool = Pipes(least_bytes=1)
    yield pool
    assert pool.in_use == 0, "a pipe was never given back"
    pool.close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    end = Sink()
    yield end
    end.close()


def received(pipes: Pipes, data: bytes) -> Payload:
    """``data`` as it comes out of a TCP socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with far, near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        near.recv(1, socket.MSG_PEEK)
        while near.recv(len(data), socket.MSG_PEEK | socket.MSG_WAITALL) != data:
            pass
        payload = pipes.receive(near.fileno(), len(data))
    assert payload is not None
    assert len(payload) == len(data)
    return payload


def sent(payload: Payload, sink: Sink) -> bytes:
    """Everything of ``payload``, as a lane sends it that is drained now and then."""
    out = bytearray()
    while isinstance(payload, PipedPayload) and payload.is_piped and payload.unsent_bytes:
        try:
            payload.send(sink.write_fd)
        except BlockingIOError:
            out += sink.read(5000)
    while more := sink.read():
        out += more
    if not (isinstance(payload, PipedPayload) and payload.is_piped):
        out += payload.unsent if isinstance(payload, PipedPayload) else payload.view
    return bytes(out)


DATA = bytes(range(256)) * 400


def test_a_piped_payload_can_be_sent_twice(pipes: Pipes, sink: Sink) -> None:
    payload = received(pipes, DATA)
    assert sent(payload, sink) == DATA
    payload.rewind()
    assert sent(payload, sink) == DATA
    payload.release()
    assert len(payload) == 0


def test_a_part_goes_on_where_it_stopped_and_begins_anew_when_it_is_lost(pipes: Pipes) -> None:
    sink = Sink(4096)
    payload = received(pipes, DATA)
    assert isinstance(payload, PipedPayload)
    assert 0 < payload.send(sink.write_fd) < len(DATA)
    with pytest.raises(BlockingIOError):
        payload.send(sink.write_fd)
    while sink.read():
        pass
    payload.rewind()
    assert sent(payload, sink) == DATA
    payload.release()
    sink.close()


def test_a_payload_that_is_cut_is_two(pipes: Pipes, sink: Sink) -> None:
    rest = received(pipes, DATA)
    head = rest.cut(1000)
    assert (len(head), len(rest)) == (1000, len(DATA) - 1000)
    assert sent(rest, sink) == DATA[1000:]
    assert sent(head, sink) == DATA[:1000]
    head.release()
    rest.release()


def test_small_payloads_are_read_into_memory_and_hold_no_pipe() -> None:
    pipes = Pipes()
    for size in (1, PIPED_BYTES - 1):
        payload = received(pipes, DATA[:size])
        assert bytes(payload.view) == DATA[:size]
        assert pipes.in_use == 0
    large = received(pipes, DATA[:PIPED_BYTES])
    assert pipes.in_use == 1
    head = large.cut(1)  # neither the one byte nor what is left is worth a pipe
    assert pipes.in_use == 0
    assert bytes(head.view) + bytes(large.view) == DATA[:PIPED_BYTES]
    pipes.close()


def test_an_empty_or_ended_socket_is_left_to_an_ordinary_read(pipes: Pipes) -> None:
    """splice(2) also says so before an urgent byte."""
    near, far = socket.socketpair()
    near.setblocking(False)
    assert pipes.receive(near.fileno(), 1000) is None
    far.close()
    assert pipes.receive(near.fileno(), 1000) is None
    near.close()


def test_a_socket_that_was_reset_says_so(pipes: Pipes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(ConnectionResetError):
        pipes.receive(near.fileno(), 1000)
    near.close()


def test_when_all_pipes_are_taken_there_is_none_until_one_comes_back() -> None:
    pipes = Pipes(most=2, least_bytes=1)
    first, second = received(pipes, b"one"), received(pipes, b"two")
    near, far = socket.socketpair()
    far.send(b"three")
    assert pipes.receive(near.fileno(), 1000) is None
    first.release()
    third = pipes.receive(near.fileno(), 1000)
    assert third is not None
    third.keep()
    assert bytes(third.view) == b"three"
    second.release()
    for sock in (near, far):
        sock.close()
    pipes.close()


def test_after_a_refusal_of_the_kernel_splice_is_not_tried_again() -> None:
    pipes = Pipes(least_bytes=1)
    directory = os.open("/", os.O_RDONLY)
    assert pipes.receive(directory, 1000) is None
    near, far = socket.socketpair()
    far.send(b"x")
    assert pipes.receive(near.fileno(), 1000) is None
    os.close(directory)
    near.close()
    far.close()
    pipes.close()


def test_a_payload_is_empty_when_its_pool_is_closed() -> None:
    pipes = Pipes(least_bytes=1)
    payload = received(pipes, DATA)
    pipes.close()
    payload.release()
    assert len(payload) == 0


def test_a_shortage_of_pipes_ends_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = Pipes(least_bytes=1)
    first = pipes.take()
    with monkeypatch.context() as patch:
        patch.setattr(piped, "widen_pipe", lambda fd, size: 0)
        assert pipes.take() is None
    assert pipes.take() is None, "asked for again at once"
    monkeypatch.setattr(piped, "SHORTAGE_S", 0.0)
    second = pipes.take()
    assert second is not None
    assert first is not None
    pipes.give_back(first, 0)
    pipes.give_back(second, 0)
    pipes.close()


def test_pipes_that_nobody_has_needed_for_a_while_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(piped, "SPARE_S", 0.05)
    before = len(os.listdir("/proc/self/fd"))

    async def conversation() -> None:
        pipes = Pipes(least_bytes=1, loop=asyncio.get_running_loop())
        taken = [pipes.take() for _ in range(5)]
        await asyncio.sleep(0.2)
        for pipe in taken:
            assert pipe is not None
            pipes.give_back(pipe, 0)
        assert pipes.take() in taken, "made anew"
        assert pipes.in_use == 1
        deadline = asyncio.get_running_loop().time() + 10
        while len(os.listdir("/proc/self/fd")) > before + 2 + LOOP_DESCRIPTORS:
            assert asyncio.get_running_loop().time() < deadline, "spare pipes stay open"
            await asyncio.sleep(0.02)
        pipes.close()

    asyncio.run(conversation())


def test_giving_up_a_session_closes_its_pipes() -> None:
    pipes = Pipes(least_bytes=1)
    payload = received(pipes, DATA)
    pipes.give_up()
    assert pipes.in_use == 0
    payload.release()
    other = received(pipes, DATA)
    assert pipes.in_use == 1
    other.release()
    pipes.close()


def test_beyond_the_quota_of_the_user_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piped, "widen_pipe", lambda fd, size: 0)
    pipes = Pipes(least_bytes=1)
    before = len(os.listdir("/proc/self/fd"))
    assert pipes.take() is None
    assert len(os.listdir("/proc/self/fd")) == before
    pipes.close()


@pytest.mark.parametrize("seed", range(200))
def test_any_sequence_of_operations_leaves_the_bytes_as_they_were(seed: int) -> None:
    """Against bytes in memory: cuts, partial sends, losses, pipes that run out or hold little."""
    rng = random.Random(seed)
    pipes = Pipes(most=rng.choice((1, 2, 3, 20)), least_bytes=rng.choice((1, 500, PIPED_BYTES)))
    sink = Sink(rng.choice((4096, 65536, 1 << 20)))
    data = rng.randbytes(rng.randrange(1, 100_000))
    known = {0: data}
    parts: dict[int, Payload] = {0: received(pipes, data)}
    for _ in range(rng.randrange(30)):
        number = rng.choice(list(parts))
        part, step = parts[number], rng.random()
        if step < 0.3 and len(part) > 1 and not getattr(part, "_sent_bytes", 0):
            size = rng.randrange(1, len(part))
            new = max(parts) + 1
            parts[new], known[new] = part.cut(size), known[number][:size]
            known[number] = known[number][size:]
        elif step < 0.6 and isinstance(part, PipedPayload) and part.is_piped and part.unsent_bytes:
            already = len(part) - part.unsent_bytes
            try:
                moved = part.send(sink.write_fd)
            except BlockingIOError:
                moved = 0
            out = b""
            while len(out) < moved:
                out += sink.read(rng.randrange(1, 70_000))
            assert out == known[number][already : already + moved]
        elif step < 0.8:
            part.rewind()
        elif step < 0.85:
            part.keep()
        elif step < 0.9 and not getattr(part, "_sent_bytes", 0):
            assert bytes(part.duplicate().view) == known[number]
    for number in sorted(parts, key=lambda _: rng.random()):
        parts[number].rewind()
        assert sent(parts[number], sink) == known[number]
        parts[number].release()
    assert pipes.in_use == 0
    pipes.close()
    sink.close()


def test_another_session_keeps_its_pipes() -> None:
    pipes = Pipes(least_bytes=1)
    near, far = socket.socketpair()
    near.setblocking(False)
    payloads = {}
    for whose in ("given up", "kept"):
        far.sendall(DATA)
        payloads[whose] = pipes.receive(near.fileno(), len(DATA), whose)
    pipes.give_up("given up")
    assert pipes.in_use == 1
    kept = payloads["kept"]
    assert kept is not None
    kept.keep()
    assert bytes(kept.view) == DATA
    assert pipes.in_use == 0
    near.close()
    far.close()
    pipes.close()
