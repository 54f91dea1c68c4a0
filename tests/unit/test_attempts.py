"""When the next login is tried."""

import pytest

from sshunt.attempts import FIRST_PAUSE_S, JITTER, LIVED_S, LONGEST_PAUSE_S, Attempts


def attempts(max_retries: int | None = None) -> Attempts:
    """They never shorten a pause, and a lane has come up at 0."""
    made = Attempts(max_retries=max_retries, chance=lambda: 0.0)
    made.on_up(0.0)
    return made


def dies_young(made: Attempts, now: float) -> float:
    """A lane comes up and ends; the pause before the next login."""
    made.on_up(now)
    made.on_down(now + 0.1)
    return made.pause_s()


def test_the_first_login_after_a_lane_that_has_lived_comes_at_once() -> None:
    made = attempts()
    assert not made.on_down(LIVED_S)
    assert made.pause_s() == 0.0


def test_failed_logins_are_further_and_further_apart() -> None:
    made = attempts()
    made.on_down(LIVED_S)
    pauses = []
    for _ in range(20):
        made.on_failure()
        pauses.append(made.pause_s())
    assert pauses[:4] == [FIRST_PAUSE_S * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_logins_that_succeed_and_lanes_that_die_at_once_are_further_and_further_apart() -> None:
    made = attempts()
    pauses = [dies_young(made, number) for number in range(20)]
    assert pauses[:4] == [0.0, FIRST_PAUSE_S, FIRST_PAUSE_S * 2, FIRST_PAUSE_S * 4]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_login_that_succeeds_does_not_undo_the_failures_before_it() -> None:
    made = attempts()
    made.on_down(LIVED_S)
    for _ in range(5):
        made.on_failure()
    assert dies_young(made, LIVED_S + 10) == FIRST_PAUSE_S * 16


def test_a_lane_that_has_lived_undoes_them() -> None:
    made = attempts()
    for number in range(5):
        dies_young(made, number)
    made.on_up(10.0)
    made.on_down(10.0 + LIVED_S)
    assert made.pause_s() == 0.0
    assert dies_young(made, 100.0) == 0.0  # the first is forgiven again


@pytest.mark.parametrize("how", ["logins fail", "lanes die young"])
def test_they_are_over_after_as_many_retries_as_the_user_wants(how: str) -> None:
    made = attempts(2)
    made.on_down(0.1)
    for number in range(3):
        assert not made.are_over
        if how == "logins fail":
            made.on_failure()
        else:
            dies_young(made, number)
    assert made.are_over


def test_a_hundred_clients_do_not_come_back_in_step() -> None:
    made = Attempts(max_retries=None, chance=lambda: 1.0)
    made.on_failure()
    assert made.pause_s() == FIRST_PAUSE_S * (1 - JITTER)
