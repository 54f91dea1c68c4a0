"""The whole data path under everything that can go wrong at once, whichever way payload takes.

Several connections carry known bytes in both directions at odd sizes and speeds, some are reset in
the middle, some half-closed, the lane's pipes hold little, and lanes die at random. Whatever a
connection delivers is a prefix of what was written into it, all of it if it ended in order.
"""

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress

import pytest

from sshunt.relay import lane as lane_module
from sshunt.relay.reactor import COPY
from tests.unit.relay.ends import Ends, listen, run, threaded
from tests.unit.relay.test_tcp import joined, settle

CONNECTIONS = 4


class Half:
    """One direction of one connection: what goes in at ``source`` and came out at ``sink``."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, seed: int, *, resets: bool
    ) -> None:
        rng = random.Random(seed)
        self.data = rng.randbytes(rng.choice((0, 1, 5_000, 300_000, 3_000_000)))
        self.cut = rng.randrange(len(self.data) + 1) if resets else len(self.data)
        self.received = bytearray()
        self.ended_in_order = False
        self.is_deaf = False  # its reader resets the connection
        self._source, self._sink, self._seed = source, sink, seed

    def write(self) -> None:
        rng = random.Random(self._seed)
        at = 0
        with suppress(OSError):
            while at < self.cut:
                size = min(rng.choice((1, 700, 40_000, 1_000_000)), self.cut - at)
                self._source.sendall(self.data[at : at + size])
                at += size
                if rng.random() < 0.1:
                    threading.Event().wait(0.003)
            if self.cut < len(self.data):
                linger = struct.pack("ii", 1, 0)
                self._source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._source.close()
            else:
                self._source.shutdown(socket.SHUT_WR)

    def read(self) -> None:
        rng = random.Random(self._seed + 1)
        try:
            while part := self._sink.recv(rng.choice((500, 60_000, 1_000_000))):
                self.received += part
                if rng.random() < 0.1:
                    threading.Event().wait(0.003)
            self.ended_in_order = True
        except ConnectionError:
            pass  # as it should be, where the other end was reset


@pytest.mark.parametrize("seed", range(12))
def test_no_byte_is_lost_doubled_or_given_to_another_connection(
    seed: int, way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(lane_module, "PIPE_BYTES", rng.choice((4096, 65536, 1 << 20)))

    async def conversation(ends: Ends) -> None:
        halves: list[Half] = []
        with listen() as listener:
            for number in range(CONNECTIONS):
                program, host = await joined(ends, listener)
                resets = rng.random() < 0.3
                for source, sink in ((program, host), (host, program)):
                    key = 100 * seed + 10 * number + len(halves)
                    halves.append(Half(source, sink, key, resets=resets and source is program))
                halves[-1].is_deaf = halves[-2].cut < len(halves[-2].data)
        jobs = [threaded(half.write) for half in halves]
        # A socket that somebody waits for is not reset before he has stopped waiting.
        jobs += [threaded(half.read) for half in halves if not half.is_deaf]
        killing = asyncio.ensure_future(kill_lanes(ends, rng))
        await asyncio.gather(*jobs)
        killing.cancel()
        for up, down in zip(halves[::2], halves[1::2], strict=True):
            whole = up.cut == len(up.data)
            for half in (up, down):
                assert half.data.startswith(half.received)
                assert not half.ended_in_order or half.received == half.data or not whole
                assert not whole or half.ended_in_order
        for half in halves:
            half._source.close()
        if not ends.client.lanes:
            ends.join(1000)
        await settle(ends)
        assert (ends.client.teed_bytes > 0) <= (way != COPY)

    run(conversation, way=way)


async def kill_lanes(ends: Ends, rng: random.Random) -> None:
    """Again and again, the youngest first, with another one up before, at once or a while later."""
    for number in range(1, 100):
        await asyncio.sleep(rng.choice((0.001, 0.004, 0.02)))
        before = rng.random() < 0.5
        if before:
            ends.join(number)
        for tunnel in rng.sample((ends.client, ends.agent), 2):
            lane = tunnel.lanes.get(number - 1)
            if lane is not None:
                tunnel.lane_ended(lane, "cut by the test")
        if not before:
            await asyncio.sleep(rng.choice((0, 0, 0.01)))
            ends.join(number)
