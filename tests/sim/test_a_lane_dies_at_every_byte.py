"""One short exchange, broken off after every possible number of bytes in either direction.

The exchange has one stream of each fate: question and answer with half-close both ways, a reset by
the client, a refusal by the agent. It is first run over a lane that lives, to learn how many bytes
each direction has; then once for each point at which the lane could die, with a second lane taking
its place. The outcome must be the same every time.
"""

from typing import NamedTuple

import pytest

from sshunt.mux import frames
from sshunt.mux.events import (
    DataReceived,
    Event,
    FinReceived,
    StreamOpened,
    StreamRequested,
    StreamReset,
)
from sshunt.mux.frames import Destination
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from tests.unit.mux.ends import Ends

ANSWERED, RESET_BY_CLIENT, REFUSED = 80, 81, 82
PORTS = (ANSWERED, RESET_BY_CLIENT, REFUSED)
QUESTION, ANSWER, GREETING = b"what is the answer? ", b"forty-two, as ever", b"hello"


class Heard(NamedTuple):
    """What one end heard of one stream."""

    requested: int
    opened: int
    data: bytes
    fins: int
    resets: tuple[int, ...]


class Exchange:
    """Two sessions with their programs, and a first lane that dies after a number of bytes."""

    def __init__(self, to_agent_bytes: int, to_client_bytes: int) -> None:
        self.ends = Ends(lanes=0)
        self.client, self.agent = self.ends.client, self.ends.agent
        self.heard: dict[tuple[Session, int], list[Event]] = {}
        self.carried = {self.agent: 0, self.client: 0}
        self.limits = {self.agent: to_agent_bytes, self.client: to_client_bytes}
        self.near: dict[int, int] = {}  # stream -> port
        for port in PORTS:
            stream = self.client.open(Destination(frames.TCP, "10.1.2.3", port))
            self.near[stream.id] = port
            self.client.write(stream, Payload(QUESTION), self.ends.now)
            if port == ANSWERED:
                self.client.finish(stream, self.ends.now)

    def run(self) -> dict[tuple[str, int], Heard]:
        self.ends.add_lane(1)
        self._carry_all(1)
        self.ends.lose_lane(1)
        self.ends.add_lane(2)
        self.limits = dict.fromkeys(self.limits, 1 << 30)
        self._carry_all(2)
        assert (self.client.streams, self.agent.streams) == ({}, {})
        return {
            (name, port): summary(self.heard.get((session, port), []))
            for name, session in (("client", self.client), ("agent", self.agent))
            for port in PORTS
        }

    def _carry_all(self, lane: int) -> None:
        rounds = 0
        while self._carry(lane):
            rounds += 1
            assert rounds < 1000, "they never stop talking"

    def _carry(self, lane: int) -> bool:
        """One round: both transmit, the lane carries what it may; False if nothing moved."""
        deadlines = [session.next_deadline() for session in (self.client, self.agent)]
        self.ends.now = max([self.ends.now, *(due for due in deadlines if due is not None)])
        moved = False
        for sender, receiver in ((self.client, self.agent), (self.agent, self.client)):
            moved |= bool(self.ends.transmit(sender, lane))
            key = (id(receiver), lane)
            size = min(len(self.ends.wires[key]), self.limits[receiver] - self.carried[receiver])
            self.carried[receiver] += size
            moved |= size > 0
            for event in self.ends.deliver(receiver, lane, size):
                self._on_event(receiver, event)
        return moved

    def _on_event(self, session: Session, event: Event) -> None:
        assert isinstance(
            event, StreamRequested | StreamOpened | DataReceived | FinReceived | StreamReset
        )
        stream, now = event.stream, self.ends.now
        port = self.near[stream.id]
        self.heard.setdefault((session, port), []).append(event)
        if isinstance(event, DataReceived):
            session.consumed(stream, len(event.payload), now)
        if isinstance(event, StreamRequested):
            self._serve(stream, port)
        elif isinstance(event, FinReceived) and session is self.agent:
            self.agent.write(stream, Payload(ANSWER), now)
            self.agent.finish(stream, now)
        elif isinstance(event, DataReceived) and session is self.client and port != ANSWERED:
            self.client.reset(stream, frames.RESET_ABORTED)

    def _serve(self, stream: Stream, port: int) -> None:
        if port == REFUSED:
            self.agent.reset(stream, frames.RESET_REFUSED)
            return
        self.agent.accept(stream)
        if port == RESET_BY_CLIENT:
            self.agent.write(stream, Payload(GREETING), self.ends.now)


def summary(events: list[Event]) -> Heard:
    return Heard(
        requested=sum(isinstance(e, StreamRequested) for e in events),
        opened=sum(isinstance(e, StreamOpened) for e in events),
        data=b"".join(bytes(e.payload.view) for e in events if isinstance(e, DataReceived)),
        fins=sum(isinstance(e, FinReceived) for e in events),
        resets=tuple(e.code for e in events if isinstance(e, StreamReset)),
    )


def check(heard: dict[tuple[str, int], Heard], cut: tuple[int, int]) -> None:
    assert heard["agent", ANSWERED] == Heard(1, 0, QUESTION, 1, ()), cut
    assert heard["client", ANSWERED] == Heard(0, heard["client", ANSWERED].opened, ANSWER, 1, ())
    # A reset may overtake bytes and the news that the stream is open; never changes or invents any.
    reset = heard["agent", RESET_BY_CLIENT]
    assert reset == Heard(1, 0, reset.data, 0, (frames.RESET_ABORTED,)), cut
    assert QUESTION.startswith(reset.data), cut
    client = heard["client", RESET_BY_CLIENT]
    assert client == Heard(0, client.opened, client.data, 0, ()), cut
    assert client.data, cut
    assert GREETING.startswith(client.data), cut
    assert heard["client", REFUSED] == Heard(0, 0, b"", 0, (frames.RESET_REFUSED,)), cut
    assert heard["agent", REFUSED].requested == 1, cut


def whole_exchange() -> tuple[int, int]:
    """How many bytes each direction has when nothing dies: to the agent, to the client."""
    exchange = Exchange(1 << 30, 1 << 30)
    check(exchange.run(), (0, 0))
    return exchange.carried[exchange.agent], exchange.carried[exchange.client]


TO_AGENT_BYTES, TO_CLIENT_BYTES = whole_exchange()


@pytest.mark.parametrize("answers", [*range(0, TO_CLIENT_BYTES, 20), TO_CLIENT_BYTES])
def test_the_lane_to_the_agent_may_die_at_every_byte(answers: int) -> None:
    for cut in range(TO_AGENT_BYTES + 1):
        check(Exchange(cut, answers).run(), (cut, answers))


@pytest.mark.parametrize("questions", [*range(0, TO_AGENT_BYTES, 20), TO_AGENT_BYTES])
def test_the_lane_to_the_client_may_die_at_every_byte(questions: int) -> None:
    for cut in range(TO_CLIENT_BYTES + 1):
        check(Exchange(questions, cut).run(), (questions, cut))


@pytest.mark.deep
def test_both_directions_may_die_at_every_byte() -> None:
    for questions in range(TO_AGENT_BYTES + 1):
        for answers in range(TO_CLIENT_BYTES + 1):
            check(Exchange(questions, answers).run(), (questions, answers))
