"""What the user asked for, turned into routes: resolving names, looking up.

A *route* is what a target becomes once its name is resolved: one network, one port range, one
action.

Invariant: the most specific route wins: the longest prefix, then the narrowest port range; DIRECT
(an exclusion) wins a tie. ``RouteTable.lookup`` defines this order; ``capture.plan`` paints in it
and a property test holds the two together.

Not here: which destinations the kernel redirects (capture), and what a target may look like
(config.targets).
"""

import asyncio
import socket
from collections.abc import Awaitable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol

from sshunt.config.targets import EXAMPLES, Target, not_understood
from sshunt.errors import ExitCode, UserError
from sshunt.model import Action, Network, Route

#: The deadline of a name's look-up. resolv.conf(5) gives up after about 2 servers x 2 attempts x 5
#: s; beyond that nothing will come.
RESOLVE_DEADLINE_S = 30.0


class AddressLookup(Protocol):
    """What ``asyncio.AbstractEventLoop.getaddrinfo`` is."""

    def __call__(
        self, host: str, port: None, /, *, type: int
    ) -> Awaitable[Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]]:
        """The addresses of ``host``, or socket.gaierror."""


async def resolve(
    targets: Iterable[Target],
    excludes: Iterable[Target],
    *,
    ipv6: bool,
    getaddrinfo: AddressLookup,
) -> tuple[Route, ...]:
    """The routes of all targets (REMOTE) and excludes (DIRECT), without duplicates, in order.

    Names become all their addresses, looked up at the same time. Without ``ipv6`` every IPv6
    network is left out. Raises UserError.
    """
    wanted = [(target, Action.REMOTE) for target in targets]
    wanted += [(target, Action.DIRECT) for target in excludes]
    names = {target.name for target, _ in wanted if target.name is not None}
    ordered = sorted(names)
    results = await asyncio.gather(*(_addresses(name, getaddrinfo) for name in ordered))
    addresses = dict(zip(ordered, results, strict=True))
    routes: dict[Route, None] = {}
    for target, action in wanted:
        networks = [target.network] if target.network is not None else []
        if target.name is not None:
            networks += _networks_of_name(target, addresses[target.name], ipv6=ipv6)
        for network in networks:
            if network.version == 4 or ipv6:
                routes[Route(network, action, target.first_port, target.last_port)] = None
    return tuple(routes)


class RouteTable:
    """Answers which route a destination falls into; the definition of "most specific wins"."""

    __slots__ = ("_by_network", "_widths", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._by_network: dict[tuple[int, int, int], list[Route]] = {}
        for route in self.routes:
            network = route.network
            key = (network.version, network.prefixlen, int(network.network_address))
            self._by_network.setdefault(key, []).append(route)
        for same_network in self._by_network.values():
            same_network.sort(key=specificity, reverse=True)
        self._widths = {
            version: sorted({key[1] for key in self._by_network if key[0] == version}, reverse=True)
            for version in (4, 6)
        }

    def lookup(self, address: str | IPv4Address | IPv6Address, port: int) -> Route | None:
        """The most specific route that holds this destination, or None.

        Raises ValueError if ``address`` is a string and not a numeric address.
        """
        destination = ip_address(address)
        number, bits = int(destination), destination.max_prefixlen
        for width in self._widths[destination.version]:
            first = number >> (bits - width) << (bits - width)
            for route in self._by_network.get((destination.version, width, first), ()):
                if route.first_port <= port <= route.last_port:
                    return route
        return None


def specificity(route: Route) -> tuple[int, int, bool]:
    """Sorts routes that hold the same destination: the greatest wins."""
    ports = route.last_port - route.first_port
    return route.network.prefixlen, -ports, route.action is Action.DIRECT


# --- names --------------------------------------------------------------------------------------


async def _addresses(
    name: str, getaddrinfo: AddressLookup
) -> tuple[IPv4Address | IPv6Address, ...]:
    try:
        found = await asyncio.wait_for(
            getaddrinfo(name, None, type=socket.SOCK_STREAM), RESOLVE_DEADLINE_S
        )
    except (socket.gaierror, UnicodeError, asyncio.TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        raise UserError(
            f"can't resolve {name!r}: {reason}",
            "check the name, or give its address or network instead",
            ExitCode.NAME,
        )
    return tuple(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def _networks_of_name(
    target: Target, addresses: tuple[IPv4Address | IPv6Address, ...], *, ipv6: bool
) -> list[Network]:
    usable = [address for address in addresses if address.version == 4 or ipv6]
    if not usable:
        raise UserError(
            f"{target.name!r} has no usable address",
            "it has only IPv6 addresses and IPv6 is disabled" if addresses else EXAMPLES,
            ExitCode.NAME,
        )
    if target.width is None:
        return [ip_network(address) for address in usable]
    if len({address.version for address in usable}) > 1:
        raise not_understood(target.text, "has a width, but the name has IPv4 and IPv6 addresses")
    bits = usable[0].max_prefixlen
    if target.width > bits:
        raise not_understood(target.text, f"has a width that is not a number from 0 to {bits}")
    return [ip_network((address, target.width), strict=False) for address in usable]
