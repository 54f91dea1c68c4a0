"""Properties of the scheduler: nobody with work is passed over, and bulk is shared fairly."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.mux.limits import DATA_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import QUANTUM_BYTES, SPARSE_BYTES, SPARSE_RUN_BYTES, Scheduler
from sshunt.mux.streams import ANY_LANE, NO_LANE, Stream
from tests.unit.mux.ends import stream_of

pytestmark = pytest.mark.fuzz

ENDLESS = 1 << 40
BACKLOG = memoryview(bytes(64 * 1024 * 1024))


def stream_with(
    number: int, size: int, credit: int = ENDLESS, pinned_lane: int = ANY_LANE
) -> Stream:
    stream = stream_of(number, credit, pinned_lane)
    if size:
        stream.sender.write(Payload(BACKLOG[:size]))
    return stream


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 100_000), st.integers(0, 100_000), st.sampled_from([-1, -2, 1, 2])
        ),
        max_size=12,
    ),
    st.integers(1, 50_000),
)
def test_everything_that_may_leave_over_a_lane_leaves_and_nothing_else(
    shapes: list[tuple[int, int, int]], size: int
) -> None:
    scheduler = Scheduler()
    expected = {}
    for number, (queued, credit, pinned_lane) in enumerate(shapes):
        scheduler.activate(stream_with(number, queued, credit, pinned_lane), 0.0, 0.1)
        if pinned_lane in (ANY_LANE, 1) and min(queued, credit):
            expected[number] = min(queued, credit)
    left: dict[int, int] = {}
    while item := scheduler.take(1, size):
        stream, offset, payload = item
        assert payload is not None
        assert offset == left.get(stream.id, 0)
        assert 0 < len(payload) <= size
        left[stream.id] = offset + len(payload)
    assert left == expected
    assert NO_LANE != 1


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.lists(st.integers(1, DATA_BYTES), min_size=1, max_size=60))
def test_backlogged_streams_get_equal_shares_to_within_a_turn_and_a_frame(
    count: int, sizes: list[int]
) -> None:
    scheduler = Scheduler()
    streams = [stream_with(number, len(BACKLOG)) for number in range(count)]
    for stream in streams:
        scheduler.activate(stream, 0.0, 0.1)
    for size in sizes:
        scheduler.take(1, size)
        sent = [stream.sender.next_offset for stream in streams]
        assert max(sent) - min(sent) < QUANTUM_BYTES + DATA_BYTES


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(0, 200))
def test_no_stream_waits_longer_than_a_round_whatever_the_others_do(
    rng: random.Random, bulk: int, sparse: int
) -> None:
    scheduler = Scheduler()
    streams = [stream_with(number, len(BACKLOG)) for number in range(bulk)]
    for stream in streams:
        scheduler.activate(stream, 0.0, 0.1)
    waited = dict.fromkeys(range(bulk), 0)
    now = 0.0
    busy = [stream_with(1000 + number, 0) for number in range(sparse)]
    bound = bulk * (QUANTUM_BYTES + SPARSE_RUN_BYTES + SPARSE_BYTES) * 2
    for _ in range(60):
        now += rng.random()
        for stream in busy:  # a flood of sparse streams that never ends
            if not stream.sender.queued_bytes:
                stream.sender.write(Payload(BACKLOG[: rng.randint(1, SPARSE_BYTES)]))
                scheduler.activate(stream, now, 0.1)
        item = scheduler.take(1, DATA_BYTES)
        assert item is not None
        served, _, payload = item
        assert payload is not None
        for number in waited:
            waited[number] = 0 if number == served.id else waited[number] + len(payload)
            assert waited[number] <= bound


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, SPARSE_BYTES), st.integers(0, 200))
def test_a_few_bytes_wait_for_at_most_the_frame_that_is_under_way(
    bulk: int, size: int, served_before: int
) -> None:
    scheduler = Scheduler()
    for number in range(bulk):
        scheduler.activate(stream_with(number, len(BACKLOG)), 0.0, 0.1)
    for _ in range(served_before):
        scheduler.take(1, 10_000)
    scheduler.activate(stream_with(99, size), 0.0, 0.1)
    item = scheduler.take(1, DATA_BYTES)
    assert item is not None
    assert item[0].id == 99
