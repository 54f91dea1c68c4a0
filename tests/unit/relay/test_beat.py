"""The beat: it comes when somebody waits for it, and never otherwise."""

import asyncio
import os
import select
import sys
from itertools import pairwise

import pytest

from sshunt.relay.beat import GOAL_BYTES, LEAST_BEAT_S, MOST_BEAT_S, Beat
from sshunt.relay.linux import Timer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux")


def a_beat(loop: asyncio.AbstractEventLoop) -> Beat:
    """Return one whose turns are nothing but their work."""
    return Beat(loop, lambda work: work())


def test_everybody_who_waits_is_called_once_at_the_next_beat() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        beat, called, begin = a_beat(loop), [], loop.time()
        for number in range(3):
            assert beat.next(lambda number=number: called.append((number, loop.time())))  # type: ignore[misc]
        await asyncio.sleep(0.05)
        assert [number for number, _ in called] == [0, 1, 2]
        assert all(at - begin >= LEAST_BEAT_S for _, at in called)
        beat.close()

    asyncio.run(conversation())


def test_who_asks_at_a_beat_is_called_at_the_next_one() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        beat, times = a_beat(loop), []

        def again() -> None:
            times.append(loop.time())
            if len(times) < 10:
                beat.next(again)

        beat.next(again)
        await asyncio.sleep(0.1)
        assert len(times) == 10
        assert all(later - sooner >= LEAST_BEAT_S / 2 for sooner, later in pairwise(times))
        beat.close()

    asyncio.run(conversation())


def test_a_beat_that_nobody_waits_for_does_not_wake_the_loop() -> None:
    async def conversation() -> None:
        beat = a_beat(asyncio.get_running_loop())
        beat.next(lambda: None)
        await asyncio.sleep(0.02)
        assert beat._timer is not None
        assert not select.select([beat._timer.fd], [], [], 0.02)[0]
        beat.close()

    asyncio.run(conversation())


def test_after_its_end_there_is_no_beat_and_nobody_is_called() -> None:
    async def conversation() -> None:
        called: list[int] = []
        before = len(os.listdir("/proc/self/fd"))
        beat = a_beat(asyncio.get_running_loop())
        beat.next(lambda: called.append(1))
        beat.close()
        beat.close()
        assert not beat.next(lambda: called.append(2))
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
    [(0, MOST_BEAT_S), (GOAL_BYTES - 1, MOST_BEAT_S), (GOAL_BYTES, LEAST_BEAT_S)],
)
def test_the_beat_is_as_long_as_turns_need_to_move_enough(moved_bytes: int, seconds: float) -> None:
    async def conversation() -> None:
        beat, count = a_beat(asyncio.get_running_loop()), 0
        beat.seconds = (LEAST_BEAT_S + MOST_BEAT_S) / 2

        def again() -> None:
            nonlocal count
            count += 1
            beat.next(lambda: None)  # a socket, which has no say
            beat.next(again, moved_bytes)

        again()
        await asyncio.sleep(0.1)
        beat.close()
        assert count > 20
        assert beat.seconds == seconds

    asyncio.run(conversation())


def test_one_who_fails_at_a_beat_does_not_keep_the_others_from_theirs() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        beat, called, failed = a_beat(loop), [], []

        def fail() -> None:
            raise ZeroDivisionError

        loop.set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
        beat.next(fail)
        beat.next(lambda: called.append(1))
        await asyncio.sleep(0.02)
        beat.close()
        assert called == [1]
        assert [type(error) for error in failed] == [ZeroDivisionError]

    asyncio.run(conversation())
