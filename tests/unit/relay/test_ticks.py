"""Ticks: they come when somebody waits for one, and never otherwise."""

import asyncio
import os
import select
import sys
from itertools import pairwise

import pytest

from sshunt.relay.linux import Timer
from sshunt.relay.ticks import GOAL_BYTES, LEAST_TICK_S, MOST_TICK_S, Ticks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux")


def made(loop: asyncio.AbstractEventLoop) -> Ticks:
    """Return one whose batches are nothing but their work."""
    return Ticks(loop, lambda work: work())


def test_everybody_who_waits_is_called_once_at_the_next_tick() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        ticks, called, begin = made(loop), [], loop.time()
        for number in range(3):
            assert ticks.next(lambda number=number: called.append((number, loop.time())))  # type: ignore[misc]
        await asyncio.sleep(0.05)
        assert [number for number, _ in called] == [0, 1, 2]
        assert all(at - begin >= LEAST_TICK_S for _, at in called)
        ticks.close()

    asyncio.run(conversation())


def test_who_asks_at_a_tick_is_called_at_the_next_one() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        ticks, times = made(loop), []

        def again() -> None:
            times.append(loop.time())
            if len(times) < 10:
                ticks.next(again)

        ticks.next(again)
        await asyncio.sleep(0.1)
        assert len(times) == 10
        assert all(later - sooner >= LEAST_TICK_S / 2 for sooner, later in pairwise(times))
        ticks.close()

    asyncio.run(conversation())


def test_a_tick_that_nobody_waits_for_does_not_wake_the_loop() -> None:
    async def conversation() -> None:
        ticks = made(asyncio.get_running_loop())
        ticks.next(lambda: None)
        await asyncio.sleep(0.02)
        assert ticks._timer is not None
        assert not select.select([ticks._timer.fd], [], [], 0.02)[0]
        ticks.close()

    asyncio.run(conversation())


def test_after_its_end_there_is_no_tick_and_nobody_is_called() -> None:
    async def conversation() -> None:
        called: list[int] = []
        before = len(os.listdir("/proc/self/fd"))
        ticks = made(asyncio.get_running_loop())
        ticks.next(lambda: called.append(1))
        ticks.close()
        ticks.close()
        assert not ticks.next(lambda: called.append(2))
        await asyncio.sleep(0.02)
        assert not called
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(conversation())


def test_a_timer_is_exact_to_less_than_a_millisecond_and_can_be_stopped() -> None:
    timer = Timer()
    timer.start(0.0002)
    assert select.select([timer.fd], [], [], 0.05)[0]
    timer.start(0.0002)  # what was readable is so no more
    timer.stop()
    assert not select.select([timer.fd], [], [], 0.01)[0]
    os.close(timer.fd)


@pytest.mark.parametrize(
    ("moved_bytes", "seconds"),
    [(0, MOST_TICK_S), (GOAL_BYTES - 1, MOST_TICK_S), (GOAL_BYTES, LEAST_TICK_S)],
)
def test_a_tick_is_as_long_as_batches_need_to_move_enough(moved_bytes: int, seconds: float) -> None:
    async def conversation() -> None:
        ticks, count = made(asyncio.get_running_loop()), 0
        ticks.seconds = (LEAST_TICK_S + MOST_TICK_S) / 2

        def again() -> None:
            nonlocal count
            count += 1
            ticks.next(lambda: None)  # a socket, which has no say
            ticks.next(again, moved_bytes)

        again()
        await asyncio.sleep(0.1)
        ticks.close()
        assert count > 20
        assert ticks.seconds == seconds

    asyncio.run(conversation())


def test_one_who_fails_at_a_tick_does_not_keep_the_others_from_theirs() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        ticks, called, failed = made(loop), [], []

        def fail() -> None:
            raise ZeroDivisionError

        loop.set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
        ticks.next(fail)
        ticks.next(lambda: called.append(1))
        await asyncio.sleep(0.02)
        ticks.close()
        assert called == [1]
        assert [type(error) for error in failed] == [ZeroDivisionError]

    asyncio.run(conversation())
