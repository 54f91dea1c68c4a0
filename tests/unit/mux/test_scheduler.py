"""Who sends next: sparse before bulk, bulk in fair turns, nobody for ever."""

from sshunt.mux.limits import DATA_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import (
    MIN_ROUND_S,
    QUANTUM_BYTES,
    SPARSE_BYTES,
    SPARSE_RUN_BYTES,
    Scheduler,
)
from sshunt.mux.streams import ANY_LANE, NO_LANE, Stream
from tests.unit.mux.ends import stream_of

LANE = 1
RTT_S = 0.1


def queued(scheduler: Scheduler) -> int:
    return len(scheduler.sparse) + len(scheduler.bulk)


def stream_with(number: int, size: int, pinned_lane: int = ANY_LANE) -> Stream:
    stream = stream_of(number, 1 << 40, pinned_lane)
    if size:
        stream.sender.write(Payload(bytes(size)))
    return stream


def served(scheduler: Scheduler, size: int = DATA_BYTES, lane: int = LANE) -> tuple[int, int]:
    """(stream, bytes) of the next frame; FIN has -1 bytes."""
    item = scheduler.take(lane, size)
    assert item is not None
    stream, _, payload = item
    return stream.id, -1 if payload is None else len(payload)


def test_a_stream_without_work_is_not_queued() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 0), 0.0, RTT_S)
    assert queued(scheduler) == 0
    assert scheduler.take(LANE, 1000) is None


def test_a_stream_is_queued_once() -> None:
    scheduler, stream = Scheduler(), stream_with(1, 10)
    scheduler.activate(stream, 0.0, RTT_S)
    scheduler.activate(stream, 0.0, RTT_S)
    assert queued(scheduler) == 1
    assert served(scheduler) == (1, 10)
    assert (queued(scheduler), stream.scheduled) == (0, False)


def test_a_few_bytes_go_before_a_download_that_waited_longer() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 2 * DATA_BYTES), 0.0, RTT_S)
    scheduler.activate(stream_with(3, 100), 0.0, RTT_S)
    assert served(scheduler) == (3, 100)
    assert served(scheduler) == (1, DATA_BYTES)


def test_a_stream_stays_sparse_up_to_its_allowance_and_not_a_byte_beyond() -> None:
    for size, first in ((SPARSE_BYTES, 3), (SPARSE_BYTES + 1, 1)):
        scheduler = Scheduler()
        scheduler.activate(stream_with(1, 1_000_000), 0.0, RTT_S)
        scheduler.activate(stream_with(3, size), 0.0, RTT_S)
        assert served(scheduler)[0] == first


def test_only_bytes_of_the_last_round_trip_make_a_stream_bulk() -> None:
    for later_s, first in ((RTT_S, 1), (RTT_S + 0.001, 3)):
        scheduler, stream = Scheduler(), stream_with(3, SPARSE_BYTES)
        scheduler.activate(stream, 0.0, RTT_S)
        served(scheduler)
        stream.sender.write(Payload(b"x"))
        scheduler.activate(stream_with(1, 1_000_000), later_s, RTT_S)
        scheduler.activate(stream, later_s, RTT_S)
        assert served(scheduler)[0] == first


def test_an_unknown_round_trip_counts_as_a_short_one() -> None:
    scheduler, stream = Scheduler(), stream_with(3, SPARSE_BYTES)
    scheduler.activate(stream, 0.0, 0.0)
    served(scheduler)
    stream.sender.write(Payload(b"x"))
    scheduler.activate(stream, MIN_ROUND_S, 0.0)
    assert stream.recent_bytes == SPARSE_BYTES
    served(scheduler)
    stream.sender.write(Payload(b"x"))
    scheduler.activate(stream, 2 * MIN_ROUND_S + 0.001, 0.0)
    assert stream.recent_bytes == 0


def test_sparse_streams_take_turns() -> None:
    scheduler = Scheduler()
    for number in (1, 3):
        scheduler.activate(stream_with(number, 2000), 0.0, RTT_S)
    assert [served(scheduler, 1000) for _ in range(4)] == [(1, 1000), (3, 1000)] * 2


def test_a_sparse_stream_that_goes_on_becomes_bulk() -> None:
    scheduler, stream = Scheduler(), stream_with(1, 1000)
    scheduler.activate(stream, 0.0, RTT_S)
    scheduler.activate(stream_with(3, 1000), 0.0, RTT_S)
    stream.sender.write(Payload(bytes(100_000)))  # after it was found to be sparse
    assert served(scheduler, 20_000) == (1, 1000)
    assert served(scheduler, 20_000) == (3, 1000)
    assert served(scheduler, 20_000) == (1, 20_000)
    scheduler.activate(stream_with(5, 1000), 0.0, RTT_S)
    assert served(scheduler, 20_000) == (5, 1000)


def test_bulk_streams_share_by_bytes_whatever_their_frames_are() -> None:
    scheduler = Scheduler()
    large, small = stream_with(1, 4 * QUANTUM_BYTES), stream_with(3, 0)
    for _ in range(4 * QUANTUM_BYTES // 1024):
        small.sender.write(Payload(bytes(1024)))
    scheduler.activate(large, 0.0, RTT_S)
    scheduler.activate(small, 0.0, RTT_S)
    for turn in range(1, 4):
        while large.sender.next_offset + small.sender.next_offset < 2 * turn * QUANTUM_BYTES:
            served(scheduler)
        assert large.sender.next_offset == small.sender.next_offset == turn * QUANTUM_BYTES


def test_a_turn_that_a_full_lane_cut_short_goes_on_where_it_stopped() -> None:
    scheduler = Scheduler()
    for number in (1, 3):
        scheduler.activate(stream_with(number, 2 * QUANTUM_BYTES), 0.0, RTT_S)
    assert served(scheduler, 1000) == (1, 1000)
    assert served(scheduler)[0] == 1
    assert served(scheduler)[0] == 3


def test_a_frame_larger_than_the_turn_shortens_the_next_turn() -> None:
    scheduler = Scheduler()
    for number in (1, 3):
        scheduler.activate(stream_with(number, 10 * QUANTUM_BYTES), 0.0, RTT_S)
    first, frame = QUANTUM_BYTES // 4, QUANTUM_BYTES // 2
    turns = [served(scheduler, first)] + [served(scheduler, frame) for _ in range(7)]
    assert turns == [(1, first)] + [(1, frame)] * 2 + [(3, frame)] * 2 + [(1, frame)] * 2 + [
        (3, frame)
    ]


def test_a_stream_that_comes_back_begins_with_a_whole_turn() -> None:
    scheduler, stream = Scheduler(), stream_with(1, SPARSE_BYTES + 1)
    scheduler.activate(stream, 0.0, RTT_S)
    assert served(scheduler) == (1, SPARSE_BYTES + 1)
    stream.sender.write(Payload(bytes(2 * QUANTUM_BYTES)))
    scheduler.activate(stream, 0.0, RTT_S)
    assert served(scheduler) == (1, QUANTUM_BYTES)


def test_after_a_long_run_of_sparse_bytes_one_bulk_frame_is_let_through() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 10_000_000), 0.0, RTT_S)
    before_bulk = 0
    for number in range(3, 1000, 2):
        scheduler.activate(stream_with(number, SPARSE_BYTES), 0.0, RTT_S)
    while True:
        stream, size = served(scheduler)
        if stream == 1:
            break
        before_bulk += size
    assert before_bulk == SPARSE_RUN_BYTES
    assert served(scheduler)[0] != 1  # and then the sparse ones again


def test_without_bulk_sparse_streams_are_served_in_its_turn() -> None:
    scheduler = Scheduler()
    count = 2 * SPARSE_RUN_BYTES // SPARSE_BYTES
    for number in range(count):
        scheduler.activate(stream_with(2 * number + 1, SPARSE_BYTES), 0.0, RTT_S)
    assert [served(scheduler)[0] for _ in range(count)] == [2 * n + 1 for n in range(count)]


def test_fin_leaves_when_all_bytes_have() -> None:
    scheduler, stream = Scheduler(), stream_with(1, 10)
    stream.sender.finish()
    scheduler.activate(stream, 0.0, RTT_S)
    assert [served(scheduler), served(scheduler)] == [(1, 10), (1, -1)]
    assert queued(scheduler) == 0


def test_a_stream_whose_open_is_under_way_uses_no_other_lane() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 10, pinned_lane=2), 0.0, RTT_S)
    scheduler.activate(stream_with(3, 10), 0.0, RTT_S)
    assert served(scheduler, lane=1) == (3, 10)
    assert scheduler.take(1, 1000) is None
    assert served(scheduler, lane=2) == (1, 10)


def test_a_stream_whose_open_has_not_left_uses_no_lane() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 10, pinned_lane=NO_LANE), 0.0, RTT_S)
    assert scheduler.take(1, 1000) is None
    assert queued(scheduler) == 1


def test_a_stream_that_was_reset_while_queued_is_passed_over() -> None:
    scheduler, stream = Scheduler(), stream_with(1, 10)
    scheduler.activate(stream, 0.0, RTT_S)
    scheduler.activate(stream_with(3, 10), 0.0, RTT_S)
    stream.reset()
    assert served(scheduler) == (3, 10)
    assert (queued(scheduler), stream.scheduled) == (0, False)


# --- what a lane may carry ------------------------------------------------------------------------


def test_a_lane_that_takes_no_bulk_carries_sparse_streams_only() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 1_000_000), 0.0, RTT_S)
    scheduler.activate(stream_with(3, 100), 0.0, RTT_S)
    item = scheduler.take(LANE, 1000, bulk=False)
    assert item is not None
    assert item[0].id == 3
    assert scheduler.take(LANE, 1000, bulk=False) is None
    assert served(scheduler)[0] == 1


def test_without_bulk_sparse_streams_do_not_wait_for_its_turn() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 1_000_000), 0.0, RTT_S)
    count = 3 * SPARSE_RUN_BYTES // SPARSE_BYTES
    for number in range(count):
        scheduler.activate(stream_with(2 * number + 3, SPARSE_BYTES), 0.0, RTT_S)
    for _ in range(count):
        assert scheduler.take(LANE, SPARSE_BYTES, bulk=False) is not None
    assert not scheduler.sparse


def test_a_slower_lane_carries_bulk_and_no_sparse_streams() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 1000), 0.0, RTT_S)
    scheduler.activate(stream_with(3, 1_000_000), 0.0, RTT_S)
    item = scheduler.take(LANE, 1000, any_sparse=False)
    assert item is not None
    assert item[0].id == 3
    assert scheduler.take(LANE, 1000, bulk=False, any_sparse=False) is None
    assert scheduler.queued_bytes() == (1000, 999_000)


def test_a_sparse_stream_bound_to_a_lane_takes_it_however_slow() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, 10, pinned_lane=LANE), 0.0, RTT_S)
    scheduler.activate(stream_with(3, 10, pinned_lane=LANE + 1), 0.0, RTT_S)
    scheduler.activate(stream_with(5, 10), 0.0, RTT_S)
    item = scheduler.take(LANE, 1000, bulk=False, any_sparse=False)
    assert item is not None
    assert item[0].id == 1
    assert scheduler.take(LANE, 1000, bulk=False, any_sparse=False) is None


def test_on_a_slow_lane_turns_are_as_small_as_its_frames() -> None:
    scheduler = Scheduler()
    scheduler.quantum_bytes = 3000
    for number in (1, 3):
        scheduler.activate(stream_with(number, 1_000_000), 0.0, RTT_S)
    assert [served(scheduler, 3000) for _ in range(4)] == [(1, 3000), (3, 3000)] * 2


def test_queued_bytes_are_counted_for_sparse_and_bulk() -> None:
    scheduler = Scheduler()
    assert (bool(scheduler.sparse), bool(scheduler.bulk)) == (False, False)
    scheduler.activate(stream_with(1, 1_000_000), 0.0, RTT_S)
    assert (bool(scheduler.sparse), bool(scheduler.bulk)) == (False, True)
    scheduler.activate(stream_with(3, 100), 0.0, RTT_S)
    scheduler.activate(stream_with(5, 200), 0.0, RTT_S)
    assert (bool(scheduler.sparse), bool(scheduler.bulk)) == (True, True)
    assert scheduler.queued_bytes() == (300, 1_000_000)


def test_bytes_without_credit_are_not_counted_as_queued() -> None:
    scheduler, stream = Scheduler(), stream_of(1, 20_000)
    stream.sender.write(Payload(bytes(100_000)))
    scheduler.activate(stream, 0.0, RTT_S)
    assert scheduler.queued_bytes() == (0, 20_000)


def test_a_stream_whose_credit_was_called_back_is_passed_over() -> None:
    scheduler, stream = Scheduler(), stream_of(1, 20_000)
    stream.sender.write(Payload(bytes(100_000)))
    scheduler.activate(stream, 0.0, RTT_S)
    scheduler.activate(stream_with(3, 100_000), 0.0, RTT_S)
    stream.sender.grant(0, 1)
    assert served(scheduler) == (3, 100_000)
    assert scheduler.take(LANE, DATA_BYTES) is None
    stream.sender.grant(50_000, 2)
    scheduler.activate(stream, 0.0, RTT_S)
    assert served(scheduler) == (1, 50_000)


def test_the_number_of_streams_with_bulk_is_known() -> None:
    scheduler = Scheduler()
    scheduler.activate(stream_with(1, SPARSE_BYTES + 1), 0.0, RTT_S)
    scheduler.activate(stream_with(3, SPARSE_BYTES + 1), 0.0, RTT_S)
    scheduler.activate(stream_with(5, 1), 0.0, RTT_S)
    assert (len(scheduler.bulk), bool(scheduler.sparse)) == (2, True)
