"""Whom this host's programs ask names, and the sockets at which we answer in their place.

The sockets are on loopback, whatever --listen says: nobody else can ask the far side's resolvers.

A resolver with a link-local IPv6 address (``nameserver fe80::1%eth0``, as routers announce them)
can't be stood in for: the scope binds the program's socket to the interface, so that what is
redirected to lo never arrives. It is left alone, and so are IPv6 ones where IPv6 is; which is said.
IPv4's link-local addresses have no scope; clouds have their resolvers there (169.254.169.254).

Not here: what is redirected to them (capture), what is answered (dns).
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from sshunt.front.listener import CannotListen, bind
from sshunt.model import Endpoint
from sshunt.relay import dns

#: Where DNS sockets are bound, by family: any port of loopback.
_LOOPBACK: dict[int, Endpoint] = {4: ("127.0.0.1", 0), 6: ("::1", 0)}

#: Ports that are tried: one that is free for TCP may be taken for UDP.
BIND_ATTEMPTS = 16


class DnsSockets(NamedTuple):
    """The listening sockets of one family, at the same port."""

    udp: socket.socket
    tcp: socket.socket

    @property
    def endpoint(self) -> Endpoint:
        """Where they are."""
        address, port = self.tcp.getsockname()[:2]
        return address, port

    def close(self) -> None:
        """Nobody is answered any more."""
        self.udp.close()
        self.tcp.close()


def system_resolvers(resolv_conf: str = dns.RESOLV_CONF) -> tuple[str, ...]:
    """The addresses that this host's programs ask and that can be stood in for, each once."""
    found = [address for address in _addresses(resolv_conf) if not _has_scope(address)]
    return tuple(dict.fromkeys(map(str, found)))


def left_alone(*, ipv6: bool, resolv_conf: str = dns.RESOLV_CONF) -> tuple[str, ...]:
    """Those that are not stood in for; without ``ipv6`` no IPv6 one is."""
    return tuple(
        dict.fromkeys(
            str(address)
            for address in _addresses(resolv_conf)
            if _has_scope(address) or (address.version == 6 and not ipv6)
        )
    )


def _addresses(resolv_conf: str) -> Iterator[IPv4Address | IPv6Address]:
    for text in dns.resolvers(resolv_conf):
        with suppress(ValueError):
            address = ip_address(text)
            # The C library heeds the scopes of link-local addresses only.
            yield address if _has_scope(address) else ip_address(text.partition("%")[0])


def _has_scope(address: IPv4Address | IPv6Address) -> bool:
    return address.version == 6 and address.is_link_local


def open_dns_sockets(family: int) -> DnsSockets:
    """Listening sockets on this host's loopback for IPv4 or IPv6 (4 or 6); raises CannotListen."""
    loopback = _LOOPBACK[family]
    attempts = BIND_ATTEMPTS
    while True:
        tcp = bind(loopback)
        udp = socket.socket(tcp.family, socket.SOCK_DGRAM)
        try:
            udp.setblocking(False)
            udp.bind(tcp.getsockname())
            return DnsSockets(udp, tcp)
        except OSError as error:
            udp.close()
            tcp.close()
            attempts -= 1
            if error.errno != errno.EADDRINUSE or not attempts:
                problem = f"can't listen for DNS on {loopback[0]}: {error.strerror}"
                raise CannotListen(problem, "leave --dns out", error.errno or 0)
