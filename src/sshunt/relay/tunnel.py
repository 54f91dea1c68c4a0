"""One session in the reactor: its events to their relays, its bytes to the lanes.

    lane readable -> session.receive -> dispatch -> relays write to their sockets
    socket readable -> session.write -> wake -> pump -> session.transmit -> writev to the lane

Datagrams go to the owner of their flow, which has ``on_datagram``, ``on_flow_failed`` and
``on_flow_ended``, each with the event.

What the session means to the rest of the program (client or agent) is its ``TunnelOwner``'s to say:
he hears of new streams, of datagrams of a flow that the other side has opened and that nobody owns
yet, of lanes that end, of the peer's goodbye.

It lives as long as its session: the next one has a tunnel of its own, and what belongs to this one
(relays, lanes, questions) never hears of another.

Invariants: every stream of the session has an owner with TcpRelay's methods until that is over; no
payload of the read buffer is kept past ``dispatch``; nothing happens after ``close``, and a relay
that is asked for then is over.

Not here: what a process has once (reactor).
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
from sshunt.mux.limits import STALL_S
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.flow import Relay
from sshunt.relay.lane import LaneIO, LaneOwner
from sshunt.relay.reactor import Pumped, Reactor
from sshunt.relay.tcp import RelayOwner, TcpRelay

#: Where the pacer makes smaller frames the link carries less than 260 Mbit/s: copies cost little
#: there, and a read that makes several frames would be cut into as many pipes.
PIPED_FRAME_BYTES = 64 * 1024

#: Lanes in a row that end because the other side broke the protocol, before it is the session that
#: is given up: the frame in question would be sent again over each further one.
PROTOCOL_ERRORS = 3

#: How long a lane has lived that interrupts the row when it ends for another reason.
LIVED_S = 30.0


class TunnelOwner:
    """What a tunnel tells whoever made it. What one does not care for he need not say."""

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        """The peer wants a connection. False: no, it is refused; else give the stream an owner."""
        return False

    def on_reset(self, stream: Stream, code: int) -> None:
        """The peer ended a stream at once."""

    def on_forgotten(self) -> None:
        """A connection of this host is over, and its descriptor free."""

    def on_datagram(self, event: DatagramReceived) -> bool:
        """The peer has opened a flow of datagrams. False: no, it is ended; else give it an owner,
        or an answer.
        """
        return False

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """A lane is over and closed; what it had in flight goes over the others."""

    def on_lane_gone(self, lane_id: int) -> None:
        """The peer has given up a lane that is not here."""

    def on_goodbye(self, code: int, sentence: str) -> None:
        """The peer ends the session."""


class Tunnel(Pumped, LaneOwner, RelayOwner):
    """Runs ``session`` in ``reactor``. ``outlives_lanes``: its streams go on without a lane."""

    def __init__(
        self,
        reactor: Reactor,
        session: Session,
        owner: TunnelOwner,
        *,
        outlives_lanes: bool,
    ) -> None:
        self.reactor = reactor
        self.loop = reactor.loop
        self.session = session
        self.outlives_lanes = outlives_lanes
        self.was_heard = False  # something came behind the HELLO of a lane that is over
        self.lanes: Dict[int, LaneIO] = {}
        self.relays: Set[Any] = set()  # TcpRelay, or what waits to become one
        self._owner = owner
        self._handlers: Dict[type, Callable[[Any], None]] = {
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
        self._are_pipes = False  # the lanes, all of them
        self._is_closed = False
        self._past_teed = self._past_spliced = 0  # bytes of lanes that are over
        self._protocol_errors = 0  # in a row
        self._relief: Optional[asyncio.TimerHandle] = None  # while sockets wait for room
        reactor.add(session, self)

    # --- the session and its lanes ------------------------------------------------------------

    def add_lane(self, lane_id: int, read_fd: int, write_fd: int) -> LaneIO:
        """A lane is up; its descriptors now belong to the tunnel. Raises OSError if they are dead
        already: then they are still the caller's, and nothing has changed.
        """
        self.session.add_lane(lane_id, self.loop.time())
        try:
            lane = LaneIO(self.reactor, self.session, self, lane_id, read_fd, write_fd)
        except OSError:
            self.session.lose_lane(lane_id, self.loop.time())
            raise
        self.lanes[lane_id] = lane
        self._note_lanes()
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
        self._note_lanes()
        if broke_protocol:
            self._protocol_errors += 1
        elif self.loop.time() - lane.up_at >= LIVED_S:
            self._protocol_errors = 0
        self.was_heard = self.was_heard or lane.received_bytes > 0
        self._past_teed += lane.teed_bytes
        self._past_spliced += lane.spliced_bytes
        lane.close()
        if not self.outlives_lanes and not self.lanes:
            self.reset_all()
        self.session.lose_lane(lane.lane_id, self.loop.time())
        self.dispatch()
        self.wake()
        self._owner.on_lane_ended(lane, reason)

    def _note_lanes(self) -> None:
        self._are_pipes = bool(self.lanes) and all(lane.is_pipe for lane in self.lanes.values())

    # --- its streams --------------------------------------------------------------------------

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
        self.wake()

    def relay(self, stream: Stream) -> TcpRelay:
        """The relay of ``stream`` from now on, for a socket of this host; over if we are closed."""
        relay = TcpRelay(self.reactor, self.session, self, stream)
        self.relays.add(relay)
        if self._is_closed:
            relay.abort(frames.RESET_ABORTED)
        return relay

    def relay_ended(self, relay: Relay) -> None:
        """As its relays say."""
        self.relays.discard(relay)
        self._owner.on_forgotten()

    def note_full(self) -> None:
        """As its relays say."""
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
        if self.session.frame_bytes < PIPED_FRAME_BYTES and not self.reactor.always_pipes:
            return False
        return self._are_pipes

    @property
    def teed_bytes(self) -> int:
        """Sent from pipes."""
        return self._past_teed + sum(lane.teed_bytes for lane in self.lanes.values())

    @property
    def spliced_bytes(self) -> int:
        """Received without coming through memory."""
        return self._past_spliced + sum(lane.spliced_bytes for lane in self.lanes.values())

    def statistics(self) -> Dict[str, object]:
        """What decides about speed and latency just now, for metrics, and which way bulk took."""
        return dict(
            self.session.statistics(self.loop.time()),
            teed_bytes=self.teed_bytes,
            spliced_bytes=self.spliced_bytes,
        )

    # --- moving -------------------------------------------------------------------------------

    def wake(self) -> None:
        """The session was given something to do: see to it, once, at the end of this batch."""
        self.reactor.wake(self.session)

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
        self.reactor.remind(self.session, self.session.next_deadline(now))

    def dispatch(self) -> bool:
        """Give the session's events to whom they belong; False if there were none.

        With one of them the session may end: the others are nobody's then.
        """
        events = self.session.take_events()
        for event in events:
            if self._is_closed:
                break
            self._handlers[type(event)](event)
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
            event.stream.owner.on_reset(event.code)
        self._owner.on_reset(event.stream, event.code)

    def _on_requested(self, event: StreamRequested) -> None:
        if not self._owner.on_request(event.stream, event.destination):
            self.session.reset(event.stream, frames.RESET_NOT_PERMITTED)
            self.wake()

    def _on_opened(self, event: StreamOpened) -> None:
        if event.stream.owner is not None:
            event.stream.owner.on_opened()

    def _on_datagram(self, event: DatagramReceived) -> None:
        flow = event.flow
        if flow.owner is not None:
            flow.owner.on_datagram(event)
        elif not self._owner.on_datagram(event):
            self.session.datagrams.end(flow, self.loop.time(), FLOW_NOT_PERMITTED)
            self.wake()

    def _on_flow_failed(self, event: FlowFailed) -> None:
        if event.flow.owner is not None:
            event.flow.owner.on_flow_failed(event)

    def _on_flow_ended(self, event: FlowEnded) -> None:
        if event.flow.owner is not None:
            event.flow.owner.on_flow_ended(event)

    def _on_goodbye(self, event: GoodbyeReceived) -> None:
        self._owner.on_goodbye(event.code, event.sentence)

    def _on_lane_gone(self, event: LaneGone) -> None:
        lane = self.lanes.get(event.lane)
        if lane is not None:
            self.lane_ended(lane, "the other side gave it up")
        else:
            self._owner.on_lane_gone(event.lane)

    def reset_all(self) -> None:
        """End every connection at this end with a reset, and tell the other end."""
        for relay in list(self.relays):
            relay.abort(frames.RESET_ABORTED)

    def close(self) -> None:
        """End everything at once: relays are reset, lanes closed. May be called twice."""
        self._is_closed = True
        self.reset_all()
        if self._relief is not None:
            self._relief.cancel()
        for lane in list(self.lanes.values()):
            lane.close()
        self.lanes.clear()
        self.reactor.remove(self.session)
