"""The lane's two ways in: through the buffer, and past it inside the kernel.

A peer of our own writes frames into a real pipe, cut anywhere; what comes out of the sockets must
be what went in, whichever way it took.
"""

import asyncio
import fcntl
import os
import random
import socket
import termios
import threading

import pytest

from sshunt.mux import frames
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import CLIENT
from sshunt.mux.limits import DATA_BYTES, INITIAL_WINDOW_BYTES
from sshunt.mux.session import Session
from sshunt.relay.reactor import AUTO, COPY, SPLICE, Reactor
from sshunt.relay.tunnel import Tunnel
from tests.unit.relay.ends import Hears, threaded


class Far:
    """The far end of one lane of a client tunnel, as bytes; and the near end's programs."""

    def __init__(self, streams: int, way: int = AUTO) -> None:
        loop = asyncio.get_running_loop()
        hears = Hears()
        self.tunnel = Tunnel(Reactor(loop, way=way), Session(CLIENT), hears, outlives_lanes=True)
        self.ended: list[str] = []
        hears.lane_ended = lambda _lane, reason: self.ended.append(reason)
        near_read, self.write_fd = os.pipe()
        self.read_fd, near_write = os.pipe()
        self.tunnel.add_lane(0, near_read, near_write)
        self._drain = threading.Thread(target=self._swallow, daemon=True)
        self._drain.start()
        self.programs: list[socket.socket] = []
        self.ids: list[int] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for _ in range(streams):
                program = socket.create_connection(listener.getsockname())
                program.settimeout(20)
                ours, _ = listener.accept()
                ours.setblocking(False)
                stream = self.tunnel.open(Destination(TCP, "192.0.2.1", 80))
                self.tunnel.relay(stream).start(ours)
                self.programs.append(program)
                self.ids.append(stream.id)

    def _swallow(self) -> None:
        while os.read(self.read_fd, 65536):
            pass

    def write_in_pieces(self, data: bytes, rng: random.Random) -> None:
        at = 0
        while at < len(data):
            size = rng.choice((1, 16, 100, 4096, 4096, 65536))
            at += os.write(self.write_fd, data[at : at + size])
            if rng.random() < 0.2:
                threading.Event().wait(0.002)  # the reader finds the lane cut here

    async def write_apart(self, head: bytes, payload: bytes) -> None:
        """The payload comes when its header has been read, as over a slow link."""
        for part in (head, payload):
            os.write(self.write_fd, part)
            while fcntl.ioctl(self.write_fd, termios.FIONREAD, bytes(4)) != bytes(4):
                await asyncio.sleep(0.001)

    def close(self) -> None:
        self.tunnel.close()
        self.tunnel.reactor.close()
        self._drain.join()
        os.close(self.write_fd)
        os.close(self.read_fd)
        for program in self.programs:
            program.close()


def read_all_slowly(sock: socket.socket, rng: random.Random) -> bytes:
    """Everything until the end, with pauses that fill the socket on the way."""
    parts = []
    while part := sock.recv(rng.choice((100, 10_000, 1_000_000))):
        parts.append(part)
        if rng.random() < 0.01:
            threading.Event().wait(0.005)
    return b"".join(parts)


@pytest.mark.parametrize("way", [SPLICE, COPY], ids=["splice", "copy"])
@pytest.mark.parametrize("seed", range(4))
def test_frames_cut_anywhere_come_out_whole_of_the_right_socket(seed: int, way: int) -> None:
    rng = random.Random(seed)

    async def conversation() -> None:
        far = Far(3, way)
        contents = [rng.randbytes(rng.randrange(INITIAL_WINDOW_BYTES)) for _ in far.ids]
        first = contents[0][:5000]
        head = frames.encode_data_head(far.ids[0], 0, len(first))
        await far.write_apart(head, first)
        assert (far.tunnel.spliced_bytes > 0) == (way == SPLICE)
        sent = [len(first), 0, 0]
        wire = []
        unfinished = set(range(len(far.ids)))
        while unfinished:
            index = rng.choice(sorted(unfinished))
            size = min(rng.choice((1, 500, 5000, DATA_BYTES)), len(contents[index]) - sent[index])
            if size:
                piece = contents[index][sent[index] : sent[index] + size]
                wire.append(frames.encode_data_head(far.ids[index], sent[index], size) + piece)
                sent[index] += size
            else:
                wire.append(frames.encode_fin(far.ids[index], sent[index]))
                unfinished.discard(index)
            if rng.random() < 0.2:
                wire.append(frames.encode_ping())
        results = await asyncio.gather(
            threaded(lambda: far.write_in_pieces(b"".join(wire), rng)),
            *(
                threaded(lambda p=program: read_all_slowly(p, random.Random(seed)))  # type: ignore[misc]
                for program in far.programs
            ),
        )
        assert results[1:] == contents
        assert not far.ended
        far.close()

    asyncio.run(conversation())


def test_payload_for_a_program_that_went_away_is_dropped_and_the_lane_lives() -> None:
    async def conversation() -> None:
        far = Far(2)
        gone, alive = far.ids
        far.programs[0].close()
        data = os.urandom(200_000)
        head = frames.encode_data_head(gone, 0, len(data))
        other = frames.encode_data_head(alive, 0, len(data)) + data
        wire = head + data + other + frames.encode_fin(alive, len(data))
        await threaded(lambda: far.write_in_pieces(wire, random.Random(1)))
        received = await threaded(lambda: read_all_slowly(far.programs[1], random.Random(1)))
        assert received == data
        assert not far.ended
        far.close()

    asyncio.run(conversation())


def test_payload_beyond_the_credit_never_reaches_the_socket() -> None:
    async def conversation() -> None:
        far = Far(1)
        size = INITIAL_WINDOW_BYTES // 2
        head = frames.encode_data_head(far.ids[0], INITIAL_WINDOW_BYTES + 1, size)
        os.write(far.write_fd, head + bytes(1000))
        while not far.ended:
            await asyncio.sleep(0.001)
        assert "granted" in far.ended[0]
        far.close()

    asyncio.run(conversation())


def test_a_payload_in_tiny_pieces_does_not_cost_a_page_each() -> None:
    """A splice moves references: a byte for which the far side pays one would cost us a page."""

    async def conversation() -> None:
        far = Far(1)
        data = os.urandom(INITIAL_WINDOW_BYTES // 2)
        os.write(far.write_fd, frames.encode_data_head(far.ids[0], 0, len(data)))
        for at in range(0, 100_000, 200):
            os.write(far.write_fd, data[at : at + 200])
            while far.tunnel.session.lanes[0].received < at:
                await asyncio.sleep(0)
        os.write(far.write_fd, data[100_000:])
        os.write(far.write_fd, frames.encode_fin(far.ids[0], len(data)))
        assert await threaded(lambda: read_all_slowly(far.programs[0], random.Random(1))) == data
        assert far.tunnel.spliced_bytes < 4096
        far.close()

    asyncio.run(conversation())
