"""How many ssh connections the session could use, as a table of what the pacers believe."""

from dataclasses import replace

import pytest

from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import CONTENDED, PROBING, STEADY
from sshunt.remote.demand import (
    CONTENDED_LANES,
    EARLY_RTT_S,
    EARLY_SHARE,
    LEAST_RTT_S,
    lanes_wanted,
    may_want_more,
)
from sshunt.remote.statistics import LaneStatistics, Statistics

MIB = 1024 * 1024
MOST = 4
FEW = CONTENDED_LANES

#: 40 Mbit/s at 50 ms: 240 KiB in a round trip, nothing lost, no queue to speak of.
EASY = LaneStatistics(
    phase=STEADY,
    limit_bytes=300_000,
    in_flight_bytes=250_000,
    rate_bytes_s=5_000_000,
    rtt_s=0.052,
    min_rtt_s=0.05,
    queue_s=0.001,
    frame_bytes=7500,
    stalls=0,
    starting=0,
)
#: 2 MiB in each of 100 ms: what one channel's window lets through.
WINDOW = replace(EASY, rate_bytes_s=2 * MIB / 0.1, min_rtt_s=0.1, rtt_s=0.102)
LOSING = replace(EASY, rate_bytes_s=500_000, stalls=LOSS_STALLS)


#: A start on a path of 80 ms that has just come to 16 Mbit/s.
STARTING = replace(EASY, min_rtt_s=0.08, in_flight_bytes=EARLY_SHARE * 2 * MIB, starting=1)


def wanted(
    *lanes: LaneStatistics, bulk_bytes: float = 1_000_000, most: int = MOST, channels: bool = False
) -> int:
    return lanes_wanted(believed(*lanes, bulk_bytes=bulk_bytes), most, channels=channels)


def believed(*lanes: LaneStatistics, bulk_bytes: float = 1_000_000) -> Statistics:
    return Statistics(
        lanes=dict(enumerate(lanes)),
        control_frames=0,
        datagram_bytes=0,
        sparse_bytes=0,
        bulk_bytes=bulk_bytes,
    )


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        pytest.param([], 1, id="no lane"),
        pytest.param([EASY], 1, id="the link is the limit"),
        pytest.param([WINDOW], MOST, id="window-limited"),
        pytest.param([replace(WINDOW, rate_bytes_s=0.8 * MIB / 0.1)], MOST, id="0.4 of a window"),
        pytest.param([replace(WINDOW, rate_bytes_s=0.79 * MIB / 0.1)], 1, id="less"),
        pytest.param([replace(WINDOW, phase=PROBING)], MOST, id="window-limited, probing"),
        pytest.param([replace(WINDOW, phase=CONTENDED)], MOST, id="window-limited, contended"),
        pytest.param(
            [replace(WINDOW, min_rtt_s=LEAST_RTT_S / 2, rate_bytes_s=3e9)], 1, id="LAN, fast"
        ),
        pytest.param([replace(LOSING, min_rtt_s=LEAST_RTT_S / 2, stalls=60)], 1, id="LAN, losing"),
        pytest.param([replace(WINDOW, min_rtt_s=0.0)], 1, id="nothing measured yet"),
        pytest.param([LOSING], MOST, id="losing, the path is free"),
        pytest.param([replace(LOSING, stalls=LOSS_STALLS - 1)], 1, id="a single stall"),
        pytest.param([replace(LOSING, queue_s=0.0099)], MOST, id="losing, hardly a queue"),
        pytest.param([replace(LOSING, queue_s=0.0101)], 1, id="losing, the path is full"),
        pytest.param([replace(LOSING, queue_s=0.2)], 1, id="losing, the path is very full"),
        pytest.param([replace(LOSING, phase=CONTENDED)], FEW, id="losing beside others"),
        pytest.param([replace(EASY, phase=CONTENDED)], FEW, id="contended"),
        pytest.param([EASY, replace(EASY, phase=CONTENDED)], FEW, id="contended, two lanes"),
        pytest.param([WINDOW, EASY], 1, id="one of two is limited"),
        pytest.param([WINDOW, LOSING], MOST, id="both are limited"),
    ],
)
def test_as_many_lanes_are_wanted_as_would_gain_something(
    lanes: list[LaneStatistics], expected: int
) -> None:
    assert wanted(*lanes) == expected


@pytest.mark.parametrize("lane", [WINDOW, LOSING, replace(EASY, phase=CONTENDED)])
def test_where_nothing_waits_one_lane_is_enough(lane: LaneStatistics) -> None:
    assert wanted(lane, bulk_bytes=0) == 1


@pytest.mark.parametrize("lane", [WINDOW, LOSING, replace(EASY, phase=CONTENDED)])
@pytest.mark.parametrize("most", [1, 2, 16])
def test_never_more_are_wanted_than_allowed(lane: LaneStatistics, most: int) -> None:
    assert wanted(lane, most=most) == (min(most, FEW) if lane.phase == CONTENDED else most)


def test_more_channels_on_one_connection_help_against_its_window_only() -> None:
    assert wanted(WINDOW, channels=True) == MOST
    assert wanted(LOSING, channels=True) == 1
    assert wanted(replace(EASY, phase=CONTENDED), channels=True) == 1


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        pytest.param([], False, id="no lane"),
        pytest.param([STARTING], True, id="a fast start on a long path"),
        pytest.param([replace(STARTING, starting=0)], False, id="the start is over"),
        pytest.param([replace(STARTING, in_flight_bytes=125_000)], False, id="it may be slow"),
        pytest.param([replace(STARTING, min_rtt_s=EARLY_RTT_S / 2)], False, id="a shorter path"),
        pytest.param([STARTING, STARTING], False, id="there are more already"),
    ],
)
def test_logins_in_advance_are_for_fast_starts_on_long_paths(
    lanes: list[LaneStatistics], expected: bool
) -> None:
    assert may_want_more(believed(*lanes)) is expected
    assert not may_want_more(believed(*lanes, bulk_bytes=0))
