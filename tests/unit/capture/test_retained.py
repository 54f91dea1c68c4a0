"""The rules around retained addresses, and that the real nft takes them."""

import os
import shutil
import subprocess
from ipaddress import ip_address

import pytest

from sshunt.capture.retained import render_retained, retained_in_families

_SESSION = "0123456789abcdef"


def nft(*addresses: str, owner: bool) -> str:
    """What nft says of a network namespace of its own that has the tables for these."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        pytest.skip("needs root and nft")
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", "nft -f - && nft list ruleset"],
        input=rendered(*addresses, owner=owner),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def rendered(*addresses: str, owner: bool) -> str:
    families = retained_in_families(addresses).items()
    return "".join(
        render_retained(_SESSION, family, kept, owner=owner) for family, kept in families
    )


def test_each_family_has_its_own_tables_and_none_without_addresses() -> None:
    first, second, third = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
    assert retained_in_families(["192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.1"]) == {
        "ip": [first, second],
        "arp": [first, second],
        "ip6": [third],
    }
    assert retained_in_families(["2001:db8::1"]) == {"ip6": [third]}
    assert retained_in_families([]) == {}


def test_what_is_kept_is_named_in_each_table_of_its_family() -> None:
    shown = nft("192.0.2.1", "2001:db8::1", owner=False)
    assert shown.count("192.0.2.1") == 2
    assert shown.count("2001:db8::1") == 1


def test_only_tables_that_the_kernel_does_not_own_expire() -> None:
    assert "timeout" not in rendered("192.0.2.1", owner=True)
    assert nft("192.0.2.1", owner=False).count("expires") == 2
