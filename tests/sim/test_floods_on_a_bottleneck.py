"""What a flood of datagrams does to everybody else, where every figure follows from the code alone.

flood, bulk, a program that talks by TCP, echoes by UDP, questions --> one slow link
"""

import pytest

from sshunt.mux.limits import FLOW_AGE_S
from tests.sim.bottleneck import Bottleneck, percentile_ms


@pytest.mark.parametrize(
    ("mbit_s", "rtt_ms", "lanes"), [(20, 30, 1), (60, 50, 1), (5, 40, 1), (40, 20, 3)]
)
@pytest.mark.parametrize("with_bulk", [False, True])
def test_a_flood_delays_nobody_who_sends_little(
    mbit_s: float, rtt_ms: float, lanes: int, with_bulk: bool
) -> None:
    net = Bottleneck(up_mbit_s=mbit_s, down_mbit_s=mbit_s, rtt_ms=rtt_ms, lanes=lanes)
    net.run(1.0, talks=True)
    if with_bulk:
        net.upload()
    net.client.flood(2 * mbit_s, 1200)
    net.run(2.0)
    seen = net.run(2.0, talks=True)
    slack_ms = 10 if mbit_s > 10 else 25  # two frames of a slow link take as long
    assert percentile_ms(seen.words_s, 95) <= rtt_ms + slack_ms
    assert percentile_ms(seen.answers_s, 95) <= rtt_ms + slack_ms
    assert seen.echo_ms(95) <= rtt_ms + slack_ms
    assert len(seen.answers_s) == pytest.approx(40, abs=3)
    total = seen.up_mbit_s + sum(seen.floods_mbit_s)
    assert total > 0.9 * mbit_s


def test_a_flood_has_its_share_beside_bulk_and_no_more() -> None:
    net = Bottleneck(up_mbit_s=50, down_mbit_s=50, rtt_ms=20)
    net.run(0.5)
    net.upload()
    net.client.flood(100, 1200)
    net.run(2.0)
    two = net.run(2.0)
    assert two.up_mbit_s == pytest.approx(24, abs=3)
    net.upload()
    net.upload()
    net.run(2.0)
    four = net.run(2.0)
    assert four.up_mbit_s == pytest.approx(36, abs=4)
    assert four.floods_mbit_s[0] == pytest.approx(12, abs=3)
    for _ in range(9):
        net.client.flood(40, 1200)
    net.run(1.0)
    many = net.run(1.0)
    assert many.up_mbit_s > 22  # however many flows there are


def test_what_controls_its_rate_sees_no_longer_queue_than_a_flow_s_age() -> None:
    net = Bottleneck(up_mbit_s=20, down_mbit_s=20, rtt_ms=30)
    net.run(0.5)
    net.client.flood(60, 1200)
    net.run(3.0)
    waiting = [flow for flow in net.client.session.datagrams.bulk if flow.queue]
    assert waiting
    assert all(net.clock.now - flow.queue[0].queued_at <= FLOW_AGE_S + 0.01 for flow in waiting)


def test_a_stream_of_datagrams_that_fits_loses_nothing() -> None:
    net = Bottleneck(up_mbit_s=100, down_mbit_s=100, rtt_ms=50)
    net.run(0.5)
    net.client.flood(16, 200)  # 10,000 a second
    net.run(2.0)
    seen = net.run(2.0)
    assert seen.floods_mbit_s[0] == pytest.approx(16, rel=0.02)


def test_batches_are_divided_on_a_slow_link_and_arrive() -> None:
    net = Bottleneck(up_mbit_s=10, down_mbit_s=10, rtt_ms=30)
    net.run(0.5)
    net.client.flood(6, 48_000, 1200)
    net.run(2.0)
    seen = net.run(3.0, talks=True)
    assert seen.floods_mbit_s[0] == pytest.approx(6, rel=0.05)
    assert percentile_ms(seen.words_s, 95) < 30 + 20
