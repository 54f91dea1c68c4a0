"""Who a session is to the far side: its token, and numbers that no two of its lanes share."""

import pytest

from sshunt.mux.hello import (
    AGENT,
    FEATURE_COPY,
    FEATURE_CREATE,
    FEATURE_DETACHED,
    Hello,
    make_hello,
)
from sshunt.mux.limits import DEAD_LANES
from sshunt.remote.identity import LANE_NUMBERS, Identity, is_detached


def new() -> Identity:
    return Identity(grace_s=60, wishes=FEATURE_COPY)


def accepted(identity: Identity, host: bytes = b"machine.") -> Hello:
    """What made the session."""
    ours = identity.hello(0)
    identity.accepted(ours, make_hello(AGENT, ours.token, host=host))
    return ours


def test_a_new_session_is_asked_for_under_a_token_that_was_never_used() -> None:
    identity = new()
    first, second = identity.hello(3), identity.hello(4)
    assert first.features == FEATURE_CREATE | FEATURE_COPY
    assert (first.lane, first.grace_s) == (3, 60)
    assert first.token != second.token
    assert not identity.is_resumable


def test_a_session_that_was_accepted_is_asked_for_again_and_not_made_anew() -> None:
    identity = new()
    made = accepted(identity)
    again = identity.hello(5)
    assert (again.token, again.features, again.lane) == (made.token, 0, 5)
    assert identity.is_resumable
    assert identity.agent_host == b"machine."


def test_a_further_lane_is_of_the_present_session() -> None:
    identity = new()
    made = accepted(identity)
    beside = identity.hello_beside(6)
    assert (beside.token, beside.features, beside.lane) == (made.token, 0, 6)


def test_a_hello_for_a_session_that_has_ended_meanwhile_is_not_current() -> None:
    identity = new()
    accepted(identity)
    beside = identity.hello_beside(1)
    assert identity.is_current(beside)
    identity.forget()
    assert not identity.is_resumable
    assert not identity.is_current(beside)
    assert identity.is_current(identity.hello(2))
    accepted(identity)
    assert not identity.is_current(beside)


def test_numbers_of_lanes_in_use_are_passed_over_and_come_again_after_all_others() -> None:
    identity = new()
    assert [identity.take_number({1, 2}) for _ in range(2)] == [0, 3]
    for _ in range(LANE_NUMBERS - 4):
        identity.take_number(())
    assert identity.take_number({0}) == 1


def test_dead_numbers_are_told_once_in_order_and_only_the_newest_are_remembered() -> None:
    identity = new()
    for number in range(DEAD_LANES + 2):
        identity.note_dead(number)
    identity.note_alive(5)
    assert identity.take_dead() == [n for n in range(2, DEAD_LANES + 2) if n != 5]
    assert identity.take_dead() == []


def test_with_a_session_its_dead_lanes_are_forgotten() -> None:
    identity = new()
    identity.note_dead(1)
    identity.forget()
    assert identity.take_dead() == []


@pytest.mark.parametrize(("features", "lives_on"), [(FEATURE_DETACHED, True), (0, False)])
def test_an_agent_says_whether_it_lives_on_without_lanes(features: int, lives_on: bool) -> None:
    assert is_detached(make_hello(AGENT, bytes(32), features=features)) is lives_on
