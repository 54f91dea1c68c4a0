"""Which stream's data leaves next.

Two classes (the idea is fq_codel's, RFC 8290 §4): a *sparse* stream, one that sent little in the
last round trip, goes before *bulk*, so that a keystroke or a new connection never waits behind a
download. Bulk streams share by round robin with a deficit (Shreedhar and Varghese, 1995), or rather
a surplus: each turn adds a quantum of bytes, a stream sends while it has some left, and what its
last frame was too large by is missing in the next turn. Frames are not cut for it.

Sparse streams are few bytes by definition, but there may be thousands: after SPARSE_RUN_BYTES of
them in a row one bulk frame is let through. So a stream with data and credit is always served
within a bounded number of bytes, whatever the others do.

Control frames and datagrams don't come here: outgoing puts them before all data.
"""

from collections import deque
from typing import Deque, Optional, Tuple

from sshunt.mux.limits import DATA_BYTES, KIB
from sshunt.mux.payload import Payload
from sshunt.mux.streams import ANY_LANE, Stream

#: The most that a sparse stream has sent since its last round trip began: an interactive session's
#: screenful, a small request and its answer.
SPARSE_BYTES = 16 * 1024

#: The number of sparse bytes in a row after which bulk gets one frame.
SPARSE_RUN_BYTES = 256 * KIB

#: The most that a bulk stream may send in one turn.
QUANTUM_BYTES = DATA_BYTES

#: The time over which a stream's bytes are counted while round trips are not known yet, or shorter
#: than our own reaction.
MIN_ROUND_S = 0.005


class Scheduler:
    """Streams that have work, in two queues. A stream is in at most one of them, once."""

    __slots__ = ("_sparse_run_bytes", "bulk", "quantum_bytes", "sparse")

    def __init__(self) -> None:
        #: What a bulk stream may send in one turn: a frame of the lane at hand. With twenty streams
        #: on a slow lane a larger one would let each wait for seconds between its turns.
        self.quantum_bytes = QUANTUM_BYTES
        #: The queues. Attributes, and not behind properties: they are looked at for each frame.
        self.sparse: Deque[Stream] = deque()
        self.bulk: Deque[Stream] = deque()
        self._sparse_run_bytes = 0

    def activate(self, stream: Stream, now: float, rtt_s: float) -> None:
        """``stream`` may have work: queue it unless it is queued already."""
        if stream.scheduled or not stream.sender.has_work:
            return
        stream.scheduled = True
        if now - stream.recent_at > max(rtt_s, MIN_ROUND_S):
            stream.recent_at = now
            stream.recent_bytes = 0
        if stream.recent_bytes + stream.sender.sendable_bytes <= SPARSE_BYTES:
            self.sparse.append(stream)
        else:
            stream.quantum_left = 0
            self.bulk.append(stream)

    def queued_bytes(self) -> Tuple[int, int]:
        """(sparse, bulk) bytes that could leave now if the lanes let them."""
        sparse = sum(stream.sender.sendable_bytes for stream in self.sparse)
        return sparse, sum(stream.sender.sendable_bytes for stream in self.bulk)

    def take(
        self, lane: int, size: int, bulk: bool = True, any_sparse: bool = True
    ) -> Optional[Tuple[Stream, int, Optional[Payload]]]:
        """(stream, offset, payload of at most ``size`` bytes; None is FIN) to put on ``lane``.

        None if no stream has work that this lane may carry. Without ``bulk`` only sparse streams
        are asked; without ``any_sparse`` only those sparse streams that may take no other lane.
        """
        if not any_sparse:
            item = self._take_from(self.sparse, lane, lane, size)
            return item or (self._take_from(self.bulk, lane, ANY_LANE, size) if bulk else None)
        if not bulk:
            return self._take_from(self.sparse, lane, ANY_LANE, size)
        bulk_turn = self._sparse_run_bytes >= SPARSE_RUN_BYTES
        first, second = (self.bulk, self.sparse) if bulk_turn else (self.sparse, self.bulk)
        item = self._take_from(first, lane, ANY_LANE, size)
        return item or self._take_from(second, lane, ANY_LANE, size)

    def _take_from(
        self,
        queue: Deque[Stream],
        lane: int,
        pinned_lane: int,
        size: int,
    ) -> Optional[Tuple[Stream, int, Optional[Payload]]]:
        """From the first stream that is pinned to ``lane``, or to ``pinned_lane``."""
        for _ in range(len(queue)):
            stream = queue[0]
            if stream.pinned_lane != lane and stream.pinned_lane != pinned_lane:
                queue.rotate(-1)
                continue
            taken = stream.sender.take(size)
            queue.popleft()
            if taken is None:  # it was reset, or its credit was called back
                stream.scheduled = False
                continue
            offset, payload = taken
            self._put_back(queue, stream, len(payload) if payload is not None else 0)
            return stream, offset, payload
        return None

    def _put_back(self, queue: Deque[Stream], stream: Stream, taken: int) -> None:
        """``taken`` bytes of ``stream``, which was the head of ``queue``, leave: put it where it
        belongs now.
        """
        stream.recent_bytes += taken
        if queue is self.bulk:
            if stream.quantum_left <= 0:
                stream.quantum_left += self.quantum_bytes
            self._sparse_run_bytes = 0
            stream.quantum_left = max(stream.quantum_left - taken, -self.quantum_bytes)
            if stream.sender.has_work:
                if stream.quantum_left > 0:
                    queue.appendleft(stream)
                else:
                    queue.append(stream)
                return
        else:
            self._sparse_run_bytes += taken
            if stream.sender.has_work:
                is_sparse = stream.recent_bytes <= SPARSE_BYTES
                (self.sparse if is_sparse else self.bulk).append(stream)
                return
        stream.scheduled = False
