"""The path that all lanes share: what is a queue, whose it is, and when it is looked at."""

import pytest

from sshunt.mux.path import (
    CONTENDED,
    CONTENDED_PROBE_S,
    DOUBT_S,
    EMPTY_S,
    FIRST_CONTENDED_PROBE_S,
    JUST_S,
    PROBE_EVERY_S,
    PROBE_RTTS,
    PROBING,
    SAME_PROBES,
    STEADY,
    UNSURE_PROBE_S,
    Path,
)

RTT_S = 0.1
AIM_S = 0.002
CLOCK = 1 << 32


def clock_us(seconds: float) -> int:
    """The peer's clock."""
    return round(seconds * 1e6) % CLOCK


def seen_path(now: float = 0.0) -> Path:
    """A path that was seen empty at ``now``: least delay 0, least round-trip time RTT_S."""
    path = Path()
    path.queue_above(0.0, RTT_S, now)
    return path


def probe(path: Path, delay_s: float, rtt_s: float, now: float, *, queue_s: float = 0.0) -> float:
    """A whole probe that finds these where ``queue_s`` had been seen; when it was over."""
    path.probe(RTT_S, queue_s, now)
    path.queue_above(delay_s, rtt_s, now + RTT_S)
    path.note_probed(delay_s, rtt_s)
    now += PROBE_RTTS * RTT_S + 0.001
    path.end_probe_if_over(AIM_S, now)
    return now


# --- delay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [0.0, 100.0, 4294.967, 1e6])
@pytest.mark.parametrize("theirs", [0.0, 7.5, 4294.967, 4294.9])
def test_the_clocks_difference_does_not_matter_nor_when_they_wrap(
    ours: float, theirs: float
) -> None:
    path = Path()
    delays_s = [
        path.one_way_s(ours + at, clock_us(theirs + at + delay_s))
        for at, delay_s in ((0.0, 0.020), (0.050, 0.050), (0.1, 0.005), (9000.0, 0.021))
    ]
    assert delays_s == pytest.approx([0.0, 0.030, -0.015, 0.001], abs=3e-6)


def test_a_queue_is_the_least_delay_of_a_round_above_the_least_ever_seen() -> None:
    path = Path()
    assert path.queue_above(0.010, RTT_S, 1.0) == 0.0
    assert path.queue_above(0.030, RTT_S + 0.020, 2.0) == pytest.approx(0.020)
    assert path.queue_above(0.000, RTT_S - 0.010, 3.0) == 0.0
    assert path.queue_above(0.030, RTT_S + 0.020, 4.0) == pytest.approx(0.030)


@pytest.mark.parametrize("delay_s", [0.05, 5.0, 2000.0])
def test_no_queue_is_longer_than_the_round_trip_says_whatever_the_peers_clock_does(
    delay_s: float,
) -> None:
    path = seen_path()
    assert path.queue_above(delay_s, RTT_S + 0.007, 1.0) == pytest.approx(0.007)


def test_delay_on_the_way_back_is_not_counted_as_queue() -> None:
    path = seen_path()
    assert path.queue_above(0.001, RTT_S + 0.300, 1.0) == pytest.approx(0.001)


# --- when probes are due --------------------------------------------------------------------------


def test_a_standing_queue_is_probed_after_a_while_and_not_before() -> None:
    path = seen_path(now=100.0)
    for now in (101.0, 105.0, 99.9 + PROBE_EVERY_S):
        path.queue_above(AIM_S, RTT_S + AIM_S, now)
        path.probe_if_due(RTT_S, 0.0, False, now)
        assert path.phase == STEADY
    path.probe_if_due(RTT_S, 0.0, False, 100.0 + PROBE_EVERY_S)
    assert (path.phase, path.is_deep) == (PROBING, False)


def test_a_path_that_is_seen_empty_now_and_then_is_never_probed() -> None:
    path = seen_path()
    for tenth in range(1000):
        now = tenth / 10
        empty = tenth % 50 == 0
        path.queue_above(EMPTY_S / 2 if empty else 0.005, RTT_S + 0.01, now)
        path.probe_if_due(RTT_S, 0.0, False, now)
        assert path.phase == STEADY


def test_a_path_that_was_never_seen_empty_is_probed_after_the_usual_interval() -> None:
    path = Path()
    path.probe_if_due(RTT_S, 0.0, False, 50.0)
    path.probe_if_due(RTT_S, 0.0, False, 49.9 + PROBE_EVERY_S)
    assert path.phase == STEADY
    path.probe_if_due(RTT_S, 0.0, False, 50.0 + PROBE_EVERY_S)
    assert path.phase == PROBING


def test_a_probe_under_way_is_not_restarted() -> None:
    path = seen_path()
    path.probe(RTT_S, 0.0, 1.0, deep=True)
    path.note_probed(0.0, RTT_S)
    path.probe_if_due(RTT_S, 0.0, False, 100.0)
    assert path.is_deep
    path.end_probe_if_over(AIM_S, 100.0)
    assert path.phase == STEADY


# --- what probes find -----------------------------------------------------------------------------


def test_a_probe_lasts_until_its_effect_has_been_seen() -> None:
    path = seen_path()
    path.probe(RTT_S, 0.0, 1.0)
    path.note_probed(0.0, RTT_S)
    path.end_probe_if_over(AIM_S, 1.0 + PROBE_RTTS * RTT_S - 0.001)
    assert path.phase == PROBING
    path.end_probe_if_over(AIM_S, 1.0 + PROBE_RTTS * RTT_S)
    assert path.phase == STEADY


def test_a_probe_in_which_no_round_ended_is_not_over() -> None:
    path = seen_path()
    path.probe(RTT_S, 0.0, 1.0)
    path.end_probe_if_over(AIM_S, 9.0)
    assert path.phase == PROBING


def test_ending_a_probe_without_one_under_way_does_nothing() -> None:
    path = seen_path()
    path.queue_above(0.05, RTT_S + 0.05, 1.0)
    path.end_probe_if_over(AIM_S, 100.0)
    assert (path.phase, path.is_contended) == (STEADY, False)


def test_a_queue_that_drains_in_a_probe_was_ours() -> None:
    path = seen_path()
    path.probe(RTT_S, 0.0, 1.0)
    path.note_probed(0.05, RTT_S + 0.05)  # another lane's; the least counts
    path.note_probed(0.001, RTT_S + 0.001)
    path.end_probe_if_over(AIM_S, 1.2)
    assert (path.phase, path.is_contended) == (STEADY, False)


def test_a_queue_that_stays_in_a_probe_is_made_by_others() -> None:
    path = seen_path()
    probe(path, 0.05, RTT_S + 0.05, 1.0)
    assert (path.phase, path.is_contended) == (CONTENDED, True)
    assert path.contended_rtt_s == pytest.approx(RTT_S + 0.05)
    assert path.queue_above(0.05, RTT_S + 0.05, 2.0) == pytest.approx(0.05)  # it is a queue still


def test_a_contended_path_is_probed_soon_and_then_less_often() -> None:
    path = seen_path()
    ended = probe(path, 0.05, RTT_S + 0.05, 1.0)
    path.probe_if_due(RTT_S, 0.0, False, ended + FIRST_CONTENDED_PROBE_S - 0.01)
    assert path.phase == CONTENDED
    path.probe_if_due(RTT_S, 0.0, False, ended + FIRST_CONTENDED_PROBE_S)
    assert (path.phase, path.is_deep, path.is_contended) == (PROBING, True, True)
    ended = probe(path, 0.08, RTT_S + 0.08, ended + FIRST_CONTENDED_PROBE_S)
    path.probe_if_due(RTT_S, 0.0, False, ended + CONTENDED_PROBE_S - 0.01)
    assert path.phase == CONTENDED
    path.probe_if_due(RTT_S, 0.0, False, ended + CONTENDED_PROBE_S)
    assert path.phase == PROBING


def test_a_contest_ends_when_a_probe_finds_the_path_empty() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.05, 1.0)
    now = probe(path, 0.001, RTT_S + 0.001, now)
    assert (path.phase, path.is_contended) == (STEADY, False)
    path.probe_if_due(RTT_S, 0.0, False, now + UNSURE_PROBE_S - 0.01)
    assert path.phase == STEADY


# --- a path that was never seen empty -------------------------------------------------------------


def test_a_doubtful_queue_is_probed_at_growing_intervals() -> None:
    path, now = seen_path(), 0.0
    for after_s in (DOUBT_S, 2 * DOUBT_S, 4 * DOUBT_S, 8 * DOUBT_S):
        path.probe_if_due(RTT_S, 0.02, True, now + after_s - 0.01)
        assert path.phase == STEADY
        path.probe_if_due(RTT_S, 0.02, True, now + after_s)
        assert (path.phase, path.is_deep) == (PROBING, False)
        path.note_probed(0.0, RTT_S)
        now += after_s + 1.0
        path.end_probe_if_over(AIM_S, now)


def test_a_queue_that_does_not_shrink_as_it_should_in_a_probe_is_made_by_others() -> None:
    path = seen_path()  # so it seems; their queue was never shorter
    probe(path, 0.005, RTT_S + 0.005, 1.0, queue_s=0.007)
    assert path.phase == CONTENDED
    path = seen_path()
    probe(path, 0.003, RTT_S + 0.003, 1.0, queue_s=0.007)
    assert path.phase == STEADY


def test_our_own_queue_in_a_contest_is_not_taken_for_others() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.05, 1.0)
    probe(path, 0.005, RTT_S + 0.005, now, queue_s=0.007)
    assert path.phase == STEADY


def test_a_new_least_delay_does_not_end_a_contest_at_once() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.05, 1.0)
    now = probe(path, -0.02, RTT_S - 0.02, now)
    assert path.phase == CONTENDED
    path.probe_if_due(RTT_S, 0.0, False, now + FIRST_CONTENDED_PROBE_S)
    assert path.phase == PROBING  # and that is soon looked into
    path.note_probed(-0.02, RTT_S - 0.02)
    path.end_probe_if_over(AIM_S, now + 10.0)
    assert path.phase == STEADY


def test_a_round_without_a_queue_ends_the_contest_unless_the_least_delay_just_fell() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.05, 1.0)
    path.queue_above(-0.02, RTT_S - 0.02, now)
    assert not path.end_contest(now + JUST_S / 2)
    assert path.phase == CONTENDED
    assert path.end_contest(now + JUST_S)
    assert path.phase == STEADY


def test_after_a_contest_the_path_is_probed_deeply_until_its_least_delay_falls_no_more() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.05, 1.0)
    assert path.end_contest(now)
    for delay_s in (-0.02, -0.03):
        now += UNSURE_PROBE_S
        path.probe_if_due(RTT_S, 0.0, False, now)
        assert (path.phase, path.is_deep) == (PROBING, True)
        now += 2 * RTT_S
        path.queue_above(delay_s, RTT_S + delay_s, now)
        path.note_probed(delay_s, RTT_S + delay_s)
        path.end_probe_if_over(AIM_S, now)
        assert path.phase == STEADY
    now += UNSURE_PROBE_S
    path.probe_if_due(RTT_S, 0.0, False, now)
    path.note_probed(-0.03, RTT_S - 0.03)
    path.end_probe_if_over(AIM_S, now + 1.0)
    assert path.phase == STEADY
    path.probe_if_due(RTT_S, 0.0, False, now + PROBE_EVERY_S)
    assert path.phase == STEADY  # it is known now
    path.probe_if_due(RTT_S, 0.0, False, now + 1.0 + PROBE_EVERY_S)
    assert (path.phase, path.is_deep) == (PROBING, False)


def test_delay_that_grew_alike_both_ways_is_a_longer_path() -> None:
    path = seen_path()
    now = probe(path, 0.05, RTT_S + 0.10, 1.0)
    assert (path.phase, path.is_contended) == (STEADY, False)
    assert path.queue_above(0.05, RTT_S + 0.10, now) == 0.0


@pytest.mark.parametrize("rtt_s", [0.05, 0.075, 0.15])
def test_delay_that_grew_more_in_one_direction_may_be_a_queue(
    rtt_s: float,
) -> None:
    path = seen_path()
    probe(path, 0.05, RTT_S + rtt_s, 1.0)
    assert path.phase == CONTENDED


def test_a_constant_delay_in_one_direction_is_a_longer_path_after_several_probes() -> None:
    path, now = seen_path(), 1.0
    for _ in range(SAME_PROBES):
        now = probe(path, 0.05, RTT_S + 0.05, now)
        assert path.phase == CONTENDED
    now = probe(path, 0.05, RTT_S + 0.05, now)
    assert path.phase == STEADY
    assert path.queue_above(0.05, RTT_S + 0.05, now) == 0.0


def test_a_queue_that_changes_from_probe_to_probe_is_never_taken_for_the_path() -> None:
    path, now = seen_path(), 1.0
    for round_ in range(20):
        queue_s = 0.05 + 0.01 * (round_ % 2)
        now = probe(path, queue_s, RTT_S + queue_s, now)
        assert path.phase == CONTENDED
    assert path.queue_above(0.0, RTT_S, now) == 0.0
    assert path.queue_above(0.05, RTT_S + 0.05, now) == pytest.approx(0.05)
