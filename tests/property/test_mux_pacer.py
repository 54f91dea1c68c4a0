"""Whatever acknowledgements say, the pacer's figures stay figures, within their bounds."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.mux.limits import DATA_BYTES, LANE_IN_FLIGHT_BYTES
from sshunt.mux.pacer import MIN_LIMIT_BYTES, PROBE_FRAME_BYTES, Pacer
from sshunt.mux.path import CONTENDED, PROBING, STEADY, Path

unhurried = settings(deadline=None)  # other programs share this machine

#: (lane, seconds since the last, bytes acked, bytes sent, round trip, held, the peer's clock,
#: more to send, a frame of bulk)
acks = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.floats(0, 3),
        st.integers(0, 2_000_000),
        st.integers(0, 2_000_000),
        st.floats(0, 2),
        st.one_of(st.just(0.0), st.floats(0, 4295)),
        st.integers(0, 2**32 - 1),
        st.booleans(),
        st.integers(0, DATA_BYTES),
    ),
    max_size=200,
)


@unhurried
@given(acks)
def test_any_acknowledgement_leaves_the_pacer_within_its_bounds(
    said: list[tuple[int, float, int, int, float, float, int, bool, int]],
) -> None:
    path = Path()
    pacers = (Pacer(path), Pacer(path))
    now, acked, sent = 100.0, [0, 0], [0, 0]
    for lane, after_s, more_acked, more_sent, rtt_s, held_s, clock_us, held_back, size in said:
        pacer = pacers[lane]
        now += after_s
        if after_s > 2:
            pacer.on_idle(after_s)
        sent[lane] += more_sent
        acked[lane] = min(acked[lane] + more_acked, sent[lane])
        if held_back:
            pacer.on_limited(now)
        pacer.on_ack(acked[lane], sent[lane], now - rtt_s, held_s, clock_us, now)
        pacer.on_sent(size, now)
        assert MIN_LIMIT_BYTES <= pacer.limit_bytes <= LANE_IN_FLIGHT_BYTES
        assert PROBE_FRAME_BYTES <= pacer.frame_bytes <= DATA_BYTES
        assert pacer.queue_s >= 0
        assert pacer.next_at >= now - 0.1
        statistics = pacer.statistics(now)
        assert statistics.pop("phase") in (STEADY, PROBING, CONTENDED)
        assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in statistics.values())
