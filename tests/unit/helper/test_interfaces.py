"""Which addresses this host has: what the kernel says, and what it said before."""

import select
import subprocess
from collections.abc import Iterator

import pytest

from sshunt.helper.interfaces import Interfaces
from sshunt.lab.hosts import Host


@pytest.fixture
def interfaces(host: Host) -> Iterator[Interfaces]:
    """Of that host, in which this thread is for as long."""
    with host.entered():
        interfaces = Interfaces()
        yield interfaces
        interfaces.close()


def test_the_addresses_are_known_with_their_interfaces(interfaces: Interfaces) -> None:
    assert interfaces.links["10.55.0.2"] == interfaces.links["fd00:55::2"] == "to-server"
    assert interfaces.links["127.0.0.1"] == "lo"
    assert interfaces.had("127.0.0.1")
    assert not interfaces.had("127.0.0.2")


def test_an_address_that_comes_and_goes_is_news_and_remembered(
    host: Host, interfaces: Interfaces
) -> None:
    for address in ("192.0.2.9/32", "2001:db8::9/128"):
        bare = address.partition("/")[0]
        assert not interfaces.had(bare)
        for change in ("add", "delete"):
            at_once = ["nodad"] if change == "add" else []
            assert not select.select([interfaces], [], [], 0)[0]
            host.run(["ip", "address", change, address, "dev", "lo", *at_once])
            assert select.select([interfaces], [], [], 5)[0]
            interfaces.look()
            assert (bare in interfaces.links) == (change == "add")
            assert interfaces.had(bare)


def test_an_address_that_may_be_another_host_s_is_not_ours_yet(
    host: Host, interfaces: Interfaces
) -> None:
    # Without anybody at the other end of it, a link asks long enough whether somebody has it.
    host.run(["ip", "link", "add", "one", "type", "veth", "peer", "name", "other"])
    try:
        host.run(["sysctl", "-q", "net.ipv6.conf.one.dad_transmits=100"], check=False)
        for link in ("one", "other"):
            host.run(["ip", "link", "set", link, "up"])
        host.run(["ip", "address", "add", "2001:db8:9::1/64", "dev", "one"])
        shown = host.run(["ip", "address", "show", "dev", "one"]).stdout
        interfaces.look()
        assert "tentative" in shown
        assert "2001:db8:9::1" not in interfaces.links
    finally:
        host.run(["ip", "link", "delete", "one"])


def test_the_number_of_remembered_former_addresses_is_bounded(
    host: Host, interfaces: Interfaces
) -> None:
    numbers = [f"10.77.{i // 250}.{i % 250 + 1}" for i in range(1030)]
    for change in ("add", "delete"):
        batch = "".join(f"address {change} {number}/32 dev lo\n" for number in numbers)
        subprocess.run(
            host.command(["ip", "-batch", "-"]), input=batch.encode(), check=True, timeout=60
        )
        interfaces.look()
    assert sum(map(interfaces.had, numbers)) < len(numbers)
    assert interfaces.had(host.v4)
