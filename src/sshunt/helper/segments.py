"""The few packets that answer a held SYN, as bytes: itself once more, a reset, an ICMP error. Pure.

A program's SYN is logged, and comes here as the kernel had it: an IP header, options, TCP's header,
and perhaps data. What is made of it::

    again         its headers with right checksums; data is cut off, which TCP sends again by itself
                  (RFC 7413, 4.1.3: a SYN-ACK that does not acknowledge it)
    refusal       RST|ACK as the destination would send it: connect(2) fails with ECONNREFUSED
    unreachable   an ICMP error as it would send it, with the SYN's headers inside
    retraction    a FIN that leaves nowhere: to the rules it is a word (capture.nft_held)

A SYN that this host makes has no right checksum yet (the network card would see to it), so that it
is computed anew; flags, options and the initial sequence number stay as they are. So ECN is asked
for, timestamps, window scaling and SACK are agreed on between the program and our listener as they
would be without us.

The logged bytes may come from another host: they are hostile, and what is not whole is an error.

Invariants: what is made from a SYN has its two ends and no others.

Not here: which of them is sent, and when (held_syns).
"""

import struct
from enum import Enum
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from sshunt.helper.checksums import checksum
from sshunt.model import Endpoint

#: The bytes of a logged packet that are looked at: the longest IPv4 header (60) and the longest TCP
#: header (60) fit twice, so an IPv6 one with options before TCP does, too.
SNAP_BYTES = 256

_TCP, _ICMP, _ICMP6 = 6, 1, 58
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP_HEADER = struct.Struct("!HHIIBBHHH")
_HOPS = 64

#: Extension headers of IPv6 that may stand before TCP's: hop-by-hop, routing, destination options.
_EXTENSIONS = (0, 43, 60)


class SegmentError(ValueError):
    """The bytes are no whole SYN."""


class Unreachable(Enum):
    """Why a destination can't be reached: ICMP's (type, code) for IPv4 and IPv6."""

    HOST = ((3, 1), (1, 3))
    NETWORK = ((3, 0), (1, 0))
    PROHIBITED = ((3, 13), (1, 1))


class Syn(NamedTuple):
    """A SYN: its ends, and its headers as they were logged."""

    source: Endpoint
    destination: Endpoint
    sequence: int  # the initial sequence number
    headers: bytes  # without data
    transport_offset: int  # where TCP's header begins

    @property
    def is_ipv6(self) -> bool:
        """True if its ends are IPv6 addresses."""
        return self.headers[0] >> 4 == 6


def decode_syn_untrusted(packet: bytes) -> Syn:
    """The SYN that ``packet``, perhaps cut off behind TCP's header, is; raises SegmentError."""
    try:
        is_ipv6 = packet[0] >> 4 == 6
        offset = _behind_ipv6(packet) if is_ipv6 else _behind_ipv4(packet)
        source_port, port, sequence, _, length, flags, *_ = _TCP_HEADER.unpack_from(packet, offset)
    except (struct.error, IndexError):
        raise SegmentError("cut off")
    end = offset + (length >> 4) * 4
    if end < offset + _TCP_HEADER.size or end > len(packet):
        raise SegmentError("no whole TCP header")
    if flags & (_FIN | _SYN | _RST | _ACK) != _SYN:
        raise SegmentError("not a SYN")
    source, destination = _addresses(packet, is_ipv6=is_ipv6)
    ends = (source, source_port), (destination, port)
    return Syn(*ends, sequence, packet[:end], offset)


def again(syn: Syn) -> bytes:
    """The SYN itself, without data."""
    segment = syn.headers[syn.transport_offset :]
    return _ip_headers(syn) + _with_checksum(segment, 16, _pseudo_header(syn, _TCP, len(segment)))


def refusal(syn: Syn) -> bytes:
    """A reset that answers it."""
    reset = _segment(syn.destination[1], syn.source[1], 0, syn.sequence + 1, _RST | _ACK)
    return _from_destination(syn, _TCP, reset, 16)


def unreachable(syn: Syn, why: Unreachable) -> bytes:
    """An ICMP error that answers it."""
    kind, code = why.value[syn.is_ipv6]
    message = struct.pack("!BBHI", kind, code, 0, 0) + again(syn)
    return _from_destination(syn, _ICMP6 if syn.is_ipv6 else _ICMP, message, 2)


def retraction(destination: Endpoint) -> bytes:
    """A FIN to ``destination``, from nobody."""
    address, port = destination
    is_ipv6 = ip_address(address).version == 6
    packed = inet_pton(AF_INET6 if is_ipv6 else AF_INET, address)
    segment = _segment(0, port, 0, 0, _FIN)
    return _packet(bytes(len(packed)), packed, _TCP, segment, 16)


# --- reading ------------------------------------------------------------------------------------


def _behind_ipv4(packet: bytes) -> int:
    first, _, _, _, fragment, _, protocol, *_ = _IPV4.unpack_from(packet)
    offset = (first & 0x0F) * 4
    if first >> 4 != 4 or offset < _IPV4.size or protocol != _TCP or fragment & 0x3FFF:
        raise SegmentError("not TCP over IPv4, or a fragment")
    return int(offset)


def _behind_ipv6(packet: bytes) -> int:
    _IPV6.unpack_from(packet)  # it is whole
    kind = packet[6]
    offset = _IPV6.size
    while kind in _EXTENSIONS:
        kind, offset = packet[offset], offset + (packet[offset + 1] + 1) * 8
    if kind != _TCP:
        raise SegmentError("not TCP over IPv6, or a fragment")
    return offset


def _addresses(packet: bytes, *, is_ipv6: bool) -> tuple[str, str]:
    if is_ipv6:
        return inet_ntop(AF_INET6, packet[8:24]), inet_ntop(AF_INET6, packet[24:40])
    return inet_ntop(AF_INET, packet[12:16]), inet_ntop(AF_INET, packet[16:20])


# --- writing ------------------------------------------------------------------------------------


def _ip_headers(syn: Syn) -> bytes:
    """The headers before TCP's, for a packet that ends with it."""
    head = bytearray(syn.headers[: syn.transport_offset])
    if syn.is_ipv6:
        struct.pack_into("!H", head, 4, len(syn.headers) - _IPV6.size)
        return bytes(head)
    struct.pack_into("!H", head, 2, len(syn.headers))
    return _with_checksum(bytes(head), 10)


def _from_destination(syn: Syn, protocol: int, payload: bytes, checksum_at: int) -> bytes:
    """A packet with that payload, the opposite way."""
    packed = syn.headers[8:40] if syn.is_ipv6 else syn.headers[12:20]
    half = len(packed) // 2
    return _packet(packed[half:], packed[:half], protocol, payload, checksum_at)


def _packet(
    source: bytes, destination: bytes, protocol: int, payload: bytes, checksum_at: int
) -> bytes:
    """An IP packet between two addresses; the checksum of its payload is computed."""
    length = len(payload)
    if len(source) == 16:
        pseudo = source + destination + struct.pack("!II", length, protocol)
        head = _IPV6.pack(6 << 28, length, protocol, _HOPS, source, destination)
        return head + _with_checksum(payload, checksum_at, pseudo)
    pseudo = source + destination + struct.pack("!HH", protocol, length)
    if protocol == _ICMP:  # ICMP's covers no addresses
        pseudo = b""
    total = _IPV4.size + length
    head = _IPV4.pack(0x45, 0, total, 0, 0x4000, _HOPS, protocol, 0, source, destination)
    return _with_checksum(head, 10) + _with_checksum(payload, checksum_at, pseudo)


def _pseudo_header(syn: Syn, protocol: int, length: int) -> bytes:
    """What the checksum covers besides the segment (RFC 9293, 3.1; RFC 8200, 8.1).

    The destination is the one in the IP header: a routing header with another one still ahead is
    not for us to judge, and such a SYN is dropped on its way.
    """
    if syn.is_ipv6:
        return syn.headers[8:40] + struct.pack("!II", length, protocol)
    return syn.headers[12:20] + struct.pack("!HH", protocol, length)


def _segment(source_port: int, port: int, sequence: int, acknowledged: int, flags: int) -> bytes:
    acknowledged &= 0xFFFFFFFF
    return _TCP_HEADER.pack(source_port, port, sequence, acknowledged, 5 << 4, flags, 0, 0, 0)


def _with_checksum(data: bytes, at: int, covered_too: bytes = b"") -> bytes:
    """``data`` with the Internet checksum of it in the two bytes ``at``."""
    blank = data[:at] + b"\0\0" + data[at + 2 :]
    return data[:at] + struct.pack("!H", checksum(covered_too + blank)) + data[at + 2 :]
