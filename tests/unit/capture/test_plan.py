"""A plan is well-formed if it exists; routes become disjoint regions."""

import random
from ipaddress import IPv4Address, ip_address, ip_network, summarize_address_range

import pytest

from sshunt.capture.plan import (
    Plan,
    Redirect,
    Region,
    What,
    prefixes,
    redirects,
    remote_regions,
)
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
        Plan(session, (), ())


@pytest.mark.parametrize(
    "endpoint",
    [
        ("localhost", 80),
        ("127.0.0.1", 0),
        ("127.0.0.1", 65536),
        ("fe80::1%eth0", 80),
        ("10.0.0.1 } flush ruleset", 22),
    ],
)
def test_a_plan_refuses_what_is_not_a_numeric_endpoint(endpoint: Endpoint) -> None:
    for what in What:
        with pytest.raises(ValueError, match=r"."):
            Plan("01234567", (Redirect(what, endpoint),), ())
    with pytest.raises(ValueError, match=r"."):
        Plan("01234567", (), (), bypass=(endpoint,))


@pytest.mark.parametrize("resolver", ["localhost", "fe80::1%eth0", "127.0.0.1 } flush ruleset"])
def test_a_plan_refuses_a_resolver_that_is_not_a_numeric_address(resolver: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Plan("01234567", (), (), resolvers=(resolver,))


def test_of_each_family_connections_and_queries_arrive_at_one_place_each() -> None:
    four, six = ("127.0.0.1", 1), ("::1", 1)
    plan = Plan("01234567", redirects([four, six], [six]), ())
    assert (plan.listener(4), plan.listener(6)) == (four, six)
    assert (plan.dns(4), plan.dns(6)) == (None, six)
    for twice in (redirects([four, ("192.0.2.1", 2)]), redirects([], [six, six])):
        with pytest.raises(ValueError, match="two redirects of the same"):
            Plan("01234567", twice, ())


def test_datagrams_arrive_where_connections_of_their_family_do() -> None:
    four, six = ("127.0.0.1", 1), ("::1", 1)
    plan = Plan("01234567", redirects([four, six], (), [("127.0.0.1", 2)]), ())
    assert (plan.datagrams(4), plan.datagrams(6)) == (("127.0.0.1", 2), None)
    with pytest.raises(ValueError, match="where no connections do"):
        Plan("01234567", redirects([four], (), [six]), ())


def test_forwarded_traffic_is_captured_only_by_a_listener_that_others_can_reach() -> None:
    plan = Plan("01234567", redirects([("127.0.0.1", 1), ("::", 1)]), ())
    assert not plan.forwards(4)
    assert plan.forwards(6)
    assert not Plan("01234567", (), ()).forwards(4)


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


@pytest.mark.parametrize("bits", [1, 4, 5])
def test_a_range_takes_as_many_prefixes_as_the_standard_library_finds(bits: int) -> None:
    for first in range(1 << bits):
        for last in range(first, 1 << bits):
            found = summarize_address_range(IPv4Address(first), IPv4Address(last))
            assert prefixes(first, last) == len(list(found))


@pytest.mark.parametrize(
    ("everything", "bits"), [("0.0.0.0/0", 32), ("::/0", 128)], ids=["IPv4", "IPv6"]
)
def test_a_plan_that_would_keep_the_kernel_busy_for_minutes_is_refused(
    everything: str, bits: int
) -> None:
    chosen = random.Random(1)
    holes = [Route(ip_network((chosen.getrandbits(bits), bits)), _DIRECT) for _ in range(19_999)]
    with pytest.raises(ValueError, match="pieces"):
        remote_regions([_route(everything, _REMOTE, 3, 65534), *holes], 4 if bits == 32 else 6)
    whole = [_route(everything, _REMOTE), *holes]  # which are no work
    assert len(remote_regions(whole, 4 if bits == 32 else 6)) > 19_000


@pytest.mark.many
def test_every_network_of_the_largest_plan_may_have_ports() -> None:
    for first, bits in ((ip_address("10.0.0.0"), 24), (ip_address("2001:db8::"), 64)):
        step = 2 << first.max_prefixlen - bits
        networks = [ip_network((int(first) + i * step, bits)) for i in range(20_000)]
        routes = [Route(network, _REMOTE, 443, 443) for network in networks]
        assert len(remote_regions(routes, first.version)) == 20_000


@pytest.mark.parametrize(("first", "last"), [(80, 79), (-1, 80), (80, 65536)])
def test_a_plan_refuses_ports_that_are_no_range(first: int, last: int) -> None:
    route = _route("10.0.0.0/8", _REMOTE, first, last)
    with pytest.raises(ValueError, match="port range"):
        Plan("01234567", (), (route,))


def test_routes_of_both_families_are_regions_of_their_own() -> None:
    routes = [_route("10.0.0.0/32", _REMOTE), _route("::/0", _REMOTE, 80, 80)]
    assert remote_regions(routes, 4) == [Region(_TEN, _TEN, 0, 65535)]
    assert remote_regions(routes, 6) == [Region(0, 2**128 - 1, 80, 80)]


def test_a_network_within_its_like_changes_nothing() -> None:
    routes = [_route("0.0.0.0/0", _REMOTE), _route("255.0.0.0/8", _REMOTE)]
    assert remote_regions(routes, 4) == [Region(0, 2**32 - 1, 0, 65535)]


@pytest.mark.parametrize("name", ["", 'a"b', "eth0*", "a" * 16, "../x", "a b"])
def test_a_link_whose_name_can_t_stand_in_a_rule_makes_no_plan(name: str) -> None:
    with pytest.raises(ValueError, match="interface"):
        Plan("01234567", (), (), links=(name,))
