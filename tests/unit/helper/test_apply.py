"""What requests do to a real kernel: tables, sets, and what is left when one is refused."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import psutil
import pytest

from sshunt.capture.plan import Plan, Redirect, What
from sshunt.helper.protocol import (
    MAX_LISTENERS,
    Applied,
    Apply,
    Bypass,
    Done,
    Guard,
    Guarded,
    Lost,
    Part,
    Refusal,
    Refused,
    Reply,
    Request,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Undo,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from sshunt.model import Action, Route
from tests.unit.helper.conversation import SESSION, Conversation

PLAN = Plan(
    SESSION,
    (Redirect(What.CONNECTIONS, ("127.0.0.1", 12300)),),
    (Route(ip_network("10.0.0.0/8"), Action.REMOTE),),
    bypass=(("192.0.2.7", 22),),
)

#: Reading and making them takes a moment.
MANY_ROUTES = tuple(
    Route(ip_network(f"10.{n >> 8}.{n & 255}.0/25"), Action.REMOTE) for n in range(20_000)
)

needs_tun = pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")


@pytest.fixture(params=["owned", "plain"])
def helper(host: Host, request: pytest.FixtureRequest) -> Iterator[Conversation]:
    """One that was greeted; ``plain``: the kernel does not own what it makes."""
    with Conversation(host, request.param) as helper:
        helper.greet()
        yield helper
    assert helper.tables() == []


def refusal(reply: Reply) -> Refusal:
    assert isinstance(reply, Refused), reply
    return reply.kind


def test_a_plan_becomes_a_table_of_the_session(
    helper: Conversation, request: pytest.FixtureRequest
) -> None:
    reply = helper.ask(Apply(PLAN))
    assert isinstance(reply, Applied)
    assert helper.tables() == [f"inet sshunt-{SESSION}"]
    rules = helper.rules()
    assert ("flags owner" in rules) == reply.owner
    assert not (reply.owner and "plain" in request.node.name)
    assert "10.0.0.0/8" in rules
    assert "192.0.2.7 . 22" in rules


def test_another_plan_takes_the_place_of_the_first(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    other = replace(PLAN, routes=(Route(ip_network("172.16.0.0/12"), Action.REMOTE),))
    assert isinstance(helper.ask(Apply(other)), Applied)
    rules = helper.rules()
    assert "172.16.0.0/12" in rules
    assert "10.0.0.0/8" not in rules
    assert len(helper.tables()) == 1


def test_bypassed_endpoints_are_replaced_without_the_plan(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert helper.ask(Bypass((("192.0.2.8", 2222), ("2001:db8::8", 22)))) == Done()
    rules = helper.rules()
    assert "192.0.2.8 . 2222" in rules
    assert "192.0.2.7" not in rules
    assert helper.ask(Bypass(())) == Done()
    assert "192.0.2.8" not in helper.rules()


def test_what_was_bypassed_last_stays_so_in_the_next_plan_s_stead(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    helper.ask(Bypass((("192.0.2.8", 2222),)))
    helper.ask(Apply(PLAN))
    assert "192.0.2.7 . 22" in helper.rules()
    assert "192.0.2.8" not in helper.rules()


def test_a_listener_on_another_host_s_address_is_refused_and_nothing_is_made(
    helper: Conversation,
) -> None:
    there = replace(PLAN, redirects=(Redirect(What.CONNECTIONS, ("192.0.2.99", 80)),))
    assert refusal(helper.ask(Apply(there))) is Refusal.LISTENER
    assert helper.tables() == []
    helper.ask(Apply(PLAN))
    assert refusal(helper.ask(Apply(there))) is Refusal.LISTENER
    assert "10.0.0.0/8" in helper.rules()


@pytest.mark.parametrize("address", ["::ffff:127.0.0.1", "::ffff:0.0.0.0"])
def test_a_mapped_loopback_is_another_host_s_address(helper: Conversation, address: str) -> None:
    there = replace(PLAN, redirects=(Redirect(What.CONNECTIONS, (address, 12300)),))
    assert refusal(helper.ask(Apply(there))) is Refusal.LISTENER
    assert helper.tables() == []


def test_a_listener_on_an_interface_s_address_is_taken(helper: Conversation) -> None:
    here = replace(PLAN, redirects=(Redirect(What.CONNECTIONS, (helper.host.v4, 12300)),))
    assert isinstance(helper.ask(Apply(here)), Applied)


def test_listeners_of_all_plans_before_are_remembered_and_only_some_are_taken(
    helper: Conversation,
) -> None:
    def listening(port: int) -> Plan:
        return replace(PLAN, redirects=(Redirect(What.CONNECTIONS, (helper.host.v4, port)),))

    for port in range(1, MAX_LISTENERS + 1):
        assert isinstance(helper.ask(Apply(listening(port))), Applied)
    helper.ask(Undo())
    assert refusal(helper.ask(Apply(listening(MAX_LISTENERS + 1)))) is Refusal.LISTENER
    assert isinstance(helper.ask(Apply(listening(1))), Applied)
    assert isinstance(helper.ask(Apply(PLAN)), Applied)
    rules = helper.rules()
    for port in range(1, MAX_LISTENERS + 1):
        assert f"ip daddr {helper.host.v4} tcp dport {port} ct status dnat" in rules


def test_resolvers_that_this_host_does_not_ask_are_refused(helper: Conversation) -> None:
    answered = Redirect(What.QUERIES, ("127.0.0.1", 12353))
    asks = replace(PLAN, resolvers=("203.0.113.53",), redirects=(*PLAN.redirects, answered))
    assert refusal(helper.ask(Apply(asks))) is Refusal.RESOLVER
    assert helper.tables() == []
    helper.ask(Apply(PLAN))
    assert helper.ask(Resolvers(("203.0.113.53",))) == Done()
    assert "203.0.113.53" not in helper.rules()


def test_resolvers_that_change_while_another_plan_comes_do_not_keep_it_from_coming(
    helper: Conversation,
) -> None:
    answered = Redirect(What.QUERIES, ("127.0.0.1", 12353))
    asks = replace(PLAN, resolvers=("203.0.113.53",), redirects=(*PLAN.redirects, answered))
    helper.ask(Apply(PLAN))
    assert isinstance(helper.ask(Apply(asks)), Applied)
    rules = helper.rules()
    assert "resolvers4" in rules
    assert "203.0.113.53" not in rules


def test_an_address_that_was_never_this_host_s_is_not_retained(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert refusal(helper.ask(Retain(("192.0.2.99",)))) is Refusal.NOT_OURS
    assert helper.tables() == [f"inet sshunt-{SESSION}"]


@needs_tun
def test_an_address_that_goes_while_it_is_retained_stays_for_this_host_alone(
    helper: Conversation,
) -> None:
    host, address = helper.host, "192.0.2.9"
    host.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    try:
        helper.ask(Apply(PLAN))
        assert helper.ask(Retain((address,))) == Done()
        assert len(helper.tables()) == 1  # an interface has it: nothing to hide
    finally:
        host.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])
    assert helper.ask(Retain((address,))) == Done()
    assert host.run(["ip", "route", "get", address]).stdout.startswith("local ")
    assert [name for name in helper.tables() if not name.startswith("inet ")] != []
    assert helper.ask(Retain(())) == Done()
    assert helper.tables() == [f"inet sshunt-{SESSION}"]


@needs_tun
def test_an_address_that_goes_while_a_plan_is_read_is_kept_from_others_all_the_same(
    helper: Conversation,
) -> None:
    host, address = helper.host, "192.0.2.9"
    helper.ask(Apply(PLAN))
    for _ in range(2):
        host.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
        assert helper.ask(Retain((address,))) == Done()
        assert len(helper.tables()) == 1
        helper.socket.sendall(encode_request(Apply(replace(PLAN, routes=MANY_ROUTES))))
        host.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])
        assert isinstance(helper.say(b""), Applied)
        helper.ask(Suspects())  # before it, whatever is still to be followed is
        assert len(helper.tables()) == 3  # those of IPv4 and ARP
        assert helper.ask(Retain(())) == Done()


def test_undo_removes_what_is_retained_and_what_captures(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert helper.ask(Undo()) == Done()
    assert helper.tables() == []


def test_a_table_that_somebody_flushed_is_made_again_by_the_next_plan(
    helper: Conversation,
) -> None:
    reply = helper.ask(Apply(PLAN))
    assert isinstance(reply, Applied)
    helper.host.run(["nft", "flush", "ruleset"])
    assert bool(helper.tables()) == reply.owner  # which nobody else can remove
    assert isinstance(helper.ask(Apply(PLAN)), Applied)
    assert "10.0.0.0/8" in helper.rules()
    helper.host.run(["nft", "flush", "ruleset"])
    assert helper.ask(Undo()) == Done()


def test_plain_rules_that_somebody_has_flushed_are_told_of_once_and_come_again(host: Host) -> None:
    with Conversation(host, "plain") as helper:
        helper.greet()
        helper.ask(Apply(PLAN))
        for _ in range(2):
            host.run(["nft", "flush", "ruleset"])
            assert decode_reply(helper.line()) == Lost(Part.RULES)
            assert isinstance(helper.ask(Apply(PLAN)), Applied)
            assert "10.0.0.0/8" in helper.rules()
        # What is asked meanwhile is no error: it comes with the next plan.
        host.run(["nft", "flush", "ruleset"])
        assert helper.ask(Bypass((("192.0.2.8", 22),))) == Done()


def test_owned_rules_are_safe_and_nothing_is_told(host: Host) -> None:
    with Conversation(host) as helper:
        helper.greet()
        helper.ask(Apply(PLAN))
        host.run(["nft", "flush", "ruleset"])
        assert isinstance(helper.ask(Suspects()), Suspected)
        assert "10.0.0.0/8" in helper.rules()


@needs_tun
def test_a_device_that_somebody_removes_is_told_of_and_made_again(helper: Conversation) -> None:
    host, address = helper.host, "192.0.2.9"
    helper.ask(Apply(PLAN))
    host.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    assert helper.ask(Retain((address,))) == Done()
    host.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])
    device = host.run(["ip", "route", "get", address]).stdout
    host.run(["ip", "link", "delete", "sshunt0"])
    assert decode_reply(helper.line()) == Lost(Part.DEVICE)
    assert helper.ask(Retain((address,))) == Done()
    assert host.run(["ip", "route", "get", address]).stdout == device


def test_a_table_that_a_plan_could_not_take_back_does_not_keep_the_next_one_from_coming(
    helper: Conversation,
) -> None:
    helper.ask(Apply(PLAN))
    for name in (f"sshunt-{SESSION}-2", f"sshunt-{SESSION}"):
        helper.host.run(["nft", "add", "table", "inet", name])
        assert isinstance(helper.ask(Apply(PLAN)), Applied)
        assert helper.tables() == [f"inet {name}"]
    helper.host.run(["nft", "add", "table", "inet", f"sshunt-{SESSION}-2"])
    assert helper.ask(Undo()) == Done()
    assert helper.tables() == []


def test_after_a_call_that_got_stuck_the_next_plan_is_owned_as_any_other(host: Host) -> None:
    with Conversation(host, "impatient") as helper:
        helper.greet()
        stopped = threading.Thread(target=stop_libnftables, args=[helper.process.pid])
        stopped.start()
        reply = helper.ask(Apply(replace(PLAN, routes=MANY_ROUTES)))
        stopped.join()
        assert refusal(reply) is Refusal.STUCK
        assert helper.tables() == []
        reply = helper.ask(Apply(PLAN))
        assert "10.0.0.0/8" in helper.rules()
        helper.ask(Undo())
        assert helper.ask(Apply(PLAN)) == reply


def stop_libnftables(helper: int) -> None:
    """Stop the child of the helper that is in the library; before it comes the sweeper."""
    children: dict[str, psutil.Process] = {}
    while len(children) < 2 or "sweeper" not in children:
        children = {child.name(): child for child in psutil.Process(helper).children()}
        time.sleep(0.001)
    del children["sweeper"]
    for child in children.values():
        child.suspend()


def test_chains_of_others_are_told_when_asked_for(helper: Conversation) -> None:
    helper.ask(Apply(PLAN))
    assert helper.ask(Suspects()) == Suspected(())


def test_a_guard_comes_with_a_table_that_only_marks(helper: Conversation) -> None:
    reply = helper.ask(Guard())
    assert isinstance(reply, Guarded)
    assert helper.ask(Guard()) == reply
    assert (helper.tables() != []) == reply.guarded
    assert "redirect" not in helper.rules()
    helper.ask(Apply(PLAN))
    assert "redirect" in helper.rules() or "dnat" in helper.rules()
    helper.ask(Undo())
    assert (helper.tables() != []) == reply.guarded  # ssh is what may bring the rules back


def test_a_guard_may_come_after_what_a_plan_before_has_left(host: Host) -> None:
    here = replace(PLAN, redirects=(Redirect(What.CONNECTIONS, (host.v4, 12300)),))
    replies = []
    histories: list[list[Request]] = [[], [Apply(here), Undo()]]
    for requests in histories:
        with Conversation(host) as helper:
            helper.greet()
            for request in requests:
                helper.ask(request)
            replies.append(helper.ask(Guard()))
            assert ("gone" in helper.rules()) == bool(requests)
    assert replies[0] == replies[1]
