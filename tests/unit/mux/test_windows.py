"""Credit: when a receiver grants more, how its window grows, what all of them may be together."""

import pytest

from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.limits import (
    INITIAL_WINDOW_BYTES,
    KIB,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
    MIB,
)
from sshunt.mux.windows import (
    IDLE_S,
    MOST_FORCED,
    MOST_PROMISED_BYTES,
    PLACES,
    PROVEN_BYTES,
    SIZES,
    SLOW_S,
    ReceiveWindow,
    SessionCredit,
)

RTT_S = 0.1
HALF = LEAST_WINDOW_BYTES // 2


def a_window(size: int = LEAST_WINDOW_BYTES) -> ReceiveWindow:
    return ReceiveWindow(SessionCredit(), 1, 0.0, size)


def read_fast(window: ReceiveWindow, now: float = 0.0) -> None:
    """Consume all that may come, at once."""
    window.consume(window.limit - window.consumed, now, RTT_S)


def windows_of(credit: SessionCredit, count: int, size: int) -> list[ReceiveWindow]:
    return [ReceiveWindow(credit, 2 * number + 1, 0.0, size) for number in range(count)]


# --- one window -----------------------------------------------------------------------------------


def test_a_new_window_grants_its_size() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    assert (window.limit, window.consumed) == (INITIAL_WINDOW_BYTES, 0)


def test_nothing_is_granted_before_half_of_the_window_was_consumed() -> None:
    window = a_window()
    assert not window.consume(HALF - 1, 0.0, RTT_S)
    assert window.limit == LEAST_WINDOW_BYTES


def test_a_consumer_that_does_not_hurry_gets_back_exactly_what_it_consumed() -> None:
    window = a_window()
    window.consume(1, 0.0, RTT_S)
    assert window.consume(HALF - 1, 2 * RTT_S, RTT_S)
    assert window.limit == HALF + LEAST_WINDOW_BYTES


def test_a_least_window_that_is_half_used_within_two_round_trips_grows_to_the_initial_one() -> None:
    window = a_window()
    window.consume(1, 0.0, RTT_S)
    window.consume(HALF - 1, 1.9 * RTT_S, RTT_S)
    assert window.limit == HALF + INITIAL_WINDOW_BYTES


def test_a_larger_window_that_is_half_used_within_two_round_trips_doubles() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    window.consume(INITIAL_WINDOW_BYTES // 2, 0.0, RTT_S)
    assert window.window_bytes == 2 * INITIAL_WINDOW_BYTES
    window.consume(INITIAL_WINDOW_BYTES, 2 * RTT_S, RTT_S)  # exactly two: not limited by us
    assert window.window_bytes == 2 * INITIAL_WINDOW_BYTES
    window.consume(INITIAL_WINDOW_BYTES, 3 * RTT_S, RTT_S)
    assert window.window_bytes == 4 * INITIAL_WINDOW_BYTES


def test_without_a_round_trip_time_nothing_grows() -> None:
    window = a_window()
    window.consume(HALF, 0.0, 0.0)
    assert window.window_bytes == LEAST_WINDOW_BYTES


def test_one_stream_alone_reaches_the_largest_window_and_no_more() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    for _ in range(12):
        read_fast(window)
    assert window.limit - window.consumed == window.window_bytes == MAX_WINDOW_BYTES


def test_consuming_more_than_was_granted_is_our_own_bug() -> None:
    with pytest.raises(LocalProtocolError):
        a_window().consume(LEAST_WINDOW_BYTES + 1, 0.0, RTT_S)


def test_a_slow_reader_of_a_large_window_gets_credit_back_within_seconds() -> None:
    window, now = a_window(INITIAL_WINDOW_BYTES), 0.0
    while window.window_bytes < MAX_WINDOW_BYTES:
        read_fast(window)
    for _ in range(1200):  # two minutes of 50 kB/s
        now += 0.1
        window.consume(5000, now, RTT_S)
        assert window.consumed + MAX_WINDOW_BYTES - window.limit <= 50_000 * (SLOW_S + 0.1)


def test_a_few_consumed_bytes_of_an_idle_connection_grant_nothing() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    assert not any(window.consume(1, minute * 60.0, RTT_S) for minute in range(1000))


# --- all of them ----------------------------------------------------------------------------------


def test_every_step_of_the_ladder_has_half_the_places_of_the_one_below() -> None:
    assert SIZES[0] == LEAST_WINDOW_BYTES
    assert (SIZES[-1], PLACES[-1]) == (MAX_WINDOW_BYTES, 1)
    assert PLACES[SIZES.index(256 * KIB)] == 64
    assert MOST_PROMISED_BYTES == 80 * MIB


def test_fifty_web_pages_at_once_have_all_their_bytes_in_the_first_round_trip() -> None:
    windows = windows_of(SessionCredit(), 50, INITIAL_WINDOW_BYTES)
    assert min(window.limit for window in windows) >= 100 * KIB


@pytest.mark.parametrize("reads", [0, 1, 8, 30])
def test_any_number_of_stopped_readers_hold_no_more_than_was_promised(reads: int) -> None:
    credit = SessionCredit()
    windows = windows_of(credit, MAX_STREAMS, INITIAL_WINDOW_BYTES)
    for _ in range(reads):
        for window in windows[:2000]:
            read_fast(window)
    held = sum(window.limit - window.consumed for window in windows)
    assert held <= MOST_PROMISED_BYTES + MAX_STREAMS * LEAST_WINDOW_BYTES


@pytest.mark.many
def test_a_reader_that_has_proved_itself_is_not_slowed_by_thousands_that_stopped() -> None:
    credit = SessionCredit()
    stopped = windows_of(credit, 2000, INITIAL_WINDOW_BYTES)
    while any(window.consumed < 2 * MIB for window in stopped):  # what a kernel buffers for each
        for window in stopped:
            if window.consumed < 2 * MIB:
                read_fast(window)
    reader = ReceiveWindow(credit, 9999, 0.0, INITIAL_WINDOW_BYTES)
    while reader.consumed < 2 * PROVEN_BYTES:
        read_fast(reader)
    assert reader.window_bytes >= MAX_WINDOW_BYTES // 4


def test_many_readers_share_the_window_sizes_and_take_those_that_become_free() -> None:
    credit = SessionCredit()
    windows = windows_of(credit, 8, INITIAL_WINDOW_BYTES)
    for _ in range(20):
        for window in windows:
            read_fast(window)
    assert min(window.window_bytes for window in windows) >= 2 * MIB
    largest = max(windows, key=lambda window: window.window_bytes)
    largest.close()
    largest.close()
    others = [window for window in windows if window is not largest]
    for window in others:
        read_fast(window)
    assert max(window.window_bytes for window in others) == MAX_WINDOW_BYTES


def test_an_idle_window_is_called_back_to_the_least() -> None:
    credit = SessionCredit()
    window = ReceiveWindow(credit, 1, 0.0, INITIAL_WINDOW_BYTES)
    assert credit.idle(IDLE_S / 2) == []
    assert credit.idle(IDLE_S) == [1]
    assert window.recall(0, IDLE_S)
    assert (window.limit, credit.promised_bytes) == (LEAST_WINDOW_BYTES, 0)
    assert credit.idle(2 * IDLE_S) == []


def test_a_window_that_may_not_be_called_back_yet_is_asked_last() -> None:
    credit = SessionCredit()
    first, second = (ReceiveWindow(credit, n, 0.0, INITIAL_WINDOW_BYTES) for n in (1, 3))
    assert credit.idle(IDLE_S) == [1, 3]
    first.keep(IDLE_S)
    assert credit.idle(IDLE_S) == [3]
    assert credit.idle(2 * IDLE_S) == [3, 1]
    assert first.limit == second.limit == INITIAL_WINDOW_BYTES


def test_a_window_that_holds_bytes_keeps_room_for_as_many_again() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    window.consume(1000, 0.0, RTT_S)
    assert window.recall(1000 + 20 * KIB, IDLE_S)
    assert window.limit == 1000 + 64 * KIB
    full = a_window(INITIAL_WINDOW_BYTES)
    assert not full.recall(INITIAL_WINDOW_BYTES, IDLE_S)
    assert full.limit == INITIAL_WINDOW_BYTES


def test_a_window_that_was_called_back_grants_again_when_its_reader_reads() -> None:
    window = a_window(INITIAL_WINDOW_BYTES)
    window.consume(100 * KIB, 0.0, RTT_S)
    window.recall(100 * KIB, IDLE_S)
    assert window.limit == 100 * KIB + LEAST_WINDOW_BYTES
    assert not window.consume(HALF - 1, 2 * IDLE_S, RTT_S)
    assert window.consume(1, 2 * IDLE_S, RTT_S)


def test_bytes_under_way_when_their_credit_was_called_back_are_taken_in_and_count() -> None:
    credit = SessionCredit()
    window = ReceiveWindow(credit, 1, 0.0, INITIAL_WINDOW_BYTES)
    window.recall(0, IDLE_S)
    assert window.admit(100 * KIB)
    assert window.limit == 100 * KIB
    assert credit.promised_bytes == 128 * KIB - LEAST_WINDOW_BYTES
    assert not window.admit(INITIAL_WINDOW_BYTES + 1)
    assert window.consume(100 * KIB, 2 * IDLE_S, RTT_S)


def test_a_peer_that_keeps_using_credit_called_back_breaks_the_protocol() -> None:
    credit, refused = SessionCredit(), 0
    windows = []
    for number in range(1, 10_000, 2):  # all of them, before the first uses what it was given
        windows.append(ReceiveWindow(credit, number, 0.0, INITIAL_WINDOW_BYTES))
        windows[-1].recall(0, IDLE_S)
    for window in windows:
        refused += not window.admit(window.top)
    assert refused
    credit.taken[SIZES.index(INITIAL_WINDOW_BYTES)] -= refused  # the session would have ended
    assert credit.taken[SIZES.index(INITIAL_WINDOW_BYTES)] <= MOST_FORCED * PLACES[4]


def test_once_the_end_is_known_only_what_may_still_come_has_a_place() -> None:
    credit = SessionCredit()
    window = ReceiveWindow(credit, 1, 0.0, INITIAL_WINDOW_BYTES)
    window.shrink_to(20 * KIB, 1.0)
    assert credit.promised_bytes == 32 * KIB - LEAST_WINDOW_BYTES
    assert window.limit == INITIAL_WINDOW_BYTES
