"""When and how the next login is tried."""

import itertools

import pytest

from sshunt.remote.attempts import (
    DENSE_S,
    FIRST_PAUSE_S,
    FRESH_EVERY_S,
    JITTER,
    LIVED_S,
    LONGEST_PAUSE_S,
    MOST_ELSEWHERE,
    PROBE_EVERY_S,
    SILENT_S,
    Attempts,
    Probes,
    Rumours,
)


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


def test_pauses_grow_with_each_failed_login() -> None:
    made = attempts()
    made.on_down(LIVED_S)
    pauses = []
    for _ in range(20):
        made.on_failure()
        pauses.append(made.pause_s())
    assert pauses[:4] == [FIRST_PAUSE_S * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_pauses_grow_when_lanes_die_right_after_the_login() -> None:
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


def test_a_lane_that_has_lived_resets_the_count_of_failures() -> None:
    made = attempts()
    for number in range(5):
        dies_young(made, number)
    made.on_up(10.0)
    made.on_down(10.0 + LIVED_S)
    assert made.pause_s() == 0.0
    assert dies_young(made, 100.0) == 0.0  # the first is forgiven again


@pytest.mark.parametrize("how", ["logins fail", "lanes die young"])
def test_attempts_end_after_max_retries(how: str) -> None:
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


# --- probes ---------------------------------------------------------------------------------------


def probe_times(made: Probes, count: int) -> list[tuple[float, bool]]:
    """When the server is looked at after 0, and whether by ssh; looking takes no time."""
    now, times = 0.0, []
    for _ in range(count):
        pause_s, is_sshs_turn = made.next(now)
        now += pause_s
        times.append((now, is_sshs_turn))
    return times


def test_probes_are_frequent_in_a_young_outage_and_rare_in_an_old_one() -> None:
    made = Probes()
    made.begin(0.0)
    times = [when for when, _ in probe_times(made, 30)]
    assert sum(when <= DENSE_S for when in times) == DENSE_S // PROBE_EVERY_S
    assert len([when for when in times if when <= 600]) < 25


def test_pauses_between_probes_outlast_a_firewalls_ban() -> None:
    made = Probes()
    made.begin(0.0)
    times = [0.0, *(when for when, _ in probe_times(made, 60))]
    quiet = [(begin, end) for begin, end in itertools.pairwise(times) if end - begin > 60.0]
    assert quiet[0][1] < 180
    assert all(later[0] - sooner[1] < 90 for sooner, later in itertools.pairwise(quiet))


def test_ssh_itself_is_tried_now_and_then_though_nothing_answers() -> None:
    made = Probes()
    made.begin(0.0)
    turns = [when for when, is_sshs_turn in probe_times(made, 60) if is_sshs_turn]
    assert turns[0] < 60
    assert all(later - sooner < 150 for sooner, later in itertools.pairwise(turns))


def test_a_link_that_flaps_does_not_keep_probes_dense() -> None:
    made = Probes()
    made.begin(0.0)
    probe_times(made, 20)
    made.refresh(FRESH_EVERY_S - 1)
    assert made.next(FRESH_EVERY_S - 1)[0] > PROBE_EVERY_S
    made.refresh(FRESH_EVERY_S)
    assert made.next(FRESH_EVERY_S)[0] == PROBE_EVERY_S
    made.begin(FRESH_EVERY_S + 20)  # a person asks
    assert made.next(FRESH_EVERY_S + 20)[0] == PROBE_EVERY_S


# --- rumours --------------------------------------------------------------------------------------


def test_the_machine_of_the_agent_is_believed_when_no_lane_is_left() -> None:
    assert Rumours().is_believed(0.0, may_yet_answer=False, is_elsewhere=False)


def test_nobody_is_believed_while_a_lane_may_yet_answer() -> None:
    made = Rumours()
    for now in (0.0, 1.0, SILENT_S - 1):
        assert not made.is_believed(now, may_yet_answer=True, is_elsewhere=False)
    assert made.is_believed(SILENT_S, may_yet_answer=True, is_elsewhere=False)


def test_other_machines_are_asked_a_few_times() -> None:
    made = Rumours()
    for now in range(MOST_ELSEWHERE - 1):
        assert not made.is_believed(now, may_yet_answer=False, is_elsewhere=True)
    assert made.is_believed(10.0, may_yet_answer=False, is_elsewhere=True)
    made.begin()
    assert not made.is_believed(20.0, may_yet_answer=False, is_elsewhere=True)
