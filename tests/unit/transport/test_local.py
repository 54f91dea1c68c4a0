"""Channels to an agent on this host: a real far side, within a quarter of a second."""

import asyncio
import os
from collections.abc import Awaitable, Iterator
from contextlib import suppress

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import is_alive
from sshunt.mux.hello import ACCEPTED, CLIENT, FEATURE_CREATE, TOKEN_BYTES, Hello, make_hello
from sshunt.mux.session import Session
from sshunt.transport.channel import Channel, LaneRefusedError
from sshunt.transport.local import LocalTransport
from tests.agent.far_side import eventually, marked
from tests.unit.transport.programs import Heard, run

TOKEN = os.urandom(TOKEN_BYTES)
MARK = os.urandom(8).hex()
DEADLINE_S = 20.0


@pytest.fixture
def far() -> Iterator[LocalTransport]:
    yield LocalTransport(env={**os.environ, "MARK": MARK})
    eventually(lambda: marked(MARK) == [], "the agent's end")


def hello(lane: int = 1, *, create: bool = True) -> Hello:
    return make_hello(CLIENT, TOKEN, lane=lane, features=FEATURE_CREATE if create else 0)


def open_one(far: LocalTransport, ours: Hello) -> Awaitable[Channel]:
    return far.open(ours, Heard(), deadline_s=DEADLINE_S)


async def say_goodbye(channel: Channel) -> None:
    session = Session(CLIENT)
    session.add_lane(channel.hello.lane, 0.0)
    session.say_goodbye(0, "")
    for piece in session.transmit(channel.hello.lane, 0.0):
        os.write(channel.write_fd, bytes(piece) if isinstance(piece, bytes) else bytes(piece.view))
    await asyncio.wait([channel.ended])


async def let_go(channel: Channel) -> None:
    os.close(channel.read_fd)
    os.close(channel.write_fd)
    await channel.close()


def test_a_channel_has_the_agents_answer_and_ends_in_order_after_a_goodbye(
    far: LocalTransport,
) -> None:
    async def conversation() -> None:
        channel = await open_one(far, hello())
        assert channel.hello.status == ACCEPTED
        assert channel.has_reached()
        assert channel.peers() == ()
        await say_goodbye(channel)
        assert channel.ended.result() == (0, False)
        assert channel.last_words() == ""
        await let_go(channel)

    run(conversation)


def test_a_channel_started_ahead_is_the_one_that_is_opened(far: LocalTransport) -> None:
    async def conversation() -> None:
        heard = Heard()
        await far.start(heard)
        channel = await far.open(hello(), heard, deadline_s=DEADLINE_S)
        assert heard.channels == [channel]
        await far.abandon_started()
        assert not channel.ended.done()
        await say_goodbye(channel)
        await let_go(channel)

    run(conversation)


def test_a_channel_started_ahead_and_not_wanted_ends(far: LocalTransport) -> None:
    async def conversation() -> None:
        await far.start(Heard())
        assert marked(MARK)
        await far.abandon_started()
        await far.abandon_started()

    run(conversation)


def test_a_further_channel_is_not_the_sessions_before_it_is_ready(far: LocalTransport) -> None:
    async def conversation() -> None:
        first = await open_one(far, hello())
        ready = asyncio.Event()
        opening = asyncio.ensure_future(
            far.open_beside(
                hello(2, create=False),
                Heard(),
                ready=ready,
                deadline_s=DEADLINE_S,
                path_rtt_s=0.0,
            )
        )
        done, _ = await asyncio.wait([opening], timeout=0.5)
        assert not done
        ready.set()
        second = await opening
        assert (second.hello.status, second.hello.lane) == (ACCEPTED, 2)
        await say_goodbye(first)
        await let_go(first)
        await let_go(second)

    run(conversation)


def test_a_session_that_the_far_side_does_not_hold_is_said_to_be_gone(far: LocalTransport) -> None:
    async def conversation() -> None:
        with pytest.raises(LaneRefusedError) as raised:
            await open_one(far, hello(create=False))
        assert raised.value.is_session_gone

    run(conversation)


def test_a_dead_agent_is_told_from_a_channel_that_only_ended(far: LocalTransport) -> None:
    async def conversation() -> None:
        channel = await open_one(far, hello())
        ours = os.getsid(channel.pid)
        (agent,) = [pid for pid in marked(MARK) if os.getsid(pid) != ours]
        os.kill(agent, 9)
        await asyncio.wait([channel.ended])
        assert channel.ended.result().agent_died
        await let_go(channel)

    run(conversation)


def test_a_cancelled_opening_leaves_no_process_behind(far: LocalTransport) -> None:
    async def conversation() -> None:
        heard = Heard()
        opening = asyncio.ensure_future(far.open(hello(), heard, deadline_s=DEADLINE_S))
        while not heard.channels:
            await asyncio.sleep(0)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        assert not is_alive(heard.channels[0].pid)

    run(conversation)


def test_a_python_that_is_not_there_is_said_so() -> None:
    async def conversation() -> None:
        with pytest.raises(UserError) as raised:
            await open_one(LocalTransport(python="/no/such"), hello())
        assert raised.value.exit_code == ExitCode.NO_PYTHON

    run(conversation)


def test_a_shell_that_is_not_there_is_said_so() -> None:
    async def conversation() -> None:
        with pytest.raises(UserError, match=r"/no/such can't be started"):
            await open_one(LocalTransport(prefix=["/no/such"]), hello())

    run(conversation)


def test_a_local_transport_has_nothing_to_share_and_nobody_to_ask(far: LocalTransport) -> None:
    far.connection_lost(may_yet_answer=True)
    assert not far.attempt_failed(UserError("no", "", ExitCode.AUTH))
    assert not far.shares_connection
