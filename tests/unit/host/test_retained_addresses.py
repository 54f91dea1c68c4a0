"""Which addresses a host has lost: asked of a host of the lab's, which loses some."""

import secrets
from collections.abc import Iterator

import pytest

from sshunt.helper.protocol import MAX_RETAINED
from sshunt.host.retained_addresses import RetainedAddresses, link_of, links_of_all
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.target


@pytest.fixture(autouse=True)
def inside(host: Host) -> Iterator[None]:
    """This thread is in that host meanwhile."""
    with host.entered():
        yield


@pytest.fixture
def link(host: Host) -> Iterator[str]:
    """A link of this test's own."""
    name = f"t{secrets.token_hex(3)}"
    host.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"])
    host.run(["ip", "link", "set", name, "up"])
    yield name
    host.run(["ip", "link", "delete", name])


def change(host: Host, link: str, verb: str, *addresses: str) -> None:
    for address in addresses:
        bits = 128 if ":" in address else 32
        nodad = ["nodad"] if verb == "add" and bits == 128 else []
        host.run(["ip", "address", verb, f"{address}/{bits}", "dev", link, *nodad])


_BOTH = ("192.0.2.61", "2001:db8:61::1")


def test_an_address_that_is_used_and_gone_is_needed_until_it_is_used_no_more(
    host: Host, link: str
) -> None:
    change(host, link, "add", *_BOTH)
    addresses = RetainedAddresses()
    assert addresses.needed(_BOTH) == ()
    change(host, link, "delete", *_BOTH)
    assert addresses.needed(_BOTH) == _BOTH
    assert addresses.needed(_BOTH[:1]) == _BOTH[:1]
    assert addresses.needed(()) == ()
    assert addresses.needed(_BOTH) == ()  # who uses it now is another host


def test_an_address_that_comes_back_is_not_needed(host: Host, link: str) -> None:
    change(host, link, "add", *_BOTH)
    addresses = RetainedAddresses()
    change(host, link, "delete", *_BOTH)
    assert addresses.needed(_BOTH) == _BOTH
    change(host, link, "add", *_BOTH)
    assert addresses.needed(_BOTH) == ()


def test_an_address_that_came_after_the_start_is_known_once_it_was_looked_at(
    host: Host, link: str
) -> None:
    addresses = RetainedAddresses()
    change(host, link, "add", *_BOTH)
    addresses.needed(())
    change(host, link, "delete", *_BOTH)
    assert addresses.needed(_BOTH) == _BOTH


def test_addresses_of_other_hosts_and_those_of_one_link_are_never_needed(
    host: Host, link: str
) -> None:
    change(host, link, "add", "169.254.7.7")
    addresses = RetainedAddresses()
    change(host, link, "delete", "169.254.7.7")
    assert addresses.needed(["198.51.100.9", "2001:db8:99::9", "169.254.7.7"]) == ()


def test_no_more_are_needed_than_can_be_retained(host: Host, link: str) -> None:
    many = [f"192.0.2.{number}" for number in range(100, 101 + MAX_RETAINED)]
    change(host, link, "add", *many)
    addresses = RetainedAddresses()
    change(host, link, "delete", *many)
    assert addresses.needed(many) == tuple(many[:MAX_RETAINED])


def test_a_link_is_found_by_its_address(host: Host, link: str) -> None:
    change(host, link, "add", *_BOTH)
    assert [link_of(address) for address in _BOTH] == [link, link]
    assert link_of("198.51.100.9") == ""
    assert [links_of_all()[address] for address in _BOTH] == [link, link]
