"""Routes and endpoints: what they say about themselves."""

from ipaddress import ip_address, ip_network

import pytest

from sshunt.model import Action, Route, check_endpoint

OFFICE = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("first", "last", "every"), [(0, 65535, True), (0, 0, False), (1, 65535, False), (0, 80, False)]
)
def test_a_route_of_the_whole_range_looks_at_no_port(first: int, last: int, every: bool) -> None:
    assert Route(OFFICE, Action.REMOTE, first, last).every_port is every


def test_a_route_without_ports_is_for_every_port() -> None:
    assert Route(OFFICE, Action.REMOTE).every_port


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_an_endpoint_is_a_numeric_address_and_a_port(address: str) -> None:
    assert check_endpoint((address, 1)) == check_endpoint((address, 65535)) == ip_address(address)


@pytest.mark.parametrize(
    "endpoint",
    [("192.0.2.7", 0), ("192.0.2.7", 65536), ("fe80::1%eth0", 22), ("gate.example", 22), ("", 22)],
)
def test_what_is_no_endpoint_is_refused(endpoint: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r"port|scope|address"):
        check_endpoint(endpoint)
