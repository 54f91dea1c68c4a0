"""A network of lanes under a virtual clock: latency, limited rate, chunks of any size, death.

Not a model of ssh in detail. What matters to the protocol is in it: a lane is an ordered byte pipe
with a bounded buffer in front of it; its bytes arrive late and in pieces that have nothing to do
with frames; it may die at any byte, and then each end learns of it at a time of its own, the two
directions having lost everything from a position of their own. ::

    transmit -> [ buffer <= capacity ] -> rate -> latency -> pieces -> receive
"""

import heapq
import random
from collections.abc import Callable


class Clock:
    """Runs callbacks in the order of their virtual times; never waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.steps += 1
        heapq.heappush(self._heap, (max(when, self.now), self.steps, what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay_s, what)

    def run_next(self) -> bool:
        """Run the next callback; False if there is none."""
        if not self._heap:
            return False
        self.now, _, what = heapq.heappop(self._heap)
        what()
        return True


class Direction:
    """One direction of one lane. ``deliver`` is called with pieces, ``drained`` when room is made.

    ``dies_at`` is the position of the last byte that arrives; None for a lane that lives.
    """

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        *,
        latency_s: float,
        bytes_per_s: float,
        capacity_bytes: int,
    ) -> None:
        self.deliver: Callable[[bytes], None] = lambda data: None
        self.drained: Callable[[], None] = lambda: None
        self.on_death: Callable[[], None] = lambda: None
        self.dies_at: int | None = None
        self.dead = False
        self.arrived = 0
        self._clock, self._rng = clock, rng
        self._latency_s, self._bytes_per_s = latency_s, bytes_per_s
        self._capacity_bytes = capacity_bytes
        self._buffer = bytearray()
        self._sending = False

    @property
    def room_bytes(self) -> int:
        return max(self._capacity_bytes - len(self._buffer), 0)

    def write(self, data: bytes) -> None:
        self._buffer += data
        if not self._sending:
            self._send_next()

    def kill_now(self) -> None:
        """Nothing more arrives, whatever is under way."""
        self.dead = True

    def _send_next(self) -> None:
        self._sending = bool(self._buffer) and not self.dead
        if not self._sending:
            return
        size = min(len(self._buffer), int(self._rng.paretovariate(0.35) * 40), 65536)
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        busy_s = size / self._bytes_per_s
        self._clock.after(busy_s + self._latency_s, lambda: self._arrive(piece))
        self._clock.after(busy_s, self._sent)

    def _sent(self) -> None:
        self._send_next()
        if not self.dead:
            self.drained()

    def _arrive(self, piece: bytes) -> None:
        if self.dead:
            return
        if self.dies_at is not None and self.arrived + len(piece) >= self.dies_at:
            piece = piece[: max(self.dies_at - self.arrived, 0)]
            self.dead = True
        self.arrived += len(piece)
        if piece:
            self.deliver(piece)
        if self.dead:
            self.on_death()
