"""The client's side of the conversation; the other side is a test's, and speaks the protocol."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sshunt.capture.plan import Plan
from sshunt.errors import ExitCode, UserError
from sshunt.helper.protocol import (
    MAX_REPLY_BYTES,
    VERSION,
    Applied,
    Apply,
    Bypass,
    Done,
    Guard,
    Guarded,
    Hello,
    Refusal,
    Refused,
    Reply,
    Request,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Undo,
    Welcome,
)
from sshunt.helper.wire import decode_request_untrusted, encode_reply
from sshunt.host.helper import CLOSE_DEADLINE_S, REQUEST_DEADLINE_S, Helper
from tests.unit.host import clock
from tests.unit.host.clock import put_forward

_SESSION = "01234567"
_PLAN = Plan(_SESSION, (), ())


class Other:
    """The other side: hears requests, answers them when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hear(self) -> Request | None:
        """The next request; None at the end."""
        line = await asyncio.wait_for(self.reader.readline(), 5.0)
        return decode_request_untrusted(line) if line else None

    async def answer(self, reply: Reply) -> Request | None:
        """Answer the next request, which is returned."""
        heard = await self.hear()
        self.writer.write(encode_reply(reply))
        return heard


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Helper, Other]]:
    ours, theirs = socket.socketpair()
    helper = Helper(*await asyncio.open_connection(sock=ours, limit=MAX_REPLY_BYTES))
    other = Other(*await asyncio.open_connection(sock=theirs))
    yield helper, other
    other.writer.close()
    helper.abandon()


Story = Callable[[Helper, Other], Coroutine[Any, Any, None]]


def run(story: Story) -> None:
    async def whole() -> None:
        async with conversation() as ends:
            await story(*ends)

    clock.run(whole())


def test_each_wish_is_one_request_and_its_answer_is_remembered() -> None:
    async def story(helper: Helper, other: Other) -> None:
        conversation: list[tuple[Coroutine[Any, Any, object], Reply, Request, object]] = [
            (helper.greet(_SESSION, 5.0), Welcome(VERSION), Hello(VERSION, _SESSION), None),
            (helper.guard(), Guarded(True), Guard(), True),
            (helper.apply(_PLAN), Applied(True), Apply(_PLAN), None),
            (helper.bypass([("192.0.2.1", 22)]), Done(), Bypass((("192.0.2.1", 22),)), None),
            (helper.resolvers(["192.0.2.53"]), Done(), Resolvers(("192.0.2.53",)), None),
            (helper.retain(["192.0.2.9"]), Done(), Retain(("192.0.2.9",)), None),
            (helper.suspects(), Suspected(("chain",)), Suspects(), ("chain",)),
            (helper.undo(), Done(), Undo(), None),
        ]
        for asking, reply, request, result in conversation:
            asked = asyncio.ensure_future(asking)
            assert await other.answer(reply) == request
            assert await asked == result
        assert helper.guarded
        assert helper.owner

    run(story)


def test_requests_wait_for_each_other() -> None:
    async def story(helper: Helper, other: Other) -> None:
        first, second = asyncio.ensure_future(helper.guard()), asyncio.ensure_future(helper.undo())
        assert await other.hear() == Guard()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(other.reader.read(1), 0.05)
        other.writer.write(encode_reply(Guarded(False)))
        assert await first is False
        await other.answer(Done())
        await second

    run(story)


@pytest.mark.parametrize(
    ("kind", "message", "exit_code"),
    [
        (Refusal.NO_NFT, "can't capture connections: why", ExitCode.CAPTURE),
        (Refusal.LISTENER, "can't capture connections: why", ExitCode.LISTEN),
        (Refusal.NOT_PERMITTED, "the kernel does not permit rules here: why", ExitCode.PRIVILEGE),
        (Refusal.NOT_OURS, "can't keep this host's former addresses: why", ExitCode.CAPTURE),
        (Refusal.NOT_RETAINED, "can't keep this host's former addresses: why", ExitCode.CAPTURE),
        (Refusal.INTERNAL, "the helper refused (internal): why", ExitCode.INTERNAL),
        (Refusal.WRONG_ORDER, "the helper refused (wrong-order): why", ExitCode.INTERNAL),
    ],
)
def test_a_refusal_is_an_error_with_a_hint_and_the_conversation_goes_on(
    kind: Refusal, message: str, exit_code: ExitCode
) -> None:
    async def story(helper: Helper, other: Other) -> None:
        asked = asyncio.ensure_future(helper.apply(_PLAN))
        await other.answer(Refused(kind, "why"))
        with pytest.raises(UserError) as caught:
            await asked
        assert (caught.value.message, caught.value.exit_code) == (message, exit_code)
        assert caught.value.hint
        again = asyncio.ensure_future(helper.apply(_PLAN))
        await other.answer(Applied(False))
        await again

    run(story)


@pytest.mark.parametrize(
    ("before", "fate"),
    [
        (None, "is gone"),
        (Applied(True), "is gone, and its rules with it"),
        (Applied(False), "is gone; its rules may still be in place"),
    ],
)
def test_a_helper_that_ends_is_gone_with_its_rules_or_without(
    before: Reply | None, fate: str
) -> None:
    async def story(helper: Helper, other: Other) -> None:
        if before is not None:
            asked = asyncio.ensure_future(helper.apply(_PLAN))
            await other.answer(before)
            await asked
        asked = asyncio.ensure_future(helper.bypass([]))
        await other.hear()
        other.writer.close()
        with pytest.raises(UserError) as caught:
            await asked
        assert caught.value.message == f"the privileged helper {fate}"
        assert helper.gone.is_set()
        with pytest.raises(UserError, match="is gone"):
            await helper.bypass([])

    run(story)


@pytest.mark.parametrize("bytes_", [b"Sorry, try again.\n", b"x" * (2 * MAX_REPLY_BYTES)])
def test_what_is_no_reply_is_the_end(bytes_: bytes) -> None:
    async def story(helper: Helper, other: Other) -> None:
        asked = asyncio.ensure_future(helper.guard())
        await other.hear()
        other.writer.write(bytes_)
        with pytest.raises(UserError, match="is gone"):
            await asked

    run(story)


def test_a_helper_that_does_not_answer_is_given_up_and_its_late_answer_answers_nothing() -> None:
    async def story(helper: Helper, other: Other) -> None:
        asked = asyncio.ensure_future(helper.guard())
        await other.hear()
        await put_forward(REQUEST_DEADLINE_S + 1)
        with pytest.raises(UserError, match="is gone"):
            await asked
        assert helper.gone.is_set()
        assert await other.hear() is None  # which ends it

    run(story)


def test_the_late_answer_to_a_request_that_was_given_up_answers_no_later_one() -> None:
    async def story(helper: Helper, other: Other) -> None:
        for _ in range(2):
            given_up = asyncio.ensure_future(helper.suspects())
            assert await other.hear() == Suspects()
            given_up.cancel()
            await asyncio.wait([given_up])
        asked = asyncio.ensure_future(helper.guard())
        assert await other.hear() == Guard()
        for reply in (Suspected(("chain",)), Refused(Refusal.KERNEL, "why"), Guarded(True)):
            other.writer.write(encode_reply(reply))
        assert await asked is True
        undoing = asyncio.ensure_future(helper.undo())
        await other.answer(Done())
        await undoing

    run(story)


def test_an_answer_to_nothing_is_the_end() -> None:
    async def story(helper: Helper, other: Other) -> None:
        other.writer.write(encode_reply(Done()) * 2)
        await asyncio.wait_for(helper.gone.wait(), 5.0)
        with pytest.raises(UserError, match="is gone"):
            await helper.guard()

    run(story)


def test_a_plan_that_is_too_long_is_never_sent() -> None:
    async def story(helper: Helper, other: Other) -> None:
        plan = Plan(_SESSION, (), (), bypass=(("2001:db8:ffff:ffff::1", 65535),) * 100_000)
        with pytest.raises(UserError, match="too many routes") as caught:
            await helper.apply(plan)
        assert caught.value.exit_code == ExitCode.USAGE
        asked = asyncio.ensure_future(helper.guard())
        assert await other.answer(Guarded(True)) == Guard()
        await asked

    run(story)


def test_closing_waits_for_the_helper_s_end() -> None:
    async def story(helper: Helper, other: Other) -> None:
        closing = asyncio.ensure_future(helper.close())
        assert await other.hear() is None
        assert not closing.done()
        other.writer.close()
        await closing
        assert helper.gone.is_set()
        await helper.close()

    run(story)


def test_closing_waits_for_no_helper_that_is_stuck() -> None:
    async def story(helper: Helper, other: Other) -> None:
        closing = asyncio.ensure_future(helper.close())
        assert await other.hear() is None
        await put_forward(CLOSE_DEADLINE_S + 1)
        await asyncio.wait_for(closing, 5.0)
        assert helper.gone.is_set()

    run(story)
