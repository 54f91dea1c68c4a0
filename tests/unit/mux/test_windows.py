"""Credit: when a receiver grants more, and how its window grows."""

import pytest

from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.limits import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES, SESSION_GROWTH_BYTES
from sshunt.mux.windows import GrowthBudget, ReceiveWindow

RTT_S = 0.1


def test_a_new_window_grants_its_initial_size() -> None:
    window = ReceiveWindow(1000)
    assert (window.limit, window.consumed, window.window_bytes) == (1000, 0, 1000)


def test_nothing_is_granted_before_half_of_the_window_was_consumed() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    assert window.consume(499, 0.0, RTT_S, budget) is None
    assert window.limit == 1000


def test_a_slow_consumer_gets_back_exactly_what_it_consumed() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    window.consume(1, 0.0, RTT_S, budget)
    assert window.consume(499, 2 * RTT_S, RTT_S, budget) == 1500
    assert window.window_bytes == 1000


def test_a_window_that_is_half_used_within_two_round_trips_doubles() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget(10_000)
    window.consume(1, 0.0, RTT_S, budget)
    assert window.consume(499, 1.9 * RTT_S, RTT_S, budget) == 500 + 2000
    assert budget.left_bytes == 9000


def test_without_a_round_trip_time_nothing_grows() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    assert window.consume(500, 0.0, 0.0, budget) == 1500


def test_the_clock_starts_anew_with_each_grant() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    window.consume(500, 0.0, RTT_S, budget)
    assert window.window_bytes == 2000
    window.consume(1000, 2 * RTT_S, RTT_S, budget)  # exactly two round trips: not limited by us
    assert window.window_bytes == 2000
    window.consume(1000, 3 * RTT_S, RTT_S, budget)
    assert window.window_bytes == 4000


def test_a_window_grows_to_its_own_limit_and_no_further() -> None:
    window, budget = ReceiveWindow(INITIAL_WINDOW_BYTES), GrowthBudget()
    for _ in range(12):
        window.consume(window.limit - window.consumed, 0.0, RTT_S, budget)
    assert window.window_bytes == MAX_WINDOW_BYTES
    assert window.grown_bytes == MAX_WINDOW_BYTES - INITIAL_WINDOW_BYTES


def test_a_window_that_is_no_power_of_two_of_the_first_still_ends_at_the_limit() -> None:
    window, budget = ReceiveWindow(MAX_WINDOW_BYTES - 10), GrowthBudget()
    window.consume(MAX_WINDOW_BYTES - 10, 0.0, RTT_S, budget)
    assert window.window_bytes == MAX_WINDOW_BYTES


def test_a_window_does_not_grow_when_the_session_has_no_growth_left() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget(999)
    assert window.consume(1000, 0.0, RTT_S, budget) == 2000
    assert (window.window_bytes, budget.left_bytes) == (1000, 999)


def test_closing_gives_the_growth_back_once() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    window.consume(1000, 0.0, RTT_S, budget)
    assert budget.left_bytes == SESSION_GROWTH_BYTES - 1000
    window.close(budget)
    window.close(budget)
    assert budget.left_bytes == SESSION_GROWTH_BYTES


def test_consuming_more_than_was_granted_is_our_own_bug() -> None:
    window, budget = ReceiveWindow(1000), GrowthBudget()
    with pytest.raises(LocalProtocolError):
        window.consume(1001, 0.0, RTT_S, budget)
