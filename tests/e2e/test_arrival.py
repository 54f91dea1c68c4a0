"""A firewall of this host that stops what is captured is told of; where there is none, nothing is.

client: sshunt, and a table "strict" of somebody else's beside its own
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sshunt.lab.world import Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import OFFICE, fetch

STOPPED = "are captured and do not arrive"

#: As ufw's "default deny outgoing": lo is let out, but what will be redirected is not yet on lo.
DENY_OUTGOING = """
chain outgoing {
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ct state established,related accept
    tcp dport 22 accept
    meta l4proto ipv6-icmp accept
}
"""

DENY_INCOMING = """
chain incoming {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    meta l4proto ipv6-icmp accept
}
"""

NO_TRACKING = """
chain untracked {
    type filter hook output priority raw; policy accept;
    ip daddr 10.55.0.0/24 notrack
    ip6 daddr fd00:55::/64 notrack
}
"""


@contextmanager
def firewall(lab: Lab, chains: str) -> Iterator[None]:
    """Rules of another program on the client."""
    lab.client.run(["nft", "-f", "-"], stdin=f"table inet strict {{\n{chains}\n}}\n")
    try:
        yield
    finally:
        lab.client.run(["nft", "delete", "table", "inet", "strict"])


@pytest.mark.parametrize("chains", [DENY_OUTGOING, NO_TRACKING], ids=["deny", "notrack"])
def test_a_firewall_that_stops_what_is_captured_is_told_of(
    lab: Lab, start: Start, chains: str
) -> None:
    with firewall(lab, chains):
        tunnel = start("-r", "server", *OFFICE)
        tunnel.wait_until(lambda: STOPPED in tunnel.said)
        assert "to the IPv4 and IPv6 targets" in tunnel.said
        assert ": table inet strict, chain " in tunnel.said
        tunnel.stop()


def test_with_listen_an_input_chain_that_drops_is_named(lab: Lab, start: Start) -> None:
    with firewall(lab, DENY_INCOMING):
        tunnel = start("-r", "server", "-l", "0.0.0.0:0,[::]:0", *OFFICE)
        tunnel.wait_until(lambda: "table inet strict, chain incoming" in tunnel.said)
        assert "hosts behind this one get through only if" in tunnel.said
        assert STOPPED not in tunnel.said
        tunnel.stop()


def test_a_successful_arrival_check_says_nothing_and_never_reaches_the_far_side(
    lab: Lab, start: Start
) -> None:
    tunnel = start("-v", "-r", "server", *OFFICE)
    tunnel.wait_until(lambda: "IPv6 arrived" in tunnel.said)
    assert STOPPED not in tunnel.said
    assert "stream" not in tunnel.said
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_a_target_without_a_route_is_mentioned_with_v(lab: Lab, start: Start) -> None:
    lab.client.run(["ip", "-6", "route", "delete", "default"])
    try:
        tunnel = start("-v", "-r", "192.0.2.2", *OFFICE)
        tunnel.wait_until(lambda: "has no IPv6 route to" in tunnel.said)
        assert STOPPED not in tunnel.said
    finally:
        lab.client.run(["ip", "-6", "route", "add", "default", "via", "2001:db8:1::2"])
