"""The alarm: on time, once, at the soonest deadline, and not after its end."""

import asyncio
import os
from collections.abc import Callable

import pytest

from sshunt.relay import alarm as module
from sshunt.relay.alarm import NEAR_S, Alarm


def ring(
    after_s: list[float | None], wait_s: float, *, during: Callable[[Alarm], None] = lambda _: None
) -> list[float]:
    """Set an alarm to these in turn; when it rang, in seconds from the beginning."""

    async def conversation() -> list[float]:
        loop = asyncio.get_running_loop()
        begin, rang = loop.time(), []
        alarm = Alarm(loop, lambda: rang.append(loop.time() - begin))
        for after in after_s:
            alarm.set(None if after is None else begin + after)
        during(alarm)
        await asyncio.sleep(wait_s)
        alarm.close()
        return rang

    return asyncio.run(conversation())


@pytest.fixture(params=[True, False], ids=["timerfd", "asyncio alone"])
def _timer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(module, "can_tee", lambda: False)


pytestmark = pytest.mark.usefixtures("_timer")


@pytest.mark.parametrize("after_s", [-1.0, 0.0, 0.0004, NEAR_S / 2, NEAR_S * 2])
def test_it_rings_once_and_not_before_its_time(after_s: float) -> None:
    rang = ring([after_s], 0.1)
    assert len(rang) == 1
    # asyncio itself rings by the resolution of its clock too early.
    assert rang[0] >= after_s - 0.001


def test_the_sooner_of_two_deadlines_counts() -> None:
    for deadlines in ([0.06, 0.001], [0.001, 0.06], [0.06, 0.03], [0.03, 0.06]):
        rang = ring(list(deadlines), 0.15)
        assert len(rang) == 1
        assert rang[0] >= min(deadlines) - 0.001


@pytest.mark.parametrize("after_s", [0.001, 0.05])
def test_setting_none_cancels_the_alarm(after_s: float) -> None:
    assert ring([after_s, None], 0.1) == []
    assert len(ring([after_s, None, 0.002], 0.1)) == 1


@pytest.mark.parametrize("after_s", [0.001, 0.05])
def test_the_callback_may_set_the_alarm_again(after_s: float) -> None:
    async def conversation() -> int:
        loop = asyncio.get_running_loop()
        rang: list[float] = []

        def again() -> None:
            rang.append(loop.time())
            if len(rang) < 3:
                alarm.set(loop.time() + after_s)

        alarm = Alarm(loop, again)
        alarm.set(loop.time() + after_s)
        await asyncio.sleep(0.4)
        alarm.close()
        return len(rang)

    assert asyncio.run(conversation()) == 3


def test_after_its_end_it_never_rings_and_holds_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert ring([0.001], 0.05, during=Alarm.close) == []

    def set_late(alarm: Alarm) -> None:
        alarm.close()
        alarm.close()
        alarm.set(0.0)

    assert ring([0.05], 0.1, during=set_late) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_descriptor_left_asyncio_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "Timer", refuse)
    assert len(ring([0.001], 0.05)) == 1
