"""What both ends measure is asked while there is traffic, and passed on."""

import asyncio

import pytest

from sshunt.mux.path import CONTENDED
from sshunt.remote.pool import Traffic
from sshunt.remote.statistics import Statistics, statistics_untrusted
from sshunt.remote.telemetry import (
    BUSY_BYTES_S,
    MOST_QUESTIONS,
    Questions,
    Telemetry,
    measured,
)
from sshunt.tell.report import LaneMeasured, StatisticsRefused
from sshunt.tell.sentences import sentence
from sshunt.transport.endings import cancelled
from tests.unit.remote.far_sessions import Far, Session, connection, run
from tests.unit.remote.test_statistics import LANE, SAID

BULK_BYTES = 4_000_000


def test_both_directions_are_told_of_while_there_is_traffic(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        telemetry = Telemetry("gate", session.pool, session.report)
        running = asyncio.ensure_future(telemetry.run())
        program, host = await connection(session)
        loop = asyncio.get_running_loop()

        async def exchange() -> None:
            """Bulk both ways, without end."""
            while True:
                for sender, receiver in ((program, host), (host, program)):
                    sending = asyncio.ensure_future(loop.sock_sendall(sender, bytes(BULK_BYTES)))
                    left = BULK_BYTES
                    while left:
                        left -= len(await loop.sock_recv(receiver, min(left, 1 << 20)))
                    await sending

        exchanging = asyncio.ensure_future(exchange())
        with program, host:
            await session.until(
                lambda: (
                    {e.direction for e in session.said if isinstance(e, LaneMeasured)}
                    == {"up", "down"}
                ),
                "a word of both directions",
            )
            await cancelled(exchanging)
        await cancelled(running)
        assert not session.heard(StatisticsRefused)
        moved = session.pool.moved()
        assert min(moved.sent, moved.received) > 0

    run(far, conversation)


def test_nobody_is_asked_while_nothing_moves(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sshunt.remote.telemetry.ASK_EVERY_S", 0.01)

    async def conversation(session: Session) -> None:
        await session.connect()
        before = session.pool.moved()
        running = asyncio.ensure_future(Telemetry("gate", session.pool, session.report).run())
        await asyncio.sleep(0.2)
        await cancelled(running)
        assert session.pool.moved().sent - before.sent < 200

    run(far, conversation)


def test_a_question_is_answered_with_the_far_sides_statistics(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        heard: list[bytes] = []
        questions = Questions(heard.append)
        for _ in range(3):
            questions.ask(session.tunnel)
        await session.until(lambda: len(heard) == 3, "three answers")
        assert b'"lanes"' in heard[0]

    run(far, conversation)


def test_the_oldest_question_is_given_up_when_too_many_are_not_answered(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        heard: list[bytes] = []
        questions = Questions(heard.append)
        for _ in range(MOST_QUESTIONS + 5):
            questions.ask(session.tunnel)
        await session.until(lambda: len(heard) >= MOST_QUESTIONS, "answers to all but the oldest")
        assert len(heard) == MOST_QUESTIONS

    run(far, conversation)


def test_bytes_of_lanes_that_have_ended_are_counted(far: Far) -> None:
    async def conversation(session: Session) -> None:
        await session.connect()
        before = session.pool.moved()
        assert before != Traffic(0, 0)
        session.tunnel.lane_ended(session.tunnel.lanes[0], "cut")
        assert session.pool.moved() >= before
        await session.connect(resumes=True)

    run(far, conversation)


# --- lines ----------------------------------------------------------------------------------------


def lines(direction: str, statistics: Statistics) -> list[str]:
    told = [sentence(event) for event in measured("gate", direction, statistics)]
    return [text for _, text in filter(None, told)]


def test_a_busy_lane_has_a_line_that_says_all() -> None:
    assert lines("up", statistics_untrusted(SAID)) == [
        "lane 0 up: steady, 20.0 Mbit/s, RTT 52.3 ms (least 50.0), queue 2.1 ms, "
        "in flight 64 of 128 KiB; waiting: 1 control frames, 3 sparse, 4 bulk bytes; "
        "zero-copy: 0.0 MB sent, 0.0 MB received"
    ]


def test_idle_lanes_have_no_line() -> None:
    lanes = {
        "0": {**LANE, "rate_bytes_s": BUSY_BYTES_S - 1},
        "1": {**LANE, "in_flight_bytes": 0},
        "2": {**LANE, "phase": CONTENDED},
        "3": {**LANE, "rate_bytes_s": BUSY_BYTES_S},
    }
    shown = lines("down", statistics_untrusted({**SAID, "lanes": lanes}))
    assert [line.split(",")[0] for line in shown] == [
        "lane 2 down: contended",
        "lane 3 down: steady",
    ]
