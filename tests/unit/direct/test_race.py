"""Who answers: the first resolver that can, in the order of resolv.conf, each with time enough."""

import asyncio
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from sshunt.direct import race
from sshunt.direct.exchange import Exchange
from sshunt.direct.race import Racing
from tests.descriptors import no_more_descriptors
from tests.unit.direct.asking import Host, address_in, ask, query
from tests.unit.front.office import Answer, knows, lies, says, silent, slow

FIRST, SECOND = knows("10.0.0.1"), knows("10.0.0.2")


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(race, "FIRST_S", 0.5)
    monkeypatch.setattr(race, "DEADLINE_S", 1.5)
    with no_more_descriptors():
        yield


async def heard(host: Host, *, by_tcp: bool = False) -> str:
    """What the best answer says: an address, or a failure's name; "" if nobody answers."""
    racing = Racing(host.reactor)
    way = Exchange.by_tcp if by_tcp else Exchange.by_udp
    found = await racing.ask(query(), way)
    racing.close()
    await asyncio.sleep(0.05)
    if found is None:
        return ""
    code = dns.message.from_wire(found.message).rcode()
    return address_in(found.message) if code == dns.rcode.NOERROR else dns.rcode.to_text(code)


@pytest.mark.parametrize("by_tcp", [False, True])
def test_the_first_that_answers_is_the_only_one_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, by_tcp: bool
) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host, by_tcp=by_tcp) == "10.0.0.1"
        assert host.asked[1] == []

    ask(monkeypatch, [FIRST, SECOND], conversation)


@pytest.mark.parametrize("by_tcp", [False, True])
@pytest.mark.parametrize(
    "first", [None, says(dns.rcode.SERVFAIL), says(dns.rcode.REFUSED), silent, lies]
)
def test_whatever_is_wrong_with_the_first_the_second_answers(
    monkeypatch: pytest.MonkeyPatch, first: Answer | None, by_tcp: bool
) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host, by_tcp=by_tcp) == "10.0.0.2"

    ask(monkeypatch, [first, SECOND], conversation)


def test_a_late_answer_of_the_first_counts_while_the_second_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host) == "10.0.0.1"
        assert host.asked[1] != []

    ask(monkeypatch, [slow(0.9, FIRST), silent], conversation)


def test_that_a_name_does_not_exist_is_an_answer_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host) == "NXDOMAIN"
        assert host.asked[1] == []

    ask(monkeypatch, [says(dns.rcode.NXDOMAIN), SECOND], conversation)


def test_where_all_fail_the_first_failure_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host) == "REFUSED"

    ask(monkeypatch, [says(dns.rcode.REFUSED), says(dns.rcode.SERVFAIL), None], conversation)


@pytest.mark.parametrize("there", [[None], [None, None], [silent]])
def test_where_nobody_says_anything_there_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, there: list[Answer | None]
) -> None:
    async def conversation(host: Host) -> None:
        assert await heard(host) == ""

    ask(monkeypatch, there, conversation)


def test_a_race_that_is_given_up_asks_nobody_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        racing = Racing(host.reactor)
        asking = asyncio.ensure_future(racing.ask(query(), Exchange.by_tcp))
        while not host.asked[0]:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(0.7)
        assert host.asked[1] == []
        racing.close()

    ask(monkeypatch, [silent, SECOND], conversation)


def test_one_that_was_behind_and_answers_late_is_in_its_place_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        racing = Racing(host.reactor)
        for name in (b"a", b"b", b"c"):
            racing.order.note_silence(host.addresses[0], name)
        assert racing.order.is_behind(host.addresses[0])
        found = await racing.ask(query(), Exchange.by_udp)
        assert found is not None
        assert address_in(found.message) == "10.0.0.2"
        while racing.order.is_behind(host.addresses[0]):
            await asyncio.sleep(0.01)
        racing.close()
        await asyncio.sleep(0.05)

    ask(monkeypatch, [slow(0.3, FIRST), SECOND], conversation)


def test_a_denial_waits_a_moment_for_one_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        racing = Racing(host.reactor)
        for name in (b"a", b"b", b"c"):
            racing.order.note_silence(host.addresses[0], name)
        found = await racing.ask(query(), Exchange.by_udp)
        assert found is not None
        assert address_in(found.message) == "10.0.0.1"
        racing.close()
        await asyncio.sleep(0.05)

    ask(monkeypatch, [slow(0.2, FIRST), says(dns.rcode.NXDOMAIN)], conversation)
