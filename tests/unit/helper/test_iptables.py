"""A session that captures with iptables, as its helper makes and removes it."""

import os
import signal
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.plan import Method, Plan, redirects
from sshunt.helper.protocol import (
    VERSION,
    Applied,
    Apply,
    Bypass,
    Done,
    Guard,
    Guarded,
    Hello,
    Part,
    Refusal,
    Refused,
    Reply,
    Retain,
    Suspected,
    Suspects,
    Undo,
    Welcome,
)
from sshunt.lab.hosts import Host
from sshunt.model import Action, Route
from tests.e2e.captures import soon
from tests.unit.helper.conversation import SESSION, Conversation

ROUTES = (
    Route(ip_network("10.0.0.0/8"), Action.REMOTE),
    Route(ip_network("fd00::/8"), Action.REMOTE),
)
PLAN = Plan(SESSION, redirects([("127.0.0.1", 1), ("::1", 1)]), ROUTES, method=Method.NAT)


@pytest.fixture
def helper(host: Host) -> Iterator[Conversation]:
    if not Path("/usr/sbin/iptables-restore").exists():
        pytest.skip("needs iptables")
    with Conversation(host) as helper:
        assert helper.ask(Hello(VERSION, SESSION, Method.NAT)) == Welcome(VERSION)
        yield helper
    assert rules(host) == []


def rules(host: Host) -> list[str]:
    saved = [host.run([f"/usr/sbin/ip{six}tables-save", "-t", "nat"]).stdout for six in ("", "6")]
    return [line for line in "".join(saved).splitlines() if "sshunt" in line]


def is_told_of_rules(helper: Conversation) -> bool:
    assert isinstance(helper.ask(Suspects()), Suspected)
    return Part.RULES in helper.lost


def kind_of(reply: Reply) -> Refusal | None:
    return reply.kind if isinstance(reply, Refused) else None


def test_a_plan_is_applied_replaced_and_undone(helper: Conversation, host: Host) -> None:
    assert isinstance(helper.ask(Guard()), Guarded)
    assert helper.ask(Apply(PLAN)) == Applied(owner=False)
    assert len([rule for rule in rules(host) if "REDIRECT" in rule]) == 2
    other = Plan(SESSION, PLAN.redirects, ROUTES[:1], method=Method.NAT)
    assert helper.ask(Apply(other)) == Applied(owner=False)
    assert len([rule for rule in rules(host) if "REDIRECT" in rule]) == 1
    one_family = Plan(SESSION, PLAN.redirects[:1], ROUTES, method=Method.NAT)
    assert helper.ask(Apply(one_family)) == Applied(owner=False)
    assert len([rule for rule in rules(host) if "REDIRECT" in rule]) == 1, "not those of before"
    assert helper.ask(Bypass((("10.0.0.7", 22),))) == Done()
    assert any("-d 10.0.0.7/32" in rule and "RETURN" in rule for rule in rules(host))
    assert isinstance(helper.ask(Suspects()), Suspected)
    assert helper.ask(Undo()) == Done()
    assert rules(host) == []


@pytest.mark.parametrize(
    "taken", [f"-F sshunt-{SESSION}-t", f"-D OUTPUT -j sshunt-{SESSION}"], ids=["target", "entry"]
)
def test_whatever_somebody_takes_out_of_any_chain_is_told_of_and_comes_again(
    helper: Conversation, host: Host, taken: str
) -> None:
    assert helper.ask(Apply(PLAN)) == Applied(owner=False)
    before = rules(host)
    host.run(["/usr/sbin/iptables", "-w", "5", "-t", "nat", *taken.split()])
    soon(lambda: is_told_of_rules(helper), within_s=10)
    assert helper.ask(Apply(PLAN)) == Applied(owner=False)
    assert rules(host) == before


def test_what_it_can_not_have_is_refused_and_leaves_nothing(
    helper: Conversation, host: Host
) -> None:
    by_nft = Plan(SESSION, PLAN.redirects, ROUTES)
    elsewhere = Plan(SESSION, redirects([("192.0.2.77", 1)]), ROUTES, method=Method.NAT)
    assert kind_of(helper.ask(Apply(by_nft))) is Refusal.BAD_REQUEST
    assert kind_of(helper.ask(Apply(elsewhere))) is Refusal.LISTENER
    assert rules(host) == []
    assert helper.ask(Apply(PLAN)) == Applied(owner=False)
    before = rules(host)
    holes = (ip_network(((0xFD << 120) + (number << 108) + 1, 128)) for number in range(600))
    many = tuple(Route(hole, Action.DIRECT) for hole in holes)
    other = Plan(SESSION, PLAN.redirects, (ROUTES[1], *many), method=Method.NAT)
    assert kind_of(helper.ask(Apply(other))) is Refusal.TOO_COMPLEX
    assert rules(host) == before, "neither family is changed"
    assert kind_of(helper.ask(Retain(("192.0.2.1",)))) is Refusal.NOT_RETAINED
    assert helper.ask(Retain(())) == Done()


def test_where_the_restorer_is_killed_the_session_ends(helper: Conversation, host: Host) -> None:
    assert helper.ask(Apply(PLAN)) == Applied(owner=False)
    parent = helper.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (restorer,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "restorer\n"]
    os.kill(int(restorer), signal.SIGKILL)
    assert helper.has_hung_up()
    assert rules(host), "there is nobody left who could remove them"
    with Conversation(host) as other:
        assert other.ask(Hello(VERSION, "feedfacefeed", Method.NAT)) == Welcome(VERSION)
        soon(lambda: rules(host) == [])
