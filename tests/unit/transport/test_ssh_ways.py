"""By which way ssh logs in next."""

import pytest

from sshunt.errors import ExitCode
from sshunt.transport.ssh_ways import Way, Ways


def tried(made: Ways, *codes: ExitCode, has_address: bool = True) -> list[Way]:
    """The ways that are taken while logins fail with these."""
    found = [made.next]
    for code in codes:
        made.on_failure(code, has_address=has_address)
        found.append(made.next)
    return found


BY_NAME, SHARED = Way(shares=False, by_address=False), Way(shares=True, by_address=False)
BY_ADDRESS = Way(shares=False, by_address=True)


def test_without_a_shared_connection_there_is_one_way() -> None:
    made = Ways(is_shared=False)
    made.start(is_silent=True)
    assert tried(made, ExitCode.CONNECT, ExitCode.AUTH) == [BY_NAME] * 3
    assert not made.is_another_untried


@pytest.mark.parametrize(("is_silent", "first"), [(True, BY_NAME), (False, SHARED)])
def test_a_shared_connection_is_used_first_unless_the_old_lane_fell_silent_in_it(
    is_silent: bool, first: Way
) -> None:
    made = Ways(is_shared=True)
    made.start(is_silent=is_silent)
    second = SHARED if first is BY_NAME else BY_NAME
    assert tried(made, ExitCode.CONNECT, ExitCode.CONNECT) == [first, second, first]


def test_a_person_is_asked_for_only_when_both_ways_have_been_tried() -> None:
    made = Ways(is_shared=True)
    made.start(is_silent=True)
    made.on_failure(ExitCode.AUTH, has_address=True)
    assert made.is_another_untried
    made.on_failure(ExitCode.AUTH, has_address=True)
    assert not made.is_another_untried
    made.start_anew()
    assert made.is_another_untried


def test_after_a_name_that_can_not_be_resolved_the_last_address_is_tried_and_then_the_name() -> (
    None
):
    made = Ways(is_shared=False)
    made.start(is_silent=False)
    ways = tried(made, ExitCode.NAME, ExitCode.CONNECT, ExitCode.NAME, ExitCode.NAME)
    assert ways == [BY_NAME, BY_ADDRESS, BY_NAME, BY_ADDRESS, BY_NAME]
    made.start(is_silent=False)
    assert made.next == BY_NAME


def test_where_no_address_is_known_the_name_is_tried_again() -> None:
    made = Ways(is_shared=False)
    made.start(is_silent=False)
    assert tried(made, ExitCode.NAME, has_address=False) == [BY_NAME, BY_NAME]
