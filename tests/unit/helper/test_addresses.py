"""Kept addresses: this host's own without being on any interface, in a namespace of the lab."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.helper.addresses import KeptAddresses
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab

V4, OTHER_V4, V6 = "192.0.2.9", "192.0.2.10", "2001:db8::9"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")
    return lab.target


@pytest.fixture
def kept(host: Host) -> Iterator[KeptAddresses]:
    """Of that host, in which this thread is for as long."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with host.entered():
        kept = KeptAddresses()
        yield kept
        kept.close()
    assert devices(host) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def devices(host: Host) -> list[str]:
    listing = host.run(["ip", "-o", "link"]).stdout
    return [name for line in listing.splitlines() if (name := line.split()[1]).startswith("sshunt")]


def is_own(address: str) -> bool:
    """True if what is sent to that address stays in this host."""
    command = ["ip", "route", "get", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.startswith("local ")


def test_a_kept_address_is_this_host_s_own_and_on_no_interface(
    host: Host, kept: KeptAddresses
) -> None:
    assert not is_own(V4)
    kept.keep([V4, V6])
    assert is_own(V4)
    assert is_own(V6)
    shown = host.run(["ip", "address"]).stdout
    assert V4 not in shown
    assert V6 not in shown


def test_what_is_kept_next_takes_the_place_of_what_was_kept(
    host: Host, kept: KeptAddresses
) -> None:
    kept.keep([V4, V6])
    kept.keep([OTHER_V4, V6])
    assert [is_own(address) for address in (V4, OTHER_V4, V6)] == [False, True, True]
    assert len(devices(host)) == 1


def test_nothing_to_keep_leaves_no_device(host: Host, kept: KeptAddresses) -> None:
    kept.keep([V4])
    assert len(devices(host)) == 1
    kept.keep([])
    assert devices(host) == []
    assert not is_own(V4)


def test_what_can_not_be_kept_changes_nothing(host: Host, kept: KeptAddresses) -> None:
    host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    try:
        kept.keep([V4])
        with pytest.raises(OSError, match=r"."):
            kept.keep([OTHER_V4, V6])
        assert [is_own(address) for address in (V4, OTHER_V4, V6)] == [True, False, False]
        kept.keep([])
        with pytest.raises(OSError, match=r"."):
            kept.keep([V6])
        assert devices(host) == []
    finally:
        host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "0")


def test_two_sessions_may_keep_the_same_address_and_end_one_by_one(
    host: Host, kept: KeptAddresses
) -> None:
    kept.keep([V4])
    other = KeptAddresses()
    other.keep([V4])
    assert len(devices(host)) == 2
    other.close()
    assert is_own(V4)


def test_a_kept_address_that_comes_back_stays_when_it_is_kept_no_more(
    host: Host, kept: KeptAddresses
) -> None:
    kept.keep([V4])
    host.run(["ip", "address", "add", f"{V4}/32", "dev", "lo"])
    try:
        kept.keep([])
        assert is_own(V4)
    finally:
        host.run(["ip", "address", "delete", f"{V4}/32", "dev", "lo"])


def test_kept_addresses_may_be_closed_twice(kept: KeptAddresses) -> None:
    kept.keep([V4])
    kept.close()
    kept.close()
    assert not is_own(V4)
