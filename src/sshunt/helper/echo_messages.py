"""What client and packet process say of echo requests; bodies of packet_protocol's messages. Pure.

    kind            body
    0x20 ASKED      u32 id, u8 hops, u8 flags, u16 identifier, u16 sequence, two addresses, data
    0x21 REPLY      u32 id, u8 hops, u16 how many bytes of its data came back
    0x22 ERROR      u32 id, u8 type, u8 code, u32 value, an address

ASKED comes from the process: a program has sent this request from the first address to the second
one (4 bytes each, or 16 where FLAG_IPV6 says so). REPLY and ERROR come from the client: what became
of the request ``id``. The address is that of whoever says so.

What a client says is hostile: a body of another form is a PacketError, and so is an ICMP message
that no request can have for an answer.

Not here: what is remembered of a request, and done about it (echoes).
"""

import struct
from ipaddress import ip_address
from typing import NamedTuple

from sshunt.helper.packet_protocol import ECHO_KINDS, PacketError

ASKED, REPLY, ERROR = ECHO_KINDS[:3]

FLAG_IPV6 = 1
FLAG_DONT_FRAGMENT = 2

#: The ICMP errors that a request can have for an answer, and their codes: it did not arrive, it was
#: on its way for too long, it was too large. By IP version.
ERRORS = {
    4: {3: range(16), 11: range(2)},
    6: {1: range(8), 2: range(1), 3: range(2)},
}

_ASKED = struct.Struct("!IBBHH")
_REPLY = struct.Struct("!IBH")
_ERROR = struct.Struct("!IBBI")


class Asked(NamedTuple):
    """An echo request of a program's. ``hops``: how many hosts may pass it on, the far side's as
    the first.
    """

    number: int
    source: str
    destination: str
    hops: int
    dont_fragment: bool
    identifier: int
    sequence: int
    data: bytes


class Replied(NamedTuple):
    """The host answered; ``data_bytes`` of the data came back, ``hops`` more were possible."""

    number: int
    hops: int
    data_bytes: int


class Failed(NamedTuple):
    """``offender`` answered with an ICMP error; ``value``: the size that would pass."""

    number: int
    type: int
    code: int
    value: int
    offender: str


def encode_asked(asked: Asked) -> bytes:
    """The body of an ASKED."""
    number, source, destination, hops, dont_fragment, identifier, sequence, data = asked
    flags = FLAG_DONT_FRAGMENT if dont_fragment else 0
    flags |= FLAG_IPV6 if ":" in source else 0
    head = _ASKED.pack(number, hops, flags, identifier, sequence)
    return head + ip_address(source).packed + ip_address(destination).packed + data


def decode_asked(body: bytes) -> Asked:
    """What an ASKED says, of the process, which says nothing else."""
    number, hops, flags, identifier, sequence = _ASKED.unpack_from(body)
    size = 16 if flags & FLAG_IPV6 else 4
    middle = _ASKED.size + size
    source = str(ip_address(body[_ASKED.size : middle]))
    destination = str(ip_address(body[middle : middle + size]))
    dont_fragment = bool(flags & FLAG_DONT_FRAGMENT)
    data = body[middle + size :]
    return Asked(number, source, destination, hops, dont_fragment, identifier, sequence, data)


def encode_replied(replied: Replied) -> bytes:
    """The body of a REPLY."""
    return _REPLY.pack(*replied)


def decode_replied_untrusted(body: bytes) -> Replied:
    """What a REPLY says; raises PacketError."""
    if len(body) != _REPLY.size:
        raise PacketError(f"a reply of {len(body)} bytes")
    return Replied(*_REPLY.unpack(body))


def encode_failed(failed: Failed) -> bytes:
    """The body of an ERROR."""
    return _ERROR.pack(*failed[:4]) + ip_address(failed.offender).packed


def decode_failed_untrusted(body: bytes) -> Failed:
    """What an ERROR says; raises PacketError."""
    size = len(body) - _ERROR.size
    if size not in (4, 16):
        raise PacketError(f"an error of {len(body)} bytes")
    number, what, code, value = _ERROR.unpack_from(body)
    offender = ip_address(body[_ERROR.size :])
    if code not in ERRORS[offender.version].get(what, ()):
        raise PacketError(f"an error of type {what}, code {code}")
    return Failed(number, what, code, value, str(offender))
