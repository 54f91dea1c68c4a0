"""The beat: it comes when somebody waits for it, and never otherwise."""

import asyncio
import os
import select
import sys
from itertools import pairwise

import pytest

from sshunt.relay.beat import BEAT_S, Beat
from sshunt.relay.linux import Timer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux")


def test_everybody_who_waits_is_called_once_at_the_next_beat() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        beat, called, begin = Beat(loop), [], loop.time()
        for number in range(3):
            assert beat.next(lambda number=number: called.append((number, loop.time())))  # type: ignore[misc]
        await asyncio.sleep(0.05)
        assert [number for number, _ in called] == [0, 1, 2]
        assert all(at - begin >= BEAT_S for _, at in called)
        beat.close()

    asyncio.run(conversation())


def test_who_asks_at_a_beat_is_called_at_the_next_one() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        beat, times = Beat(loop), []

        def again() -> None:
            times.append(loop.time())
            if len(times) < 10:
                beat.next(again)

        beat.next(again)
        await asyncio.sleep(0.1)
        assert len(times) == 10
        assert all(later - sooner >= BEAT_S / 2 for sooner, later in pairwise(times))
        beat.close()

    asyncio.run(conversation())


def test_a_beat_that_nobody_waits_for_does_not_wake_the_loop() -> None:
    async def conversation() -> None:
        beat = Beat(asyncio.get_running_loop())
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
        beat = Beat(asyncio.get_running_loop())
        beat.next(lambda: called.append(1))
        beat.close()
        beat.close()
        assert not beat.next(lambda: called.append(2))
        await asyncio.sleep(0.02)
        assert not called
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(conversation())


def test_a_timer_is_exact_to_less_than_a_millisecond_and_can_be_stopped() -> None:
    timer = Timer(0.0002)
    timer.start()
    assert select.select([timer.fd], [], [], 0.05)[0]
    timer.start()  # what was readable is so no more
    timer.stop()
    assert not select.select([timer.fd], [], [], 0.01)[0]
    os.close(timer.fd)
