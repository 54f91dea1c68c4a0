"""Every query gets an answer, if only a refusal.

With a resolver at the other end, and programs that ask: see tests/unit/front/test_dns.py.
"""

import asyncio
from collections.abc import Awaitable, Callable

import dns.message
import dns.rcode
import pytest

from sshunt.mux.events import DatagramReceived, FlowEnded
from sshunt.relay import dns as relay_dns
from sshunt.relay.flow import Asked, Question
from sshunt.remote import queries as module
from sshunt.remote.queries import Queries
from tests.unit.relay.ends import Ends, run

QUERY = dns.message.make_query("git.corp.example", "A")
MESSAGE = QUERY.to_wire()
ALICE, BOB = 1, 2


class Asking(Question):
    """One that writes down what it hears."""

    def __init__(self, message: bytes, asker: int, heard: list[bytes]) -> None:
        super().__init__(message, asker)
        self.heard = heard

    def answer(self, message: bytes) -> None:
        self.heard.append(message)

    def refused(self, _code: int) -> None:
        self.heard.append(relay_dns.servfail(self.message))


class Far:
    """The client's end with its questions, and an agent that only hears what it is asked."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.queries = Queries(ends.client.loop)
        self.answers: list[bytes] = []
        self.asked: list[DatagramReceived] = []
        ends.agent_hears.datagram = self.asked.append

    def ask(self, message: bytes = MESSAGE, asker: int = ALICE) -> Asked:
        return self.queries.ask(self.ends.client, Asking(message, asker, self.answers))

    async def answer(self, *answers: bytes) -> None:
        """The agent says so to the first question; it has been heard on return."""
        await until(lambda: bool(self.asked))
        agent = self.ends.agent
        for data in answers:
            agent.session.datagrams.send(self.asked[0].flow, data, agent.loop.time())
        agent.wake()
        await asyncio.sleep(0.05)

    @property
    def codes(self) -> list[str]:
        return [dns.rcode.to_text(dns.message.from_wire(data).rcode()) for data in self.answers]


def talk(story: Callable[[Far], Awaitable[None]]) -> None:
    async def whole(ends: Ends) -> None:
        far = Far(ends)
        try:
            await story(far)
        finally:
            far.queries.close()
            far.queries.close()

    run(whole)


async def until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), 10)


def answer_to(query: dns.message.Message) -> bytes:
    return dns.message.make_response(query).to_wire()


def test_an_answer_reaches_who_asked_once() -> None:
    async def story(far: Far) -> None:
        far.ask()
        await far.answer(answer_to(QUERY), answer_to(QUERY))
        assert far.answers == [answer_to(QUERY)]

    talk(story)


def test_an_answer_to_another_question_is_passed_over() -> None:
    async def story(far: Far) -> None:
        far.ask()
        await far.answer(answer_to(dns.message.make_query("else.corp.example", "A")))
        assert far.answers == []

    talk(story)


def test_what_is_under_way_when_it_is_lost_is_answered_with_servfail() -> None:
    async def story(far: Far) -> None:
        far.ask()
        far.ask()
        far.queries.fail_all()
        far.queries.fail_all()
        assert far.codes == ["SERVFAIL"] * 2

    talk(story)


def test_silence_is_answered_with_servfail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_DEADLINE_S", 0.3)

    async def story(far: Far) -> None:
        far.ask()
        await asyncio.sleep(0.1)
        far.ask()
        await until(lambda: bool(far.codes))
        assert far.codes == ["SERVFAIL"]
        await until(lambda: len(far.codes) == 2)

    talk(story)


def test_whoever_asks_most_loses_his_oldest_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_dns, "QUERIES_BYTES", 3 * relay_dns.room_of(MESSAGE))

    async def story(far: Far) -> None:
        bobs: list[bytes] = []
        far.queries.ask(far.ends.client, Asking(MESSAGE, BOB, bobs))
        for _ in range(5):
            far.ask(asker=ALICE)
        assert far.codes == ["SERVFAIL"] * 3
        assert bobs == []

    talk(story)


def test_a_question_that_is_given_up_is_not_answered_and_leaves_its_room() -> None:
    async def story(far: Far) -> None:
        asked = far.ask()
        assert len(far.queries) == 1
        asked.give_up()
        asked.give_up()
        assert len(far.queries) == 0
        await asyncio.sleep(0.05)
        assert far.answers == []

    talk(story)


def test_the_far_side_hears_of_a_question_that_is_given_up_though_nothing_else_is_said() -> None:
    class Asked:
        ended: bool = False

        def on_flow_ended(self, _event: FlowEnded) -> None:
            self.ended = True

    async def story(far: Far) -> None:
        asked, there = far.ask(), Asked()
        await until(lambda: bool(far.asked))
        far.asked[0].flow.owner = there
        await asyncio.sleep(0.3)  # until all is acknowledged
        asked.give_up()
        await until(lambda: there.ended)

    talk(story)


def test_a_question_that_the_far_side_will_not_take_is_answered_with_servfail() -> None:
    async def story(far: Far) -> None:
        agent = far.ends.agent
        far.ends.agent_hears.datagram = lambda event: agent.give_up(event.flow)
        far.ask()
        await until(lambda: bool(far.codes))
        assert far.codes == ["SERVFAIL"]

    talk(story)
