"""Properties of two sessions together, with Hypothesis choosing every step.

Where the simulation has a clock and a network, here a step is whatever Hypothesis wants: any part
of what is on a lane arrives, or a lane dies at both ends or at one long before the other. The
oracle of the simulation watches the wire; what was written is known to the test alone.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sshunt.mux import frames
from sshunt.mux.events import (
    DataReceived,
    FinReceived,
    StreamOpened,
    StreamRequested,
    StreamReset,
    StreamWritable,
)
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import MAX_WINDOW_BYTES
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from tests.sim.oracle import CountedPayload, LaneBook, Observer, StreamBook

pytestmark = pytest.mark.fuzz

#: What every stream's content is cut from; each end writes a prefix of its own part.
CONTENT = bytes(range(251)) * 4000


class StreamEnd:
    """One end of one stream, as its program sees it."""

    def __init__(self, stream: Stream, book: StreamBook, peer_content: bytes) -> None:
        self.stream, self.book, self.peer_content = stream, book, peer_content
        self.received = 0
        self.unread = 0
        self.fin_received = False
        self.reset_code: int | None = None
        self.was_reset_here = False

    @property
    def is_reset(self) -> bool:
        return self.was_reset_here or self.reset_code is not None


class Peer:
    """One session with its programs."""

    def __init__(self, role: int) -> None:
        self.role = role
        self.session = Session(role)
        self.observer = Observer()
        self.ends: dict[int, StreamEnd] = {}
        self.wires: dict[int, bytearray] = {}  # lane -> what is on its way to us

    def adopt(self, stream: Stream) -> StreamEnd:
        own = (stream.id % 2 == 1) == (self.role == CLIENT)
        ours, theirs = CONTENT[stream.id :], CONTENT[stream.id + 100 :]
        if not own:
            ours, theirs = theirs, ours
        book = self.observer.streams[stream.id] = StreamBook(ours, own, stream)
        end = self.ends[stream.id] = StreamEnd(stream, book, theirs)
        return end


class TwoSessions(RuleBasedStateMachine):
    """Any interleaving of what two relays and a bad network can do."""

    def __init__(self) -> None:
        super().__init__()
        self.client, self.agent = Peer(CLIENT), Peer(AGENT)
        self.now = 1.0
        self.next_lane = 1
        self.paused: set[tuple[int, int]] = set()  # (role, stream): its reader has stopped
        self.add_lane()

    # --- choosing -----------------------------------------------------------------------------

    def peer(self, at_client: bool) -> Peer:
        return self.client if at_client else self.agent

    def other(self, peer: Peer) -> Peer:
        return self.agent if peer is self.client else self.client

    def end(self, at_client: bool, choice: int) -> StreamEnd | None:
        ends = list(self.peer(at_client).ends.values())
        return ends[choice % len(ends)] if ends else None

    def lane(self, peer: Peer, choice: int) -> int | None:
        lanes = list(peer.wires)
        return lanes[choice % len(lanes)] if lanes else None

    # --- programs -----------------------------------------------------------------------------

    @rule(at_client=st.booleans())
    def open(self, at_client: bool) -> None:
        peer = self.peer(at_client)
        if len(peer.ends) < 8:
            peer.adopt(peer.session.open(Destination(frames.TCP, "10.0.0.1", 80)))

    @rule(at_client=st.booleans(), choice=st.integers(0, 20), size=st.integers(1, 60_000))
    def write(self, at_client: bool, choice: int, size: int) -> None:
        peer, end = self.peer(at_client), self.end(at_client, choice)
        if end is None or end.book.finished:
            return
        size = min(size, peer.session.room_bytes(end.stream))
        if size:
            assert not end.is_reset
            data = end.book.content[end.book.written : end.book.written + size]
            end.book.written += size
            payload = CountedPayload(data, peer.observer.ledger)
            peer.session.write(end.stream, payload, self.now)

    @rule(at_client=st.booleans(), choice=st.integers(0, 20))
    def finish(self, at_client: bool, choice: int) -> None:
        peer, end = self.peer(at_client), self.end(at_client, choice)
        if end is not None and not end.is_reset and not end.book.finished:
            end.book.finished = True
            end.book.content = end.book.content[: end.book.written]
            peer.session.finish(end.stream, self.now)

    @rule(at_client=st.booleans(), choice=st.integers(0, 20), really=st.integers(0, 5))
    def reset(self, at_client: bool, choice: int, really: int) -> None:
        peer, end = self.peer(at_client), self.end(at_client, choice)
        over = end is None or (end.fin_received and end.book.fin_left)
        if end is not None and not over and not end.is_reset and not really:
            end.was_reset_here = end.book.reset = True
            peer.session.reset(end.stream, frames.RESET_ABORTED)

    @rule(at_client=st.booleans(), choice=st.integers(0, 20))
    def stop_or_start_reading(self, at_client: bool, choice: int) -> None:
        end = self.end(at_client, choice)
        if end is not None:
            self.paused ^= {(self.peer(at_client).role, end.stream.id)}
            self._read(self.peer(at_client), end)

    def _read(self, peer: Peer, end: StreamEnd) -> None:
        if (peer.role, end.stream.id) not in self.paused and end.unread:
            peer.session.consumed(end.stream, end.unread, self.now)
            end.unread = 0

    # --- network ------------------------------------------------------------------------------

    @rule()
    def add_lane(self) -> None:
        if len(self.client.wires) < 4:
            for peer in (self.client, self.agent):
                peer.session.add_lane(self.next_lane, self.now)
                peer.observer.lanes[self.next_lane] = LaneBook()
                peer.wires[self.next_lane] = bytearray()
            self.next_lane += 1

    @rule(
        at_client=st.booleans(),
        choice=st.integers(0, 3),
        size=st.sampled_from([1, 30, 3000, 1 << 20]),
    )
    def transmit(self, at_client: bool, choice: int, size: int) -> None:
        peer = self.peer(at_client)
        lane = self.lane(peer, choice)
        if lane is not None:
            self._transmit(peer, lane, size)

    def _transmit(self, peer: Peer, lane: int, size: int) -> bool:
        pieces = peer.session.transmit(lane, self.now, size)
        data = peer.observer.saw_sent(lane, pieces)
        if lane in self.other(peer).wires:
            self.other(peer).wires[lane] += data
        self._dispatch(peer)
        return bool(data)

    @rule(
        at_client=st.booleans(),
        choice=st.integers(0, 3),
        size=st.one_of(st.integers(1, 100), st.just(1 << 20)),
    )
    def deliver(self, at_client: bool, choice: int, size: int) -> None:
        peer = self.peer(at_client)
        lane = self.lane(peer, choice)
        if lane is not None:
            self._deliver(peer, lane, size)

    def _deliver(self, peer: Peer, lane: int, size: int) -> bool:
        data = bytes(peer.wires[lane][:size])
        del peer.wires[lane][:size]
        if data:
            buffer = bytearray(data)
            peer.observer.saw_received(lane, data)
            peer.session.receive(lane, memoryview(buffer), self.now)
            self._dispatch(peer)
            buffer[:] = b"!" * len(buffer)
        return bool(data)

    @rule(at_client=st.booleans(), choice=st.integers(0, 3))
    def notice_a_dead_lane(self, at_client: bool, choice: int) -> None:
        """The other end notices later, or works on with what is on its way to it."""
        peer = self.peer(at_client)
        lane = self.lane(peer, choice)
        if lane is not None:
            self._lose(peer, lane)

    def _lose(self, peer: Peer, lane: int) -> None:
        del peer.wires[lane]
        peer.observer.lane_lost(lane)
        peer.session.lose_lane(lane, self.now)

    @rule(seconds=st.sampled_from([0.001, 0.02, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # --- events -------------------------------------------------------------------------------

    def _dispatch(self, peer: Peer) -> None:
        for event in peer.session.take_events():
            assert isinstance(
                event,
                StreamRequested
                | StreamOpened
                | DataReceived
                | FinReceived
                | StreamReset
                | StreamWritable,
            )
            if isinstance(event, StreamRequested):
                assert event.stream.id not in peer.ends, "requested twice"
                peer.adopt(event.stream)
                peer.session.accept(event.stream)
                continue
            end = peer.ends[event.stream.id]
            assert not end.is_reset, "an event of a stream that is over"
            assert not (end.fin_received and end.book.fin_left), "an event behind the end"
            if isinstance(event, DataReceived):
                self._on_data(peer, end, bytes(event.payload.view))
            elif isinstance(event, FinReceived):
                other = self.other(peer).ends[event.stream.id]
                assert other.book.finished
                assert end.received == other.book.written
                end.fin_received = True
            elif isinstance(event, StreamReset):
                end.reset_code = event.code
                end.book.reset = True
                assert self.other(peer).ends[event.stream.id].was_reset_here

    def _on_data(self, peer: Peer, end: StreamEnd, data: bytes) -> None:
        stop = end.received + len(data)
        assert not end.fin_received
        assert data == end.peer_content[end.received : stop]
        assert stop <= end.book.granted
        end.received = stop
        end.unread += len(data)
        self._read(peer, end)

    # --- what is always true ------------------------------------------------------------------

    @invariant()
    def the_senders_hold_what_is_not_acknowledged_and_nothing_else(self) -> None:
        for peer in (self.client, self.agent):
            peer.observer.check_memory()

    @invariant()
    def a_stopped_reader_never_has_more_than_its_window_waiting(self) -> None:
        for role, number in self.paused:
            peer = self.client if role == CLIENT else self.agent
            assert peer.ends[number].unread <= MAX_WINDOW_BYTES

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """The network heals. Whoever still reads gets everything; nothing is left over."""
        for peer in (self.client, self.agent):
            for lane in list(peer.wires):
                if lane not in self.other(peer).wires:
                    self._lose(peer, lane)
        self.add_lane()
        for _ in range(2):
            self._settle()
            for end in self.client.ends.values():
                self._check_complete(self.client, end)
            for end in self.agent.ends.values():
                self._check_complete(self.agent, end)
            self.paused.clear()
            for peer in (self.client, self.agent):
                for end in peer.ends.values():
                    self._read(peer, end)
                    if not end.is_reset and not end.book.finished:
                        end.book.finished = True
                        end.book.content = end.book.content[: end.book.written]
                        peer.session.finish(end.stream, self.now)
        self._settle()
        for peer in (self.client, self.agent):
            assert peer.session.streams == {}
            assert peer.observer.ledger.live_bytes == 0
            assert peer.session.table.credit.promised_bytes == 0

    def _settle(self) -> None:
        moved, rounds = True, 0
        while moved:
            self.now += 1
            moved, rounds = False, rounds + 1
            assert rounds < 1000, "they never stop talking"
            for peer in (self.client, self.agent):
                for lane in list(peer.wires):
                    moved |= self._transmit(peer, lane, 1 << 20)
                    moved |= self._deliver(self.other(peer), lane, 1 << 20)

    def _check_complete(self, peer: Peer, end: StreamEnd) -> None:
        """A paused consumer freezes only itself: every other stream has all that was written."""
        other = self.other(peer).ends.get(end.stream.id)
        if end.is_reset or other is None or other.is_reset:
            return
        assert end.received == min(other.book.written, other.book.credit)
        if (peer.role, end.stream.id) not in self.paused:
            assert end.received == other.book.written
            assert end.fin_received == other.book.finished


TwoSessions.TestCase.settings = settings(deadline=None, max_examples=80, stateful_step_count=60)
test_two_sessions = TwoSessions.TestCase
