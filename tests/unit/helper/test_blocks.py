"""Kill switches in a real kernel: made, replaced, left by the dead, lifted by whom."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from sshunt.capture.block import block_name
from sshunt.capture.plan import Plan, Redirect, What
from sshunt.helper.blocks import peer_keys
from sshunt.helper.changes import new_table
from sshunt.helper.netlink import Netlink
from sshunt.helper.protocol import (
    Applied,
    Apply,
    Bypass,
    Cleaned,
    Cleanup,
    Done,
    Refusal,
    Refused,
    Unblock,
    Undo,
)
from sshunt.lab.hosts import Host
from sshunt.model import Action, Route
from tests.unit.helper.conversation import SESSION, Conversation

#: The netlink protocol (linux/netlink.h).
NETFILTER = 12

OTHER = "fedcba9876543210"

PLAN = Plan(
    SESSION,
    (Redirect(What.CONNECTIONS, ("127.0.0.1", 12300)),),
    (Route(ip_network("10.0.0.0/8"), Action.REMOTE),),
    bypass=(("192.0.2.7", 22),),
    blocks=True,
)
ELSEWHERE = replace(PLAN, routes=(Route(ip_network("172.16.0.0/12"), Action.REMOTE),))


def table(plan: Plan) -> str:
    return f"inet {block_name(plan, 0)}"


def of(session: str, plan: Plan = PLAN) -> Plan:
    return replace(plan, session=session)


@pytest.fixture(params=["owned", "plain"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def helper(host: Host, kind: str) -> Iterator[Conversation]:
    with Conversation(host, kind) as helper:
        helper.greet()
        yield helper
        helper.ask(Unblock())


def killed(host: Host, kind: str, plan: Plan) -> None:
    """A session that blocked this was killed."""
    with Conversation(host, kind) as helper:
        helper.greet(plan.session)
        assert isinstance(helper.ask(Apply(plan)), Applied)
        os.kill(helper.process.pid, signal.SIGKILL)
        helper.process.wait(5)
    deadline = time.monotonic() + 5
    while kind == "owned" and helper.tables() != [table(plan)] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert table(plan) in helper.tables()


def test_it_is_there_until_it_is_lifted_not_until_undo(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert helper.tables() == [table(PLAN), f"inet sshunt-{SESSION}"]
    assert helper.ask(Undo()) == Done()
    assert helper.tables() == [table(PLAN)]
    assert helper.ask(Unblock()) == Done()
    assert helper.tables() == []
    assert helper.ask(Unblock()) == Done()


def test_another_plan_blocks_something_else(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    helper.ask(Apply(ELSEWHERE))
    assert table(ELSEWHERE) in helper.tables()
    assert table(PLAN) not in helper.tables()
    helper.ask(Apply(replace(ELSEWHERE, blocks=False)))
    assert table(ELSEWHERE) not in helper.tables()


def test_a_plan_that_is_refused_changes_nothing_of_it(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    before = helper.tables()
    with helper.host.entered():
        stranger = Netlink(NETFILTER)
    # Who owns the name of the next table.
    stranger.change([new_table("inet", f"sshunt-{SESSION}-2", owner=True)])
    assert isinstance(helper.ask(Apply(ELSEWHERE)), Refused)
    stranger.close()
    assert helper.tables() == before


def test_peers_change_in_it_too(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert helper.ask(Bypass((("192.0.2.8", 2222), ("192.0.2.9", 53)))) == Done()
    name = table(PLAN).split()[1]
    rules = helper.host.run(["nft", "list", "set", "inet", name, "bypass4"]).stdout
    assert "192.0.2.8 . 2222" in rules
    assert "192.0.2.7" not in rules
    assert "192.0.2.9" in rules  # a resolver that is spared
    assert set(peer_keys(PLAN)) == {"bypass4", "bypass6"}


def test_the_end_of_its_client_leaves_it_and_the_next_session_takes_its_place(
    host: Host, kind: str
) -> None:
    with Conversation(host, kind) as first:
        first.greet()
        first.ask(Apply(PLAN))
    assert first.tables() == [table(PLAN)]
    with Conversation(host, kind) as second:
        second.greet(OTHER)
        assert second.tables() == [table(PLAN)]
        assert second.ask(Apply(of(OTHER))) == Applied(kind == "owned")
        assert second.tables() == [table(of(OTHER)), f"inet sshunt-{OTHER}"]
        second.ask(Unblock())
    assert second.tables() == []


def test_a_session_of_other_networks_leaves_it_and_says_so(host: Host, kind: str) -> None:
    killed(host, kind, PLAN)
    with Conversation(host, kind) as second:
        second.greet(OTHER)
        applied = second.ask(Apply(of(OTHER, ELSEWHERE)))
        assert applied == Applied(kind == "owned", others_block=1)
        second.ask(Unblock())
        assert second.tables() == [table(PLAN), f"inet sshunt-{OTHER}"]
        second.ask(Undo())
        cleaned = second.ask(Cleanup())
        assert isinstance(cleaned, Cleaned)
        assert cleaned.removed[-1] == table(PLAN)
        assert second.ask(Cleanup()) == Cleaned(())
    assert second.tables() == []


def test_cleaning_up_names_what_a_killed_session_has_left(host: Host) -> None:
    killed(host, "plain", PLAN)
    with Conversation(host) as second:
        second.greet(OTHER)
        assert second.ask(Cleanup()) == Cleaned((f"inet sshunt-{SESSION}", table(PLAN)))
    assert second.tables() == []


def test_what_lives_is_not_cleaned_up(helper: Conversation, kind: str) -> None:
    helper.ask(Apply(PLAN))
    before = helper.tables()
    with Conversation(helper.host, kind) as other:
        other.greet(OTHER)
        assert other.ask(Cleanup()) == Cleaned(())
    assert helper.tables() == before


def test_another_user_s_is_not_cleaned_up_but_by_root(host: Host, kind: str) -> None:
    killed(host, kind, PLAN)
    with Conversation(host, kind, "user=1234") as ben:
        ben.greet(OTHER)
        ben.ask(Apply(of(OTHER)))
        assert table(PLAN) in ben.tables()
        ben.ask(Undo())
        ben.ask(Unblock())
        cleaned = ben.ask(Cleanup())
        assert isinstance(cleaned, Cleaned)
        assert table(PLAN) not in cleaned.removed
        assert ben.tables() == [table(PLAN)]
    with Conversation(host, kind) as root:
        root.greet(OTHER)
        assert root.ask(Cleanup()) == Cleaned((table(PLAN),))


def test_cleaning_up_is_not_for_a_session_at_work(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    answer = helper.ask(Cleanup())
    assert isinstance(answer, Refused)
    assert answer.kind is Refusal.WRONG_ORDER
