"""The limit of one lane's bytes in flight: each rule alone, with acknowledgements made by hand.

What the rules do together is tested in tests/sim/test_the_pacer_on_a_bottleneck.py.
"""

import pytest

from sshunt.mux.limits import DATA_BYTES, LANE_IN_FLIGHT_BYTES
from sshunt.mux.pacer import (
    BESIDE_WINDOW_S,
    BURST_S,
    CONTEST,
    FAST_BYTES_S,
    FAST_FRAME,
    FAST_QUEUE,
    FORGET_S,
    FRAME_S,
    GOOD_FRAME_BYTES,
    GOOD_FRAME_S,
    JOINING_UP,
    LEAST_FRAMES,
    LONG_FRAME_S,
    LOSS_STALLS,
    MIN_FRAME_BYTES,
    MIN_LIMIT_BYTES,
    MOST_UP,
    SPREAD,
    STALLS_S,
    START_LIMIT_BYTES,
    START_UP,
    STILL_S,
    TARGET_S,
    Pacer,
)
from sshunt.mux.path import CONTENDED, PROBE_EVERY_S, PROBING, STEADY, Path

RTT_S = 0.1
STEP_S = 0.020
RATE_BYTES_S = 1_000_000
CLOCKS_DIFFER_S = 2000.0  # so that the peer's clock wraps in the longer ones of these tests

#: A queue that is about what should stand at this rate, and one that is far too long.
RIGHT_S, LONG_S = 0.003, 0.05


class Line:
    """A pacer, and a path that delivers at a rate and has a queue, whatever the limit says."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path()
        self.pacer = Pacer(self.path)
        self.now = 2200.0
        self.rate_bytes_s = float(RATE_BYTES_S)
        self._acked = 0.0

    def step(
        self,
        queue_s: float = 0.0,
        *,
        held_back: bool = True,
        after_s: float = STEP_S,
        ahead_bytes: int = 0,
    ) -> None:
        """An acknowledgement, ``after_s`` after the one before it."""
        self.now += after_s
        self._acked += self.rate_bytes_s * STEP_S
        rtt_s = RTT_S + queue_s + (after_s - STEP_S)
        if held_back:
            self.pacer.on_limited(self.now)
        self.pacer.on_ack(
            acked=int(self._acked),
            sent=int(self._acked + self.rate_bytes_s * rtt_s),
            sent_at=self.now - rtt_s,
            held_s=0.0,
            arrived=round((self.now - RTT_S / 2 + CLOCKS_DIFFER_S) * 1e6) % 2**32,
            now=self.now,
            ahead_bytes=ahead_bytes,
        )

    def run(self, seconds: float, queue_s: float = 0.0, *, held_back: bool = True) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.step(queue_s, held_back=held_back)

    def stall(self, seconds: float = 0.12) -> None:
        """A segment is lost: the next byte is processed a round trip, mostly more, late."""
        self.step(after_s=seconds, queue_s=seconds)


def grown_line() -> Line:
    """A line that has stopped growing, on a path that was seen empty."""
    line = Line()
    line.run(0.3)
    line.run(0.6, RIGHT_S)
    return line


# --- rounds ---------------------------------------------------------------------------------------


def test_a_lane_begins_small() -> None:
    assert Pacer(Path()).limit_bytes == START_LIMIT_BYTES


def test_the_rate_is_what_the_peer_processed_by_its_own_clock() -> None:
    line = grown_line()
    assert line.pacer.rate_bytes_s == pytest.approx(RATE_BYTES_S, rel=0.01)
    assert line.pacer.rtt_s == pytest.approx(RTT_S + RIGHT_S, rel=0.01)
    assert line.pacer.queue_s == pytest.approx(RIGHT_S, abs=1e-4)


def test_a_queue_that_is_a_little_too_long_lowers_the_limit_by_little() -> None:
    line = grown_line()
    before = line.pacer.limit_bytes
    line.run(0.25, 0.012)
    assert 0.9 * before < line.pacer.limit_bytes < before


def test_a_queue_that_is_far_too_long_is_drained_at_once_to_what_the_path_holds() -> None:
    line = grown_line()
    line.pacer.limit_bytes = 400_000
    line.run(0.3, LONG_S)
    assert line.pacer.limit_bytes == pytest.approx(RATE_BYTES_S * RTT_S, rel=0.1)


@pytest.mark.parametrize(
    ("rate_bytes_s", "target_s"),
    [
        (FAST_BYTES_S / 5, TARGET_S),
        (FAST_BYTES_S, TARGET_S),
        (FAST_BYTES_S * FAST_FRAME, TARGET_S * FAST_FRAME),
        (FAST_BYTES_S * 10, TARGET_S * FAST_QUEUE),
    ],
)
def test_the_standing_queue_is_longer_on_a_very_fast_link(
    rate_bytes_s: float, target_s: float
) -> None:
    line = Line()
    line.rate_bytes_s = rate_bytes_s
    line.run(2.0)
    queue_s = target_s + line.pacer.frame_bytes / rate_bytes_s
    for more_s, before, after in ((0.0, 0.995, 1.005), (0.01, 0.0, 0.97), (-queue_s, 1.01, 2)):
        line.run(0.3, queue_s)
        line.pacer.limit_bytes = 1_000_000
        line.run(0.25, queue_s + more_s)
        assert before < line.pacer.limit_bytes / 1_000_000 < after


def test_a_queue_that_is_too_short_raises_the_limit_by_little_each_round() -> None:
    line = grown_line()
    line.pacer.limit_bytes = before = 100_000
    line.run(0.12)
    assert before < line.pacer.limit_bytes <= MOST_UP * before


def test_rounds_without_a_queue_raise_the_limit_ever_faster() -> None:
    line = grown_line()
    line.pacer.limit_bytes = 50_000
    line.run(0.5)
    slow = line.pacer.limit_bytes
    line.run(0.5)
    assert slow / 50_000 < line.pacer.limit_bytes / slow


def test_a_rate_that_grows_lets_the_limit_double() -> None:
    line = Line()
    line.run(0.3)
    before = line.pacer.limit_bytes
    line.rate_bytes_s *= 2
    line.run(0.12)
    assert 1.5 * before < line.pacer.limit_bytes <= 2 * before


def test_an_application_limited_round_changes_nothing() -> None:
    line = grown_line()
    line.run(0.3, RIGHT_S, held_back=False)  # the round that had begun before counts
    limit, rate, frame = line.pacer.limit_bytes, line.pacer.rate_bytes_s, line.pacer.frame_bytes
    line.rate_bytes_s /= 10
    line.run(3.0, LONG_S, held_back=False)
    assert (line.pacer.limit_bytes, line.pacer.rate_bytes_s) == (limit, rate)
    assert line.pacer.frame_bytes == frame
    assert line.path.phase == STEADY


@pytest.mark.parametrize(
    ("rate_bytes_s", "frame_bytes"),
    [
        (10_000, MIN_FRAME_BYTES),
        (1.05 * GOOD_FRAME_BYTES / GOOD_FRAME_S, GOOD_FRAME_BYTES),
        (10_000_000, 10_000_000 * LONG_FRAME_S),
        (
            FAST_BYTES_S * FAST_FRAME,
            FAST_BYTES_S * FAST_FRAME * max(FAST_FRAME * FRAME_S, LONG_FRAME_S),
        ),
        (2e9, DATA_BYTES),
    ],
)
def test_a_frames_size_is_a_time_on_the_link_within_bounds(
    rate_bytes_s: float, frame_bytes: float
) -> None:
    line = Line()
    line.rate_bytes_s = rate_bytes_s
    line.run(1.0)
    assert line.pacer.frame_bytes == pytest.approx(frame_bytes, rel=0.02)


def test_the_limit_stays_within_its_bounds() -> None:
    line = Line()
    line.rate_bytes_s = 1000  # a trickle: what fits into the path is less than a frame
    limits = []
    for queue_s in (0.0, 3.0):
        for _ in range(3000):
            line.step(queue_s)
            limits.append(line.pacer.limit_bytes)
    assert (min(limits), max(limits)) == (MIN_LIMIT_BYTES, LANE_IN_FLIGHT_BYTES)


# --- idleness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle_s", "left"), [(0.0, 1.0), (0.29, 1.0), (0.31, 0.5), (0.59, 0.5), (0.61, 0.25)]
)
def test_idleness_halves_the_limit_again_and_again(idle_s: float, left: float) -> None:
    line = Line()
    line.run(1.0)
    assert line.pacer.rtt_s == pytest.approx(0.3 - FORGET_S)
    line.pacer.limit_bytes = 1 << 20
    line.pacer.on_idle(idle_s)
    assert line.pacer.limit_bytes == left * (1 << 20)


@pytest.mark.parametrize(
    ("limit_bytes", "left_bytes"),
    [
        (1 << 20, START_LIMIT_BYTES),
        (START_LIMIT_BYTES, START_LIMIT_BYTES),
        (MIN_LIMIT_BYTES, MIN_LIMIT_BYTES),
    ],
)
def test_a_long_silence_lowers_the_limit_to_that_of_a_new_lane_at_most(
    limit_bytes: int, left_bytes: int
) -> None:
    pacer = Pacer(Path())
    pacer.limit_bytes = limit_bytes
    pacer.on_idle(1e6)
    assert pacer.limit_bytes == left_bytes


# --- spreading ------------------------------------------------------------------------------------


def test_before_anything_was_measured_frames_leave_at_once() -> None:
    pacer = Pacer(Path())
    for _ in range(10):
        pacer.on_sent(16_384, 5.0)
    assert pacer.next_at <= 5.0


def spread_s(line: Line) -> float:
    """Return how long all frames of a round take to leave."""
    pacer, begin, size = line.pacer, line.now, 1000
    pacer.next_at = begin
    for _ in range(pacer.limit_bytes // size):
        pacer.on_sent(size, max(pacer.next_at, begin))
    return pacer.next_at - begin


def test_a_rounds_frames_are_spread_over_the_round() -> None:
    line = grown_line()
    assert spread_s(line) == pytest.approx(line.pacer.rtt_s / SPREAD, rel=0.02)


def burst_bytes(pacer: Pacer, now: float, size: int = 100) -> int:
    """Return how much may leave at once."""
    sent = 0
    while pacer.next_at <= now:
        pacer.on_sent(size, now)
        sent += size
    return sent


def test_a_late_sender_may_make_up_in_a_bounded_burst() -> None:
    line = grown_line()
    pacer, now = line.pacer, line.now + 60.0
    pacer.next_at = line.now + 1.0
    pacer.on_limited(line.now)  # by time alone
    rate_bytes_s = SPREAD * pacer.limit_bytes / pacer.rtt_s
    assert burst_bytes(pacer, now) == pytest.approx(BURST_S * rate_bytes_s, abs=200)


def test_a_sender_held_back_by_the_limit_may_not_burst() -> None:
    line = grown_line()
    pacer, now = line.pacer, line.now + 60.0
    pacer.on_limited(now)
    assert burst_bytes(pacer, now) == 100
    pacer.on_limited(now)  # by time alone
    assert burst_bytes(pacer, now + 60.0) > 1000


def test_a_growing_round_leaves_a_pause_for_the_tcp_below() -> None:
    line = Line()
    line.run(0.3)
    assert spread_s(line) < line.pacer.rtt_s / 2


def test_the_start_ends_with_the_first_queue_and_begins_anew_after_a_silence() -> None:
    line = Line()
    line.run(0.3)
    limit = line.pacer.limit_bytes
    line.run(0.12)
    assert line.pacer.limit_bytes > START_UP * limit
    line.run(0.3, LONG_S)
    line.run(0.3, RIGHT_S)
    limit = line.pacer.limit_bytes
    assert limit < 1.1 * RATE_BYTES_S * RTT_S
    line.run(0.12)
    assert line.pacer.limit_bytes <= MOST_UP**2 * limit
    line.pacer.on_idle(60.0)
    line.run(0.2)
    limit = line.pacer.limit_bytes
    line.run(0.12)
    assert line.pacer.limit_bytes >= START_UP * limit


def test_a_lane_that_joins_others_at_work_grows_as_fast_as_tcp() -> None:
    def growth(path: Path) -> float:
        line = Line(path)
        line.rate_bytes_s *= 10
        line.run(0.3)
        limit = line.pacer.limit_bytes
        line.run(0.12)
        return line.pacer.limit_bytes / limit

    joining = growth(grown_line().path)
    assert growth(Path()) < joining <= JOINING_UP**2


def test_a_lane_below_its_share_tolerates_a_longer_queue() -> None:
    path = Path()
    much, little = Line(path), Line(path)
    little.rate_bytes_s = RATE_BYTES_S / 20
    for line in (much, little):
        line.run(0.3)
        line.run(2.0, RIGHT_S)
    little.pacer.limit_bytes = much.pacer.limit_bytes = before = 8 * MIN_FRAME_BYTES
    little.run(2.0, RIGHT_S)
    much.run(2.0, RIGHT_S)
    assert little.pacer.limit_bytes > 2 * before
    assert much.pacer.limit_bytes < 1.2 * before


def test_a_frames_size_follows_the_rate_of_all_lanes_together() -> None:
    path = Path()
    fast, slow = Line(path), Line(path)
    fast.rate_bytes_s = 20 * RATE_BYTES_S
    fast.run(1.0)
    slow.pacer.limit_bytes = 2 * LEAST_FRAMES * MIN_FRAME_BYTES
    slow.run(0.3, RIGHT_S)
    assert MIN_FRAME_BYTES < slow.pacer.frame_bytes <= slow.pacer.limit_bytes / LEAST_FRAMES
    slow.pacer.limit_bytes = LANE_IN_FLIGHT_BYTES
    slow.run(0.3, RIGHT_S)
    link_rate = fast.rate_bytes_s + slow.rate_bytes_s
    assert slow.pacer.frame_bytes == pytest.approx(link_rate * LONG_FRAME_S, rel=0.1)


def test_the_limit_stays_within_the_transports_window() -> None:
    line = Line(Path(lane_window_bytes=300_000))
    line.rate_bytes_s = 100 * RATE_BYTES_S
    line.run(3.0)
    assert line.pacer.limit_bytes == 300_000 + BESIDE_WINDOW_S * line.rate_bytes_s


# --- the path -------------------------------------------------------------------------------------


def test_after_a_probe_of_our_own_queue_the_link_is_full_again() -> None:
    line = grown_line()
    while line.path.phase == STEADY:
        before, frame = line.pacer.limit_bytes, line.pacer.frame_bytes
        line.step(RIGHT_S)
        assert line.now < 2200.0 + PROBE_EVERY_S + 1.0
    assert line.now > 2200.0 + PROBE_EVERY_S
    assert line.pacer.statistics(line.now)["phase"] == PROBING
    assert line.pacer.limit_bytes < before
    assert line.pacer.frame_bytes <= frame
    line.run(0.5)  # it has gone
    assert line.path.phase == STEADY
    assert line.pacer.limit_bytes >= RATE_BYTES_S * RTT_S


def test_while_the_path_is_seen_empty_it_is_not_probed() -> None:
    line = grown_line()
    for _ in range(30):
        line.run(1.0, RIGHT_S)
        line.run(0.3)
        assert line.path.phase == STEADY


def test_beside_others_the_limit_is_twice_what_leaves_in_a_round_trip() -> None:
    line = grown_line()
    for _ in range(500):
        line.step(LONG_S)
        if line.path.phase == CONTENDED:
            break
    assert line.path.phase == CONTENDED
    line.run(0.4, LONG_S)
    enough = CONTEST * RATE_BYTES_S * (RTT_S + LONG_S)
    assert line.pacer.limit_bytes == pytest.approx(enough, rel=0.05)


def test_when_others_have_gone_the_limit_follows_the_delay_again() -> None:
    line = grown_line()
    while line.path.phase != CONTENDED:
        line.step(LONG_S)
    line.run(0.5)
    assert line.path.phase == STEADY


def test_all_lanes_of_a_path_give_way_when_one_of_them_probes() -> None:
    path = Path()
    one, other = Line(path), Line(path)
    for line in (one, other):
        line.run(2.0, RIGHT_S)
    before = other.pacer.limit_bytes
    path.probe(RTT_S, RIGHT_S, one.now)
    one.run(0.12)
    assert one.pacer.statistics(one.now)["phase"] == PROBING
    assert other.pacer.statistics(other.now)["phase"] == STEADY  # its round is not over
    other.run(0.12)
    assert other.pacer.limit_bytes < before


def test_a_lane_that_joins_late_knows_the_empty_path_from_the_others() -> None:
    first = grown_line()
    late = Line(first.path)
    late.run(0.5, LONG_S)
    assert late.pacer.queue_s == pytest.approx(LONG_S, abs=1e-4)


# --- losses ---------------------------------------------------------------------------------------


def test_two_stalls_of_nearly_a_round_trip_mean_loss() -> None:
    line = grown_line()
    assert line.pacer.stalls(line.now) == 0
    for _ in range(LOSS_STALLS):
        line.stall(0.095)
        line.run(0.3, RIGHT_S)
    assert line.pacer.stalls(line.now) == LOSS_STALLS


def test_on_a_long_path_one_stall_of_a_round_trip_means_loss() -> None:
    line = grown_line()
    line.stall()
    assert line.pacer.stalls(line.now) == LOSS_STALLS


def test_a_short_silence_in_the_first_rounds_is_no_stall() -> None:
    line = Line()
    line.run(0.1)
    line.stall(0.11)
    assert line.pacer.stalls(line.now) == 0


def test_a_long_silence_in_the_first_round_means_loss() -> None:
    line = Line()
    line.run(0.14)
    line.stall(0.13)
    assert line.pacer.stalls(line.now) == LOSS_STALLS


def test_a_stall_is_forgotten_after_a_while() -> None:
    line = grown_line()
    line.stall(0.095)
    stalled_at = line.now
    assert line.pacer.stalls(stalled_at + STALLS_S) == 1
    assert line.pacer.stalls(stalled_at + STALLS_S + 0.001) == 0


def test_a_silence_while_the_rate_grows_is_no_stall() -> None:
    line = grown_line()
    for _ in range(12):
        line.rate_bytes_s *= 1.15
        line.step(RIGHT_S)
    line.stall(0.11)
    assert line.pacer.stalls(line.now) == 0


def test_a_silence_with_nothing_to_send_is_no_stall() -> None:
    line = grown_line()
    line.run(0.3, RIGHT_S, held_back=False)
    line.step(held_back=False, after_s=0.11, queue_s=0.11)
    assert line.pacer.stalls(line.now) == 0


def test_a_frame_sent_during_a_silence_does_not_show_a_stall() -> None:
    line = grown_line()
    line.step(after_s=0.12, queue_s=-0.09)
    assert line.pacer.stalls(line.now) == 0


# --- for people -----------------------------------------------------------------------------------


def test_statistics_are_the_figures_that_the_rules_use() -> None:
    line = grown_line()
    line.stall()
    statistics = line.pacer.statistics(line.now)
    assert statistics == {
        "phase": STEADY,
        "limit_bytes": line.pacer.limit_bytes,
        "rate_bytes_s": line.pacer.rate_bytes_s,
        "rtt_s": line.pacer.rtt_s,
        "min_rtt_s": pytest.approx(RTT_S, abs=1e-4),
        "queue_s": line.pacer.queue_s,
        "frame_bytes": line.pacer.frame_bytes,
        "stalls": LOSS_STALLS,
        "starting": 0,
    }


@pytest.mark.parametrize("held_s", [0.2, 4000.0])
def test_a_peer_that_exaggerates_how_long_it_held_an_ack_makes_no_round_trip_negative(
    held_s: float,
) -> None:
    line = grown_line()
    line.pacer.on_ack(10**9, 10**9, line.now - RTT_S, held_s, 0, line.now)
    line.run(0.5, RIGHT_S)
    assert line.path.rtt_s >= 0


# --- standstill, bursts, the end ------------------------------------------------------------------


def test_a_lane_that_stood_still_starts_anew_and_takes_it_for_no_loss() -> None:
    line = grown_line()
    assert not line.pacer.is_starting
    line.step(after_s=2 * STILL_S)
    assert line.pacer.is_starting
    assert line.pacer.limit_bytes <= START_LIMIT_BYTES
    assert line.pacer.stalls(line.now) == 0


def test_frames_in_flight_during_a_standstill_are_not_measured() -> None:
    line = grown_line()
    line.step(after_s=2 * STILL_S)
    before = line.pacer.rtt_s
    line.run(0.08, 2 * STILL_S)  # what waited with it
    assert line.pacer.rtt_s == before
    line.run(3.0)
    assert line.pacer.rtt_s == pytest.approx(RTT_S, rel=0.01)


def test_a_lane_that_is_only_slow_to_answer_does_not_start_anew() -> None:
    line = grown_line()
    line.step(after_s=0.9 * STILL_S)
    assert not line.pacer.is_starting


def test_the_time_of_what_left_in_the_same_burst_is_no_queue() -> None:
    line = grown_line()
    for _ in range(20):
        line.step(RIGHT_S, ahead_bytes=int(RIGHT_S / 2 * RATE_BYTES_S))
    assert line.pacer.queue_s == pytest.approx(RIGHT_S / 2, rel=0.1)


def test_a_burst_excuses_no_longer_queue_than_bursts_may_be_long() -> None:
    line = grown_line()
    for _ in range(20):
        line.step(4 * BURST_S, ahead_bytes=RATE_BYTES_S)
    assert line.pacer.queue_s == pytest.approx(3 * BURST_S, rel=0.1)


def test_a_lane_that_is_over_no_longer_counts_among_those_of_its_path() -> None:
    path = Path()
    one, other = Line(path), Line(path)
    for line in (one, other):
        line.run(1.0)
    assert path.lanes == 2
    assert path.best_rate == pytest.approx(2 * RATE_BYTES_S, rel=0.01)
    other.pacer.leave()
    assert path.lanes == 1
    assert path.best_rate == pytest.approx(RATE_BYTES_S, rel=0.01)
