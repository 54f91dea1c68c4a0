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

Who does what: which streams there are is the table's affair, what leaves is outgoing's; this is
what they have in common, the events, and what each frame that arrives means.
"""

from typing import Callable, Dict, List, Optional, Tuple

from sshunt.mux import frames
from sshunt.mux.datagrams import Datagrams
from sshunt.mux.errors import LocalProtocolError
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
from sshunt.mux.lanes import Lane
from sshunt.mux.limits import (
    ACK_DELAY_BUSY_S,
    ACK_DELAY_S,
    LANE_IN_FLIGHT_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_FRAMES,
    STALL_S,
    STUCK_S,
    TRANSMIT_BYTES,
)
from sshunt.mux.outgoing import Outgoing, Piece
from sshunt.mux.path import Path
from sshunt.mux.payload import Payload
from sshunt.mux.sent import ControlQueue
from sshunt.mux.streams import CLOSED, Stream
from sshunt.mux.table import StreamTable

#: The frames that are acknowledged at once. PING asks for nothing but that; after GOODBYE no frame
#: follows that could carry it. A DATAGRAM is not one of them: its answer does not wait for that of
#: its lane, and 10,000 a second would cost 1,500 acknowledgements more, a packet of ssh each.
_URGENT = (frames.PING, frames.GOODBYE)


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
        self.control = ControlQueue()
        self.datagrams = Datagrams(role)
        self.table = StreamTable(role, peer_window_bytes, peer_max_streams, self.control)
        self.streams = self.table.streams
        self._outgoing = Outgoing(self.lanes, self.control, self.datagrams)
        #: A new stream to a destination. It may be written at once.
        self.open = self.table.open
        #: How much may be written to a stream now; after a 0 comes StreamWritable when there is
        #: more.
        self.room_bytes = self.table.queued.room_bytes
        #: When ``transmit`` must be called at the latest though nothing else happened; whether it
        #: would hand out something; for which lanes, in the order in which they should be filled.
        self.next_deadline = self._outgoing.next_deadline
        self.has_work = self._outgoing.has_work
        self.lanes_to_fill = self._outgoing.lanes_to_fill
        self._scheduler = self._outgoing.scheduler
        self.path = Path(lane_window_bytes)
        self._events: List[Event] = []
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

    # --- what the relay wants -----------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """False while as many streams are open, or wait for a lane, as the peer allows."""
        return self.table.can_open

    def accept(self, stream: Stream) -> None:
        """The connection that the peer asked for is up."""
        if not stream.opened:  # and the peer wants to hear of it
            stream.opened = True
            self.control.append(frames.encode_opened(stream.id))

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
            self.table.queued.each_bytes = MAX_WINDOW_BYTES
            for stream in blocked:
                self._wake(stream)
        return bool(blocked)

    def write(self, stream: Stream, payload: Payload, now: float) -> None:
        """Send ``payload``; the caller keeps to ``room_bytes``."""
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
        self.table.forget(stream)

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
            self.table.forget_if_over(stream)
            return
        if receiver.window.consume(size, now, self.rtt_s):
            self.control.tell_window(stream)
        if self.table.credit.is_short:
            self.table.make_places()

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
        self._outgoing.recover(lane, now, self.rtt_s)
        self.note_lanes(now)

    def transmit(self, lane_id: int, now: float, size: int = TRANSMIT_BYTES) -> List[Piece]:
        """What to write to the lane next, about ``size`` bytes at most. Written all or lost."""
        self.table.now = now
        pieces = self._outgoing.transmit(self.lanes[lane_id], now, size)
        touched = self._outgoing.touched
        if touched:
            for stream in touched:
                if stream.sender.blocked:
                    self._wake(stream)
                self.table.forget_if_over(stream)
            del touched[:]
        return pieces

    def statistics(self, now: float) -> Dict[str, object]:
        """What decides about speed and latency just now, for metrics: queues in bytes or frames,
        and each lane's pacer.
        """
        lanes: Dict[str, object] = {}
        for lane in self.lanes.values():
            lanes[str(lane.id)] = dict(
                lane.pacer.statistics(now), in_flight_bytes=lane.in_flight_bytes
            )
        return dict(self._outgoing.statistics(), lanes=lanes)

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
        self.table.now = now
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
        delay_s = ACK_DELAY_BUSY_S if self._scheduler.bulk else ACK_DELAY_S
        lane.note_processed(len(data), eliciting_bytes, urgent, now, delay_s)
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
        delay_s = ACK_DELAY_BUSY_S if self._scheduler.bulk else ACK_DELAY_S
        lane.note_processed(size, size, False, now, delay_s)
        stream.receiver.advance(size)
        self.consumed(stream, size, now)
        if stream.receiver.final is not None:
            self._take_fin(stream)

    def _on_data(self, number: int, offset: int, payload: Payload) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self.table.check_known(number)
            return
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
        rtt_s, frame_bytes = 0.0, 0
        for lane in self.lanes.values():
            if lane.rtt_s and (lane.rtt_s < rtt_s or not rtt_s):
                rtt_s = lane.rtt_s
            if lane.pacer.frame_bytes > frame_bytes:
                frame_bytes = lane.pacer.frame_bytes
        self.rtt_s, self.frame_bytes = rtt_s, frame_bytes
        self.datagrams.note_rtt(min(rtt_s, self.path.rtt_s))
        shared_bytes = SEND_QUEUE_FRAMES * frame_bytes // (len(self._scheduler.bulk) or 1)
        self.table.queued.each_bytes = max(SEND_QUEUE_BYTES, shared_bytes)
        self._outgoing.steering.reserve_newest(now)

    def _on_window(self, _lane: Lane, number: int, _value: int, body: bytes, now: float) -> None:
        limit, serial = frames.decode_window_untrusted(body)
        stream = self.table.find(number)
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
        stream = self.table.open_theirs(number, window_bytes)
        if stream is not None:
            stream.opened = not destination.wants_opened
            self._events.append(StreamRequested(stream, destination))

    def _on_opened(self, _lane: Lane, number: int, *_: object) -> None:
        stream = self.table.find(number)
        self.table.check_ours(number)
        if stream is None or stream.opened:
            return
        stream.opened = True
        self._events.append(StreamOpened(stream))

    def _on_fin(self, _lane: Lane, number: int, final: int, *_: object) -> None:
        stream = self.table.find(number)
        if stream is not None:
            stream.receiver.finish(final)
            self._take_fin(stream)

    def _on_reset(self, _lane: Lane, number: int, code: int, *_: object) -> None:
        stream = self.table.live(number)
        if stream is None:
            self.table.note_reset(number)
            return
        stream.reset()
        self.table.forget(stream)
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
            self.table.forget_if_over(stream)

    def _wake(self, stream: Stream) -> None:
        """Its writer was told that there is no room."""
        stream.sender.blocked = False
        if self.room_bytes(stream):
            self._events.append(StreamWritable(stream))
