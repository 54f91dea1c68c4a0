"""The destination that a redirected connection was made to. Linux; needs no privilege.

Connection tracking remembers it, and tells it to whoever holds the accepted socket: SO_ORIGINAL_DST
from <linux/netfilter_ipv4.h> and IP6T_SO_ORIGINAL_DST from <linux/netfilter_ipv6/ip6_tables.h>,
both numbered 80.

A connection that was made to the listener itself was not redirected. Relaying it "to its original
destination" would connect the listener to itself for ever, so that is an error and never an answer.
"""

import socket
import struct

from sshunt.model import Endpoint

_SO_ORIGINAL_DST = 80
_SOL_IPV6 = 41
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class NotRedirected(Exception):  # noqa: N818 (it states a fact, as events do)
    """Somebody connected to the listener directly."""


class OriginalDestinations:
    """Of the connections that ``listener`` accepts."""

    def __init__(self, listener: socket.socket) -> None:
        # Asked once: for each connection these would cost as much as the answer itself.
        self._is_ipv4 = listener.family == socket.AF_INET
        self._port = listener.getsockname()[1]

    def of(self, sock: socket.socket) -> Endpoint:
        """Where the peer of this accepted socket wanted to connect to; raises NotRedirected."""
        try:
            if self._is_ipv4:
                raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
                port, packed = _SOCKADDR_IN.unpack(raw)
                address = socket.inet_ntop(socket.AF_INET, packed)
            else:
                raw = sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
                port, packed = _SOCKADDR_IN6.unpack(raw)
                address = socket.inet_ntop(socket.AF_INET6, packed)
        except OSError as error:
            # ENOENT: connection tracking does not know this connection, so nothing redirected it.
            raise NotRedirected(f"no original destination: {error.strerror}")
        if port == self._port and address == sock.getsockname()[0].partition("%")[0]:
            raise NotRedirected(f"a connection to the listener at {address} port {port} itself")
        return address, port
