"""Lanes opened and closed, with a real agent on this host behind them."""

import asyncio
import os
from contextlib import suppress
from typing import Any

import pytest

from sshunt.errors import UserError
from sshunt.remote import pool as pool_module
from sshunt.remote.pool import IDLE
from sshunt.tell.report import (
    ChannelsChosen,
    EarlyLanesClosed,
    LaneClosed,
    LaneFailed,
    LaneOpened,
    LanesLimited,
    LoginEnded,
    LoginStarted,
)
from sshunt.transport.channel import Channel, LaneRefusedError
from tests.descriptors import no_more_descriptors
from tests.unit.remote.far_sessions import (
    MOST,
    Far,
    Session,
    agent_of,
    connection,
    few_moments,
    kill_agent,
    run,
)
from tests.unit.remote.test_demand import LOSING, STARTING, WINDOW, believed

WANTED, SOON = believed(WINDOW), believed(STARTING)
NOTHING = believed(WINDOW, bulk_bytes=0)


# --- the session's channel ----------------------------------------------------------------------


def test_a_connection_through_the_pools_lane_reaches_its_host(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        program, host = await connection(session)
        loop = asyncio.get_running_loop()
        with host, program:
            await loop.sock_sendall(program, b"hello")
            assert await loop.sock_recv(host, 100) == b"hello"

    run(far, conversation)


def test_the_pool_says_while_a_login_may_ask_a_person(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        assert session.said == [LoginStarted("gate"), LoginEnded("gate")]

    run(far, conversation)


def test_a_session_goes_on_over_another_lane_when_its_first_was_cut(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        session.tunnel.lane_ended(session.tunnel.lanes[0], "cut")
        assert session.heard(LaneClosed) == [LaneClosed("gate", 0, "cut")]
        assert session.pool.is_resumable
        await session.connect(resumes=True)
        assert session.lanes == [1]

    run(far, conversation)


def test_a_session_whose_agent_has_died_is_refused_and_a_new_one_can_be_had(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        last = session.pool.last
        assert last is not None
        kill_agent(session)
        await session.until(lambda: session.lanes == [], "the lane's end")
        await session.until(last.ended.done, "the stub's end")
        assert last.ended.result().agent_died
        with pytest.raises(LaneRefusedError) as raised:
            await session.connect(resumes=True)
        assert raised.value.is_session_gone
        session.pool.abandon_session()
        assert not session.pool.is_resumable
        await session.connect(resumes=True)

    run(far, conversation)


def test_a_new_session_forgets_what_was_learnt_of_the_last(far: Far) -> None:
    """Nobody has logged in ahead of need, so nobody is sent away."""

    async def conversation(session: Session) -> None:
        await session.connect()
        kill_agent(session)
        session.pool.abandon_session()
        assert not session.heard(EarlyLanesClosed)

    run(far, conversation)


def test_a_lane_of_a_session_that_was_given_up_meanwhile_is_let_go(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        agent = agent_of(session)
        session.tunnel.lane_ended(session.tunnel.lanes[0], "cut")
        resuming = asyncio.ensure_future(session.connect(resumes=True))
        await session.until(lambda: len(session.heard(LoginStarted)) == 2, "another login")
        session.pool.abandon_session()
        with pytest.raises(UserError, match="the session ended meanwhile"):
            await resuming
        assert session.lanes == []
        os.kill(agent, 9)

    run(far, conversation)


def test_a_further_lane_of_a_session_that_was_given_up_meanwhile_is_let_go(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        agent = agent_of(session)
        session.pool.look(WANTED)
        await session.until(lambda: far.logins == 2, "further logins")
        os.kill(agent, 9)
        session.pool.abandon_session()
        await few_moments()
        assert session.lanes == []

    run(far, conversation)


# --- further lanes ------------------------------------------------------------------------------


def test_as_many_lanes_as_would_help_are_opened_at_once(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        session.pool.look(WANTED)
        session.pool.look(WANTED)  # they are on their way
        await session.until(lambda: session.lanes == [0, 1, 2], "further lanes")
        assert sorted(session.heard(LaneOpened)) == [LaneOpened("gate", n) for n in (1, 2)]
        assert far.logins == 2

    run(far, conversation)


def test_lanes_that_may_soon_be_wanted_wait_with_their_hello_until_they_are(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        session.pool.look(SOON)
        await few_moments()
        assert (session.lanes, far.logins) == ([0], 2)
        session.pool.look(WANTED)
        await session.until(lambda: session.lanes == [0, 1, 2], "further lanes")
        assert far.logins == 2

    run(far, conversation)


def test_lanes_that_were_not_wanted_after_all_are_closed_and_none_wait_again(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "EARLY_S", 0.3)

    async def conversation(session: Session) -> None:
        await session.connect()
        session.pool.look(SOON)
        await session.until(lambda: bool(session.heard(EarlyLanesClosed)), "the end of waiting")
        session.pool.look(SOON)
        await few_moments()
        assert (session.lanes, far.logins) == ([0], 2)
        session.pool.look(WANTED)
        await session.until(lambda: len(session.lanes) == MOST, "further lanes")

    run(far, conversation)


def test_where_no_login_ahead_of_need_is_left_none_is_said_to_be_closed(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "EARLY_S", 0.3)

    async def conversation(session: Session) -> None:
        await session.connect()
        far.fails = True
        session.pool.look(SOON)
        await asyncio.sleep(0.3)
        await few_moments()
        assert session.heard(LaneFailed)
        assert not session.heard(EarlyLanesClosed)

    run(far, conversation)


def test_without_bulk_the_first_lane_is_enough_again(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        session.pool.look(WANTED)
        await session.until(lambda: len(session.lanes) == MOST, "further lanes")
        session.pool.close_idle()
        assert len(session.lanes) == MOST
        monkeypatch.setattr(pool_module, "IDLE_S", 0.0)
        session.pool.look(NOTHING)
        session.pool.close_idle()
        assert session.lanes == [0]
        assert {event.why for event in session.said if isinstance(event, LaneClosed)} == {IDLE}
        session.pool.look(WANTED)  # idleness is no reason to wait with others
        await session.until(lambda: len(session.lanes) == MOST, "further lanes")

    run(far, conversation)


def test_after_a_failed_login_none_is_tried_for_a_while(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        far.fails = True
        session.pool.look(WANTED)
        await session.until(lambda: bool(session.heard(LaneFailed)), "a failure")
        far.fails = False
        session.pool.look(WANTED)
        await few_moments()
        assert session.lanes == [0]

    run(far, conversation)


def test_where_a_second_login_needs_a_person_channels_are_opened_over_the_first(
    far: Far,
) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        far.asks = far.shares = True
        session.pool.look(WANTED)
        await session.until(lambda: bool(session.heard(ChannelsChosen)), "a refusal")
        await few_moments()
        assert session.lanes == [0]
        session.pool.look(believed(LOSING))
        await few_moments()
        assert session.lanes == [0]  # against loss a channel of the same connection does not help
        session.pool.look(WANTED)
        await session.until(lambda: len(session.lanes) == MOST, "further channels")
        assert len(session.heard(ChannelsChosen)) == 1

    run(far, conversation)


def test_without_login_or_channel_one_lane_stays_and_that_is_said_once(
    far: Far,
) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        far.asks = True
        session.pool.look(WANTED)
        await session.until(lambda: bool(session.heard(LanesLimited)), "a refusal")
        await few_moments()
        session.pool.look(WANTED)
        await few_moments()
        assert len(session.heard(LanesLimited)) == 1
        assert not session.pool.may_be_several
        assert (session.lanes, far.logins) == ([0], 2)

    run(far, conversation)


def test_a_refused_login_that_nobody_has_missed_yet_limits_nothing(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        far.asks = True
        session.pool.look(SOON)
        await few_moments()
        assert session.pool.may_be_several
        assert not session.heard(LanesLimited)

    run(far, conversation)


def test_closing_the_pool_ends_lanes_that_are_still_being_opened(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        session.pool.look(SOON)
        await few_moments()

    run(far, conversation)


def test_closing_the_pool_ends_lanes_that_come_up_all_the_same(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_beside = far.open_beside

    async def open_whatever_is_cancelled(*words: Any, **more: Any) -> Channel:
        opening = asyncio.ensure_future(open_beside(*words, **more))
        while not opening.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(opening)
        return opening.result()

    monkeypatch.setattr(far, "open_beside", open_whatever_is_cancelled)

    async def conversation(session: Session) -> None:
        await session.connect()
        agent = agent_of(session)
        session.pool.look(WANTED)
        await session.until(lambda: far.logins == 2, "further logins")
        session.tunnel.close()
        await session.pool.close()
        assert not session.heard(LaneOpened)
        assert session.lanes == []
        os.kill(agent, 9)

    with no_more_descriptors():
        run(far, conversation)
