"""What the user asked for, as words: parsing targets.

A *target* is one word of the command line, with sshuttle's meaning: ``10.0.0.0/8``, ``10/8``,
``0/0``, ``192.0.2.1:80``, ``10.0.0.0/8:8000-9000``, ``2001:db8::/32``, ``[2001:db8::1]:443``,
``[2001:db8::/32]:443``, ``example.com``, ``example.com:8000``, ``example.com/24``.

Invariants:

* Host bits in a network are masked silently, as sshuttle does: ``10.1.2.3/8`` is ``10.0.0.0/8``.
* Every text that can't be understood ends as a ``UserError`` that quotes it and shows a right one.

Theory of operation: an IPv6 address has colons and so has a port, therefore a port behind an IPv6
address needs brackets or a width: ``2001:db8::1:80`` is an address. ``[net/width]:port`` is how
sshuttle writes it, ``[net]/width:port`` is how people guess it; both are taken.

A short IPv4 form is only taken with a width, and is filled with zeros on the right: ``10/8`` is
``10.0.0.0/8``. Alone it would be ambiguous, because inet_aton(3) reads ``10`` as 0.0.0.10 and
``10.1`` as 10.0.0.1.

Not here: what a target becomes (route.routes), and how files are read (wordfiles).
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from sshunt.config.wordfiles import read_list
from sshunt.errors import ExitCode, UserError
from sshunt.model import ANY_FIRST_PORT, ANY_LAST_PORT, Network

EXAMPLES = (
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


def parse_target(text: str) -> Target:
    """The target that ``text`` means; raises UserError."""
    stripped = text.strip()
    _refuse_what_people_try(stripped)
    host, width_text, port_text, is_ipv6 = _split(stripped)
    first_port, last_port = _parse_ports(stripped, port_text)
    if is_ipv6 or _NUMERIC.fullmatch(host):
        network = _parse_network(stripped, host, width_text, is_ipv6=is_ipv6)
        return Target(stripped, network, first_port=first_port, last_port=last_port)
    if not _NAME.fullmatch(host):
        raise not_understood(stripped, "is not an address, a network or a host name")
    width = None if width_text is None else _parse_width(stripped, width_text, 128)
    return Target(stripped, None, host, width, first_port, last_port)


def read_target_file(path: str | Path) -> tuple[Target, ...]:
    """The targets in a file: one a line, ``#`` begins a comment; raises UserError."""
    targets = []
    for number, word in read_list(path):
        try:
            targets.append(parse_target(word))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error.message}", error.hint, error.exit_code)
    return tuple(targets)


def _refuse_what_people_try(text: str) -> None:
    """What other programs take and means something: raises UserError that says how it is here."""
    if "," in text:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        raise UserError(
            f"{text!r} has a comma",
            f"targets are words of their own: {' '.join(parts[:3])}",
            ExitCode.USAGE,
        )
    url = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/@]*@)?([^/?#]*).*", text)
    if url is not None:
        port = {"http": ":80", "https": ":443"}.get(url[1].lower(), "")
        host = url[2] if re.search(r":\d+$", url[2]) or not url[2] else url[2] + port
        raise UserError(
            f"{text!r} is a URL",
            f"a target is a host or a network, with a port if you like: {host or 'example.com'}",
            ExitCode.USAGE,
        )


def _split(text: str) -> tuple[str, str | None, str | None, bool]:
    """(host, width or None, ports or None, is IPv6) of a target, as text."""
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None or (match[2] is not None and match[3] is not None):
            raise not_understood(text, "has brackets that don't fit together")
        width = match[2] if match[2] is not None else match[3]
        return match[1], width, match[4], True
    is_ipv6 = text.partition("/")[0].count(":") > 1
    match = (_COLONS if is_ipv6 else _PLAIN).fullmatch(text)
    if match is None:
        raise not_understood(text, "is not an address, a network or a host name")
    return match[1], match[2], match[3], is_ipv6


def _parse_network(text: str, host: str, width_text: str | None, *, is_ipv6: bool) -> Network:
    if not is_ipv6 and _SHORT_IPV4.fullmatch(host):
        if width_text is None:
            raise not_understood(text, "is a short address without a width")
        host += ".0" * (3 - host.count("."))
    try:
        address = ip_address(host)
    except ValueError:
        raise not_understood(text, f"is not an {'IPv6' if is_ipv6 else 'IPv4'} address or network")
    if is_ipv6 and (address.version != 6 or "%" in host):
        raise not_understood(text, "is not an IPv6 address that the far side could reach")
    bits = address.max_prefixlen
    width = bits if width_text is None else _parse_width(text, width_text, bits)
    return ip_network((address, width), strict=False)


def _parse_width(text: str, width_text: str, bits: int) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", width_text) or int(width_text) > bits:
        raise not_understood(text, f"has a width that is not a number from 0 to {bits}")
    return int(width_text)


def _parse_ports(text: str, port_text: str | None) -> tuple[int, int]:
    if port_text is None:
        return ANY_FIRST_PORT, ANY_LAST_PORT
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", port_text)
    if match is None:
        raise not_understood(text, "has a port that is not a number or a range")
    first, last = int(match[1]), int(match[2] or match[1])
    if first < 1 or last > ANY_LAST_PORT:
        raise not_understood(text, f"has a port outside 1..{ANY_LAST_PORT}")
    if first > last:
        raise not_understood(text, "has a port range that ends before it begins")
    return first, last


def not_understood(text: str, problem: str) -> UserError:
    """The error that says what is wrong with a target, and shows right ones."""
    return UserError(f"{text!r} {problem}", EXAMPLES, ExitCode.USAGE)
