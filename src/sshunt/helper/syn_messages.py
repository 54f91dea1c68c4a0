"""What client and packet process say about SYNs that are held. Pure.

    HELD(id, is_forwarded, source, destination)   to the client: a program wants to connect
    GONE(id)                                      it does not any more, as far as can be seen
    OPENED(id)                                    from the client: somebody is there, let it connect
    REFUSED(id, answer)                           nobody is, or nobody may be waited for
    FAILED(destination)                           one that was known to be there is not

After GONE, OPENED and REFUSED the number means nothing any more; whoever has not yet heard that may
use it still, and is not minded.

Invariants: as in packet_protocol, which has the kinds' range.
"""

import struct
from enum import IntEnum
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from sshunt.helper.packet_protocol import SYN_KINDS, PacketError
from sshunt.model import Endpoint

HELD, GONE, OPENED, REFUSED, FAILED = (SYN_KINDS.start + number for number in range(5))

_ID = struct.Struct("!I")
_REFUSED = struct.Struct("!IB")
_ENDPOINT = {4: struct.Struct("!4sH"), 6: struct.Struct("!16sH")}
_HELD = {4: struct.Struct("!I?4sH4sH"), 6: struct.Struct("!I?16sH16sH")}
_FAMILY = {4: AF_INET, 6: AF_INET6}


class Answer(IntEnum):
    """What a program is told that can't connect."""

    NOTHING = 0  # its kernel tries again
    RESET = 1
    HOST_UNREACHABLE = 2
    NETWORK_UNREACHABLE = 3
    PROHIBITED = 4


class Held(NamedTuple):
    """A program wants to connect."""

    number: int
    is_forwarded: bool  # it is another host's
    source: Endpoint
    destination: Endpoint


def encode_held(held: Held) -> bytes:
    """The body of HELD."""
    (source, source_port), (destination, port) = held.source, held.destination
    version = _version(destination)
    family = _FAMILY[version]
    ends = inet_pton(family, source), source_port, inet_pton(family, destination), port
    return _HELD[version].pack(held.number, held.is_forwarded, *ends)


def decode_held(body: bytes) -> Held:
    """The opposite; raises PacketError."""
    version = _version_of(body, _HELD)
    number, is_forwarded, source, source_port, destination, port = _HELD[version].unpack(body)
    family = _FAMILY[version]
    ends = (inet_ntop(family, source), source_port), (inet_ntop(family, destination), port)
    return Held(number, is_forwarded, *ends)


def encode_number(number: int) -> bytes:
    """The body of GONE and OPENED."""
    return _ID.pack(number)


def decode_number_untrusted(body: bytes) -> int:
    """The opposite; raises PacketError."""
    try:
        return int(_ID.unpack(body)[0])
    except struct.error:
        raise PacketError("not a number of a held connection")


def encode_refused(number: int, answer: Answer) -> bytes:
    """The body of REFUSED."""
    return _REFUSED.pack(number, answer)


def decode_refused_untrusted(body: bytes) -> tuple[int, Answer]:
    """The opposite; raises PacketError."""
    try:
        number, answer = _REFUSED.unpack(body)
        return number, Answer(answer)
    except (struct.error, ValueError):
        raise PacketError("not an answer to a held connection")


def encode_failed(destination: Endpoint) -> bytes:
    """The body of FAILED."""
    address, port = destination
    version = _version(address)
    return _ENDPOINT[version].pack(inet_pton(_FAMILY[version], address), port)


def decode_failed_untrusted(body: bytes) -> Endpoint:
    """The opposite; raises PacketError."""
    version = _version_of(body, _ENDPOINT)
    packed, port = _ENDPOINT[version].unpack(body)
    return inet_ntop(_FAMILY[version], packed), port


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _version_of(body: bytes, forms: dict[int, struct.Struct]) -> int:
    """Which of two forms, of different lengths, it has; raises PacketError."""
    for version, form in forms.items():
        if len(body) == form.size:
            return version
    raise PacketError("a message of another length than its kind has")
