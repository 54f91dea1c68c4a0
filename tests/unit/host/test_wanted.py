"""Which rules are wanted, by what is known; and by which requests one gets there."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.helper.protocol import (
    MAX_BYPASS,
    Apply,
    Bypass,
    Guard,
    Hello,
    Part,
    Request,
    Resolvers,
    Retain,
    Undo,
)
from sshunt.host.wanted import (
    NOTHING,
    Facts,
    Wanted,
    after,
    after_refusal,
    next_optional,
    next_request,
    wanted,
    without,
)
from sshunt.model import Action, Route

_OFFICE = (Route(ip_network("10.0.0.0/8"), Action.REMOTE),)
_PLAN = Plan("01234567", redirects([("127.0.0.1", 1)]), _OFFICE)
_SSH = ("192.0.2.2", 22)
_UP = Facts(
    plan=_PLAN, peers=(_SSH,), resolvers=("192.0.2.53", "2001:db8::53"), retained=("192.0.2.1",)
)
_LOST = replace(_UP, is_down=True)


def steps(applied: Wanted, wanted: Wanted) -> list[Request]:
    """All requests that it takes."""
    found = []
    while request := next_request(applied, wanted) or next_optional(applied, wanted):
        found.append(request)
        applied = after(applied, request)
    assert wanted in (applied, replace(applied, guard=False))
    return found


# --- which ----------------------------------------------------------------------------------------


def test_before_there_is_a_plan_only_the_guard_is_wanted() -> None:
    assert wanted(Facts()) == Wanted(guard=True, plan=None)
    assert wanted(Facts(is_down=True, peers=(_SSH,), retained=("192.0.2.1",))) == Wanted()


def test_while_the_connection_is_up_all_is_captured_but_what_ssh_connects_to() -> None:
    plan = wanted(_UP).plan
    assert plan is not None
    assert plan.routes == _OFFICE
    assert plan.bypass == (_SSH,)
    assert plan.resolvers == _UP.resolvers


def test_disconnected_everything_stays_captured_and_other_sessions_may_ask_the_resolvers() -> None:
    plan = wanted(_LOST).plan
    assert plan is not None
    assert plan.bypass == (_SSH, ("192.0.2.53", 53), ("2001:db8::53", 53))
    assert wanted(_LOST) == replace(wanted(_UP), plan=plan)


def test_resolvers_that_are_neighbours_are_left_alone() -> None:
    facts = replace(_UP, near_resolvers=("192.0.2.1",))
    plan = wanted(facts).plan
    assert plan is not None
    assert plan.bypass == (_SSH, ("192.0.2.1", 53))


def test_disconnected_with_fail_open_only_the_guard_is_wanted() -> None:
    assert wanted(replace(_LOST, fail_open=True)) == Wanted()
    assert wanted(replace(_UP, fail_open=True)) == wanted(_UP)


def test_addresses_are_retained_where_something_is_captured_and_only_there() -> None:
    assert wanted(_UP).retained == wanted(_LOST).retained == ("192.0.2.1",)
    assert wanted(replace(_LOST, fail_open=True)).retained == ()


def test_no_more_is_left_alone_than_the_helper_takes_and_the_latest_come_first() -> None:
    peers = tuple((f"192.0.2.{number}", port) for number in range(256) for port in (22, 23))
    plan = wanted(replace(_LOST, peers=peers)).plan
    assert plan is not None
    assert len(plan.bypass) == MAX_BYPASS
    assert plan.bypass[-1] == ("2001:db8::53", 53)
    assert plan.bypass[-3] == peers[-1]


# --- how one gets there ---------------------------------------------------------------------------


def test_a_wanted_state_that_is_applied_needs_no_request() -> None:
    for state in (NOTHING, Wanted(), wanted(_UP), wanted(_LOST)):
        assert steps(state, state) == []


def test_the_guard_comes_first_and_a_plan_brings_its_resolvers_and_exceptions() -> None:
    state = wanted(_UP)
    assert state.plan is not None
    assert steps(NOTHING, state) == [Guard(), Apply(state.plan), Retain(("192.0.2.1",))]


def test_the_guard_that_is_made_stays() -> None:
    assert next_request(Wanted(), NOTHING) is None


@pytest.mark.parametrize(
    ("before", "facts", "expected"),
    [
        (_UP, _LOST, [Bypass((_SSH, ("192.0.2.53", 53), ("2001:db8::53", 53)))]),
        (_LOST, _UP, [Bypass((_SSH,))]),
        (_UP, replace(_UP, resolvers=("192.0.2.54",)), [Resolvers(("192.0.2.54",))]),
        (
            _LOST,
            replace(_LOST, resolvers=("192.0.2.54",)),
            [Resolvers(("192.0.2.54",)), Bypass((_SSH, ("192.0.2.54", 53)))],
        ),
        (_UP, replace(_UP, retained=()), [Retain(())]),
        (_UP, replace(_LOST, fail_open=True), [Undo()]),
        (replace(_LOST, fail_open=True), replace(_LOST, fail_open=True, peers=()), []),
    ],
)
def test_changes_with_the_connection_take_the_smallest_requests(
    before: Facts, facts: Facts, expected: list[Request]
) -> None:
    assert steps(wanted(before), wanted(facts)) == expected


@pytest.mark.parametrize(
    "plan",
    [
        replace(_PLAN, routes=(Route(ip_network("172.16.0.0/12"), Action.REMOTE),)),
        replace(_PLAN, routes=()),
        replace(_PLAN, redirects=redirects([("127.0.0.1", 2)])),
    ],
)
def test_other_routes_and_listeners_take_one_request_and_addresses_stay_retained(
    plan: Plan,
) -> None:
    state = wanted(replace(_LOST, plan=plan))
    assert state.plan is not None
    assert steps(wanted(_UP), state) == [Apply(state.plan)]


def test_rules_that_come_again_bring_retained_addresses_with_them() -> None:
    gone, back = wanted(replace(_LOST, fail_open=True)), wanted(_UP)
    assert back.plan is not None
    assert steps(gone, back) == [Apply(back.plan), Retain(("192.0.2.1",))]


def test_what_somebody_else_takes_away_is_asked_for_again() -> None:
    here = wanted(_UP)
    assert next_request(here, here) is None
    assert here.plan is not None
    assert next_request(without(here, Part.RULES), here) == Apply(here.plan)
    unguarded = without(here, Part.GUARD)
    assert next_request(unguarded, here) == Guard()
    assert next_request(after(unguarded, Guard()), here) == Apply(here.plan)
    without_device = without(here, Part.DEVICE)
    assert next_request(without_device, here) is None
    assert next_optional(without_device, here) == Retain(here.retained)


def test_a_refusal_leaves_what_was_applied_before() -> None:
    before = wanted(_UP)
    for request in (Apply(_PLAN), Bypass(()), Resolvers(()), Retain(())):
        assert after_refusal(before, request) == before
    assert after_refusal(NOTHING, Guard()) == NOTHING


@pytest.mark.parametrize(("before", "request_"), [(Wanted(), Apply(_PLAN)), (wanted(_UP), Undo())])
def test_of_rules_that_may_be_there_in_part_none_count(before: Wanted, request_: Request) -> None:
    doubtful = after_refusal(before, request_)
    state = wanted(_UP)
    assert state.plan is not None
    assert steps(doubtful, state) == [Apply(state.plan), Retain(("192.0.2.1",))]
    assert steps(doubtful, Wanted()) == [Undo()]


def test_a_request_that_is_not_for_rules_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="not a request of ours"):
        after(Wanted(), Hello(1, "01234567"))
