"""What the pacer promises, on links where every figure follows from the code alone.

the whole link           a bulk stream delivers nearly what the link carries
and idle latency         an echo beside it takes little longer than on the idle link
whatever happens         the link slows down, the path grows, others come, lanes join, clocks lie
"""

import pytest

from sshunt.mux.frames import encode_lane_ack
from sshunt.mux.limits import LANE_IN_FLIGHT_BYTES
from sshunt.mux.pacer import MIN_LIMIT_BYTES
from sshunt.mux.path import CONTENDED, STEADY
from tests.sim.bottleneck import Bottleneck, End


def limit_bytes(end: End, lane: int = 1) -> int:
    return end.session.lanes[lane].pacer.limit_bytes


def phase(end: End) -> str:
    return end.session.path.phase


@pytest.mark.parametrize(
    ("mbit_s", "rtt_ms", "lanes", "slack_ms"),
    [
        (100, 50, 1, 8),
        (20, 30, 1, 6),
        (5, 40, 1, 20),
        (1000, 2, 1, 8),
        (600, 100, 1, 20),
        (100, 20, 4, 6),
    ],
)
def test_bulk_has_the_whole_link_and_an_echo_beside_it_hardly_waits(
    mbit_s: float, rtt_ms: float, lanes: int, slack_ms: float
) -> None:
    net = Bottleneck(up_mbit_s=mbit_s, down_mbit_s=mbit_s, rtt_ms=rtt_ms, lanes=lanes)
    idle = net.run(1.0)
    net.upload()
    net.run(3.0)  # until it has grown: a long fat path takes ten round trips and more
    loaded = net.run(4.0)
    assert loaded.up_mbit_s > 0.97 * mbit_s
    assert loaded.echo_ms(50) <= idle.echo_ms(50) + slack_ms / 2
    assert loaded.echo_ms(95) <= idle.echo_ms(95) + slack_ms


def test_both_directions_have_their_link_at_the_same_time() -> None:
    net = Bottleneck(up_mbit_s=10, down_mbit_s=50, rtt_ms=40)
    net.upload()
    net.download()
    net.run(2.0)
    both = net.run(5.0)
    assert both.up_mbit_s > 9.0
    assert both.down_mbit_s > 46
    assert both.echo_ms(95) < 40 + 20


def test_the_start_overshoots_by_less_than_a_round_trip_and_not_for_long() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=50)
    net.run(0.5)
    net.upload()
    start = net.run(1.5, echo_every_s=0.005)
    assert max(start.queues_s) < 0.060
    assert sum(queue_s > 0.010 for queue_s in start.queues_s) * 0.005 < 0.4


def test_a_link_that_slows_down_is_followed_within_a_second() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=20)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    net.up.rate_bytes_s = 20e6 / 8
    net.run(1.0)
    after = net.run(3.0)
    assert after.up_mbit_s > 19
    assert after.echo_ms(95) < 20 + 10


def test_a_link_that_becomes_faster_is_filled_again() -> None:
    net = Bottleneck(up_mbit_s=20, down_mbit_s=20, rtt_ms=40)
    net.upload()
    net.run(3.0)
    net.up.rate_bytes_s = 100e6 / 8
    net.run(2.0)
    assert net.run(2.0).up_mbit_s > 95


def test_a_path_that_becomes_longer_is_not_taken_for_a_queue_for_long() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=20)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    net.up.delay_s = net.down.delay_s = 0.075
    net.run(3.0)
    after = net.run(3.0)
    assert phase(net.client) == STEADY
    assert after.up_mbit_s > 95
    assert after.echo_ms(95) < 150 + 25
    assert net.run(3.0).echo_ms(95) < 150 + 8


def test_a_path_that_becomes_slower_and_longer_is_followed_within_seconds() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=20)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    net.up.rate_bytes_s = net.down.rate_bytes_s = 20e6 / 8
    net.up.delay_s = net.down.delay_s = 0.075
    change = net.run(3.0)
    assert max(change.queues_s) < 0.15
    after = net.run(3.0)
    assert phase(net.client) == STEADY
    assert after.up_mbit_s > 19
    assert after.echo_ms(95) < 150 + 8


def test_a_path_that_becomes_shorter_is_seen_at_once() -> None:
    net = Bottleneck(up_mbit_s=50, down_mbit_s=50, rtt_ms=100)
    net.upload()
    net.run(3.0)
    net.up.delay_s = net.down.delay_s = 0.010
    net.run(1.0)
    after = net.run(2.0)
    assert after.up_mbit_s > 48
    assert after.echo_ms(95) < 20 + 8


def test_minutes_of_bulk_do_not_make_the_queue_creep_upwards() -> None:
    net = Bottleneck(up_mbit_s=20, down_mbit_s=20, rtt_ms=30)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    early = net.run(5.0)
    net.run(100.0, echo_every_s=1.0)
    late = net.run(5.0)
    assert late.echo_ms(50) <= early.echo_ms(50) + 2  # it wanders by one either way
    assert late.up_mbit_s > 0.97 * early.up_mbit_s


class Others:
    """A flow that keeps a queue in the uplink as loss-based TCP does: filling it, now and then
    halving it. It takes what room the queue has, whoever else sends.
    """

    def __init__(self, net: Bottleneck, *, full_s: float, rises_s: float = 0.05) -> None:
        self._net, self._full_s = net, full_s
        self._rises_s = rises_s  # per second
        self._aim_s = full_s
        self._ended = False
        self._step()

    def end(self) -> None:
        self._ended = True

    def _step(self) -> None:
        if self._ended:
            return
        link = self._net.up
        self._aim_s += self._rises_s * 0.010
        if self._aim_s > self._full_s:
            self._aim_s = self._full_s * 0.6
        missing_s = self._aim_s - link.queue_s
        if missing_s > 0:
            link.intrude(int(missing_s * link.rate_bytes_s))
        self._net.clock.after(0.010, self._step)


def test_beside_a_flow_that_fills_the_queue_we_keep_a_share_and_recover_when_it_ends() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=50)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    others = Others(net, full_s=0.1)
    net.run(5.0)
    beside = net.run(10.0)
    assert beside.up_mbit_s > 20
    assert phase(net.client) == CONTENDED
    others.end()
    net.run(7.0)
    alone = net.run(3.0)
    assert phase(net.client) == STEADY
    assert alone.up_mbit_s > 95
    assert alone.echo_ms(95) < 50 + 8


@pytest.mark.parametrize("rises_s", [0.02, 0.01, 0.002])
@pytest.mark.parametrize(("mbit_s", "rtt_ms", "full_s"), [(100, 50, 0.1), (20, 30, 0.2)])
def test_a_late_flow_on_a_full_link_still_gets_a_share(
    mbit_s: float, rtt_ms: float, full_s: float, rises_s: float
) -> None:
    net = Bottleneck(up_mbit_s=mbit_s, down_mbit_s=mbit_s, rtt_ms=rtt_ms)
    others = Others(net, full_s=full_s, rises_s=rises_s)
    net.run(1.0)
    net.upload()
    net.run(6.0)
    beside = net.run(10.0)
    assert beside.up_mbit_s > 0.25 * mbit_s
    others.end()
    net.run(7.0)
    alone = net.run(3.0)
    assert phase(net.client) == STEADY
    assert alone.up_mbit_s > 0.95 * mbit_s
    assert alone.echo_ms(95) < rtt_ms + 8


def test_a_lane_that_joins_a_full_link_uses_the_known_empty_path() -> None:
    net = Bottleneck(up_mbit_s=50, down_mbit_s=50, rtt_ms=40)
    net.run(0.5)
    net.upload()
    net.run(3.0)
    for lane in (2, 3, 4):
        net.add_lane(lane)
    net.run(2.0)
    after = net.run(4.0)
    assert after.up_mbit_s > 48
    assert after.echo_ms(95) < 40 + 8


def test_after_idleness_bulk_begins_small_and_is_soon_as_fast_as_before() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=50)
    stream = net.upload()
    net.run(3.0)
    net.client.stop(stream)
    net.run(10.0, echo_every_s=20.0)
    before = limit_bytes(net.client)
    net.client.push(stream)
    assert limit_bytes(net.client) < before / 8
    net.run(2.0)
    again = net.run(2.0)
    assert again.up_mbit_s > 95
    assert again.echo_ms(95) < 50 + 8


def test_an_application_with_little_to_send_does_not_lower_the_limit() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=50)
    stream = net.upload()
    net.run(3.0)
    net.client.stop(stream)
    net.run(0.2)
    before = limit_bytes(net.client)
    net.run(0.2, echo_every_s=0.01)
    assert limit_bytes(net.client) == before


def test_the_same_link_gives_the_same_figures() -> None:
    runs = []
    for _ in range(2):
        net = Bottleneck(up_mbit_s=30, down_mbit_s=80, rtt_ms=25)
        net.upload()
        net.download()
        seen = net.run(2.0)
        runs.append((seen.up_mbit_s, seen.down_mbit_s, seen.echoes_s, limit_bytes(net.client)))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("step_us", [0, -50_000, 7_000_000, 2**31, 2**32 - 1])
def test_a_peer_that_lies_about_its_clock_stops_nobody(step_us: int) -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=20)
    net.upload()
    net.run(1.0)
    lane = net.client.session.lanes[1]
    clock_us = 0
    for _ in range(500):
        clock_us = (clock_us + step_us) % 2**32
        now = net.clock.now
        raw = encode_lane_ack(lane.acked, 0.0, clock_us / 1e6)
        net.client.receive(1, raw)
        if lane.outstanding:
            raw = encode_lane_ack(lane.outstanding[0].end, 0.0, clock_us / 1e6)
            net.client.receive(1, raw)
        net.clock.now = now + 0.001
    assert MIN_LIMIT_BYTES <= limit_bytes(net.client) <= LANE_IN_FLIGHT_BYTES


@pytest.mark.parametrize("directions", ["up", "down", "up down"])
@pytest.mark.parametrize("still_s", [2.0, 60.0])
@pytest.mark.parametrize("moment", [0, 3])
def test_after_a_standstill_a_lane_is_soon_at_full_speed_again(
    directions: str, still_s: float, moment: int
) -> None:
    """A process was stopped, the machine slept, a link was cut; TCP below has lost nothing."""
    net = Bottleneck(up_mbit_s=50, down_mbit_s=50, rtt_ms=40)
    net.upload()
    never = 1e9  # an echo would be under way in the standstill
    net.run(4.0 + 0.037 * moment, echo_every_s=never)
    for direction in directions.split():
        {"up": net.up, "down": net.down}[direction].stand_still(still_s)
    net.run(still_s + 2.0, echo_every_s=never)
    assert net.run(2.0, echo_every_s=never).up_mbit_s > 45
