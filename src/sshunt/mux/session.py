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

from collections import deque
from typing import Deque, Dict, List, NamedTuple, Optional, Set, Tuple, Union

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
from sshunt.mux.frames import Destination, Frame
from sshunt.mux.hello import CLIENT
from sshunt.mux.lanes import Lane, Twin
from sshunt.mux.limits import (
    ACK_DELAY_BUSY_S,
    ACK_DELAY_S,
    CONTROL_QUEUE_FRAMES,
    INITIAL_WINDOW_BYTES,
    LANE_IN_FLIGHT_BYTES,
    LEAST_QUEUE_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
    READ_AHEAD_BYTES,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_FRAMES,
    SESSION_QUEUE_BYTES,
    STALL_S,
    STREAM_GAP,
    STUCK_S,
    TRANSMIT_BUFFERS,
    TRANSMIT_BYTES,
    TWIN_BYTES,
)
from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import Path
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import SPARSE_BYTES, Scheduler
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


class _Control(NamedTuple):
    """A reliable frame other than DATA and FIN that waits for a lane. A WINDOW is encoded when it
    leaves.
    """

    kind: int
    stream: Optional[Stream]
    raw: bytes


class _SeenStreams:
    """Which stream numbers of the peer were opened or reset before, in bounded memory.

    Lanes overtake each other, so numbers come slightly out of order: all up to ``_base`` were seen,
    and of those above it the ones in ``_beyond``.
    """

    __slots__ = ("_base", "_beyond")

    def __init__(self, first: int) -> None:
        self._base = first - 2
        self._beyond: Set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number <= self._base or number in self._beyond

    def add(self, number: int) -> None:
        if number > self._base + 2 * STREAM_GAP:
            raise RemoteProtocolError("stream %d, expected about %d" % (number, self._base + 2))
        self._beyond.add(number)
        while self._base + 2 in self._beyond:
            self._base += 2
            self._beyond.discard(self._base)


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
        self.streams: Dict[int, Stream] = {}
        self._next_id = 1 if role == CLIENT else 2
        self._peer_parity = 0 if role == CLIENT else 1
        self._seen = _SeenStreams(2 - self._peer_parity)
        self._peer_window_bytes = min(peer_window_bytes, MAX_WINDOW_BYTES)
        self._max_own_streams = min(peer_max_streams, MAX_STREAMS)
        self._peer_streams = 0
        self._scheduler = Scheduler()
        self._path = Path(lane_window_bytes)
        self._control: Deque[_Control] = deque()
        self.datagrams = Datagrams(role)
        self._events: List[Event] = []
        self._credit = SessionCredit()
        self._queued = QueueTotal()
        self._now = 0.0  # of the last call that knew it
        self._early = PieceCount()
        self.rtt_s = 0.0  # the shortest smoothed round-trip time of any lane; 0: not measured
        self.frame_bytes = 0  # of the largest frames that a lane takes now; 0: there is none
        self._queue_bytes = SEND_QUEUE_BYTES

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
            and len(self._control) < MAX_STREAMS
            and self._next_id < frames.MAX_STREAM
        )

    def open(self, destination: Destination) -> Stream:
        """A new stream to ``destination``. It may be written at once."""
        if not self.can_open:
            raise LocalProtocolError("too many streams")
        number = self._next_id
        window = ReceiveWindow(self._credit, number, self._now, INITIAL_WINDOW_BYTES)
        try:
            raw = frames.encode_open(number, destination, window.limit)
        except LocalProtocolError:
            window.close()
            raise
        self._next_id += 2
        stream = self._new_stream(self._peer_window_bytes, window, NO_LANE)
        self._control.append(_Control(frames.OPEN, stream, raw))
        return stream

    def _new_stream(self, credit: int, window: ReceiveWindow, home: int) -> Stream:
        """One that may send ``credit`` bytes, and receive what ``window`` says."""
        stream = Stream(Sender(credit, self._queued), Receiver(window, self._early), home)
        self.streams[stream.id] = stream
        if self._credit.is_short:
            self._make_places()
        return stream

    def accept(self, stream: Stream) -> None:
        """The connection that the peer asked for is up."""
        if not stream.opened:  # and the peer wants to hear of it
            stream.opened = True
            self._control.append(_Control(frames.OPENED, None, frames.encode_opened(stream.id)))

    def room_bytes(self, stream: Stream) -> int:
        """How much may be written now; after a 0 comes StreamWritable when there is more."""
        if stream.sender.is_stuck:
            left = SESSION_QUEUE_BYTES - self._queued.size_bytes
            return stream.sender.room_bytes(
                max(min(left // 2, READ_AHEAD_BYTES), LEAST_QUEUE_BYTES)
            )
        return stream.sender.room_bytes(self._queue_share_bytes)

    @property
    def _queue_share_bytes(self) -> int:
        """How much one stream may have queued now."""
        left = SESSION_QUEUE_BYTES - self._queued.size_bytes
        share = left // 2 if self._queue_bytes == MAX_WINDOW_BYTES else left // 8
        if share >= self._queue_bytes:
            return self._queue_bytes
        return max(share, LEAST_QUEUE_BYTES)

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
            self._queue_bytes = MAX_WINDOW_BYTES
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
        self._control.append(_Control(frames.RESET, None, frames.encode_reset(stream.id, code)))
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
            self._tell_window(stream)
        if self._credit.is_short:
            self._make_places()

    def _tell_window(self, stream: Stream) -> None:
        """The peer is told the stream's limit when a lane takes it: the newest, once."""
        if not stream.window_waits:
            stream.window_waits = True
            self._control.append(_Control(frames.WINDOW, stream, b""))

    def _make_places(self) -> None:
        """Call back the larger windows of streams that don't use them."""
        self._credit.is_short = False
        for number in self._credit.idle(self._now):
            stream = self.streams[number]
            receiver, window = stream.receiver, stream.receiver.window
            if receiver.final is not None:
                window.shrink_to(receiver.final, self._now)
            elif stream.home != ANY_LANE:
                window.keep(self._now)  # a WINDOW by another lane would overtake the OPEN
            elif window.recall(receiver.arrived, self._now):
                self._tell_window(stream)

    def ping(self, lane_id: int) -> None:
        """Ask the lane's other end for an acknowledgement at once."""
        self.lanes[lane_id].ping_wanted = True

    def say_goodbye(self, code: int, sentence: str) -> None:
        """Tell the peer that the session ends. The caller then lets the lanes drain and closes."""
        raw = frames.encode_goodbye(code, sentence)
        self._control.append(_Control(frames.GOODBYE, None, raw))

    # --- lanes --------------------------------------------------------------------------------

    def tell_lane_gone(self, lane_id: int) -> None:
        """Tell the peer, over another lane, that this one is over: it may not be able to see it."""
        raw = frames.encode_lane_gone(lane_id)
        self._control.append(_Control(frames.LANE_GONE, None, raw))

    def add_lane(self, lane_id: int, now: float) -> None:
        """A new lane is up: both sides' HELLOs are through."""
        if lane_id in self.lanes:
            raise LocalProtocolError("lane %d exists" % lane_id)
        self.lanes[lane_id] = Lane(lane_id, now, self._path)
        self._note_lanes(now)

    def lose_lane(self, lane_id: int, now: float) -> None:
        """A lane died: what it did not get acknowledged will leave over another one."""
        lane = self.lanes.pop(lane_id)
        lane.pacer.leave()
        control: List[_Control] = []
        for sent in lane.outstanding:
            if sent.kind == frames.DATA and sent.stream and sent.payload is not None:
                sent.stream.sender.give_back(sent.offset, sent.payload)
                self._scheduler.activate(sent.stream, now, self.rtt_s)
            elif sent.kind == frames.FIN and sent.stream:
                sent.stream.sender.give_back_fin()
                self._scheduler.activate(sent.stream, now, self.rtt_s)
            elif sent.kind == frames.WINDOW and sent.stream:
                self._tell_window(sent.stream)
            elif sent.raw:
                if sent.stream:  # an OPEN: no lane may carry its stream before it left again
                    sent.stream.home = NO_LANE
                control.append(_Control(sent.kind, sent.stream, sent.raw))
        self._control.extendleft(reversed(control))
        self._note_lanes(now)

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
        if self._control or self.datagrams:
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
        swift = len(self.lanes) == 1 or self._is_swiftest(lane, now)
        while swift and self._control and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            self._transmit_control(lane, pieces, now)
        if swift and self.datagrams:
            self._transmit_datagrams(lane, pieces, now, stop)
        if lane.twins:
            self._transmit_twins(lane, pieces, now, stop)
        if len(self._scheduler):
            self._transmit_data(lane, pieces, now, stop, swift)
        if lane.ping_wanted:
            lane.ping_wanted = False
            raw = frames.encode_ping()
            lane.note_sent(len(raw), now, frames.PING)
            pieces.append(raw)
        return pieces

    def _transmit_control(self, lane: Lane, pieces: List[Piece], now: float) -> None:
        kind, stream, raw = self._control.popleft()
        if stream is not None:
            if kind == frames.OPEN:
                stream.home = lane.id
            elif not self._is_receiving(stream):
                return  # a WINDOW that has lost its purpose
            else:
                stream.window_waits = False
                stream.window_serial += 1
                limit = stream.receiver.window.limit
                raw = frames.encode_window(stream.id, limit, stream.window_serial)
        lane.note_sent(len(raw), now, kind, stream=stream, raw=raw)
        pieces.append(raw)

    def _is_receiving(self, stream: Stream) -> bool:
        return stream.receiver.final is None and stream.receiver.state is not CLOSED

    def _transmit_datagrams(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        while lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            item = self.datagrams.take(now)
            if item is None:
                break
            _, head, data = item
            lane.note_sent(len(head) + len(data), now, frames.DATAGRAM)
            pieces.append(head)
            if data:
                pieces.append(data)

    def _transmit_twins(self, lane: Lane, pieces: List[Piece], now: float, stop: int) -> None:
        while lane.twins and lane.sent < stop and len(pieces) < TRANSMIT_BUFFERS:
            stream, head, payload = lane.twins.popleft()
            if stream.sender.state is CLOSED:  # reset meanwhile
                continue
            lane.note_sent(len(head) + len(payload), now, frames.PING)  # lost is lost
            pieces.append(head)
            pieces.append(payload)

    def _is_swiftest(self, lane: Lane, now: float) -> bool:
        """True if what is urgent should take this lane: the one whose answers come soonest.

        A lane whose oldest frame has waited longer than a round trip is stalled, however short its
        round trips were.
        """
        lanes = [each for each in self.lanes.values() if not each.is_blocked]
        return lane is min(lanes, default=lane, key=lambda each: each.expected_s(now))

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
                if has_bulk and not lane.is_spared:
                    pacer.note_held_back(now)
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
                lane.note_sent(len(raw), now, frames.FIN, stream=stream)
                pieces.append(raw)
                self._forget_if_over(stream)
                continue
            size = len(payload)
            head = frames.encode_data_head(stream.id, offset, size)
            lane.note_sent(frames.DATA_HEAD_BYTES + size, now, frames.DATA, stream, offset, payload)
            if bulk:
                pacer.note_bulk(size, now)
            pieces.append(head)
            pieces.append(payload)
            if several and size <= TWIN_BYTES and stream.home == ANY_LANE:
                self._send_twin(lane, stream, head, payload, now)
            if stream.sender.blocked:
                self._wake(stream)

    def _send_twin(
        self, lane: Lane, stream: Stream, head: bytes, payload: Payload, now: float
    ) -> None:
        """Send what ``lane`` carries over the next best one as well, if its stream is sparse."""
        others = [each for each in self.lanes.values() if each is not lane and not each.is_blocked]
        if others and stream.recent_bytes <= SPARSE_BYTES:
            second = min(others, key=lambda each: each.expected_s(now))
            second.twins.append(Twin(stream, head, payload.twin()))

    def lanes_to_fill(self, now: float) -> List[int]:
        """The lanes that ``transmit`` has something for, in the order in which they should be
        filled: with what is urgent, those first whose answers come soonest. What they have no room
        for, and what is to go over two, is then found by those behind them.
        """
        if len(self.lanes) < 2:
            return list(self.lanes)
        lanes = list(self.lanes.values())
        urgent = bool(self._control or self.datagrams)
        sparse, bulk = self._scheduler.has_sparse, self._scheduler.has_bulk
        if urgent or sparse:
            lanes.sort(key=lambda each: each.expected_s(now))
        to_fill = []
        for lane in lanes:
            wanted = sparse or lane.has_own_work(now)  # the sparse may be for any of them
            if urgent and not lane.is_blocked:  # the others would be told to leave it to this one
                wanted, urgent = True, False
            if bulk and lane.takes_bulk(now):
                wanted = True
            elif bulk and not lane.is_spared:
                lane.pacer.note_held_back(now)
            if wanted:
                to_fill.append(lane.id)
        return to_fill

    def beliefs(self, now: float) -> Dict[str, object]:
        """What decides about speed and latency just now, for metrics: queues in bytes or frames,
        and each lane's pacer.
        """
        sparse_bytes, bulk_bytes = self._scheduler.queued_bytes()
        lanes: Dict[str, object] = {}
        for lane in self.lanes.values():
            lanes[str(lane.id)] = dict(
                lane.pacer.beliefs(now), in_flight_bytes=lane.in_flight_bytes
            )
        return {
            "lanes": lanes,
            "control_frames": len(self._control),
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

    def receive(self, lane_id: int, data: memoryview, now: float) -> None:
        """Bytes came in on a lane; raises RemoteProtocolError (the lane must then be closed)."""
        lane = self.lanes[lane_id]
        self._now = now
        eliciting_bytes = 0
        urgent = False
        for frame in lane.reader.feed(data):
            kind = frame[0]
            if kind == frames.DATA:
                eliciting_bytes += len(frame[3])
                self._on_data(frame)
            else:
                if kind != frames.LANE_ACK:
                    eliciting_bytes += frames.HEADER_BYTES + len(frame[3])
                urgent = urgent or kind in _URGENT
                self._on_control(lane, frame, now)
        lane.note_processed(len(data), eliciting_bytes, urgent, now, self._ack_delay_s)

    def passage(self, lane_id: int) -> Optional[Tuple[Stream, int]]:
        """The stream whose next bytes are the lane's next bytes, and how many; None if it isn't so.

        These may be moved from the lane to the stream's destination without coming by here, where
        the system can do that better than we. What was moved is reported with ``passed``.
        """
        reader = self.lanes[lane_id].reader
        if not reader.data_left:
            return None
        stream = self.streams.get(reader.stream)
        if stream is None or not stream.receiver.waits_for(reader.offset, reader.data_left):
            return None
        return stream, reader.data_left

    def passed(self, lane_id: int, size: int, now: float) -> None:
        """``size`` bytes of the ``passage`` were moved: received, handed out, consumed at once."""
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

    def _on_data(self, frame: Frame) -> None:
        _, number, offset, payload = frame
        stream = self.streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        if isinstance(payload, Payload):
            for ready in stream.receiver.receive(offset, payload):
                self._events.append(DataReceived(stream, ready))
            if stream.receiver.final is not None:
                self._take_fin(stream)

    def _on_control(self, lane: Lane, frame: Frame, now: float) -> None:
        kind, number, value, body = frame
        if kind == frames.LANE_ACK and isinstance(body, bytes):
            self._on_ack(lane, body, now)
        elif kind == frames.WINDOW and isinstance(body, bytes):
            self._on_window(number, *frames.decode_window_untrusted(body), now)
        elif kind == frames.OPEN and isinstance(body, bytes):
            self._on_open(number, *frames.decode_open_untrusted(body))
        elif kind == frames.OPENED:
            self._on_opened(number)
        elif kind == frames.FIN:
            stream = self._find(number)
            if stream is not None:
                stream.receiver.finish(value)
                self._take_fin(stream)
        elif kind == frames.RESET:
            self._on_reset(number, value)
        elif kind == frames.DATAGRAM and isinstance(body, bytes):
            self._events += self.datagrams.receive(number, body, now)
        elif kind == frames.GOODBYE and isinstance(body, bytes):
            self._events.append(GoodbyeReceived(*frames.decode_goodbye_untrusted(body)))
        elif kind == frames.LANE_GONE:
            self._events.append(LaneGone(number))

    def _on_ack(self, lane: Lane, body: bytes, now: float) -> None:
        position, held_s, arrived_us = frames.decode_ack_untrusted(body)
        for sent in lane.acknowledge(position, held_s, arrived_us, now):
            if sent.payload is not None:
                sent.payload.release()
            elif sent.kind == frames.OPEN and sent.stream:
                sent.stream.home = ANY_LANE
        self._note_lanes(now)

    def _note_lanes(self, now: float) -> None:
        """What the lanes know has changed."""
        lanes = self.lanes.values()
        self.rtt_s = min([lane.rtt_s for lane in lanes if lane.rtt_s], default=0.0)
        self.frame_bytes = max([lane.pacer.frame_bytes for lane in lanes], default=0)
        shared_bytes = SEND_QUEUE_FRAMES * self.frame_bytes // max(self._scheduler.bulk_streams, 1)
        self._queue_bytes = max(SEND_QUEUE_BYTES, shared_bytes)
        self._spare_newest(now)

    def _spare_newest(self, now: float) -> None:
        """Keep the newest of several lanes free of bulk while those that carry bulk lose segments:
        what is urgent then never waits for a segment that is sent again.
        """
        if len(self.lanes) < 3:
            for lane in self.lanes.values():
                lane.is_spared = False
            return
        newest = self.lanes[max(self.lanes)]
        others = [each for each in self.lanes.values() if each is not newest]
        stalls = sum(lane.pacer.stalls(now) for lane in others)
        # Those that have just joined can't have lost much yet.
        tried = sum(not lane.pacer.is_starting for lane in others)
        enough = LOSS_STALLS * (1 if newest.is_spared else max(tried, 1))
        newest.is_spared = stalls >= enough
        for lane in others:
            lane.is_spared = False

    def _on_window(self, number: int, limit: int, serial: int, now: float) -> None:
        stream = self._find(number)
        if stream is None:
            return
        if limit > stream.sender.next_offset + MAX_WINDOW_BYTES:
            limit = stream.sender.next_offset + MAX_WINDOW_BYTES
        stream.sender.grant(limit, serial)
        self._scheduler.activate(stream, now, self.rtt_s)
        if stream.sender.blocked:
            self._wake(stream)

    def _on_open(self, number: int, destination: Destination, window_bytes: int) -> None:
        if number % 2 != self._peer_parity or not number:
            raise RemoteProtocolError("OPEN of our own stream %d" % number)
        if number in self._seen:
            return  # came before, over a lane that died
        if len(self._control) > CONTROL_QUEUE_FRAMES:
            raise RemoteProtocolError("the peer opens streams and does not read the answers")
        self._seen.add(number)
        if self._peer_streams >= MAX_STREAMS:
            raw = frames.encode_reset(number, frames.RESET_NO_RESOURCES)
            self._control.append(_Control(frames.RESET, None, raw))
            return
        window = ReceiveWindow(self._credit, number, self._now)
        stream = self._new_stream(min(window_bytes, MAX_WINDOW_BYTES), window, ANY_LANE)
        stream.opened = not destination.wants_opened
        self._peer_streams += 1
        self._events.append(StreamRequested(stream, destination))

    def _on_opened(self, number: int) -> None:
        stream = self._find(number)
        if number % 2 == self._peer_parity:
            raise RemoteProtocolError("OPENED of its own stream %d" % number)
        if stream is None or stream.opened:
            return
        stream.opened = True
        self._events.append(StreamOpened(stream))

    def _on_reset(self, number: int, code: int) -> None:
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
