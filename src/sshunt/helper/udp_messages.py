"""What client and packet process say to each other about flows of UDP. Pure.

    LOOK_UP   client   u8 family, keys                         where did these flows' programs mean?
    FOUND     process  u8 family, answers                      each: key, u8 1, source, destination;
                                                               or key, u8 0 and as many zeros
    DELIVER   client   u8 family, key, endpoint of a peer,     give the program of this flow a
                       u16 segment, payload                    datagram from somebody else
    FAIL      client   u8 family, key, u8 Failure              tell it that one did not arrive

A key is how the listener of datagrams sees a flow: its own address, then the address and port that
the program has for it. Family is 4 or 6; addresses have 4 or 16 bytes; an endpoint is an address
and u16 port; numbers are big-endian. A payload is one datagram, or several of ``segment`` bytes
each, the last of at most that.

Invariants: what is decoded is whole, or PacketError; at most MAX_LOOK_UPS keys.

Not here: what is done about it (udp_flows), who asks (front.datagrams).
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from sshunt.helper.packet_protocol import UDP_KINDS, PacketError

LOOK_UP, FOUND, DELIVER, FAIL = UDP_KINDS[:4]

#: The keys of one message at most: a moment's new flows.
MAX_LOOK_UPS = 64

#: The bytes of a family's addresses.
ADDRESS_BYTES = {4: 4, 6: 16}

#: The longest datagram: what IPv4's length leaves, but for headers.
MAX_DATAGRAM_BYTES = 65507

_PORT = struct.Struct("!H")


class Failure(IntEnum):
    """Why a datagram did not arrive, as ICMP can say it."""

    REFUSED = 1
    HOST_UNREACHABLE = 2
    NET_UNREACHABLE = 3
    NOT_PERMITTED = 4


class Key(NamedTuple):
    """A flow as our listener sees it; addresses are packed."""

    local: bytes
    program: bytes
    port: int

    def encode(self) -> bytes:
        """As in messages."""
        return self.local + self.program + _PORT.pack(self.port)


class Original(NamedTuple):
    """The two ends of a flow as its program sees them; addresses are packed."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


class Delivery(NamedTuple):
    """A DELIVER."""

    family: int
    key: Key
    peer: bytes
    peer_port: int
    segment_bytes: int
    payload: bytes


def encode_look_up(family: int, keys: Iterable[Key]) -> bytes:
    """The body of a LOOK_UP."""
    return bytes((family,)) + b"".join(key.encode() for key in keys)


def decode_look_up_untrusted(body: bytes) -> tuple[int, list[Key]]:
    """Family and keys; raises PacketError."""
    family, size = _family(body)
    width = 2 * size + _PORT.size
    count, rest = divmod(len(body) - 1, width)
    if rest or not 0 < count <= MAX_LOOK_UPS:
        raise PacketError("not a list of flows")
    return family, [_key(body, 1 + number * width, size) for number in range(count)]


def encode_found(family: int, answers: Sequence[tuple[Key, Original | None]]) -> bytes:
    """The body of a FOUND."""
    parts = [bytes((family,))]
    for key, original in answers:
        parts.append(key.encode())
        if original is None:
            parts.append(bytes(1 + 2 * (ADDRESS_BYTES[family] + _PORT.size)))
        else:
            parts.append(b"\1" + original.source + _PORT.pack(original.source_port))
            parts.append(original.destination + _PORT.pack(original.destination_port))
    return b"".join(parts)


def decode_found(body: bytes) -> tuple[int, list[tuple[Key, Original | None]]]:
    """Family and answers; raises PacketError."""
    family, size = _family(body)
    endpoint = size + _PORT.size
    width = size + endpoint + 1 + 2 * endpoint
    count, rest = divmod(len(body) - 1, width)
    if rest or count > MAX_LOOK_UPS:
        raise PacketError("not a list of answers")
    answers: list[tuple[Key, Original | None]] = []
    for start in range(1, len(body), width):
        key = _key(body, start, size)
        at = start + size + endpoint
        original = None
        if body[at]:
            original = Original(
                *_endpoint(body, at + 1, size), *_endpoint(body, at + 1 + endpoint, size)
            )
        answers.append((key, original))
    return family, answers


def encode_delivery(delivery: Delivery) -> bytes:
    """The body of a DELIVER."""
    return b"".join(
        (
            bytes((delivery.family,)),
            delivery.key.encode(),
            delivery.peer,
            _PORT.pack(delivery.peer_port),
            _PORT.pack(delivery.segment_bytes),
            delivery.payload,
        )
    )


def decode_delivery_untrusted(body: bytes) -> Delivery:
    """Raises PacketError."""
    family, size = _family(body)
    at = 1 + 2 * size + _PORT.size
    head_bytes = at + size + 2 * _PORT.size
    if len(body) < head_bytes:
        raise PacketError("a datagram without its ends")
    peer, port = _endpoint(body, at, size)
    (segment_bytes,) = _PORT.unpack_from(body, head_bytes - _PORT.size)
    if (segment_bytes or len(body) - head_bytes) > MAX_DATAGRAM_BYTES:
        raise PacketError("a datagram that is too long")
    return Delivery(family, _key(body, 1, size), peer, port, segment_bytes, body[head_bytes:])


def encode_failure(family: int, key: Key, failure: Failure) -> bytes:
    """The body of a FAIL."""
    return bytes((family,)) + key.encode() + bytes((failure,))


def decode_failure_untrusted(body: bytes) -> tuple[int, Key, Failure]:
    """Raises PacketError."""
    family, size = _family(body)
    if len(body) != 2 + 2 * size + _PORT.size:
        raise PacketError("not a failure")
    try:
        return family, _key(body, 1, size), Failure(body[-1])
    except ValueError:
        raise PacketError(f"a failure of kind {body[-1]}")


def _family(body: bytes) -> tuple[int, int]:
    family = body[0] if body else 0
    if family not in ADDRESS_BYTES:
        raise PacketError("of no family")
    return family, ADDRESS_BYTES[family]


def _endpoint(body: bytes, at: int, size: int) -> tuple[bytes, int]:
    return body[at : at + size], _PORT.unpack_from(body, at + size)[0]


def _key(body: bytes, at: int, size: int) -> Key:
    return Key(body[at : at + size], *_endpoint(body, at + size, size))
