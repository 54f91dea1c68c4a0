"""Sockets that send in the name of hosts over there: datagrams, and ICMP errors. Root; Linux.

Raw ones, for the kernel to make the IP header, and to cut what a link does not take: their source
is said with each datagram (IP_PKTINFO; IP_TRANSPARENT permits it). So nothing is bound in a peer's
name, and a service of this host at the same port, on all addresses, is in nobody's way. What they
send bears INJECTED_MARK. They receive nothing: they are bound to an address that nobody sends to.

Not here: whether something may be sent (udp_flows).
"""

import socket
import struct
from contextlib import suppress

from sshunt.helper.checksums import checksum
from sshunt.helper.injected import raw_socket
from sshunt.helper.udp_messages import Failure, Original

# linux/in.h, linux/in6.h
_IP_PKTINFO, _IP_TRANSPARENT = 8, 19
_IPV6_CHECKSUM, _IPV6_PKTINFO, _IPV6_TRANSPARENT = 7, 50, 75
_PKTINFO4 = struct.Struct("=i4s4s")  # interface, source, destination
_PKTINFO6 = struct.Struct("=16si")

#: Addresses that nobody sends to: the last of loopback's, and one of RFC 6666's.
_NOBODY = {4: "127.255.255.254", 6: "100::1"}

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}

_UDP = struct.Struct("!HHHH")  # from, to, length, checksum
_IP4 = struct.Struct("!BBHHHBBH4s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_ICMP_ERROR = struct.Struct("!BBHI")
_CHECKSUM_PLACE = 6  # in UDP's header
_HOPS = 64

#: The type and code of an ICMP error (RFC 792, RFC 4443).
_KINDS = {
    4: {
        Failure.REFUSED: (3, 3),
        Failure.HOST_UNREACHABLE: (3, 1),
        Failure.NET_UNREACHABLE: (3, 0),
        Failure.NOT_PERMITTED: (3, 13),
    },
    6: {
        Failure.REFUSED: (1, 4),
        Failure.HOST_UNREACHABLE: (1, 3),
        Failure.NET_UNREACHABLE: (1, 0),
        Failure.NOT_PERMITTED: (1, 1),
    },
}


class InTheirName:
    """The sockets of a family (4 or 6)."""

    def __init__(self, family: int) -> None:
        """Raises OSError."""
        self._family = family
        self._datagrams = _raw(family, socket.IPPROTO_UDP)
        try:
            self._errors = _raw(family, _ICMP[family])
        except OSError:
            self._datagrams.close()
            raise

    def close(self) -> None:
        """Send nothing more."""
        self._datagrams.close()
        self._errors.close()

    def send(self, peer: bytes, port: int, program: Original, payload: bytes) -> None:
        """A datagram from a peer to the socket behind the ``program``'s end."""
        head = [port, program.source_port, _UDP.size + len(payload), 0]
        if self._family == 4:
            pseudo = peer + program.source + struct.pack("!HH", socket.IPPROTO_UDP, head[2])
            sum_ = checksum(pseudo + _UDP.pack(*head) + payload)
            head[3] = sum_ or 0xFFFF  # 0 would be: none
        self._send(self._datagrams, peer, program, _UDP.pack(*head) + payload)

    def fail(self, failure: Failure, program: Original) -> None:
        """Tell the program's end that what it sent did not arrive. It is its peer that says so: of
        the hosts between we know none.
        """
        kind, code = _KINDS[self._family][failure]
        quoted = _UDP.pack(program.source_port, program.destination_port, _UDP.size, 0)
        if self._family == 4:
            length = _IP4.size + len(quoted)
            head = _IP4.pack(
                0x45,
                0,
                length,
                0,
                0,
                _HOPS,
                socket.IPPROTO_UDP,
                0,
                program.source,
                program.destination,
            )
        else:
            head = _IP6.pack(
                6 << 28,
                len(quoted),
                socket.IPPROTO_UDP,
                _HOPS,
                program.source,
                program.destination,
            )
        message = _ICMP_ERROR.pack(kind, code, 0, 0) + head + quoted
        if self._family == 4:  # of IPv6 the kernel does it
            message = _ICMP_ERROR.pack(kind, code, checksum(message), 0) + head + quoted
        self._send(self._errors, program.destination, program, message)

    def _send(self, sock: socket.socket, source: bytes, program: Original, message: bytes) -> None:
        if self._family == 4:
            said = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, source, bytes(4)))
        else:
            said = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(source, 0))
        address = socket.inet_ntop(_FAMILIES[self._family], program.source)
        with suppress(OSError):  # as if it were lost on the way
            sock.sendmsg([message], [said], socket.MSG_DONTWAIT, (address, 0))


def _raw(family: int, protocol: int) -> socket.socket:
    sock = raw_socket(_FAMILIES[family], protocol)
    try:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            if protocol == socket.IPPROTO_UDP:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_PLACE)
        sock.bind((_NOBODY[family], 0))
    except OSError:
        sock.close()
        raise
    return sock
