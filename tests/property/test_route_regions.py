"""Regions and look-up are two views of one thing: the most specific route wins."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.capture.plan import Region, remote_regions
from sshunt.model import Action, Network, Route
from sshunt.route.routes import RouteTable

pytestmark = pytest.mark.fuzz

# Few distinct bits and ports, so that networks nest and ranges touch nearly always.
_BITS = {4: 32, 6: 128}
_PORTS = st.sampled_from([0, 1, 21, 22, 23, 79, 80, 81, 443, 65534, 65535])


@st.composite
def _networks(draw: st.DrawFn, family: int) -> Network:
    bits = _BITS[family]
    width = draw(st.sampled_from([0, 1, 7, 8, 9, bits - 2, bits - 1, bits]))
    high, low = draw(st.integers(0, 7)), draw(st.integers(0, 7))
    number = high << (bits - 9) | low
    address = ip_address(number.to_bytes(bits // 8, "big"))
    return ip_network((address, width), strict=False)


@st.composite
def _routes(draw: st.DrawFn, family: int) -> Route:
    first, last = sorted((draw(_PORTS), draw(_PORTS)))
    return Route(draw(_networks(family)), draw(st.sampled_from(Action)), first, last)


def _holds(region: Region, number: int, port: int) -> bool:
    return (
        region.first_address <= number <= region.last_address
        and region.first_port <= port <= region.last_port
    )


@given(st.data(), st.sampled_from([4, 6]))
@settings(max_examples=150, deadline=None)
def test_regions_cover_exactly_what_the_route_table_sends_to_the_remote(
    data: st.DataObject, family: int
) -> None:
    routes = data.draw(st.lists(_routes(family), max_size=12))
    regions = remote_regions(routes, family)
    table = RouteTable(routes)
    bits = _BITS[family]
    edges = {0, (1 << bits) - 1}
    for route in routes:
        first, last = int(route.network[0]), int(route.network[-1])
        edges |= {first, last, max(first - 1, 0), min(last + 1, (1 << bits) - 1)}
    for number in edges:
        address = ip_address(number.to_bytes(bits // 8, "big"))
        for port in (1, 22, 80, 81, 65535, data.draw(st.integers(0, 65535))):
            route_found = table.lookup(address, port)
            remote = route_found is not None and route_found.action is Action.REMOTE
            assert sum(_holds(region, number, port) for region in regions) == remote


@given(st.lists(_routes(4), max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_routes_does_not_matter(routes: list[Route]) -> None:
    assert remote_regions(routes, 4) == remote_regions(routes[::-1], 4)
