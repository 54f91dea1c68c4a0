"""One question to one resolver: what is an answer, what is sent again, and what is given up."""

import asyncio
import errno
from collections.abc import Iterator

import dns.message
import pytest

from sshunt.direct.exchange import MOST_STRAYS, Exchange, Heard
from sshunt.relay.dns import HEAD_BYTES
from tests.descriptors import no_more_descriptors
from tests.unit.direct.asking import Host, address_in, ask, query
from tests.unit.front.office import Raw, forgetful, knows, lies, silent, slow


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


def exchange(host: Host, *, sends: int = 3, within_s: float | None = None) -> Exchange:
    deadline = host.deadline if within_s is None else host.reactor.loop.time() + within_s
    return Exchange(host.reactor, host.addresses[0], query(), sends, deadline)


async def error_of(asking: "asyncio.Future[Heard]") -> int | None:
    with pytest.raises(OSError, match=r".") as caught:
        await asking
    return caught.value.errno


def test_a_question_by_udp_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        heard = await exchange(host).by_udp()
        assert address_in(heard.message) == "10.9.8.7"
        assert heard.sock is None
        assert host.asked == [["udp"]]

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_lost_datagram_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        heard = await exchange(host).by_udp()
        assert address_in(heard.message) == "10.9.8.7"
        assert host.asked == [["udp"] * 2]

    ask(monkeypatch, [forgetful(knows("10.9.8.7"))], conversation)


@pytest.mark.parametrize("sends", [1, 3])
def test_a_silent_resolver_is_asked_so_often_and_given_up_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, sends: int
) -> None:
    async def conversation(host: Host) -> None:
        asking = asyncio.ensure_future(exchange(host, sends=sends, within_s=1.0).by_udp())
        assert await error_of(asking) == errno.ETIMEDOUT
        assert host.asked == [["udp"] * sends]

    ask(monkeypatch, [silent], conversation)


def test_an_answer_to_the_first_datagram_counts_after_the_last_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        heard = await exchange(host, sends=2).by_udp()
        assert address_in(heard.message) == "10.9.8.7"

    ask(monkeypatch, [slow(0.8, knows("10.9.8.7"))], conversation)


def test_answers_to_something_else_are_passed_over_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_stray(asked: dns.message.Message) -> list[bytes]:
        return [_wire(lies(asked)), _wire(knows("10.9.8.7")(asked))]

    def strays(asked: dns.message.Message) -> list[bytes]:
        return [_wire(lies(asked))] * MOST_STRAYS

    async def conversation(host: Host) -> None:
        heard = await exchange(host).by_udp()
        assert address_in(heard.message) == "10.9.8.7"

    async def in_vain(host: Host) -> None:
        assert await error_of(asyncio.ensure_future(exchange(host).by_udp())) == errno.EPROTO

    ask(monkeypatch, [one_stray], conversation)
    ask(monkeypatch, [strays], in_vain)


def _wire(said: bytes | list[bytes]) -> bytes:
    assert isinstance(said, bytes)
    return said


@pytest.mark.parametrize("way", ["by_udp", "by_tcp", "begin_by_tcp"])
def test_where_nobody_listens_it_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def conversation(host: Host) -> None:
        asking = asyncio.ensure_future(getattr(exchange(host), way)())
        assert await error_of(asking) == errno.ECONNREFUSED

    ask(monkeypatch, [None], conversation)


def test_a_question_by_tcp_is_answered_whole_and_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        heard = await exchange(host).by_tcp()
        assert address_in(heard.message) == "10.9.8.7"
        assert heard.sock is None
        assert host.asked == [["tcp"]]

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_beginning_by_tcp_comes_with_the_connection_and_all_that_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(host: Host) -> None:
        heard = await exchange(host).begin_by_tcp()
        assert heard.sock is not None
        assert heard.read[2:] == heard.message
        assert len(heard.message) == HEAD_BYTES
        heard.close()

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (lies, errno.EPROTO),
        (lambda _: Raw(b"\0\x05short......."), errno.EPROTO),
        (silent, errno.ETIMEDOUT),
    ],
    ids=["to something else", "shorter than a head", "nothing"],
)
def test_by_tcp_what_is_no_answer_is_an_error_and_the_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch, said: "object", error: int
) -> None:
    async def conversation(host: Host) -> None:
        asking = asyncio.ensure_future(exchange(host, within_s=1.0).by_tcp())
        assert await error_of(asking) == error

    ask(monkeypatch, [said], conversation)  # type: ignore[list-item]


@pytest.mark.parametrize("way", ["by_udp", "by_tcp"])
def test_a_question_that_is_given_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def conversation(host: Host) -> None:
        asking = asyncio.ensure_future(getattr(exchange(host), way)())
        while not host.asked[0]:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()

    ask(monkeypatch, [silent], conversation)
