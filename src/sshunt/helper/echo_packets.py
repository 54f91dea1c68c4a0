"""Echo requests as they were logged, and the ICMP messages that answer them, as bytes. Pure.

    decode_echo_untrusted    IP header and ICMP message of a request, as the kernel logged it
    reply                    the echo reply to it
    error                    an ICMP error about it, with the request inside

The kernel writes the IP headers of the answers, and ICMPv6's checksum, which needs them.

Invariants: an answer has the request's identifier, sequence number and data, and no others.

Not here: who may be answered (echoes).
"""

import struct
from ipaddress import ip_address
from typing import NamedTuple

from sshunt.helper.checksums import checksum

#: The most data of a request that is answered. It takes as much from a log as this and the headers:
#: those of IPv4 have up to 60 bytes, IPv6's 40.
MOST_DATA_BYTES = 8192
SNAP_BYTES = MOST_DATA_BYTES + 60 + 8

#: How much of a request stands in an error: with its headers no more than any host takes in one
#: piece (RFC 1812, 4.3.2.3).
QUOTED_BYTES = 528

_IPV4 = struct.Struct("!BxHxxHBB2x4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_ERROR = struct.Struct("!BBHI")
_ICMP, _ICMP6 = 1, 58
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_DONT_FRAGMENT, _FRAGMENTED = 0x4000, 0x3FFF
_NEEDS_FRAGMENTS = (3, 4)  # whose value has 16 bits


class NoEchoError(ValueError):
    """The bytes are no whole echo request that can be answered."""


class Echo(NamedTuple):
    """An echo request."""

    source: str
    destination: str
    hops: int
    dont_fragment: bool
    identifier: int
    sequence: int
    data: bytes
    quoted: bytes  # the packet's beginning

    @property
    def version(self) -> int:
        """Of IP: 4 or 6."""
        return 6 if ":" in self.source else 4


def decode_echo_untrusted(packet: bytes) -> Echo:
    """The request that ``packet`` is; raises NoEchoError."""
    try:
        version = packet[0] >> 4
        if version == 4:
            first, length, fragment, hops, protocol, source, target = _IPV4.unpack_from(packet)
            offset = (first & 15) * 4
            if offset < 20 or protocol != _ICMP or fragment & _FRAGMENTED:
                raise NoEchoError("not ICMP, or a fragment")
        elif version == 6:
            _, length, protocol, hops, source, target = _IPV6.unpack_from(packet)
            offset, fragment = _IPV6.size, 0
            length += offset
            if protocol != _ICMP6:
                raise NoEchoError("not ICMPv6")
        else:
            raise NoEchoError(f"IP version {version}")
        what, code, _, identifier, sequence = _ECHO.unpack_from(packet, offset)
    except (struct.error, IndexError):
        raise NoEchoError("cut off")
    if what != _REQUEST[version] or code != 0:
        raise NoEchoError(f"type {what}, code {code}")
    data = packet[offset + _ECHO.size : length]
    if len(packet) < length or len(data) > MOST_DATA_BYTES:
        raise NoEchoError("not the whole of it")
    return Echo(
        str(ip_address(source)),
        str(ip_address(target)),
        hops,
        bool(fragment & _DONT_FRAGMENT),
        identifier,
        sequence,
        data,
        packet[:QUOTED_BYTES],
    )


def reply(echo: Echo, data_bytes: int) -> bytes:
    """The reply in which the first ``data_bytes`` of the data came back."""
    head = _ECHO.pack(_REPLY[echo.version], 0, 0, echo.identifier, echo.sequence)
    return _with_checksum(head + echo.data[:data_bytes], echo.version)


def error(echo: Echo, what: int, code: int, value: int) -> bytes:
    """An error of that type and code. ``value``: the size that would pass, where it is about
    that.
    """
    if echo.version == 4:
        value = min(value, 0xFFFF) if (what, code) == _NEEDS_FRAGMENTS else 0
    elif what != 2:
        value = 0
    return _with_checksum(_ERROR.pack(what, code, 0, value) + echo.quoted, echo.version)


def _with_checksum(message: bytes, version: int) -> bytes:
    if version == 6:
        return message
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]
