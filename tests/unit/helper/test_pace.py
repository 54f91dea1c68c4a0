"""A client that asks without end gets its burst, and then a fixed number and share of the time."""

import pytest

from sshunt.helper.pace import BURST, BURST_S, PER_SECOND, SHARE, Pace


def carried_out(pace: Pace, *, took_s: float, within_s: float, now: float = 50.0) -> int:
    """How many requests a client gets through that always has another one."""
    end, count = now + within_s, 0
    while (now := now + pace.wait_s(now)) < end:
        now += took_s
        pace.spent(now, took_s)
        count += 1
    return count


def test_an_ordinary_client_never_waits() -> None:
    pace = Pace()
    for second in range(1000):
        assert pace.wait_s(float(second)) == 0.0
        pace.spent(float(second), 0.01)


def test_a_burst_is_carried_out_at_once_and_then_so_many_a_second() -> None:
    assert carried_out(Pace(), took_s=0.0, within_s=1e-9) == BURST
    assert carried_out(Pace(), took_s=0.0, within_s=60.0) == pytest.approx(
        BURST + 60 * PER_SECOND, rel=0.01
    )


def test_requests_that_take_long_get_their_share_of_the_time_and_no_more() -> None:
    hour = 3600.0
    took_s = carried_out(Pace(), took_s=2.0, within_s=hour) * 2.0
    assert took_s == pytest.approx(BURST_S + hour * SHARE, rel=0.02)


def test_who_has_waited_has_its_burst_again() -> None:
    pace = Pace()
    carried_out(pace, took_s=0.0, within_s=1e-9)
    assert carried_out(pace, took_s=0.0, within_s=1e-9, now=50.0 + BURST / PER_SECOND) == BURST
