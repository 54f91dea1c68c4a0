"""Two sessions with programs at both ends, over lanes that die. All of it follows from one seed.

    programs -> Side (a relay without sockets) -> Session -> lanes (network) -> Session -> Side

Every stream has a plan (what is written, how fast it is read, who resets it and when); the plans
are the oracle: whatever the lanes do, every stream must end as planned, byte for byte. The wire is
watched by ``oracle`` at both ends. Nothing here looks into a session's own books before the end.
"""

import random
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from sshunt.mux import frames, windows
from sshunt.mux.datagram_frames import FLOW_OTHER, FlowTarget
from sshunt.mux.events import (
    DatagramReceived,
    DataReceived,
    Event,
    FinReceived,
    FlowEnded,
    FlowFailed,
    StreamOpened,
    StreamRequested,
    StreamReset,
    StreamWritable,
)
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import MAX_WINDOW_BYTES, TRANSMIT_BYTES
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from tests.sim.network import Clock, Direction
from tests.sim.oracle import CountedPayload, LaneBook, Observer, StreamBook

#: No run needs nearly as many; one that does goes round in circles.
MAX_STEPS = 2_000_000


#: The size of a batch's datagrams, but for the last one.
SEGMENT_BYTES = 100


def pieces(data: bytes, segment_bytes: int) -> list[bytes]:
    """The datagrams of a batch; of 0 bytes: it is one."""
    if not segment_bytes:
        return [data]
    return [data[at : at + segment_bytes] for at in range(0, len(data), segment_bytes)]


class Plan(NamedTuple):
    """What one stream is to do. Sizes in bytes, times in virtual seconds."""

    number: int
    start_s: float
    question: bytes
    answer: bytes
    accept_after_s: float
    refused: bool
    client_pace_s: float  # between two writes; 0: as fast as there is room
    agent_pace_s: float
    client_read_bytes: int  # read at once every READ_EVERY_S; 0: at once
    agent_read_bytes: int
    client_resets_after_s: float | None
    agent_resets_after_s: float | None

    @property
    def destination(self) -> Destination:
        host = f"10.9.{self.number >> 8}.{self.number & 255}" if self.number % 3 else "web.example"
        return Destination(frames.TCP, host, 1000 + self.number)


READ_EVERY_S = 0.05


def make_plan(rng: random.Random, number: int) -> Plan:
    def size() -> int:
        return rng.choice((0, 1, rng.randint(2, 200), int(10 ** rng.uniform(2, 6.2))))

    def reading() -> int:
        return rng.choice((0, 0, 0, int(10 ** rng.uniform(3.5, 5.5))))

    def resets() -> float | None:
        return rng.expovariate(1.0) if rng.random() < 0.12 else None

    return Plan(
        number=number,
        start_s=rng.choice((0.0, rng.uniform(0, 5))),
        question=rng.randbytes(size()),
        answer=rng.randbytes(size()),
        accept_after_s=rng.choice((0.0, rng.uniform(0, 1))),
        refused=rng.random() < 0.1,
        client_pace_s=rng.choice((0.0, 0.0, rng.uniform(0.001, 0.05))),
        agent_pace_s=rng.choice((0.0, 0.0, rng.uniform(0.001, 0.05))),
        client_read_bytes=reading(),
        agent_read_bytes=reading(),
        client_resets_after_s=resets(),
        agent_resets_after_s=resets(),
    )


class End:
    """One program at one end of one stream."""

    def __init__(self, side: "Side", stream: Stream, plan: Plan, book: StreamBook) -> None:
        self.side, self.stream, self.plan, self.book = side, stream, plan, book
        client = side.role == CLIENT
        self.expected = plan.answer if client else plan.question
        self._pace_s = plan.client_pace_s if client else plan.agent_pace_s
        self._read_bytes = plan.client_read_bytes if client else plan.agent_read_bytes
        self.opened = not client
        self.received = 0
        self.fin_received = False
        self.reset_sent: int | None = None
        self.reset_received: int | None = None
        self._unread = 0
        self._reading = False

    @property
    def over(self) -> bool:
        """Nothing more may be heard of the stream here."""
        return self.is_reset or (self.fin_received and self.book.fin_left)

    @property
    def is_reset(self) -> bool:
        return self.reset_sent is not None or self.reset_received is not None

    def write_some(self) -> None:
        session, clock = self.side.session, self.side.clock
        while not self.is_reset and not self.book.finished:
            room = session.room_bytes(self.stream)
            if not room:
                break
            left = self.book.content[self.book.written :]
            if not left:  # as with a socket: the end of file is met where a read would be next
                self.book.finished = True
                session.finish(self.stream, clock.now)
                break
            size = min(room, len(left), self.side.rng.choice((1, 1400, 16384, 262144)))
            self.book.written += size
            payload = CountedPayload(left[:size], self.side.observer.ledger)
            session.write(self.stream, payload, clock.now)
            if self._pace_s:
                clock.after(self._pace_s, self.write_some)
                break
        self.side.wake()

    def on_data(self, data: bytes) -> None:
        end = self.received + len(data)
        assert not self.fin_received, "data behind the end"
        assert data == self.expected[self.received : end], "other bytes than were sent"
        assert end <= self.book.granted, "more than was granted"
        self.received = end
        self._unread += len(data)
        assert self._unread <= MAX_WINDOW_BYTES
        if not self._read_bytes:
            self._read(self._unread)
        elif not self._reading:
            self._reading = True
            self.side.clock.after(READ_EVERY_S, self._read_slowly)

    def _read(self, size: int) -> None:
        self._unread -= size
        self.side.session.consumed(self.stream, size, self.side.clock.now)
        self.side.wake()

    def _read_slowly(self) -> None:
        self._read(min(self._unread, self._read_bytes))
        self._reading = self._unread > 0
        if self._reading:
            self.side.clock.after(READ_EVERY_S, self._read_slowly)

    def reset(self, code: int) -> None:
        if self.over:
            return
        self.reset_sent = code
        self.book.reset = True
        self.side.session.reset(self.stream, code)
        self.side.wake()


class Side:
    """A relay without sockets: gives events to the programs, fills the lanes."""

    def __init__(self, role: int, clock: Clock, rng: random.Random, plans: list[Plan]) -> None:
        self.role, self.clock, self.rng, self.plans = role, clock, rng, plans
        self.session = Session(role)
        self.observer = Observer()
        self.ends: dict[int, End] = {}  # by plan
        self.by_stream: dict[int, End] = {}
        self.out: dict[int, Direction] = {}
        self.datagrams: list[bytes] = []
        self.flows: dict[int, DatagramFlow] = {}
        self.over_flows: list[DatagramFlow] = []
        self._transmit_bytes = rng.choice((700, 20_000, TRANSMIT_BYTES))
        self._waking = False
        self._timer_at: float | None = None

    # --- streams ------------------------------------------------------------------------------

    def open(self, plan: Plan) -> None:
        stream = self.session.open(plan.destination)
        self._adopt(stream, plan, plan.question).write_some()

    def _adopt(self, stream: Stream, plan: Plan, content: bytes) -> End:
        book = self.observer.streams[stream.id] = StreamBook(content, self.role == CLIENT, stream)
        assert plan.number not in self.ends, "the same stream a second time"
        end = self.ends[plan.number] = self.by_stream[stream.id] = End(self, stream, plan, book)
        wish = plan.client_resets_after_s if book.own else plan.agent_resets_after_s
        if wish is not None:
            self.clock.after(wish, lambda: end.reset(frames.RESET_ABORTED))
        return end

    def _on_request(self, event: StreamRequested) -> None:
        plan = self.plans[event.destination.port - 1000]
        assert event.destination == plan.destination
        end = self._adopt(event.stream, plan, plan.answer)
        if plan.refused:
            end.reset(frames.RESET_REFUSED)
        else:
            self.clock.after(plan.accept_after_s, lambda: self._accept(end))

    def _accept(self, end: End) -> None:
        if not end.is_reset:
            self.session.accept(end.stream)
            end.write_some()

    # --- events -------------------------------------------------------------------------------

    def dispatch(self) -> None:
        over_before = {number for number, end in self.by_stream.items() if end.over}
        flows_before = set(self.over_flows)
        for event in self.session.take_events():
            if isinstance(event, StreamRequested):
                self._on_request(event)
            elif isinstance(event, DatagramReceived | FlowEnded | FlowFailed):
                self._on_flow_event(event, flows_before)
            else:
                self._on_stream_event(event, over_before)

    def _on_flow_event(
        self, event: DatagramReceived | FlowEnded | FlowFailed, over_before: set[DatagramFlow]
    ) -> None:
        assert event.flow not in over_before, f"{event} of a flow that is over"
        if event.flow in self.over_flows:
            return  # ended by its owner, a moment ago
        flows = self.session.datagrams
        if isinstance(event, FlowEnded):
            self.over_flows.append(event.flow)
        elif isinstance(event, DatagramReceived):
            self.datagrams += pieces(event.data, event.segment_bytes)
            if self.rng.random() < 0.2:
                flows.fail(event.flow, FLOW_OTHER, self.clock.now)
            elif self.rng.random() < 0.2:
                flows.end(event.flow, self.clock.now)
                self.over_flows.append(event.flow)
            self.wake()

    def _on_stream_event(self, event: Event, over_before: set[int]) -> None:
        assert isinstance(
            event, StreamOpened | DataReceived | FinReceived | StreamReset | StreamWritable
        )
        number = event.stream.id
        assert number not in over_before, f"{event} of a stream that is over"
        end = self.by_stream[number]
        if end.is_reset:
            return  # by the program, a moment ago, while it worked through these events
        if isinstance(event, DataReceived):
            end.on_data(bytes(event.payload.view))
        elif isinstance(event, FinReceived):
            assert end.received == len(end.expected), "the end came too early"
            end.fin_received = True
        elif isinstance(event, StreamReset):
            end.reset_received = event.code
            end.book.reset = True
        elif isinstance(event, StreamWritable):
            end.write_some()
        else:
            assert not end.opened, "opened twice"
            end.opened = True

    # --- lanes --------------------------------------------------------------------------------

    def add_lane(self, lane_id: int, out: Direction) -> None:
        self.session.add_lane(lane_id, self.clock.now)
        self.observer.lanes[lane_id] = LaneBook()
        self.out[lane_id] = out
        out.drained = self.wake
        self.wake()

    def lose_lane(self, lane_id: int) -> None:
        if self.out.pop(lane_id, None) is not None:
            self.observer.lane_lost(lane_id)
            self.session.lose_lane(lane_id, self.clock.now)
            self.wake()

    def receive(self, lane_id: int, data: bytes) -> None:
        if lane_id not in self.out:
            return  # given up here, although bytes of it still come
        buffer = bytearray(data)
        self.observer.saw_received(lane_id, data)
        self.session.receive(lane_id, memoryview(buffer), self.clock.now)
        self.dispatch()
        buffer[:] = b"!" * len(buffer)  # whoever kept a view of it will notice
        self.wake()

    def wake(self) -> None:
        if not self._waking:
            self._waking = True
            self.clock.at(self.clock.now, self._pump)

    def _pump(self) -> None:
        self._waking = False
        lanes = list(self.out.items())
        self.rng.shuffle(lanes)
        for lane_id, out in lanes:
            while out.room_bytes:
                pieces = self.session.transmit(lane_id, self.clock.now, self._transmit_bytes)
                if not pieces:
                    break
                data = self.observer.saw_sent(lane_id, pieces)
                out.write(data)
            self.session.set_writable(lane_id, bool(out.room_bytes))
        self.dispatch()
        self.observer.check_memory()
        deadline = self.session.next_deadline(after=self.clock.now)
        if deadline is not None and (self._timer_at is None or deadline < self._timer_at):
            self._timer_at = deadline
            self.clock.at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = None
        self._pump()


class Simulation:
    """One run. ``run`` returns when nothing is left to happen; ``check_outcome`` judges it."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.clock = Clock()
        self.plans = [make_plan(rng, number) for number in range(rng.randint(1, 16))]
        self.client = Side(CLIENT, self.clock, rng, self.plans)
        self.agent = Side(AGENT, self.clock, rng, self.plans)
        self.deaths_left = rng.choice((0, rng.randint(1, 12)))
        if rng.random() < 0.5:  # large windows are rare, and called back from who does not use them
            for side in (self.client, self.agent):
                side.session.table.credit.places = [rng.randint(0, 2)] * len(windows.PLACES)
        self.sent_datagrams: dict[int, list[bytes]] = {CLIENT: [], AGENT: []}
        self._next_lane = 1
        for _ in range(rng.randint(1, 4)):
            self._start_lane()
        for plan in self.plans:
            self.clock.at(plan.start_s, self._opener(plan))
        for number in range(rng.choice((0, 30))):
            self.clock.at(rng.uniform(0, 6), self._datagram_sender(number))
        for _ in range(rng.choice((0, 30))):
            self.clock.at(rng.uniform(0, 6), self._caller_back())

    def _opener(self, plan: Plan) -> Callable[[], None]:
        return lambda: self.client.open(plan)

    def _caller_back(self) -> Callable[[], None]:
        side = self.rng.choice((self.client, self.agent))

        def call_back() -> None:
            side.session.table.make_places()
            side.wake()

        return call_back

    def _datagram_sender(self, number: int) -> Callable[[], None]:
        side = self.rng.choice((self.client, self.agent))
        segment_bytes = number % 2 * SEGMENT_BYTES
        if segment_bytes:  # a batch, which may be divided on its way
            count = self.rng.randint(1, 12)
            parts = [(b"%d.%d:" % (number, n)).ljust(segment_bytes, b"-") for n in range(count)]
            data = b"".join([*parts, b"%d:" % number])
        else:
            data = b"%d:" % number + self.rng.randbytes(self.rng.randint(0, 1200))

        def send() -> None:
            self.sent_datagrams[side.role] += pieces(data, segment_bytes)
            flow = side.flows.get(number % 3)
            if flow is None or flow in side.over_flows:
                target = FlowTarget(frames.UDP, "10.1.2.3", 5000 + number)
                flow = side.flows[number % 3] = side.session.datagrams.open(target, self.clock.now)
            side.session.datagrams.send(flow, data, self.clock.now, segment_bytes)
            side.wake()

        return send

    def _start_lane(self) -> None:
        """The agent takes the lane when the client's HELLO comes, the client at the answer."""
        rng, lane_id = self.rng, self._next_lane
        self._next_lane += 1
        latency_s = 10 ** rng.uniform(-3.5, -0.5)
        bytes_per_s = 10 ** rng.uniform(4.5, 8)
        up, down = (
            Direction(
                self.clock,
                rng,
                latency_s=latency_s,
                bytes_per_s=bytes_per_s,
                capacity_bytes=int(10 ** rng.uniform(3, 6)),
            )
            for _ in range(2)
        )
        up.deliver = lambda data: self.agent.receive(lane_id, data)
        down.deliver = lambda data: self.client.receive(lane_id, data)
        if self.deaths_left and rng.random() < 0.8:
            self.deaths_left -= 1
            self._doom(lane_id, up, down)

        def agent_takes_it() -> None:
            self.clock.after(latency_s, lambda: self.client.add_lane(lane_id, up))
            self.agent.add_lane(lane_id, down)

        self.clock.after(latency_s, agent_takes_it)

    def _doom(self, lane_id: int, up: Direction, down: Direction) -> None:
        """The lane will die: at a byte of one direction, or at a moment."""
        rng = self.rng
        begun = False

        def die() -> None:
            nonlocal begun
            if begun:
                return
            begun = True
            for direction in (up, down):  # what is under way may still come, up to a point
                self.clock.after(rng.choice((0.0, rng.uniform(0, 0.5))), direction.kill_now)
            self.clock.after(rng.uniform(0.5, 3), lambda: self.agent.lose_lane(lane_id))
            self.clock.after(rng.uniform(0.5, 3), client_notices)

        def client_notices() -> None:
            self.client.lose_lane(lane_id)
            self.clock.after(rng.uniform(0, 1), self._start_lane)

        up.on_death = down.on_death = die
        if rng.random() < 0.3:
            self.clock.after(rng.uniform(1, 6), die)
        else:
            rng.choice((up, down)).dies_at = int(10 ** rng.uniform(0, 6))

    def run(self) -> None:
        # Streams live for seconds here: what idles for a moment is called back.
        with mock.patch.object(windows, "IDLE_S", 0.05):
            while self.clock.run_next():
                assert self.clock.steps < MAX_STEPS, "it does not end"

    def check_outcome(self) -> None:
        for plan in self.plans:
            self._check_stream(plan)
        for side, other in ((self.client, self.agent), (self.agent, self.client)):
            assert side.session.streams == {}, "a stream was not forgotten"
            assert not side.session.has_work(self.clock.now), "something was never sent"
            assert side.observer.ledger.live_bytes == 0, "something was never released"
            assert side.session.table.credit.promised_bytes == 0, "a place was kept"
            sent = self.sent_datagrams[other.role]
            assert len(set(side.datagrams)) == len(side.datagrams), "a datagram came twice"
            assert set(side.datagrams) <= set(sent), "a datagram that nobody sent"
            flows = side.session.datagrams
            assert (flows.waiting, flows.queued_bytes) == (0, 0), "a datagram still waits"
            assert not set(flows.flows.values()) & set(side.over_flows), "a flow was not forgotten"

    def _check_stream(self, plan: Plan) -> None:
        near, far = self.client.ends[plan.number], self.agent.ends.get(plan.number)
        if far is None:
            assert near.reset_sent is not None, "an OPEN was lost"
            return
        for end, other in ((near, far), (far, near)):
            assert end.over, f"stream {end.stream.id} never ended"
            if end.reset_received is not None:
                assert end.reset_received == other.reset_sent, "the reset changed its meaning"
            if not (near.is_reset or far.is_reset):
                # OPENED is not awaited: everything may overtake it, the stream's end included.
                assert end.received == len(end.expected)
