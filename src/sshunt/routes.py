"""What the user asked for, turned into routes: parsing targets, resolving names, looking up.

A *target* is one word of the command line, with sshuttle's meaning: ``10.0.0.0/8``, ``10/8``,
``0/0``, ``192.0.2.1:80``, ``10.0.0.0/8:8000-9000``, ``2001:db8::/32``, ``[2001:db8::1]:443``,
``[2001:db8::/32]:443``, ``example.com``, ``example.com:8000``, ``example.com/24``. A *route* is
what a target becomes once its name is resolved: one network, one port range, one action.

Invariants:

* The most specific route wins: the longest prefix, then the narrowest port range; DIRECT (an
  exclusion) wins a tie. ``RouteTable.lookup`` defines this order; ``capture.plan`` paints in it and
  a property test holds the two together.
* Host bits in a network are masked silently, as sshuttle does: ``10.1.2.3/8`` is ``10.0.0.0/8``.
* Every text that can't be understood ends as a ``UserError`` that quotes it and shows a right one.

Theory of operation: an IPv6 address has colons and so has a port, therefore a port behind an IPv6
address needs brackets or a width: ``2001:db8::1:80`` is an address. ``[net/width]:port`` is how
sshuttle writes it, ``[net]/width:port`` is how people guess it; both are taken.

A short IPv4 form is only taken with a width, and is filled with zeros on the right: ``10/8`` is
``10.0.0.0/8``. Alone it would be ambiguous, because inet_aton(3) reads ``10`` as 0.0.0.10 and
``10.1`` as 10.0.0.1.

Not here: which destinations the kernel redirects (capture), and file options (cli).
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol

from sshunt.errors import ExitCode, UserError
from sshunt.model import ANY_FIRST_PORT, ANY_LAST_PORT, Action, Network, Route

#: resolv.conf(5) gives up after about 2 servers x 2 attempts x 5 s; beyond that nothing will come.
RESOLVE_DEADLINE_S = 30.0

#: A list of all countries' networks has 200,000 lines and 4 MB; more is not a list of targets.
FILE_BYTES = 16 * 1024 * 1024

_EXAMPLES = (
    "examples: 10.0.0.0/8, 192.0.2.7:443, 10.0.0.0/8:8000-9000, [2001:db8::1]:80, example.com"
)

_BRACKETED = re.compile(r"\[([^\[\]/]*)(?:/(\w*))?\](?:/(\w*))?(?::(.*))?")
_COLONS = re.compile(r"([^/]*)(?:/([^:]*)(?::(.*))?)?")
_PLAIN = re.compile(r"([^/:]*)(?:/([^:]*))?(?::(.*))?")
_SHORT_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){0,2}")
_NUMERIC = re.compile(r"[0-9.]+")
# RFC 1123 names, with the underscore that real zones have, and letters of any script (IDNA).
_NAME = re.compile(r"(?=.{1,253}$)(?:(?!-)[\w-]{1,63}(?<!-)\.)*(?!-)[\w-]{1,63}(?<!-)\.?")


@dataclass(frozen=True, slots=True)
class Target:
    """One word of the command line, understood. Exactly one of network and name is set."""

    text: str
    network: Network | None
    name: str | None = None
    width: int | None = None  # of a name; a network has its own
    first_port: int = ANY_FIRST_PORT
    last_port: int = ANY_LAST_PORT


class AddressLookup(Protocol):
    """What ``asyncio.AbstractEventLoop.getaddrinfo`` is."""

    def __call__(
        self, host: str, port: None, /, *, type: int
    ) -> Awaitable[Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]]:
        """The addresses of ``host``, or socket.gaierror."""


def parse_target(text: str) -> Target:
    """The target that ``text`` means; raises UserError."""
    stripped = text.strip()
    host, width_text, port_text, is_ipv6 = _split(stripped)
    first_port, last_port = _parse_ports(stripped, port_text)
    if is_ipv6 or _NUMERIC.fullmatch(host):
        network = _parse_network(stripped, host, width_text, is_ipv6=is_ipv6)
        return Target(stripped, network, first_port=first_port, last_port=last_port)
    if not _NAME.fullmatch(host):
        raise _usage(stripped, "is not an address, a network or a host name")
    width = None if width_text is None else _parse_width(stripped, width_text, 128)
    return Target(stripped, None, host, width, first_port, last_port)


def read_target_file(path: str | Path) -> tuple[Target, ...]:
    """The targets in a file: one a line, ``#`` begins a comment; raises UserError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(
            f"can't read {path}: {error.strerror}", "give a file with one target a line", _USAGE
        )
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file", "give a file with one target a line", _USAGE)
    if len(data) > FILE_BYTES:
        raise UserError(
            f"{path} has more than {FILE_BYTES} bytes", "split it, or use wider networks", _USAGE
        )
    targets = []
    for number, line in enumerate(text.splitlines(), 1):
        word = re.sub(r"(^|\s)#.*", "", line).strip()
        if not word:
            continue
        try:
            targets.append(parse_target(word))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error.message}", error.hint, error.exit_code)
    return tuple(targets)


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


# --- parsing ------------------------------------------------------------------------------------

_USAGE = ExitCode.USAGE


def _usage(text: str, problem: str) -> UserError:
    return UserError(f"{text!r} {problem}", _EXAMPLES, _USAGE)


def _split(text: str) -> tuple[str, str | None, str | None, bool]:
    """(host, width or None, ports or None, is IPv6) of a target, as text."""
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None or (match[2] is not None and match[3] is not None):
            raise _usage(text, "has brackets that don't fit together")
        width = match[2] if match[2] is not None else match[3]
        return match[1], width, match[4], True
    is_ipv6 = text.partition("/")[0].count(":") > 1
    match = (_COLONS if is_ipv6 else _PLAIN).fullmatch(text)
    if match is None:
        raise _usage(text, "is not an address, a network or a host name")
    return match[1], match[2], match[3], is_ipv6


def _parse_network(text: str, host: str, width_text: str | None, *, is_ipv6: bool) -> Network:
    if not is_ipv6 and _SHORT_IPV4.fullmatch(host):
        if width_text is None:
            raise _usage(text, "is a short address without a width")
        host += ".0" * (3 - host.count("."))
    try:
        address = ip_address(host)
    except ValueError:
        raise _usage(text, f"is not an {'IPv6' if is_ipv6 else 'IPv4'} address or network")
    if is_ipv6 and (address.version != 6 or "%" in host):
        raise _usage(text, "is not an IPv6 address that the far side could reach")
    bits = address.max_prefixlen
    width = bits if width_text is None else _parse_width(text, width_text, bits)
    return ip_network((address, width), strict=False)


def _parse_width(text: str, width_text: str, bits: int) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", width_text) or int(width_text) > bits:
        raise _usage(text, f"has a width that is not a number from 0 to {bits}")
    return int(width_text)


def _parse_ports(text: str, port_text: str | None) -> tuple[int, int]:
    if port_text is None:
        return ANY_FIRST_PORT, ANY_LAST_PORT
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", port_text)
    if match is None:
        raise _usage(text, "has a port that is not a number or a range")
    first, last = int(match[1]), int(match[2] or match[1])
    if first < 1 or last > ANY_LAST_PORT:
        raise _usage(text, f"has a port outside 1..{ANY_LAST_PORT}")
    if first > last:
        raise _usage(text, "has a port range that ends before it begins")
    return first, last


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
            "it has only IPv6 addresses and IPv6 is disabled" if addresses else _EXAMPLES,
            ExitCode.NAME,
        )
    if target.width is None:
        return [ip_network(address) for address in usable]
    if len({address.version for address in usable}) > 1:
        raise _usage(target.text, "has a width, but the name has IPv4 and IPv6 addresses")
    bits = usable[0].max_prefixlen
    if target.width > bits:
        raise _usage(target.text, f"has a width that is not a number from 0 to {bits}")
    return [ip_network((address, target.width), strict=False) for address in usable]
