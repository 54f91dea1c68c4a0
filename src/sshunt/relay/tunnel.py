"""The session in its event loop: events to their relays, bytes to the lanes, the timer.

One tunnel per session and side. Whatever happens in one round of the event loop, or in one
``turn``, is flushed once at its end (``wake`` sees to ``pump``), so that a hundred small events
share one writev per lane.

    lane readable -> session.receive -> dispatch -> relays write to their sockets
    socket readable -> session.write -> wake -> pump -> session.transmit -> writev to the lane

Datagrams go to the owner of their flow, which has ``on_datagram``, ``on_flow_failed`` and
``on_flow_ended``, each with the event; those of a flow that the other side has opened and that
nobody owns yet go to ``on_datagram`` here.

The owner (client or agent) says what a new stream means (``on_request``), what to do when a lane
ends (``on_lane_ended``) and when the peer says goodbye (``on_goodbye``).

Invariants: every stream of the session has an owner with TcpRelay's methods until it is forgotten;
no payload of the read buffer is kept past ``dispatch``.
"""

import asyncio
from typing import Any, Callable, Dict, Optional, Set

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_NOT_PERMITTED, FlowTarget
from sshunt.mux.events import (
    DatagramReceived,
    DataReceived,
    FinReceived,
    FlowEnded,
    FlowFailed,
    GoodbyeReceived,
    LaneGone,
    StreamOpened,
    StreamRequested,
    StreamReset,
    StreamWritable,
)
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.limits import DATA_BYTES, STALL_S
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.alarm import Alarm
from sshunt.relay.beat import Beat
from sshunt.relay.lane import READ_BYTES, LaneIO
from sshunt.relay.piped import MOST_PIPES, PIPED_BYTES, Pipes
from sshunt.relay.readiness import readiness
from sshunt.relay.tcp import TcpRelay

#: Ways of payload through this process: what fits, always through memory, always by the kernel.
AUTO, COPY, SPLICE = 0, 1, 2

#: Where the pacer makes smaller frames the link carries less than 260 Mbit/s: copies cost little
#: there, and a read that makes several frames would be cut into as many pipes.
PIPED_FRAME_BYTES = 64 * 1024

#: Lanes in a row that end because the other side broke the protocol, before it is the session that
#: is given up: the frame in question would be sent again over each further one.
PROTOCOL_ERRORS = 3

#: A lane that has lived for so long and ends for another reason interrupts the row.
LIVED_S = 30.0


class Tunnel:
    """Runs ``session`` in ``loop``; see the module's head for the callbacks. ``way``: AUTO, COPY or
    SPLICE.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session: Session,
        *,
        outlives_lanes: bool,
        way: int = AUTO,
    ) -> None:
        self.loop = loop
        self.session = session
        self.outlives_lanes = outlives_lanes
        self.way = way
        self.always_pipes = way == SPLICE
        least_bytes = 1 if way == SPLICE else PIPED_BYTES
        self.splice_from_bytes = DATA_BYTES + 1 if way == COPY else least_bytes
        self.beat = Beat(loop, self.turn)
        self.pipes = Pipes(0 if way == COPY else MOST_PIPES, least_bytes, loop)
        self.teed_bytes = 0  # sent from pipes
        self.spliced_bytes = 0  # received without coming through memory
        self.past_sent = self.past_received = 0  # bytes on lanes that are over
        self.was_heard = False  # something came behind the HELLO of a lane that is over
        self.lanes: Dict[int, LaneIO] = {}
        self.relays: Set[TcpRelay] = set()
        self.readiness = readiness(loop)
        self.read_buffer = bytearray(READ_BYTES)
        self.on_request: Optional[Callable[[Stream, Destination], None]] = None
        self.on_reset: Optional[Callable[[Stream, int], None]] = None
        self.on_lane_ended: Optional[Callable[[LaneIO, str], None]] = None
        self.on_lane_gone: Optional[Callable[[int], None]] = None
        self.on_goodbye: Optional[Callable[[int, str], None]] = None
        self.on_forgotten: Optional[Callable[[], None]] = None
        self.on_datagram: Optional[Callable[[DatagramReceived], None]] = None
        self._takers: Dict[type, Callable[[Any], None]] = {
            DataReceived: self._on_data,
            StreamWritable: self._on_writable,
            FinReceived: self._on_fin,
            StreamReset: self._on_reset,
            StreamRequested: self._on_requested,
            StreamOpened: self._on_opened,
            DatagramReceived: self._on_datagram,
            FlowFailed: self._on_flow_failed,
            FlowEnded: self._on_flow_ended,
            GoodbyeReceived: self._on_goodbye,
            LaneGone: self._on_lane_gone,
        }
        self._protocol_errors = 0  # in a row
        self._pump_scheduled = False
        self._is_turning = False
        self._relief: Optional[asyncio.TimerHandle] = None  # while sockets wait for room
        self._alarm = Alarm(loop, self.pump)

    # --- the session and its lanes ------------------------------------------------------------

    def begin(self, session: Session, *, outlives_lanes: bool) -> None:
        """Another session in the place of the one before it, which has neither lanes nor relays; or
        the same one, now that it is known whether it can outlive its lanes.
        """
        if session is not self.session:
            self.pipes.give_up()
            self._protocol_errors = 0
        self.session = session
        self.outlives_lanes = outlives_lanes

    def add_lane(self, lane_id: int, read_fd: int, write_fd: int) -> LaneIO:
        """A lane is up; its descriptors now belong to the tunnel. Raises OSError if they are dead
        already: then they are still the caller's, and nothing has changed.
        """
        self.session.add_lane(lane_id, self.loop.time())
        try:
            lane = LaneIO(self, lane_id, read_fd, write_fd)
        except OSError:
            self.session.lose_lane(lane_id, self.loop.time())
            raise
        self.lanes[lane_id] = lane
        self.wake()
        return lane

    @property
    def breaks_the_protocol(self) -> bool:
        """True if lane after lane has ended because the other side broke the protocol."""
        return self._protocol_errors >= PROTOCOL_ERRORS

    def forgive(self) -> None:
        """What follows from that is being done."""
        self._protocol_errors = 0

    def lane_ended(self, lane: LaneIO, reason: str, *, broke_protocol: bool = False) -> None:
        """A lane died: close it, give its unacknowledged frames to the others."""
        if self.lanes.pop(lane.lane_id, None) is None:
            return
        if broke_protocol:
            self._protocol_errors += 1
        elif self.loop.time() - lane.up_at >= LIVED_S:
            self._protocol_errors = 0
        figures = self.session.lanes[lane.lane_id]
        self.was_heard = self.was_heard or figures.received > 0
        self.past_sent += figures.sent
        self.past_received += figures.received
        lane.close()
        if not self.outlives_lanes and not self.lanes:
            self.reset_all()
        self.session.lose_lane(lane.lane_id, self.loop.time())
        self.dispatch()
        self.wake()
        if self.on_lane_ended:
            self.on_lane_ended(lane, reason)

    # --- what relays need ---------------------------------------------------------------------

    def open(self, destination: Destination) -> Stream:
        """A new stream; give it to a relay at once."""
        stream = self.session.open(destination)
        self.wake()
        return stream

    def ask(
        self, network: int, question: bytes, owner: Any, source: int = 0
    ) -> Optional[DatagramFlow]:
        """Ask the far side something that it answers with one datagram, or not at all: both are for
        ``owner`` to hear. None if too many questions are open already.
        """
        datagrams, now = self.session.datagrams, self.loop.time()
        if not datagrams.can_open:
            return None
        flow = datagrams.open(FlowTarget(network, ".", 0, source), now)
        flow.owner = owner
        datagrams.send(flow, question, now)
        self.wake()
        return flow

    def give_up(self, flow: DatagramFlow) -> None:
        """Nobody waits for the answer any more. Nothing happens if it has come."""
        self.session.datagrams.end(flow, self.loop.time())

    def forget(self, relay: TcpRelay) -> None:
        """A relay is over."""
        relay.stream.owner = None
        self.relays.discard(relay)
        if self.on_forgotten:
            self.on_forgotten()

    def write(self, stream: Stream, payload: Payload) -> None:
        """What a socket delivered, or holds."""
        self.session.write(stream, payload, self.loop.time())
        if not self._pump_scheduled:
            self.wake()

    def note_full(self) -> None:
        """A socket has more than its stream has room for."""
        if self._relief is None:
            self._relief = self.loop.call_later(STALL_S, self._relieve)

    def _relieve(self) -> None:
        self._relief = None
        if self.session.relieve(self.loop.time()):
            self.note_full()
        self.wake()

    @property
    def wants_pipes(self) -> bool:
        """True if what is read in bulk should stay in the kernel."""
        if self.session.frame_bytes < PIPED_FRAME_BYTES and not self.always_pipes:
            return False
        return bool(self.lanes) and all(lane.is_pipe for lane in self.lanes.values())

    def finish(self, stream: Stream) -> None:
        """A socket delivers nothing more."""
        self.session.finish(stream, self.loop.time())
        self.wake()

    def consumed(self, stream: Stream, size: int) -> None:
        """A socket took ``size`` bytes."""
        self.session.consumed(stream, size, self.loop.time())
        self.wake_if_needed()

    def beliefs(self) -> Dict[str, object]:
        """What decides about speed and latency just now, for metrics, and which way bulk took."""
        return dict(
            self.session.beliefs(self.loop.time()),
            teed_bytes=self.teed_bytes,
            spliced_bytes=self.spliced_bytes,
        )

    # --- moving -------------------------------------------------------------------------------

    def turn(self, work: Callable[[], None]) -> None:
        """Do ``work``, and flush at once what it gave rise to: that saves a round of the event
        loop.
        """
        self._is_turning = True
        try:
            work()
        finally:
            self._is_turning = False
            self._pump_soon()

    def wake(self) -> None:
        """Flush at the end of this turn, or of this round of the event loop."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            if not self._is_turning:
                self.loop.call_soon(self._pump_soon)

    def wake_if_needed(self) -> None:
        """The same, if there is something to flush by now; most of what arrives needs no answer."""
        if not self._pump_scheduled:
            now = self.loop.time()
            if self.session.has_work(now):
                self.wake()
            else:
                self._alarm.set(self.session.next_deadline(now))

    def _pump_soon(self) -> None:
        if self._pump_scheduled:  # else a turn has done it meanwhile
            self._pump_scheduled = False
            self.pump()

    def pump(self) -> None:
        """Handle events and fill the lanes until neither has anything more to do."""
        # Twice: what the first round made room for is read and written at once. Not for ever: the
        # other descriptors of this process want their turn.
        for _ in range(2):
            now = self.loop.time()
            for number in self.session.lanes_to_fill(now):
                lane = self.lanes.get(number)  # gone, if one before it ended the session
                if lane is not None and not lane.has_backlog:
                    lane.flush()
            if not self.dispatch():
                break
        # What has become due since then, too.
        self._alarm.set(self.session.next_deadline(now))

    def dispatch(self) -> bool:
        """Give the session's events to whom they belong; False if there were none.

        With one of them the session may end: the others are nobody's then, and not the next one's.
        """
        session = self.session
        events = session.take_events()
        for event in events:
            if self.session is not session:
                break
            self._takers[type(event)](event)
        return bool(events)

    def _on_data(self, event: DataReceived) -> None:
        if event.stream.owner is not None:
            event.stream.owner.on_data(event.payload)

    def _on_writable(self, event: StreamWritable) -> None:
        if event.stream.owner is not None:
            event.stream.owner.on_writable()

    def _on_fin(self, event: FinReceived) -> None:
        if event.stream.owner is not None:
            event.stream.owner.on_fin()

    def _on_reset(self, event: StreamReset) -> None:
        if event.stream.owner is not None:
            event.stream.owner.on_reset()
        if self.on_reset:
            self.on_reset(event.stream, event.code)

    def _on_requested(self, event: StreamRequested) -> None:
        if self.on_request is None:
            self.session.reset(event.stream, frames.RESET_NOT_PERMITTED)
        else:
            self.on_request(event.stream, event.destination)

    def _on_opened(self, event: StreamOpened) -> None:
        """Nothing waits for it: data goes with the OPEN."""

    def _on_datagram(self, event: DatagramReceived) -> None:
        flow = event.flow
        if flow.owner is not None:
            flow.owner.on_datagram(event)
        elif self.on_datagram:
            self.on_datagram(event)
        else:
            now = self.loop.time()
            self.session.datagrams.end(flow, now, FLOW_NOT_PERMITTED)

    def _on_flow_failed(self, event: FlowFailed) -> None:
        if event.flow.owner is not None:
            event.flow.owner.on_flow_failed(event)

    def _on_flow_ended(self, event: FlowEnded) -> None:
        if event.flow.owner is not None:
            event.flow.owner.on_flow_ended(event)

    def _on_goodbye(self, event: GoodbyeReceived) -> None:
        if self.on_goodbye:
            self.on_goodbye(event.code, event.sentence)

    def _on_lane_gone(self, event: LaneGone) -> None:
        lane = self.lanes.get(event.lane)
        if lane is not None:
            self.lane_ended(lane, "the other side gave it up")
        elif self.on_lane_gone:
            self.on_lane_gone(event.lane)

    def reset_all(self) -> None:
        """End every connection at this end with a reset, and tell the other end."""
        for relay in list(self.relays):
            relay.abort(frames.RESET_ABORTED)

    def close(self) -> None:
        """End everything at once: relays are reset, lanes closed."""
        self.reset_all()
        if self._relief is not None:
            self._relief.cancel()
        self.readiness.close()
        for lane in list(self.lanes.values()):
            lane.close()
        self.lanes.clear()
        self.beat.close()
        self._alarm.close()
        self.pipes.close()
