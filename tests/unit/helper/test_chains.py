"""Chains of others that may stop what is captured: found in a real kernel, told as text."""

from collections.abc import Iterator

import pytest

from sshunt.helper.chains import MOST_CHAINS, suspects
from sshunt.lab.hosts import Host


@pytest.fixture(autouse=True)
def inside(host: Host) -> Iterator[None]:
    """In that host, which has no rules before and none after."""
    with host.entered():
        yield
    host.run(["nft", "flush", "ruleset"])


def rules(host: Host, *lines: str) -> None:
    for line in lines:
        host.run(["nft", line])


def test_a_host_without_rules_has_no_suspects() -> None:
    assert suspects() == ()


@pytest.mark.parametrize("hook", ["input", "output"])
def test_a_chain_that_drops_by_default_is_one(host: Host, hook: str) -> None:
    rules(
        host,
        "add table inet firewall",
        f"add chain inet firewall every {{ type filter hook {hook} priority 0; policy drop; }}",
    )
    assert suspects() == (f"table inet firewall, chain every ({hook}: drops by default)",)


def test_a_chain_that_sees_packets_before_they_are_tracked_is_one(host: Host) -> None:
    rules(
        host,
        "add table ip early",
        "add chain ip early raw { type filter hook output priority -300; }",
    )
    (only,) = suspects()
    assert only == "table ip early, chain raw (output: before connections are tracked)"


def test_chains_that_cannot_stop_it_are_none(host: Host) -> None:
    rules(
        host,
        "add table inet harmless",
        "add chain inet harmless accepts { type filter hook input priority 0; policy accept; }",
        "add chain inet harmless routes { type filter hook forward priority 0; policy drop; }",
        "add chain inet harmless called",
        "add table bridge harmless",
        "add chain bridge harmless b { type filter hook input priority 0; policy drop; }",
    )
    assert suspects() == ()


def test_a_session_s_own_table_is_none(host: Host) -> None:
    rules(
        host,
        "add table inet sshunt-01234567",
        "add chain inet sshunt-01234567 every { type filter hook input priority 0; policy drop; }",
    )
    assert suspects() == ()


def test_no_more_are_told_than_a_person_reads(host: Host) -> None:
    rules(host, "add table inet many")
    for number in range(MOST_CHAINS + 3):
        chain = f"chain inet many c{number} {{ type filter hook input priority 0; policy drop; }}"
        rules(host, f"add {chain}")
    assert len(suspects()) == MOST_CHAINS
