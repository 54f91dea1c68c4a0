"""One flow: datagrams between a source of the client and one far endpoint. Its number, its queue.

    opener   OPENING, OPENING ...   every datagram names the destination until the other side has
                                    heard it: datagrams may be lost, and overtake each other
             PLAIN, BATCH ...       then the number says it all
    both     ERROR                  a datagram did not arrive; the flow goes on
             END                    the flow is over, here and there

Nothing of it is sent again. What waits for a lane is short and young: the oldest goes where there
is too much, and what is too old where a lane has come too late. Where copies of a datagram come by
two lanes, the first is handed out (``is_new``).

Not here: whose turn it is, and which flows there are (datagrams).
"""

from collections import deque
from typing import Any, Deque, NamedTuple

from sshunt.mux import datagram_frames as frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.limits import ENTRY_BYTES, SERIALS

_ALL_SERIALS = (1 << SERIALS) - 1
_MAX_SERIAL = (1 << 32) - 1


class Waiting(NamedTuple):
    """What waits for a lane. ``raw``: a whole frame instead of a datagram."""

    queued_at: float
    data: bytes
    segment_bytes: int = 0
    raw: bytes = b""

    @property
    def size_bytes(self) -> int:
        """What it takes of a queue."""
        return len(self.data) + len(self.raw) + ENTRY_BYTES


class DatagramFlow:
    """The state of one flow at one end.

    ``owner`` and ``idle_s`` belong to whoever serves the flow: what it is to him, and after how
    long without a datagram it is over (0: never).
    """

    __slots__ = (
        "_newest",
        "_seen",
        "credit_bytes",
        "heard_at",
        "idle_s",
        "is_known",
        "is_ours",
        "is_queued",
        "next_serial",
        "number",
        "owner",
        "queue",
        "queued_bytes",
        "recent_at",
        "recent_bytes",
        "sent_at",
        "target",
    )

    def __init__(self, number: int, target: FlowTarget, is_ours: bool, now: float) -> None:
        self.number = number
        self.target = target
        self.is_ours = is_ours  # this side has opened it
        self.is_known = not is_ours  # the other side knows where it leads
        self.owner: Any = None
        self.idle_s = 0.0
        self.sent_at = self.heard_at = now  # the newest datagram each way
        self.queue: Deque[Waiting] = deque()
        self.queued_bytes = 0  # ENTRY_BYTES for each included
        self.next_serial = 1  # of ours
        self._newest = 0  # serial of theirs
        self._seen = 0  # a bit for each of the SERIALS up to the newest
        # The scheduler's notes.
        self.is_queued = False
        self.credit_bytes = 0
        self.recent_at = now  # when the round trip began in which ...
        self.recent_bytes = 0  # ... so much was sent

    def add(self, waiting: Waiting) -> None:
        """Let it wait for a lane."""
        self.queue.append(waiting)
        self.queued_bytes += waiting.size_bytes

    def take(self, largest: int) -> Waiting:
        """The oldest that waits; of a batch that has more than ``largest`` bytes, as many datagrams
        as fit into that, but one at least.
        """
        waiting = self.queue.popleft()
        queued_at, data, segment_bytes, raw = waiting
        size = len(data)
        if segment_bytes and size > largest and size > segment_bytes:
            end = max(largest // segment_bytes, 1) * segment_bytes
            self.queue.appendleft(Waiting(queued_at, data[end:], segment_bytes))
            self.queued_bytes += ENTRY_BYTES
            waiting = Waiting(queued_at, data[:end], segment_bytes, raw)
        self.queued_bytes -= waiting.size_bytes
        return waiting

    def encode_head(self, waiting: Waiting, *, numbered: bool = False) -> bytes:
        """What stands before its data on the lane. ``numbered``: it may be sent more than once."""
        if waiting.raw:
            return waiting.raw
        size, segment_bytes, serial = len(waiting.data), waiting.segment_bytes, None
        if numbered and self.next_serial <= _MAX_SERIAL:
            serial = self.next_serial
            self.next_serial += 1
        if self.is_known:
            return frames.encode_datagram_head(self.number, size, segment_bytes, serial)
        return frames.encode_opening_head(self.number, self.target, size, segment_bytes, serial)

    def is_new(self, serial: int) -> bool:
        """True for a serial that has not been seen; one that is too old counts as seen."""
        behind = self._newest - serial
        if behind < 0:
            self._seen = (self._seen << -behind | 1) & _ALL_SERIALS if -behind < SERIALS else 1
            self._newest = serial
            return True
        if behind >= SERIALS or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True
