"""The capture plan: what should be redirected where, and the geometry of its routes.

A ``Plan`` is a value that crosses from the client to the privileged helper, and what every capture
method renders its rules from. A plan that exists is well-formed: the constructor checks the session
id and that all addresses are numeric, so that nothing in it can be rule text in disguise.

``remote_regions`` answers the question that rules ask: which (address, port) points are REMOTE?
Routes overlap and the most specific one wins; kernel sets want disjoint ranges. Rule order could
express the same, one rule per route, but then each new connection is compared with every route
(sshuttle with 855 routes), and ports would need an order of their own.

Theory of operation. Networks nest: two of them are disjoint, or one holds the other. So one sweep
over the address line with a stack of open networks visits every stretch on which the set of
covering networks stays the same. Each stack entry has the *port profile* of its stretch: the
parent's profile with this network's own routes painted over it, least specific first. A profile is
the sorted list of the ports at which REMOTE begins and ends, so painting is two bisections and one
splice. A region is open while consecutive stretches have the same port range, and so neighbours
merge by themselves.

Invariants of the regions: disjoint; a point is in one of them exactly if
``RouteTable(routes).lookup`` says REMOTE for it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

from sshunt.model import (
    ANY_FIRST_PORT,
    ANY_LAST_PORT,
    LINK_NAME,
    Action,
    Endpoint,
    Route,
    check_endpoint,
)

#: The most regions of a plan. The kernel takes more, but rule text and memory grow with it. 20,000
#: random networks with a port range each make 10,000 pieces; 300 port ranges times 300 networks
#: make 90,000.
MAX_REGIONS = 65536

#: The most work of the sweep, about a second of it: bounds of all stretches' profiles together.
#: Thousands of port ranges on a network that holds thousands of others would keep the helper busy
#: for minutes.
MAX_BOUNDS = 4_000_000

#: The most bytes of prefixes in the kernel's tables for regions that look at the port
#: (nft_set_pipapo). It cuts their ranges of addresses and of ports into prefixes, and takes 30 to
#: 60 bytes of memory for each of these bytes. Those between 20,000 random IPv6 addresses would be
#: 70 million: 2 GiB.
MAX_PREFIX_BYTES = 2_000_000

#: The most work of the kernel on them, about 5 s of it: the bytes of prefixes times the regions. It
#: copies the whole table for each region that is added, with all of nftables locked for everybody.
#: 20,000 networks with a port range each take 8e9, and those between 20,000 addresses ten minutes.
MAX_PREFIX_WORK = 12_000_000_000

#: The port at which resolvers listen, for UDP and TCP.
DNS_PORT = 53

_SESSION = re.compile(r"[0-9a-f]{8,16}")


class Region(NamedTuple):
    """A rectangle of addresses (as integers) and ports, all four bounds inclusive."""

    first_address: int
    last_address: int
    first_port: int
    last_port: int

    @property
    def every_port(self) -> bool:
        """True if the region does not look at the port."""
        return self.first_port == ANY_FIRST_PORT and self.last_port == ANY_LAST_PORT


class What(str, Enum):
    """What is redirected."""

    CONNECTIONS = "connections"  # TCP, into the regions that are REMOTE
    QUERIES = "queries"  # TCP and UDP, to port 53 of the resolvers
    DATAGRAMS = "datagrams"  # UDP, into the same regions; at an address where connections arrive


class Method(str, Enum):
    """How it is captured."""

    NFT = "nft"  # nftables, by redirection
    NAT = "nat"  # iptables, by redirection: TCP and DNS


class Connect(str, Enum):
    """When a program's connect() succeeds."""

    AUTO = "auto"  # as HONEST, but at once where somebody has answered a moment ago
    HONEST = "honest"  # when the far side is connected; it fails as that fails
    FAST = "fast"  # at once, whatever is there


class Redirect(NamedTuple):
    """Where something that is redirected arrives, of the family that this address has."""

    what: What
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """What to capture. Raises ValueError for a session, address or port that is not one, for two
    redirects of the same, and for datagrams that would arrive elsewhere than connections.
    """

    session: str  # 8..16 lower-case hexadecimal digits; names what is made in the kernel
    redirects: tuple[Redirect, ...]  # a family of which nothing is redirected is left alone
    routes: tuple[Route, ...]
    bypass: tuple[Endpoint, ...] = ()  # the real peers of our own ssh processes; never captured
    resolvers: tuple[str, ...] = ()  # whom this host's programs ask names
    method: Method = Method.NFT
    connect: Connect = Connect.FAST
    echoes: bool = False  # echo requests into regions that hold every port, too
    links: tuple[
        str, ...
    ] = ()  # only what comes in by these is captured of others'; none: see links
    blocks: bool = False  # nothing reaches the regions another way, even after our end (block)

    def __post_init__(self) -> None:
        check_session(self.session)
        kinds = {(what, check_endpoint(endpoint).version) for what, endpoint in self.redirects}
        if len(kinds) != len(self.redirects):
            raise ValueError("two redirects of the same")
        connected = {address for what, (address, _) in self.redirects if what is What.CONNECTIONS}
        for what, (address, _) in self.redirects:
            if what is What.DATAGRAMS and address not in connected:
                raise ValueError("datagrams arrive where no connections do")
        for link in self.links:
            check_link(link)
        for address in self.resolvers:
            check_endpoint((address, DNS_PORT))
        for endpoint in self.bypass:
            check_endpoint(endpoint)
        for route in self.routes:
            if not 0 <= route.first_port <= route.last_port <= ANY_LAST_PORT:
                raise ValueError(f"not a port range: {route.first_port}-{route.last_port}")

    def listener(self, family: int) -> Endpoint | None:
        """Where redirected connections of this family (4 or 6) are accepted, if anywhere."""
        return self._arrives_at(What.CONNECTIONS, family)

    def dns(self, family: int) -> Endpoint | None:
        """Where queries to resolvers of this family (4 or 6) are answered, if anywhere."""
        return self._arrives_at(What.QUERIES, family)

    def datagrams(self, family: int) -> Endpoint | None:
        """Where redirected datagrams of this family (4 or 6) arrive, if anywhere."""
        return self._arrives_at(What.DATAGRAMS, family)

    def forwards(self, family: int) -> bool:
        """True if forwarded traffic is captured too.

        A listener that only this host can reach means: only this host's connections.
        """
        listener = self.listener(family)
        return listener is not None and not ip_address(listener[0]).is_loopback

    def _arrives_at(self, wanted: What, family: int) -> Endpoint | None:
        for what, endpoint in self.redirects:
            if what is wanted and ip_address(endpoint[0]).version == family:
                return endpoint
        return None


def redirects(
    connections: Iterable[Endpoint],
    queries: Iterable[Endpoint] = (),
    datagrams: Iterable[Endpoint] = (),
) -> tuple[Redirect, ...]:
    """Those of a plan whose connections, queries and datagrams arrive there."""
    return (
        *(Redirect(What.CONNECTIONS, endpoint) for endpoint in connections),
        *(Redirect(What.QUERIES, endpoint) for endpoint in queries),
        *(Redirect(What.DATAGRAMS, endpoint) for endpoint in datagrams),
    )


def check_link(name: str) -> None:
    """Raises ValueError unless this is the name of an interface that may stand in a rule."""
    if not LINK_NAME.fullmatch(name):
        raise ValueError("not the name of an interface")


def check_session(session: str) -> None:
    """Raises ValueError unless ``session`` is 8..16 lower-case hexadecimal digits."""
    if not _SESSION.fullmatch(session):
        raise ValueError("not a session id")


def remote_regions(routes: Iterable[Route], family: int) -> list[Region]:
    """The disjoint regions of this family (4 or 6) that are REMOTE, sorted.

    Raises ValueError if they are more than MAX_REGIONS, take more work than MAX_BOUNDS, or take the
    kernel more than MAX_PREFIX_BYTES or MAX_PREFIX_WORK.
    """
    regions: list[Region] = []
    opened: dict[tuple[int, int], int] = {}  # port range -> address where it began
    end = bounds = 0
    for first, last, profile in _stretches(routes, family):
        bounds += len(profile)
        ranges = {(a, b - 1) for a, b in zip(profile[::2], profile[1::2], strict=True)}
        for ports in opened.keys() - ranges:
            regions.append(Region(opened.pop(ports), first - 1, *ports))
        for ports in ranges - opened.keys():
            opened[ports] = first
        if len(regions) + len(opened) > MAX_REGIONS or bounds > MAX_BOUNDS:
            raise ValueError("the routes overlap in too many pieces")
        end = last
    regions += [Region(first, end, *ports) for ports, first in opened.items()]
    _check_prefixes(regions, family)
    return sorted(regions)


def _check_prefixes(regions: list[Region], family: int) -> None:
    address_bytes = 4 if family == 4 else 16
    partial = [region for region in regions if not region.every_port]
    size = sum(
        address_bytes * prefixes(region.first_address, region.last_address)
        + 2 * prefixes(region.first_port, region.last_port)
        for region in partial
    )
    if size > MAX_PREFIX_BYTES or size * len(partial) > MAX_PREFIX_WORK:
        raise ValueError("the routes with ports overlap in too many pieces")


def prefixes(first: int, last: int) -> int:
    """How many prefixes it takes to hold a range of numbers, and nothing else."""
    if first == last:
        return 1
    # The largest block that the range touches twice; what is on either side of its middle is made
    # of blocks of falling size, one for each bit of the length.
    half = 1 << ((first ^ last).bit_length() - 1)
    middle = last & -half
    below, above = middle - first, last + 1 - middle
    return 1 if below == above == half else below.bit_count() + above.bit_count()


# --- the sweep ----------------------------------------------------------------------------------

_Profile = tuple[int, ...]  # b0 < e0 < b1 < e1 ...: REMOTE for b <= port < e


def _stretches(routes: Iterable[Route], family: int) -> Iterator[tuple[int, int, _Profile]]:
    """(first address, last address, profile): together the whole address line, in order."""
    by_network: dict[tuple[int, int], list[Route]] = {}
    for route in routes:
        if route.network.version == family:
            first = int(route.network.network_address)
            # The wider of two networks that begin together comes first, so it is the parent.
            key = (first, -int(route.network.broadcast_address))
            by_network.setdefault(key, []).append(route)
    position = 0
    stack: list[tuple[int, _Profile]] = [((1 << (32 if family == 4 else 128)) - 1, ())]
    for (first, negative_last), same_network in sorted(by_network.items(), key=lambda kv: kv[0]):
        while stack[-1][0] < first:
            last, profile = stack.pop()
            if position <= last:
                yield position, last, profile
                position = last + 1
        parent = stack[-1][1]
        if position < first:
            yield position, first - 1, parent
            position = first
        stack.append((-negative_last, _paint(parent, same_network)))
    while stack:
        last, profile = stack.pop()
        if position <= last:
            yield position, last, profile
            position = last + 1


def _paint(profile: _Profile, same_network: list[Route]) -> _Profile:
    """The profile with these routes of one network over it: widest first, DIRECT last in a tie."""
    bounds = list(profile)
    for route in sorted(same_network, key=_paint_order):
        begin, end = route.first_port, route.last_port + 1
        i, j = bisect_left(bounds, begin), bisect_right(bounds, end)
        # An odd index lies inside a REMOTE range. A bound is needed where the colour changes.
        remote = route.action is Action.REMOTE
        left = [begin] if remote != (i % 2 == 1) else []
        right = [end] if remote != (j % 2 == 1) else []
        bounds[i:j] = left + right
    return tuple(bounds)


def _paint_order(route: Route) -> tuple[int, bool]:
    return route.first_port - route.last_port, route.action is Action.DIRECT
