"""Resolvers on this host's own links: who looks names up must not lose them. Linux; no privilege.

Routes that hold everything hold the router at home, too, and so the resolver that it is to most
hosts. The far side can't reach it; without --dns no name could be looked up any more. So a resolver
that is a neighbour, not behind a router, is left alone at its port. One that is behind a router may
well be meant to be reached through the tunnel, and is.

The kernel is asked for its route by netlink (rtnetlink(7), RTM_F_FIB_MATCH): one of a link has no
gateway; a default route is nobody's neighbour, also where it has none (PPP, VPNs).

Not here: who they are (front.dns_sockets), what is left alone (capture).
"""

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address

# linux/netlink.h, linux/rtnetlink.h
_NEW_ROUTE, _GET_ROUTE = 24, 26
_REQUEST = 0x1
_FIB_MATCH = 0x2000
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, length of the destination, ...
_ATTRIBUTE = struct.Struct("=HH")
_DESTINATION, _GATEWAY, _VIA, _NEXTHOP = 1, 5, 18, 30
_UNICAST = 1

#: The deadline for an answer that comes at once.
_DEADLINE_S = 1.0


def near(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those that are neighbours of this host."""
    return tuple(address for address in addresses if is_near(address))


def is_near(address: str) -> bool:
    """True if the address is on a link of this host's; False also where that can't be known."""
    with suppress(OSError, struct.error, ValueError):
        return _is_of_a_link(_route_to(address))
    return False


def _route_to(address: str) -> bytes:
    """The kernel's answer, from rtmsg on; raises OSError."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    to = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    body = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, _FIB_MATCH) + to
    head = _MESSAGE.pack(_MESSAGE.size + len(body), _GET_ROUTE, _REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_DEADLINE_S)
        netlink.bind((0, 0))
        netlink.sendto(head + body, (0, 0))
        answer = netlink.recv(16 * 1024)
    length, kind, _, _, _ = _MESSAGE.unpack_from(answer)
    if kind != _NEW_ROUTE:
        raise OSError("no route")
    return answer[_MESSAGE.size : length]


def _is_of_a_link(route: bytes) -> bool:
    _, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(route)
    if kind != _UNICAST or not length:
        return False
    at = _ROUTE.size
    while at + _ATTRIBUTE.size <= len(route):
        size, number = _ATTRIBUTE.unpack_from(route, at)
        if size < _ATTRIBUTE.size or number in (_GATEWAY, _VIA, _NEXTHOP):
            return False
        at += (size + 3) & ~3
    return True
