"""Whom the far side asks, and whose answer counts: as the C library of its host does."""

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from sshunt.direct import race
from sshunt.direct.order import SILENT_NAMES, Order
from sshunt.relay.dns import Settings
from tests.unit.front.both_ends import Names, talk
from tests.unit.front.office import Answer, forgetful, knows, says, silent, slow

DENIES = says(dns.rcode.NXDOMAIN)
INNER = knows("10.9.8.7")


def test_a_slow_answer_of_the_first_resolver_counts_before_another_s_denial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for number in range(SILENT_NAMES + 1):
            assert await one.ask(f"n{number}.corp.example") == "10.9.8.7"
        assert asked[1] == []

    talk(monkeypatch, [slow(0.5, INNER), DENIES], conversation, first_s=2.0)


def test_a_lost_datagram_is_sent_again_to_the_same_resolver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for number in range(SILENT_NAMES + 1):
            assert await one.ask(f"n{number}.corp.example") == "10.9.8.7"
        assert asked == [["udp"] * 2 * (SILENT_NAMES + 1), []]

    talk(monkeypatch, [forgetful(INNER), DENIES], conversation, first_s=2.0)


@pytest.mark.parametrize("tcp", [False, True])
def test_an_answer_of_the_first_counts_while_the_second_is_being_asked(
    monkeypatch: pytest.MonkeyPatch, tcp: bool
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask(tcp=tcp) == "10.9.8.7"
        assert asked[1]

    talk(monkeypatch, [slow(0.8, INNER), silent], conversation)


def test_one_silent_zone_does_not_put_its_resolver_behind_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_outer_names_are_slow(query: dns.message.Message) -> bytes | list[bytes]:
        return silent(query) if "outer" in str(query.question[0].name) else INNER(query)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        for _ in range(SILENT_NAMES + 1):
            assert await one.ask("outer.example") == "NXDOMAIN"
        assert await one.ask() == "10.9.8.7"

    talk(monkeypatch, [only_outer_names_are_slow, DENIES], conversation, first_s=0.3)


def test_a_dead_resolver_is_waited_for_only_by_the_first_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        loop = asyncio.get_running_loop()
        for number in range(SILENT_NAMES):
            assert await one.ask(f"n{number}.example") == "10.1.1.1"
        monkeypatch.setattr(race, "FIRST_S", 60.0)
        monkeypatch.setattr(race, "DEADLINE_S", 90.0)
        begin, before = loop.time(), len(asked[0])
        assert await one.ask("n.example") == "10.1.1.1"
        assert loop.time() - begin < 30
        assert len(asked[0]) > before  # it is not forgotten

    talk(monkeypatch, [silent, knows("10.1.1.1")], conversation, first_s=0.3)


def test_a_refusal_of_the_first_resolver_is_believed_soon_if_the_second_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for number in range(SILENT_NAMES):
            assert await one.ask(f"n{number}.example") == "REFUSED"
        monkeypatch.setattr(race, "DEADLINE_S", 90.0)
        before = len(asked[1])
        begin = asyncio.get_running_loop().time()
        assert await one.ask("n.example") == "REFUSED"
        assert asyncio.get_running_loop().time() - begin < 8
        assert len(asked[1]) > before

    talk(monkeypatch, [says(dns.rcode.REFUSED), silent], conversation, first_s=0.3)


def test_a_resolver_that_is_back_is_believed_at_once_where_the_other_denies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives = False

    def mortal(query: dns.message.Message) -> bytes | list[bytes]:
        return slow(0.1, INNER)(query) if lives else b""

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        nonlocal lives
        for number in range(SILENT_NAMES + 1):
            assert await one.ask(f"n{number}.example") == "NXDOMAIN"
        lives = True
        assert await one.ask() == "10.9.8.7"
        before = len(asked[1])
        assert await one.ask() == "10.9.8.7"
        assert len(asked[1]) == before  # it is the first again

    talk(monkeypatch, [mortal, DENIES], conversation, first_s=0.3)


def test_answers_that_came_too_late_for_their_queries_show_that_a_resolver_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for number in range(SILENT_NAMES + 2):
            assert await one.ask(f"n{number}.example") == "NXDOMAIN"
            await asyncio.sleep(0.4)
        monkeypatch.setattr(race, "FIRST_S", 5.0)
        monkeypatch.setattr(race, "DEADLINE_S", 9.0)
        before = len(asked[1])
        assert await one.ask() == "10.9.8.7"
        assert len(asked[1]) == before

    talk(monkeypatch, [slow(0.5, INNER), DENIES], conversation, first_s=0.3)


@pytest.mark.parametrize(
    "first",
    [
        None,
        says(dns.rcode.SERVFAIL),
        says(dns.rcode.NOTIMP),
        says(dns.rcode.NOERROR, flags=dns.flags.Flag(0)),  # ask the root yourself
    ],
)
def test_a_resolver_that_answers_without_knowing_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch, first: Answer | None
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for number in range(SILENT_NAMES + 2):
            assert await one.ask(f"n{number}.example", edns=False) == "10.9.8.7"
        if first is not None:
            assert len(asked[0]) == SILENT_NAMES + 2

    talk(monkeypatch, [first, INNER], conversation, first_s=5.0)


def test_the_timeout_of_resolv_conf_is_how_long_the_first_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        begin = asyncio.get_running_loop().time()
        assert await one.ask() == "10.9.8.7"
        assert 1 <= asyncio.get_running_loop().time() - begin < 10

    talk(monkeypatch, [silent, INNER], conversation, first_s=10.0, timeout_s=1)


def test_with_use_vc_queries_by_udp_are_asked_by_tcp_and_long_answers_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long(query: dns.message.Message) -> bytes | list[bytes]:
        response = dns.message.make_response(query)
        name = query.question[0].name
        many = [f"10.9.8.{number}" for number in range(60)]
        response.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", many))
        return response.to_wire()

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        by_udp = await one.answer("git.corp.example", edns=False)
        assert by_udp.flags & dns.flags.TC
        assert not by_udp.answer
        assert len((await one.answer("git.corp.example")).answer[0]) == 60  # EDNS: there is room
        assert asked == [["tcp", "tcp"]]

    talk(monkeypatch, [long], conversation, by_tcp=True)


def test_with_rotate_each_query_begins_with_another_resolver() -> None:
    order = Order()
    conf = Settings(("a", "b", "c"), rotate=True)
    assert [order.of(conf)[0][0] for _ in range(4)] == ["a", "b", "c", "a"]


def test_a_resolver_is_behind_after_some_names_in_a_row_and_not_after_one_often() -> None:
    order = Order()
    conf = Settings(("a", "b", "c"))
    for _ in range(SILENT_NAMES):
        order.note_silence("a", b"x")
    assert order.of(conf) == (["a", "b", "c"], [])
    for name in (b"x", b"y", b"z"):
        order.note_silence("a", name)
        order.note_silence("b", name)
    assert order.of(conf) == (["c"], ["a", "b"])
    order.note_answer("a")
    assert order.of(conf) == (["a", "c", "b"], [])
    assert order.of(Settings(("b",))) == (["b"], [])


def test_where_all_are_behind_they_are_asked_in_order() -> None:
    order = Order()
    for name in (b"x", b"y", b"z"):
        order.note_silence("a", name)
        order.note_silence("b", name)
    assert order.of(Settings(("a", "b"))) == (["a", "b"], [])
