"""What becomes of a question: an answer, or a refusal, once; and nothing of it stays."""

import asyncio
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from sshunt.direct.resolve import Resolver
from sshunt.mux import frames
from sshunt.relay import dns as relay_dns
from sshunt.relay.flow import DNS, Connection, Flow, Question, Relay
from tests.descriptors import no_more_descriptors
from tests.unit.direct.asking import Host, address_in, ask, query
from tests.unit.front.office import knows, silent


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Asked(Question):
    """A question that remembers what it was told, first and last."""

    def __init__(self, message: bytes, asker: int = 1) -> None:
        super().__init__(message, asker)
        self.told: list[bytes | int] = []
        self.is_over = asyncio.Event()

    def answer(self, message: bytes) -> None:
        self._hear(message)

    def refused(self, code: int) -> None:
        self._hear(code)

    def _hear(self, what: bytes | int) -> None:
        self.told.append(what)
        self.is_over.set()

    @property
    def said(self) -> bytes | int:
        """What counts is what it hears first."""
        return self.told[0]


def test_a_question_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        resolver, question = Resolver(host.reactor), Asked(query())
        resolver.ask(question)
        await question.is_over.wait()
        assert isinstance(question.said, bytes)
        assert address_in(question.said) == "10.9.8.7"
        resolver.close()

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


def test_where_nobody_answers_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        resolver, question = Resolver(host.reactor), Asked(query())
        resolver.ask(question)
        await question.is_over.wait()
        assert isinstance(question.said, bytes)
        answer = dns.message.from_wire(question.said)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert answer.id == int.from_bytes(question.message[:2], "big")
        resolver.close()

    ask(monkeypatch, [None], conversation)


@pytest.mark.parametrize("message", [b"", b"short", bytes(2) + b"\x80" + bytes(9)])
def test_what_is_no_question_is_refused_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    async def conversation(host: Host) -> None:
        resolver, question = Resolver(host.reactor), Asked(message)
        resolver.ask(question)
        assert question.told == [frames.RESET_NOT_PERMITTED]
        assert host.asked == [[]]
        resolver.close()

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_question_that_is_given_up_or_left_at_the_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        resolver, given_up, left = Resolver(host.reactor), Asked(query()), Asked(query("b.example"))
        under_way = resolver.ask(given_up)
        resolver.ask(left)
        while len(host.asked[0]) < 2:
            await asyncio.sleep(0.01)
        under_way.give_up()
        await given_up.is_over.wait()
        assert not left.told
        resolver.close()
        await left.is_over.wait()
        assert given_up.said == left.said == frames.RESET_NO_RESOURCES

    ask(monkeypatch, [silent], conversation)


def test_with_room_for_few_the_oldest_of_who_asks_most_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_dns, "QUERIES_BYTES", 3 * 2100)

    async def conversation(host: Host) -> None:
        resolver = Resolver(host.reactor)
        one = Asked(query(), asker=7)
        many = [Asked(query(f"n{number}.example"), asker=8) for number in range(6)]
        for question in (one, *many):
            resolver.ask(question)
            await asyncio.sleep(0)
        await many[0].is_over.wait()
        assert many[0].said == frames.RESET_NO_RESOURCES
        assert not one.told
        assert not many[-1].told
        resolver.close()
        await one.is_over.wait()

    ask(monkeypatch, [silent], conversation)


def test_where_resolv_conf_wants_tcp_a_long_answer_is_cut_for_a_program_that_takes_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long(asked: dns.message.Message) -> bytes:
        answer = dns.message.make_response(asked)
        addresses = [f"10.9.8.{last}" for last in range(200)]
        answer.answer.append(
            dns.rrset.from_text_list(asked.question[0].name, 60, "IN", "A", addresses)
        )
        return answer.to_wire()

    async def conversation(host: Host) -> None:
        resolver, question = Resolver(host.reactor), Asked(query())
        resolver.ask(question)
        await question.is_over.wait()
        assert isinstance(question.said, bytes)
        assert dns.message.from_wire(question.said).flags & dns.flags.TC
        assert host.asked == [["tcp"]]
        resolver.close()

    ask(monkeypatch, [long], conversation, by_tcp=True)


def test_a_connection_that_is_no_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfAProgram(Connection):
        code = 0

        def refused(self, code: int) -> None:
            self.code = code

        def relay(self) -> Relay:
            raise NotImplementedError

    async def conversation(host: Host) -> None:
        resolver = Resolver(host.reactor)
        connection = OfAProgram(Flow(DNS, ("", 0)), wants_opened=True)
        resolver.connect(connection)
        assert connection.code == frames.RESET_NOT_PERMITTED
        resolver.close()

    ask(monkeypatch, [], conversation)
