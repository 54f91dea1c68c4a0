"""A plan is well-formed if it exists; routes become disjoint regions."""

from ipaddress import ip_network

import pytest

from sshunt.capture.plan import Plan, Region, remote_regions
from sshunt.model import Action, Endpoint, Route

_REMOTE, _DIRECT = Action.REMOTE, Action.DIRECT
_TEN = int(ip_network("10.0.0.0/8").network_address)


def _route(network: str, action: Action, first: int = 0, last: int = 65535) -> Route:
    return Route(ip_network(network), action, first, last)


@pytest.mark.parametrize(
    "session", ["", "0123456", "0123456789abcdef0", "0123456g", "ABCDEF01", "01234567\n"]
)
def test_a_plan_refuses_a_session_id_that_could_be_anything_else(session: str) -> None:
    with pytest.raises(ValueError, match="session"):
        Plan(session, None, None, ())


@pytest.mark.parametrize(
    ("listen4", "listen6", "bypass"),
    [
        (("localhost", 80), None, ()),
        (("::1", 80), None, ()),
        (None, ("127.0.0.1", 80), ()),
        (("127.0.0.1", 0), None, ()),
        (("127.0.0.1", 65536), None, ()),
        (None, ("fe80::1%eth0", 80), ()),
        (None, None, (("10.0.0.1 } flush ruleset", 22),)),
    ],
)
def test_a_plan_refuses_what_is_not_a_numeric_endpoint_of_its_family(
    listen4: Endpoint | None, listen6: Endpoint | None, bypass: tuple[Endpoint, ...]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        Plan("01234567", listen4, listen6, (), bypass)


def test_forwarded_traffic_is_captured_only_by_a_listener_that_others_can_reach() -> None:
    plan = Plan("01234567", ("127.0.0.1", 1), ("::", 1), ())
    assert not plan.forwards(4)
    assert plan.forwards(6)
    assert not Plan("01234567", None, None, ()).forwards(4)


def test_no_routes_are_no_regions() -> None:
    assert remote_regions([], 4) == []
    assert remote_regions([_route("::/0", _REMOTE)], 4) == []


def test_everything_is_one_region() -> None:
    assert remote_regions([_route("0.0.0.0/0", _REMOTE)], 4) == [Region(0, 2**32 - 1, 0, 65535)]
    assert remote_regions([_route("::/0", _REMOTE)], 6) == [Region(0, 2**128 - 1, 0, 65535)]


def test_an_exclusion_makes_a_hole_and_what_is_inside_it_comes_back() -> None:
    routes = [
        _route("10.0.0.0/8", _REMOTE),
        _route("10.1.0.0/16", _DIRECT),
        _route("10.1.2.3/32", _REMOTE),
    ]
    hole = _TEN + 0x10000
    assert remote_regions(routes, 4) == [
        Region(_TEN, hole - 1, 0, 65535),
        Region(hole + 0x203, hole + 0x203, 0, 65535),
        Region(hole + 0x10000, _TEN + 0xFFFFFF, 0, 65535),
    ]


def test_ports_split_a_region_only_where_they_differ() -> None:
    routes = [
        _route("10.0.0.0/31", _REMOTE),
        _route("10.0.0.1/32", _DIRECT, 22, 22),
    ]
    assert remote_regions(routes, 4) == [
        Region(_TEN, _TEN, 0, 65535),
        Region(_TEN + 1, _TEN + 1, 0, 21),
        Region(_TEN + 1, _TEN + 1, 23, 65535),
    ]


def test_neighbours_with_the_same_ports_are_merged() -> None:
    routes = [_route(f"10.0.{i}.0/24", _REMOTE, 80, 90) for i in range(256)]
    assert remote_regions(routes, 4) == [Region(_TEN, _TEN + 0xFFFF, 80, 90)]


def test_adjoining_port_ranges_are_merged() -> None:
    routes = [_route("10.0.0.0/8", _REMOTE, 80, 89), _route("10.0.0.0/8", _REMOTE, 90, 99)]
    assert remote_regions(routes, 4) == [Region(_TEN, _TEN + 0xFFFFFF, 80, 99)]


def test_routes_that_overlap_in_too_many_pieces_are_refused() -> None:
    ports = [_route("10.0.0.0/8", _REMOTE, port, port) for port in range(2, 10000, 2)]
    holes = [_route(f"10.0.{i}.0/32", _DIRECT, 2, 9998) for i in range(256)]
    with pytest.raises(ValueError, match="pieces"):
        remote_regions(ports + holes, 4)
