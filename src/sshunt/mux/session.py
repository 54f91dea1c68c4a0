"""The session: streams over any number of lanes, behind one small interface. Pure.

What goes in: bytes of a lane (``receive``), what the relay wants (``open``, ``write``, ``finish``,
``reset``, ``consumed``), the loss of a lane, and ``now`` with each. What comes out: events
(``take_events``, in the past tense) and bytes for a lane (``transmit``). No call blocks, none
reads a clock; ``next_deadline`` says when ``transmit`` has something to do though nothing happened.

    relay --open/write/finish/reset/consumed--> +---------+ --transmit--> lane
    relay <-------------take_events------------ | Session | <--receive--- lane
                                                +---------+

Who owns what: a payload given to ``write`` belongs to the session until the peer acknowledged it. A
payload in a DataReceived event lies in the reader's buffer: use it, or ``keep`` it, before the next
``receive``. A stream is forgotten when both halves are over; frames of forgotten streams that come
late are ignored (stream numbers are never used again).

Order on a lane: an acknowledgement first if one waits, then control frames, then datagrams, then
data as the scheduler says. With several lanes, a few bytes of a sparse stream go over two of them:
whichever is not just sending a lost segment again has them there in time, and the receiver ignores
what it has. A stream's frames stay on the lane of its OPEN until that is
acknowledged; then any lane may carry them, because offsets are absolute.
"""

from typing import Callable, Dict, List, Optional, Tuple, Union

from sshunt.mux import frames
from sshunt.mux.datagrams import Datagrams
from sshunt.mux.early import PieceCount
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.events import (
    DataReceived,
    Event,
    FinReceived,
    GoodbyeReceived,
    LaneGone,
    StreamOpened,
    StreamRequested,
    StreamReset,
    StreamWritable,
)
from sshunt.mux.frames import Destination
from sshunt.mux.hello import CLIENT
from sshunt.mux.lanes import Duplicate, Lane
from sshunt.mux.limits import (
    ACK_DELAY_BUSY_S,
    ACK_DELAY_S,
    CONTROL_QUEUE_FRAMES,
    DUPLICATE_BYTES,
    INITIAL_WINDOW_BYTES,
    LANE_IN_FLIGHT_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_FRAMES,
    STALL_S,
    STUCK_S,
    TRANSMIT_BUFFERS,
    TRANSMIT_BYTES,
)
from sshunt.mux.path import Path
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import SPARSE_BYTES, Scheduler
from sshunt.mux.seen import SeenStreams
from sshunt.mux.sent import ControlQueue, Recovery, Sent, SentData, SentFin
from sshunt.mux.steering import Steering
from sshunt.mux.streams import (
    ANY_LANE,
    CLOSED,
    NO_LANE,
    QueueTotal,
    Receiver,
    Sender,
    Stream,
)
from sshunt.mux.windows import ReceiveWindow, SessionCredit

#: What ``transmit`` hands out, in order: encoded bytes and payloads.
Piece = Union[bytes, Payload]


#: Frames that are to be acknowledged at once: the first asks for nothing else, the second for the
#: echo's sake, the third because nothing comes after it.
_URGENT = (frames.PING, frames.DATAGRAM, frames.GOODBYE)


class Session:
    """One tunnel, one side of it. ``role`` is hello.CLIENT or hello.AGENT.

    ``peer_window_bytes`` and ``peer_max_streams`` are what the peer's HELLO says; beyond
    ``lane_window_bytes`` unacknowledged a lane's transport lets nothing go.
    """

    def __init__(
        self,
        role: int,
        peer_window_bytes: int = LEAST_WINDOW_BYTES,
        peer_max_streams: int = MAX_STREAMS,
        lane_window_bytes: int = LANE_IN_FLIGHT_BYTES,
    ) -> None:
        self.lanes: Dict[int, Lane] = {}
        self._steering = Steering(self.lanes)
        self.streams: Dict[int, Stream] = {}
        self._next_id = 1 if role == CLIENT else 2
        self._peer_parity = 0 if role == CLIENT else 1
        self._seen = SeenStreams(2 - self._peer_parity)
        self._peer_window_bytes = min(peer_window_bytes, MAX_WINDOW_BYTES)
        self._max_own_streams = min(peer_max_streams, MAX_STREAMS)
        self._peer_streams = 0
        self._scheduler = Scheduler()
        self.path = Path(lane_window_bytes)
        self.control = ControlQueue()
        self.datagrams = Datagrams(role)
        self._events: List[Event] = []
        self.credit = SessionCredit()
        self._queued = QueueTotal()
        self._now = 0.0  # of the last call that knew it
        self.early = PieceCount()
        self.rtt_s = 0.0  # the shortest smoothed round-trip time of any lane; 0: not measured
        self.frame_bytes = 0  # of the largest frames that a lane takes now; 0: there is none
        self._takers: Dict[int, Callable[..., None]] = {
            frames.LANE_ACK: self._on_ack,
            frames.WINDOW: self._on_window,
            frames.OPEN: self._on_open,
            frames.OPENED: self._on_opened,
            frames.FIN: self._on_fin,
            frames.RESET: self._on_reset,
            frames.PING: self._on_ping,
            frames.DATAGRAM: self._on_datagram,
            frames.GOODBYE: self._on_goodbye,
            frames.LANE_GONE: self._on_lane_gone,
        }

    @property
    def peer_terms(self) -> Tuple[int, int]:
        """The peer's initial window in bytes, and how many streams we may have open."""
        return self._peer_window_bytes, self._max_own_streams

    # --- what the relay wants -----------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """False while as many streams are open, or wait for a lane, as the peer allows."""
        return (
            len(self.streams) < self._max_own_streams
            and len(self.control.waiting) < MAX_STREAMS
            and self._next_id < frames.MAX_STREAM
        )

    def open(self, destination: Destination) -> Stream:
        """A new stream to ``destination``. It may be written at once."""
        if not self.can_open:
            raise LocalProtocolError("too many streams")
        number = self._next_id
        window = ReceiveWindow(self.credit, number, self._now, INITIAL_WINDOW_BYTES)
        try:
            raw = frames.encode_open(number, destination, window.limit)
        except LocalProtocolError:
            window.close()
            raise
        self._next_id += 2
        stream = self._new_stream(self._peer_window_bytes, window, NO_LANE)
        self.control.open(stream, raw)
        return stream

    def _new_stream(self, credit: int, window: ReceiveWindow, pinned_lane: int) -> Stream:
        """One that may send ``credit`` bytes, and receive what ``window`` says."""
        stream = Stream(Sender(credit, self._queued), Receiver(window, self.early), pinned_lane)
        self.streams[stream.id] = stream
        if self.credit.is_short:
            self.make_places()
        return stream

    def accept(self, stream: Stream) -> None:
        """The connection that the peer asked for is up."""
        if not stream.opened:  # and the peer wants to hear of it
            stream.opened = True
            self.control.append(frames.encode_opened(stream.id))

    def room_bytes(self, stream: Stream) -> int:
        """How much may be written now; after a 0 comes StreamWritable when there is more."""
        return self._queued.room_bytes(stream.sender)

    def relieve(self, now: float) -> bool:
        """To be called every STALL_S while there are blocked writers; True if there still are.

        The far host's kernel, or ours, gives up a socket that nobody owns any more when nothing is
        read from it for a minute and a half. So if nothing has left for STALL_S, writers may go on
        as far as credit and the session's queue reach; and those whose reader has granted nothing
        for STUCK_S, a little beyond their credit.
        """
        blocked = [stream for stream in self.streams.values() if stream.sender.blocked]
        for stream in blocked:
            sender = stream.sender
            if not sender.is_stuck and sender.limit - sender.next_offset <= sender.queued_bytes:
                sender.stuck_s += STALL_S
                sender.is_stuck = sender.stuck_s >= STUCK_S
                if sender.is_stuck:
                    self._wake(stream)
        if all(lane.unanswered_s(now) >= STALL_S for lane in self.lanes.values()):
            self._queued.each_bytes = MAX_WINDOW_BYTES
            for stream in blocked:
                self._wake(stream)
        return bool(blocked)

    def write(self, stream: Stream, payload: Payload, now: float) -> None:
        """Send ``payload``; the caller keeps to ``room_bytes``."""
        if not len(payload):
            raise LocalProtocolError("empty payload")
        stream.sender.write(payload)
        self._scheduler.activate(stream, now, self.rtt_s)

    def finish(self, stream: Stream, now: float) -> None:
        """Nothing more will be written: half-close."""
        stream.sender.finish()
        self._scheduler.activate(stream, now, self.rtt_s)

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream at once, both ways; the peer is told ``code``."""
        if stream.sender.state is CLOSED:
            return
        self.control.append(frames.encode_reset(stream.id, code))
        stream.reset()
        self._forget(stream)

    def consumed(self, stream: Stream, size: int, now: float) -> None:
        """``size`` received bytes have been written to their destination: credit returns.

        To be called up to the last byte: only then does a finished stream's window go back to the
        session, and its place to another stream.
        """
        receiver = stream.receiver
        if receiver.state is CLOSED:
            return
        if receiver.final is not None:  # nothing more will come: credit has no use
            receiver.window.consumed += size
            self._forget_if_over(stream)
            return
        if receiver.window.consume(size, now, self.rtt_s):
            self.control.tell_window(stream)
        if self.credit.is_short:
            self.make_places()

    def make_places(self) -> None:
        """Call back the larger windows of streams that don't use them."""
        self.credit.is_short = False
        for number in self.credit.idle(self._now):
            stream = self.streams[number]
            receiver, window = stream.receiver, stream.receiver.window
            if receiver.final is not None:
                window.shrink_to(receiver.final, self._now)
            elif stream.pinned_lane != ANY_LANE:
                window.keep(self._now)  # a WINDOW by another lane would overtake the OPEN
            elif window.recall(receiver.arrived, self._now):
                self.control.tell_window(stream)

    def ping(self, lane_id: int) -> None:
        """Ask the lane's other end for an acknowledgement at once."""
        self.lanes[lane_id].ping_wanted = True

    def say_goodbye(self, code: int, sentence: str) -> None:
        """Tell the peer that the session ends. The caller then lets the lanes drain and closes."""
        self.control.append(frames.encode_goodbye(code, sentence))

    # --- lanes --------------------------------------------------------------------------------

    def tell_lane_gone(self, lane_id: int) -> None:
        """Tell the peer, over another lane, that this one is over: it may not be able to see it."""
        self.control.append(frames.encode_lane_gone(lane_id))

    def add_lane(self, lane_id: int, now: float) -> None:
        """A new lane is up: both sides' HELLOs are through."""
        if lane_id in self.lanes:
            raise LocalProtocolError("lane %d exists" % lane_id)
        self.lanes[lane_id] = Lane(lane_id, now, self.path)
        self.note_lanes(now)

    def set_writable(self, lane_id: int, is_writable: bool) -> None:
        """Whether the lane takes bytes just now. One that does not is nobody's choice."""
        self.lanes[lane_id].is_blocked = not is_writable

    def lose_lane(self, lane_id: int, now: float) -> None:
        """A lane died: what it did not get acknowledged will leave over another one."""
        lane = self.lanes.pop(lane_id)
        lane.pacer.leave()
        recovery = Recovery(self._scheduler, self.control, now, self.rtt_s)
        for sent in lane.outstanding:
            sent.on_lost(recovery)
        self.control.give_back(recovery.control)
        self.note_lanes(now)

    def next_deadline(self, after: float = 0.0) -> Optional[float]:
        """When ``transmit`` must be called at the latest though nothing else happened.

        Pass the present as ``after``, or a timer would spin: a deadline that has passed belongs to
        a lane that takes nothing now, and ``transmit`` is called when it does.
        """
        due = [lane.ack_due for lane in self.lanes.values() if lane.ack_due is not None]
        if self._scheduler.has_bulk:
            due.extend(lane.pacer.next_at for lane in self.lanes.values())
        return min((when for when in due if when > after), default=None)

    def has_work(self, now: float) -> bool:
        """True if ``transmit`` would hand out something on a lane with room."""
        if self.control.waiting or self.datagrams.waiting:
            return True
        data = len(self._scheduler) > 0
        for lane in self.lanes.values():
            if lane.has_own_work(now):
                return True
            if data and (
                lane.takes_bulk(now) or (self._scheduler.has_sparse and lane.sparse_room_bytes > 0)
            ):
                return True
        return False

    def transmit(self, lane_id: int, now: float, size: int = TRANSMIT_BYTES) -> List[Piece]:
        """What to write to the lane next, about ``size`` bytes at most. Written all or lost."""
        lane = self.lanes[lane_id]
        self._now = now
        pieces: List[Piece] = []
        due = lane.ack_due
        if due is not None and (due <= now or self.has_work(now)):
            # First, for real: every frame behind it must know the position where it ends.
            raw = frames.encode_lane_ack(*lane.take_ack(now))
            lane.note_silent(len(raw))
            pieces.append(raw)
        stop = lane.sent + min(size, max(lane.room_bytes, 0))
        swift = len(self.lanes) == 1 or self._steering.is_swiftest(lane, now)
        if swift and self.control.waiting:
            self._transmit_control(lane, pieces, now, stop)
        if swift and self.datagrams.waiting:
            self._transmit_datagrams(lane, pieces, now, stop)
        if lane.duplicates:
            self._transmit_duplicates(lane, pieces, now, stop)
        if len(self._scheduler):
            self._transmit_data(lane, pieces, now, stop, swift)
        if lane.ping_wanted:
            lane.ping_wanted = False
            raw = frames.encode_ping()
            lane.note_sent(len(raw), now, Sent())
            pieces.append(raw)
        return pieces

    def _transmit_control(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        waiting = self.control.waiting
        while waiting and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            sent = waiting.popleft()
            raw = sent.leave(lane.id)
            if raw:
                lane.note_sent(len(raw), now, sent)
                pieces.append(raw)

    def _transmit_datagrams(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        while lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            item = self.datagrams.take(now)
            if item is None:
                break
            sent, head, data = item
            lane.note_sent(len(head) + len(data), now, sent)
            pieces.append(head)
            if data:
                pieces.append(data)

    def _transmit_duplicates(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        while lane.duplicates and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            stream, head, payload = lane.duplicates.popleft()
            if stream.sender.state is CLOSED:  # reset meanwhile
                continue
            lane.note_sent(len(head) + len(payload), now, Sent())
            pieces.append(head)
            pieces.append(payload)

    def _transmit_data(
        self, lane: Lane, pieces: List[Piece], now: float, stop: int, swift: bool
    ) -> None:
        """DATA and FIN frames, as the scheduler says and the lane's pacer lets."""
        pacer = lane.pacer
        several = swift and len(self.lanes) > 1
        scheduler = self._scheduler
        largest = scheduler.quantum_bytes = pacer.frame_bytes
        while lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            has_bulk = scheduler.has_bulk
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
            item = scheduler.take(lane.id, largest if largest < room else room, bulk, swift)
            if item is None:
                break
            stream, offset, payload = item
            if payload is None:
                raw = frames.encode_fin(stream.id, offset)
                lane.note_sent(len(raw), now, SentFin(stream))
                pieces.append(raw)
                self._forget_if_over(stream)
                continue
            size = len(payload)
            head = frames.encode_data_head(stream.id, offset, size)
            sent = SentData(stream, offset, payload)
            lane.note_sent(frames.DATA_HEAD_BYTES + size, now, sent)
            if bulk:
                pacer.on_sent(size, now)
            pieces.append(head)
            pieces.append(payload)
            if several and size <= DUPLICATE_BYTES and stream.pinned_lane == ANY_LANE:
                self._send_duplicate(lane, stream, head, payload, now)
            if stream.sender.blocked:
                self._wake(stream)

    def _send_duplicate(
        self, lane: Lane, stream: Stream, head: bytes, payload: Payload, now: float
    ) -> None:
        """Send what ``lane`` carries over the next best one as well, if its stream is sparse."""
        if stream.recent_bytes <= SPARSE_BYTES:
            second = self._steering.second(lane, now)
            if second is not None:
                second.duplicates.append(Duplicate(stream, head, payload.duplicate()))

    def lanes_to_fill(self, now: float) -> List[int]:
        """The lanes that ``transmit`` has something for, in the order in which they should be
        filled: with what is urgent, those first whose answers come soonest. What they have no room
        for, and what is to go over two, is then found by those behind them.
        """
        scheduler = self._scheduler
        urgent = bool(self.control.waiting or self.datagrams.waiting)
        return self._steering.to_fill(now, urgent, scheduler.has_sparse, scheduler.has_bulk)

    def statistics(self, now: float) -> Dict[str, object]:
        """What decides about speed and latency just now, for metrics: queues in bytes or frames,
        and each lane's pacer.
        """
        sparse_bytes, bulk_bytes = self._scheduler.queued_bytes()
        lanes: Dict[str, object] = {}
        for lane in self.lanes.values():
            lanes[str(lane.id)] = dict(
                lane.pacer.statistics(now), in_flight_bytes=lane.in_flight_bytes
            )
        return {
            "lanes": lanes,
            "control_frames": len(self.control.waiting),
            "datagram_bytes": self.datagrams.payload_bytes,
            "sparse_bytes": sparse_bytes,
            "bulk_bytes": bulk_bytes,
        }

    # --- what arrives -------------------------------------------------------------------------

    def take_events(self) -> List[Event]:
        """What happened since the last call."""
        events = self._events
        self._events = []
        return events

    def receive(self, lane_id: int, data: memoryview, now: float) -> int:
        """Bytes came in on a lane; raises RemoteProtocolError (the lane must then be closed).

        Returns how large the payload is of the last DATA frame that began in them, 0 if none did.
        """
        lane = self.lanes[lane_id]
        self._now = now
        eliciting_bytes = 0
        urgent = False
        takers = self._takers
        for kind, number, value, body in lane.reader.feed(data):
            if kind == frames.DATA:
                eliciting_bytes += len(body)
                self._on_data(number, value, body)
            else:
                if kind != frames.LANE_ACK:
                    eliciting_bytes += frames.HEADER_BYTES + len(body)
                    urgent = urgent or kind in _URGENT
                takers[kind](lane, number, value, body, now)
        lane.note_processed(len(data), eliciting_bytes, urgent, now, self._ack_delay_s)
        return lane.reader.newest_bytes

    def direct_delivery(self, lane_id: int) -> Optional[Tuple[Stream, int]]:
        """The stream whose next bytes are the lane's next bytes, and how many; None if it isn't so.

        These may be moved from the lane to the stream's destination without coming by here, where
        the system can do that better than we. What was moved is reported with ``delivered``.
        """
        reader = self.lanes[lane_id].reader
        if not reader.data_left:
            return None
        stream = self.streams.get(reader.stream)
        if stream is None or not stream.receiver.waits_for(reader.offset, reader.data_left):
            return None
        return stream, reader.data_left

    def delivered(self, lane_id: int, size: int, now: float) -> None:
        """``size`` bytes of it were moved: received, handed out, consumed at once."""
        lane = self.lanes[lane_id]
        stream = self.streams[lane.reader.stream]
        lane.reader.skip(size)
        lane.note_processed(size, size, False, now, self._ack_delay_s)
        stream.receiver.advance(size)
        self.consumed(stream, size, now)
        if stream.receiver.final is not None:
            self._take_fin(stream)

    @property
    def _ack_delay_s(self) -> float:
        return ACK_DELAY_BUSY_S if self._scheduler.has_bulk else ACK_DELAY_S

    def _on_data(self, number: int, offset: int, payload: Union[Payload, bytes]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        if isinstance(payload, Payload):
            for ready in stream.receiver.receive(offset, payload):
                self._events.append(DataReceived(stream, ready))
            if stream.receiver.final is not None:
                self._take_fin(stream)

    def _on_ack(self, lane: Lane, _number: int, _value: int, body: bytes, now: float) -> None:
        position, held_s, arrived_us = frames.decode_ack_untrusted(body)
        for sent in lane.acknowledge(position, held_s, arrived_us, now):
            sent.on_acked()
        self.note_lanes(now)

    def note_lanes(self, now: float) -> None:
        """What the lanes know has changed."""
        lanes = self.lanes.values()
        self.rtt_s = min([lane.rtt_s for lane in lanes if lane.rtt_s], default=0.0)
        self.frame_bytes = max([lane.pacer.frame_bytes for lane in lanes], default=0)
        shared_bytes = SEND_QUEUE_FRAMES * self.frame_bytes // max(self._scheduler.bulk_streams, 1)
        self._queued.each_bytes = max(SEND_QUEUE_BYTES, shared_bytes)
        self._steering.reserve_newest(now)

    def _on_window(self, _lane: Lane, number: int, _value: int, body: bytes, now: float) -> None:
        limit, serial = frames.decode_window_untrusted(body)
        stream = self._find(number)
        if stream is None:
            return
        if limit > stream.sender.next_offset + MAX_WINDOW_BYTES:
            limit = stream.sender.next_offset + MAX_WINDOW_BYTES
        stream.sender.grant(limit, serial)
        self._scheduler.activate(stream, now, self.rtt_s)
        if stream.sender.blocked:
            self._wake(stream)

    def _on_open(self, _lane: Lane, number: int, _value: int, body: bytes, _now: float) -> None:
        destination, window_bytes = frames.decode_open_untrusted(body)
        if number % 2 != self._peer_parity or not number:
            raise RemoteProtocolError("OPEN of our own stream %d" % number)
        if number in self._seen:
            return  # came before, over a lane that died
        if len(self.control.waiting) > CONTROL_QUEUE_FRAMES:
            raise RemoteProtocolError("the peer opens streams and does not read the answers")
        self._seen.add(number)
        if self._peer_streams >= MAX_STREAMS:
            raw = frames.encode_reset(number, frames.RESET_NO_RESOURCES)
            self.control.append(raw)
            return
        window = ReceiveWindow(self.credit, number, self._now)
        stream = self._new_stream(min(window_bytes, MAX_WINDOW_BYTES), window, ANY_LANE)
        stream.opened = not destination.wants_opened
        self._peer_streams += 1
        self._events.append(StreamRequested(stream, destination))

    def _on_opened(self, _lane: Lane, number: int, *_: object) -> None:
        stream = self._find(number)
        if number % 2 == self._peer_parity:
            raise RemoteProtocolError("OPENED of its own stream %d" % number)
        if stream is None or stream.opened:
            return
        stream.opened = True
        self._events.append(StreamOpened(stream))

    def _on_fin(self, _lane: Lane, number: int, final: int, *_: object) -> None:
        stream = self._find(number)
        if stream is not None:
            stream.receiver.finish(final)
            self._take_fin(stream)

    def _on_reset(self, _lane: Lane, number: int, code: int, *_: object) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if number % 2 == self._peer_parity and number and number not in self._seen:
                self._seen.add(number)  # overtook its OPEN, which must find it closed
            else:
                self._check_known(number)
            return
        stream.reset()
        self._forget(stream)
        self._events.append(StreamReset(stream, code))

    def _on_ping(self, *_: object) -> None:
        """It asks for an acknowledgement, and gets it like all others."""

    def _on_datagram(self, _lane: Lane, number: int, _value: int, body: bytes, now: float) -> None:
        self._events += self.datagrams.receive(number, body, now)

    def _on_goodbye(self, _lane: Lane, _number: int, _value: int, body: bytes, *_: object) -> None:
        self._events.append(GoodbyeReceived(*frames.decode_goodbye_untrusted(body)))

    def _on_lane_gone(self, _lane: Lane, number: int, *_: object) -> None:
        self._events.append(LaneGone(number))

    def _take_fin(self, stream: Stream) -> None:
        if stream.receiver.take_fin():
            self._events.append(FinReceived(stream))
            self._forget_if_over(stream)

    # --- common -------------------------------------------------------------------------------

    def _find(self, number: int) -> Optional[Stream]:
        """The stream, None if it is over; raises RemoteProtocolError if it never was."""
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
        return stream

    def _check_known(self, number: int) -> None:
        if number % 2 == self._peer_parity:
            known = number > 0 and number in self._seen
        else:
            known = 0 < number < self._next_id
        if not known:
            raise RemoteProtocolError("frame of unknown stream %d" % number)

    def _wake(self, stream: Stream) -> None:
        """Its writer was told that there is no room."""
        stream.sender.blocked = False
        if self.room_bytes(stream):
            self._events.append(StreamWritable(stream))

    def _forget_if_over(self, stream: Stream) -> None:
        if stream.is_over:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        stream.receiver.window.close()
        if stream.id % 2 == self._peer_parity:
            self._peer_streams -= 1
