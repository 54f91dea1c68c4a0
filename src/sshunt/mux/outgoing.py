"""What leaves by a lane, and when: the session's sending side.

Order on a lane: an acknowledgement first if one waits, then control frames, then datagrams of flows
that send little, then data as the scheduler says, and by turns with its bulk the datagrams of flows
that send much: a frame's worth of them for a frame of data, or less where there are more streams
than flows. Those all go by one lane, which is left only when it stalls, so that they keep their
order. With several lanes, a few bytes of a sparse stream or flow go over two of them: whichever is
not just sending a lost segment again has them there in time, and the receiver ignores what it has.
A stream's frames stay on the lane of its OPEN until that is acknowledged; then any lane may carry
them, because offsets are absolute.

Invariants: what is urgent is taken by the lane that steering says, and by no other; bulk, of data
or datagrams, only as the lane's pacer lets; every frame that asks for an acknowledgement is noted
by its lane.

``transmit`` and ``_transmit_data`` are long on purpose: they run for every write and every frame
(docs/where-the-time-goes.md).

Not here: which lane (steering), which stream or datagram (scheduler, datagrams), what an
acknowledgement does (sent).
"""

from typing import Dict, List, Optional, Union

from sshunt.mux import frames
from sshunt.mux.datagram_frames import has_serial
from sshunt.mux.datagrams import Datagrams
from sshunt.mux.lanes import Duplicate, Lane
from sshunt.mux.limits import (
    DATAGRAM_BYTES,
    DATAGRAM_RESERVE_BYTES,
    DUPLICATE_BYTES,
    JOINED_BYTES,
    SPARSE_RESERVE_BYTES,
    TRANSMIT_BUFFERS,
)
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import SPARSE_BYTES, Scheduler
from sshunt.mux.sent import ControlQueue, Recovery, Sent, SentData, SentFin
from sshunt.mux.steering import Steering
from sshunt.mux.streams import ANY_LANE, CLOSED, Stream

#: What ``transmit`` hands out, in order: encoded bytes and payloads.
Piece = Union[bytes, Payload]


class Outgoing:
    """What waits for ``lanes``. ``touched``: streams whose writers may go on, or whose FIN has
    left, since the owner has last looked at it.
    """

    def __init__(self, lanes: Dict[int, Lane], control: ControlQueue, datagrams: Datagrams) -> None:
        self.scheduler = Scheduler()
        self.steering = Steering(lanes)
        self.touched: List[Stream] = []
        self._lanes = lanes
        self._control = control
        self._datagrams = datagrams
        self._owed_bytes = 0.0  # of the streams' bulk, before the next turn of the flows'

    # --- is there anything, and when ----------------------------------------------------------

    def next_deadline(self, after: float = 0.0) -> Optional[float]:
        """When ``transmit`` must be called at the latest though nothing else happened.

        Pass the present as ``after``, or a timer would spin: a deadline that has passed belongs to
        a lane that takes nothing now, and ``transmit`` is called when it does.
        """
        soonest: Optional[float] = None
        has_bulk = bool(self.scheduler.bulk or self._datagrams.bulk)
        for lane in self._lanes.values():
            for when in (lane.ack_due, lane.pacer.next_at if has_bulk else None):
                if when is not None and when > after and (soonest is None or when < soonest):
                    soonest = when
        return soonest

    def has_work(self, now: float) -> bool:
        """True if ``transmit`` would hand out something on a lane with room."""
        datagrams = self._datagrams
        if self._control.waiting or datagrams.sparse:
            return True
        data = self.scheduler.sparse or self.scheduler.bulk or datagrams.bulk
        for lane in self._lanes.values():
            if lane.has_own_work(now):
                return True
            if data and (
                lane.takes_bulk(now) or (self.scheduler.sparse and lane.sparse_room_bytes > 0)
            ):
                return True
        return False

    def lanes_to_fill(self, now: float) -> List[int]:
        """The lanes that ``transmit`` has something for, in the order in which they should be
        filled.
        """
        scheduler, datagrams = self.scheduler, self._datagrams
        urgent = bool(self._control.waiting or datagrams.sparse)
        bulk = bool(scheduler.bulk or datagrams.bulk)
        return self.steering.to_fill(now, urgent, bool(scheduler.sparse), bulk)

    def statistics(self) -> Dict[str, object]:
        """What waits, in bytes or frames."""
        sparse_bytes, bulk_bytes = self.scheduler.queued_bytes()
        return {
            "control_frames": len(self._control.waiting),
            "datagram_bytes": self._datagrams.payload_bytes,
            "sparse_bytes": sparse_bytes,
            "bulk_bytes": bulk_bytes,
        }

    def recover(self, lane: Lane, now: float, rtt_s: float) -> None:
        """A lane has died: what it did not get acknowledged is to leave over another one."""
        recovery = Recovery(self.scheduler, self._control, now, rtt_s)
        for sent in lane.outstanding:
            sent.on_lost(recovery)
        self._control.give_back(recovery.control)

    # --- what leaves --------------------------------------------------------------------------

    def transmit(self, lane: Lane, now: float, size: int) -> List[Piece]:
        """What to write to the lane next, about ``size`` bytes at most."""
        pieces: List[Piece] = []
        due = lane.ack_due
        if due is not None and (due <= now or self.has_work(now)):
            # First, for real: every frame behind it must know the position where it ends.
            raw = frames.encode_lane_ack(*lane.take_ack(now))
            lane.note_silent(len(raw))
            pieces.append(raw)
        stop = lane.sent + min(size, max(lane.room_bytes, 0))
        swift = len(self._lanes) == 1 or self.steering.is_swiftest(lane, now)
        if swift and self._control.waiting:
            self._transmit_control(lane, pieces, now, stop)
        if swift and self._datagrams.sparse:
            self._transmit_datagrams(lane, pieces, now, stop)
        if lane.duplicates:
            self._transmit_duplicates(lane, pieces, now, stop)
        if self.scheduler.sparse or self.scheduler.bulk or self._datagrams.bulk:
            self._transmit_data(lane, pieces, now, stop, swift)
        if lane.ping_wanted:
            lane.ping_wanted = False
            raw = frames.encode_ping()
            lane.note_sent(len(raw), now, Sent())
            pieces.append(raw)
        return pieces

    def _transmit_control(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        waiting = self._control.waiting
        while waiting and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            sent = waiting.popleft()
            raw = sent.leave(lane.id)
            if raw:
                lane.note_sent(len(raw), now, sent)
                pieces.append(raw)

    def _transmit_datagrams(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        """Those of flows that send little. Streams that do have the rest of the reserve."""
        kept_bytes = SPARSE_RESERVE_BYTES - DATAGRAM_RESERVE_BYTES
        while lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            if lane.sparse_room_bytes <= kept_bytes and lane.in_flight_bytes:
                break
            if not self._transmit_datagram(lane, pieces, now, False):
                break

    def _transmit_flood(self, lane: Lane, pieces: List[Piece], now: float) -> bool:
        """A frame's worth of datagrams of flows that send much; False if there was none."""
        flows = len(self._datagrams.bulk)
        before, turn_bytes = lane.sent, lane.pacer.frame_bytes
        while lane.sent - before < turn_bytes and len(pieces) < TRANSMIT_BUFFERS:
            if not self._transmit_datagram(lane, pieces, now, True):
                break
        size = lane.sent - before
        if size:
            lane.pacer.on_sent(size, now)
            self._owed_bytes += size * max(len(self.scheduler.bulk) / flows, 1.0)
        return size > 0

    def _transmit_datagram(self, lane: Lane, pieces: List[Piece], now: float, bulk: bool) -> bool:
        # Batches stay whole until the lane turns out to be slow.
        largest = lane.pacer.frame_bytes if lane.pacer.rate_bytes_s else DATAGRAM_BYTES
        numbered = len(self._lanes) > 1 and not bulk
        item = self._datagrams.take(now, bulk=bulk, largest=largest, numbered=numbered)
        if item is None:
            return False
        sent, head, data = item
        if numbered and has_serial(head):
            second = self.steering.second(lane, now)
            if second is not None:
                second.duplicates.append(Duplicate(None, head + data))
        lane.note_sent(len(head) + len(data), now, sent)
        if len(data) <= JOINED_BYTES:
            pieces.append(head + data)
        else:
            pieces.append(head)
            pieces.append(data)
        return True

    def _transmit_duplicates(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        while lane.duplicates and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            stream, head, payload = lane.duplicates.popleft()
            if stream is None or payload is None:
                lane.note_sent(len(head), now, Sent())
                pieces.append(head)
                continue
            if stream.sender.state is CLOSED:  # reset meanwhile
                continue
            lane.note_sent(len(head) + len(payload), now, Sent())
            pieces.append(head)
            pieces.append(payload)

    def _transmit_data(
        self, lane: Lane, pieces: List[Piece], now: float, stop: int, swift: bool
    ) -> None:
        """DATA and FIN frames, as the scheduler says and the lane's pacer lets; in between, flows
        that send much have their turns.
        """
        pacer = lane.pacer
        several = swift and len(self._lanes) > 1
        scheduler, datagrams = self.scheduler, self._datagrams
        floods = bool(datagrams.bulk) and self.steering.carries_floods(lane, now)
        largest = scheduler.quantum_bytes = pacer.frame_bytes
        while lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            has_flood = floods and bool(datagrams.bulk)
            has_bulk = bool(scheduler.bulk) or has_flood
            bulk = has_bulk and lane.takes_bulk(now)
            if not bulk:
                if has_bulk and not lane.is_reserved:
                    pacer.on_limited(now)
                if lane.sparse_room_bytes <= 0:
                    break
            # Not less for the sake of ``stop``: every cut costs another frame.
            room = lane.room_bytes
            if room <= 0:  # as many frames as a lane may have, though few bytes
                break
            is_its_turn = has_flood and bulk and (self._owed_bytes <= 0 or not scheduler.bulk)
            if is_its_turn and self._transmit_flood(lane, pieces, now):
                if not scheduler.bulk:
                    self._owed_bytes = 0.0
                continue
            item = scheduler.take(lane.id, largest if largest < room else room, bulk, swift)
            if item is None:
                break
            stream, offset, payload = item
            if payload is None:
                raw = frames.encode_fin(stream.id, offset)
                lane.note_sent(len(raw), now, SentFin(stream))
                pieces.append(raw)
                self.touched.append(stream)
                continue
            size = len(payload)
            head = frames.encode_data_head(stream.id, offset, size)
            sent = SentData(stream, offset, payload)
            lane.note_sent(frames.DATA_HEAD_BYTES + size, now, sent)
            if bulk:
                pacer.on_sent(size, now)
                # What the flows had no use for is not theirs later on.
                self._owed_bytes = max(self._owed_bytes - size, -largest)
            pieces.append(head)
            pieces.append(payload)
            if several and size <= DUPLICATE_BYTES and stream.pinned_lane == ANY_LANE:
                self._send_duplicate(lane, stream, head, payload, now)
            if stream.sender.blocked:
                touched = self.touched
                if not touched or touched[-1] is not stream:
                    touched.append(stream)

    def _send_duplicate(
        self, lane: Lane, stream: Stream, head: bytes, payload: Payload, now: float
    ) -> None:
        """Send what ``lane`` carries over the next best one as well, if its stream is sparse."""
        if stream.recent_bytes <= SPARSE_BYTES:
            second = self.steering.second(lane, now)
            if second is not None:
                second.duplicates.append(Duplicate(stream, head, payload.duplicate()))
