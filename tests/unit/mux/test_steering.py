"""Which lane what takes, by what the lanes know."""

import pytest

from sshunt.mux.lanes import Lane
from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import Path
from sshunt.mux.sent import Sent
from sshunt.mux.steering import LEAVE_RTTS, LEAVE_S, Steering

NOW = 100.0


def lanes_of(*rtts_s: float) -> dict[int, Lane]:
    """Lanes 1, 2 ... with these round trips."""
    path = Path()
    lanes = {number: Lane(number, NOW, path) for number in range(1, len(rtts_s) + 1)}
    for lane, rtt_s in zip(lanes.values(), rtts_s, strict=True):
        lane.rtt_s = rtt_s
    return lanes


def swiftest(lanes: dict[int, Lane], now: float = NOW) -> list[int]:
    steering = Steering(lanes)
    return [lane.id for lane in lanes.values() if steering.is_swiftest(lane, now)]


def test_the_lane_whose_answers_come_soonest_is_the_swiftest() -> None:
    assert swiftest(lanes_of(0.2, 0.05, 0.1)) == [2]


def test_of_equal_lanes_one_is() -> None:
    assert swiftest(lanes_of(0.1, 0.1, 0.1)) == [1]


def test_a_lane_that_has_not_answered_for_longer_than_the_others_take_is_stalled() -> None:
    lanes = lanes_of(0.05, 0.1)
    lanes[1].note_sent(10, NOW, Sent())
    assert swiftest(lanes, NOW + 0.09) == [1]
    assert swiftest(lanes, NOW + 0.11) == [2]


def test_a_lane_that_takes_no_bytes_is_nobody_s_choice() -> None:
    lanes = lanes_of(0.05, 0.1, 0.2)
    lanes[1].is_blocked = True
    steering = Steering(lanes)
    assert [lane.id for lane in list(lanes.values())[1:] if steering.is_swiftest(lane, NOW)] == [2]
    second = steering.second(lanes[2], NOW)
    assert second is lanes[3]
    lanes[3].is_blocked = True
    assert steering.second(lanes[2], NOW) is None


def test_where_there_is_one_lane_it_is_always_filled() -> None:
    assert Steering(lanes_of(0.1)).to_fill(NOW, False, False, False) == [1]
    assert Steering({}).to_fill(NOW, True, True, True) == []


@pytest.mark.parametrize(
    ("urgent", "sparse", "bulk", "filled"),
    [
        (False, False, False, []),
        (True, False, False, [2]),
        (False, True, False, [2, 3, 1]),
        (False, False, True, [1, 2, 3]),
        (True, False, True, [2, 3, 1]),
    ],
)
def test_lanes_are_filled_with_what_is_urgent_the_soonest_first(
    urgent: bool, sparse: bool, bulk: bool, filled: list[int]
) -> None:
    assert Steering(lanes_of(0.3, 0.1, 0.2)).to_fill(NOW, urgent, sparse, bulk) == filled


def test_what_is_urgent_is_for_one_lane_that_takes_bytes() -> None:
    lanes = lanes_of(0.3, 0.1, 0.2)
    lanes[2].is_blocked = True
    assert Steering(lanes).to_fill(NOW, True, False, False) == [3]


def test_a_lane_with_something_of_its_own_is_filled_with_that() -> None:
    lanes = lanes_of(0.1, 0.2)
    lanes[2].ping_wanted = True
    assert Steering(lanes).to_fill(NOW, False, False, False) == [2]


def test_a_lane_that_bulk_would_overfill_is_left_out_and_its_pacer_hears_of_it() -> None:
    lanes = lanes_of(0.1, 0.2, 0.3)
    for number in (1, 3):
        lanes[number].note_sent(lanes[number].pacer.limit_bytes, NOW, Sent())
    lanes[3].is_reserved = True  # for what is urgent: it is not its limit that keeps bulk away
    assert Steering(lanes).to_fill(NOW, False, False, True) == [2]
    assert [lane.pacer._held_back for lane in lanes.values()] == [True, False, False]


def test_the_newest_of_three_lanes_is_kept_free_of_bulk_while_the_others_lose_segments() -> None:
    lanes = lanes_of(0.1, 0.1, 0.1)
    steering = Steering(lanes)
    steering.reserve_newest(NOW)
    assert not lanes[3].is_reserved
    for number in (1, 2):
        lanes[number].pacer._stalls.extend([NOW] * LOSS_STALLS)
    steering.reserve_newest(NOW)
    assert [lane.is_reserved for lane in lanes.values()] == [False, False, True]
    assert steering.to_fill(NOW, False, False, True) == [1, 2]
    del lanes[1]
    steering.reserve_newest(NOW)
    assert [lane.is_reserved for lane in lanes.values()] == [False, False]


def flooded(steering: Steering, lanes: dict[int, Lane], now: float = NOW) -> list[int]:
    return [lane.id for lane in lanes.values() if steering.carries_floods(lane, now)]


def test_floods_keep_their_lane_until_it_stalls_is_over_or_is_kept_free() -> None:
    lanes = lanes_of(0.3, 0.1, 0.2)
    steering = Steering(lanes)
    assert flooded(steering, lanes) == [2]
    lanes[3].rtt_s = 0.05  # sooner, but not worth their order
    lanes[2].is_blocked = True  # its pipe is full for a moment
    lanes[2].note_sent(10, NOW, Sent())
    late = NOW + LEAVE_RTTS * 0.1 + LEAVE_S
    assert flooded(steering, lanes, late - 0.01) == [2]
    assert flooded(steering, lanes, late + 0.01) == [3]
    del lanes[3]
    assert flooded(steering, lanes, NOW) == [2]
    lanes[2].is_reserved = True
    assert flooded(steering, lanes, NOW) == [1]
