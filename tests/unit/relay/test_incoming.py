"""What the other side of a session asks for, as near ends: streams, and queries."""

import asyncio
import errno
import gc
from collections.abc import Callable

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    ANY_PEER,
    DONT_FRAGMENT,
    FLOW_NOT_PERMITTED,
    FLOW_OTHER,
    FLOW_TOO_LARGE,
    FlowTarget,
)
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay.flow import FLOW_DONE, NO_RESOURCES, TCP, UDP, Asked, Flow, Outlet
from sshunt.relay.incoming import FlowAssociation, FlowQuestion, StreamConnection
from sshunt.relay.sockets import reset_code
from tests.unit.relay.ends import Ends, accept, listen, run, threaded

DNS_FLOW = FlowTarget(frames.DNS, ".", 53, 7)


class Asker:
    """Who has asked, at the other end: what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[object] = asyncio.Queue()

    def on_datagram(self, event: DatagramReceived) -> None:
        self.told.put_nowait(event.data)

    def on_flow_failed(self, event: FlowFailed) -> None:
        raise AssertionError("nothing fails here")

    def on_flow_ended(self, event: FlowEnded) -> None:
        self.told.put_nowait(event.code)

    async def hear(self) -> object:
        return await asyncio.wait_for(self.told.get(), 10)


async def asked(ends: Ends) -> tuple[Asker, FlowQuestion]:
    """A question that has come to the agent, and who waits for its answer."""
    questions: asyncio.Queue[FlowQuestion] = asyncio.Queue()

    def on_datagram(event: DatagramReceived) -> None:
        questions.put_nowait(FlowQuestion(ends.agent, event.flow, event.data))

    ends.agent_hears.datagram = on_datagram
    asker, now = Asker(), ends.client.loop.time()
    flow = ends.client.session.datagrams.open(DNS_FLOW, now)
    flow.owner = asker
    ends.client.session.datagrams.send(flow, b"a query", now)
    ends.client.wake()
    return asker, await asyncio.wait_for(questions.get(), 10)


def test_a_stream_says_where_it_leads_and_whether_it_wants_to_be_told() -> None:
    async def conversation(ends: Ends) -> None:
        seen: asyncio.Queue[StreamConnection] = asyncio.Queue()

        def request(stream: Stream, destination: Destination) -> None:
            seen.put_nowait(StreamConnection(ends.agent, stream, destination))

        ends.agent_hears.request = request
        ends.client.open(Destination(TCP, "git.corp.example", 22, wants_opened=False))
        connection = await asyncio.wait_for(seen.get(), 10)
        assert connection.flow == Flow(TCP, ("git.corp.example", 22))
        assert not connection.wants_opened

    run(conversation)


def test_a_refused_stream_is_reset_with_the_code_at_the_other_end() -> None:
    async def conversation(ends: Ends) -> None:
        codes: asyncio.Queue[int] = asyncio.Queue()
        ends.client_hears.reset = lambda _, code: codes.put_nowait(code)
        code = reset_code(errno.EHOSTUNREACH)
        ends.agent_hears.request = lambda stream, to: StreamConnection(
            ends.agent, stream, to
        ).refused(code)
        ends.client.open(Destination(TCP, "192.0.2.1", 80))
        assert await asyncio.wait_for(codes.get(), 10) == code

    run(conversation)


def test_a_stream_that_is_handed_over_is_relayed_to_a_socket_of_this_host() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
        program.sendall(b"hello")
        assert await threaded(lambda: host.recv(100)) == b"hello"
        [relay] = ends.agent.relays
        assert not relay.is_over
        program.close()
        host.close()
        while not relay.is_over:
            await asyncio.sleep(0.002)

    run(conversation)


def test_an_answer_goes_back_to_who_has_asked_and_the_flow_is_over() -> None:
    async def conversation(ends: Ends) -> None:
        asker, question = await asked(ends)
        assert (question.message, question.asker) == (b"a query", 7)
        question.answer(b"an answer")
        assert await asker.hear() == b"an answer"
        question.refused(NO_RESOURCES)  # too late to matter
        await asyncio.sleep(0.05)
        assert asker.told.empty()
        assert not ends.agent.session.datagrams.flows

    run(conversation)


def test_a_question_that_is_refused_ends_its_flow_with_the_code() -> None:
    async def conversation(ends: Ends) -> None:
        asker, question = await asked(ends)
        question.refused(FLOW_NOT_PERMITTED)
        assert await asker.hear() == FLOW_NOT_PERMITTED

    run(conversation)


@pytest.mark.parametrize("how", ["answered", "refused", "given up"])
def test_a_question_that_is_over_leaves_nothing_to_the_collector(how: str) -> None:
    """It runs once in a hundred thousand objects (sockets.GC_THRESHOLD)."""

    class Refused(Asked):
        def __init__(self, question: FlowQuestion) -> None:
            self.question = question

        def give_up(self) -> None:
            self.question.refused(NO_RESOURCES)

    async def conversation(ends: Ends) -> None:
        _, question = await asked(ends)
        [flow] = ends.client.session.datagrams.flows.values()
        if how == "answered":
            question.answer(b"an answer")
        elif how == "refused":
            question.refused(NO_RESOURCES)
        else:
            question.asked = Refused(question)
            ends.client.give_up(flow)
            ends.client.wake()
        while ends.agent.session.datagrams.flows:
            await asyncio.sleep(0.002)
        question.asked = Asked()
        del question
        await asyncio.sleep(0.05)
        assert not [each for each in gc.get_objects() if isinstance(each, FlowQuestion)]

    gc.collect()
    gc.disable()
    try:
        run(conversation)
    finally:
        gc.enable()


def test_who_waits_no_longer_is_given_up_by_the_carrier() -> None:
    class Noted(Asked):
        given_up = 0

        def give_up(self) -> None:
            self.given_up += 1

    async def conversation(ends: Ends) -> None:
        _, question = await asked(ends)
        noted = question.asked = Noted()
        [flow] = ends.client.session.datagrams.flows.values()
        ends.client.give_up(flow)
        ends.client.wake()
        while not noted.given_up:
            await asyncio.sleep(0.002)
        question.answer(b"too late")

    run(conversation)


# --- flows of datagrams ---------------------------------------------------------------------------


class Sent(Outlet):
    """One that writes down what leaves by it."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.sent.append((datagram, segment_bytes))

    def close(self) -> None:
        self.sent.append("closed")


class Program:
    """The owner of the client's end of a flow."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_datagram(self, event: DatagramReceived) -> None:
        self.heard.append((event.data, event.segment_bytes))

    def on_flow_failed(self, event: FlowFailed) -> None:
        self.heard.append(("failed", event.code, event.value))

    def on_flow_ended(self, event: FlowEnded) -> None:
        self.heard.append(("ended", event.code))


def carried(ends: Ends, flags: int = 0) -> tuple[DatagramFlow, Program, asyncio.Future[object]]:
    """A flow that a program has begun with b"one", and the association that comes of it."""
    arrived: asyncio.Future[object] = ends.agent.loop.create_future()

    def take(event: DatagramReceived) -> None:
        association = FlowAssociation(ends.agent, event.flow)
        association.outlet = Sent()
        association.on_datagram(event)
        arrived.set_result(association)

    ends.agent_hears.datagram = take
    datagrams, now = ends.client.session.datagrams, ends.client.loop.time()
    flow = datagrams.open(FlowTarget(frames.UDP, "192.0.2.1", 7, 5, 4321, flags), now)
    flow.owner = program = Program()
    datagrams.send(flow, b"one", now)
    ends.client.wake()
    return flow, program, arrived


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_a_flow_of_the_other_side_says_what_it_wants_and_hears_what_became_of_it() -> None:
    async def conversation(ends: Ends) -> None:
        flow, program, arrived = carried(ends, ANY_PEER | DONT_FRAGMENT)
        association = await arrived
        assert isinstance(association, FlowAssociation)
        assert association.flow == Flow(UDP, ("192.0.2.1", 7), ("", 4321))
        assert (association.source, association.any_peer, association.dont_fragment) == (5, 1, 1)
        datagrams, now = ends.client.session.datagrams, ends.client.loop.time()
        datagrams.fail(flow, FLOW_OTHER, now)  # nobody is told
        datagrams.send(flow, b"aabb", now, 2)
        ends.client.wake()
        association.deliver(b"back")
        association.failed(FLOW_TOO_LARGE, 1472)
        await until(lambda: len(program.heard) == 2)
        association.ended(FLOW_DONE)
        await until(lambda: len(program.heard) == 3)
        expected = [(b"back", 0), ("failed", FLOW_TOO_LARGE, 1472), ("ended", FLOW_DONE)]
        assert program.heard == expected
        assert isinstance(association.outlet, Sent)
        assert association.outlet.sent == [(b"one", 0), (b"aabb", 2)]

    run(conversation)


def test_the_outlet_of_a_flow_that_the_other_side_has_ended_is_closed() -> None:
    async def conversation(ends: Ends) -> None:
        flow, _, arrived = carried(ends)
        association = await arrived
        assert isinstance(association, FlowAssociation)
        ends.client.give_up(flow)
        outlet = association.outlet
        assert isinstance(outlet, Sent)
        await until(lambda: outlet.sent[1:] == ["closed"])

    run(conversation)


def test_a_stranger_gets_a_flow_of_this_side_s_own_while_there_may_be_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(ends: Ends) -> None:
        _, _, arrived = carried(ends)
        association = await arrived
        assert isinstance(association, FlowAssociation)
        heard: list[DatagramReceived] = []
        ends.client_hears.datagram = heard.append
        stranger = association.stranger(("192.0.2.1", 8))
        assert stranger is not None
        answers = Sent()
        stranger.answers_by(answers)
        stranger.deliver(b"hello")
        await until(lambda: bool(heard))
        assert heard[0].flow.target == FlowTarget(frames.UDP, "192.0.2.1", 8, 5)
        ends.client.session.datagrams.send(heard[0].flow, b"welcome", ends.client.loop.time())
        ends.client.wake()
        await until(lambda: answers.sent == [(b"welcome", 0)])
        monkeypatch.setattr("sshunt.mux.datagrams.MAX_FLOWS", 1)
        assert association.stranger(("192.0.2.1", 9)) is None

    run(conversation)
