"""Kept addresses: this host's own without being on any interface, in a namespace of the lab."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.helper.addresses import RetainedAddresses
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab

V4, OTHER_V4, V6 = "192.0.2.9", "192.0.2.10", "2001:db8::9"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")
    return lab.target


@pytest.fixture
def retained(host: Host) -> Iterator[RetainedAddresses]:
    """Of that host, in which this thread is for as long."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with host.entered():
        retained = RetainedAddresses()
        yield retained
        retained.close()
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


def test_a_retained_address_is_this_host_s_own_and_on_no_interface(
    host: Host, retained: RetainedAddresses
) -> None:
    assert not is_own(V4)
    retained.retain([V4, V6])
    assert is_own(V4)
    assert is_own(V6)
    shown = host.run(["ip", "address"]).stdout
    assert V4 not in shown
    assert V6 not in shown


def test_what_is_retained_next_takes_the_place_of_what_was_retained(
    host: Host, retained: RetainedAddresses
) -> None:
    retained.retain([V4, V6])
    retained.retain([OTHER_V4, V6])
    assert [is_own(address) for address in (V4, OTHER_V4, V6)] == [False, True, True]
    assert len(devices(host)) == 1


def test_nothing_to_retain_leaves_no_device(host: Host, retained: RetainedAddresses) -> None:
    retained.retain([V4])
    assert len(devices(host)) == 1
    retained.retain([])
    assert devices(host) == []
    assert not is_own(V4)


def test_what_can_not_be_retained_changes_nothing(host: Host, retained: RetainedAddresses) -> None:
    host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    try:
        retained.retain([V4])
        with pytest.raises(OSError, match=r"."):
            retained.retain([OTHER_V4, V6])
        assert [is_own(address) for address in (V4, OTHER_V4, V6)] == [True, False, False]
        retained.retain([])
        with pytest.raises(OSError, match=r"."):
            retained.retain([V6])
        assert devices(host) == []
    finally:
        host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "0")


def test_where_somebody_has_removed_the_device_its_addresses_can_be_let_go(
    host: Host, retained: RetainedAddresses
) -> None:
    retained.retain([V4, V6])
    host.run(["ip", "link", "delete", *devices(host)])
    retained.retain([V4])
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        retained.retain([V4, OTHER_V4])
    retained.retain([])
    retained.retain([V4])
    assert is_own(V4)


def test_two_sessions_may_retain_the_same_address_and_end_one_by_one(
    host: Host, retained: RetainedAddresses
) -> None:
    retained.retain([V4])
    other = RetainedAddresses()
    other.retain([V4])
    assert len(devices(host)) == 2
    other.close()
    assert is_own(V4)


def test_a_retained_address_that_comes_back_stays_when_it_is_retained_no_more(
    host: Host, retained: RetainedAddresses
) -> None:
    retained.retain([V4])
    host.run(["ip", "address", "add", f"{V4}/32", "dev", "lo"])
    try:
        retained.retain([])
        assert is_own(V4)
    finally:
        host.run(["ip", "address", "delete", f"{V4}/32", "dev", "lo"])


def test_retained_addresses_may_be_closed_twice(retained: RetainedAddresses) -> None:
    retained.retain([V4])
    retained.close()
    retained.close()
    assert not is_own(V4)
