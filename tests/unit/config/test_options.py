"""The limits of options agree with what the far side grants."""

from sshunt.config import options
from sshunt.mux import limits


def test_the_longest_grace_time_that_may_be_asked_for_is_the_longest_that_an_agent_grants() -> None:
    assert options.MAX_GRACE_S == limits.MAX_GRACE_S
    assert options.DEFAULT_GRACE_S <= options.MAX_GRACE_S


def test_an_agent_takes_as_many_lanes_as_may_be_asked_for() -> None:
    assert options.DEFAULT_LANES <= options.MAX_LANES <= limits.MAX_LANES
