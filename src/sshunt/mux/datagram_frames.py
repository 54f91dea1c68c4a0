"""The wire format of a DATAGRAM frame's body. Normative text: docs/protocol.md.

    PLAIN        payload                                          one datagram of an open flow
    BATCH        u16 segment, payload                             several of this size, the last of
                                                                  at most that
    OPENING      u8 network, u8 flags, u16 segment or 0, u32 source, u16 source port, endpoint,
                 payload                                          a datagram that opens its flow
    ERROR        u8 code, u32 value                               what became of a datagram
    END          u8 code                                          the flow is over
    80 + kind    u32 serial, rest by kind                         another copy may come

The frame's stream is the number of the flow. A body that can't be is an error of the peer; of a
kind that is not known nothing is said but the kind.

Not here: what they mean (flows, datagrams).
"""

import struct
from typing import NamedTuple, Optional

from sshunt.mux import frames
from sshunt.mux.endpoints import decode_host_untrusted, encode_host
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.frames import DATAGRAM, DNS, HEADER, STATISTICS
from sshunt.mux.limits import DATAGRAM_BYTES

#: Networks of which a flow is one question and its answer, and over with that.
QUESTIONS = (DNS, STATISTICS)

# Kinds of DATAGRAM, and what is added to one where another copy of the datagram may come.
PLAIN = 1
BATCH = 2
OPENING = 3
ERROR = 4
END = 5
NUMBERED = 0x80

# Flags of OPENING.
ANY_PEER = 1  # the source wants to hear from addresses that it has not written to, too
DONT_FRAGMENT = 2  # what does not pass in one piece is dropped, as the program wants it

# Flow codes: why a datagram did not arrive (ERROR), or why a flow is over (END). Those that resets
# have, too, have the same numbers.
FLOW_DONE = 0  # nobody needs it any more
FLOW_REFUSED = frames.RESET_REFUSED  # nobody listens at the port
FLOW_HOST_UNREACHABLE = frames.RESET_HOST_UNREACHABLE
FLOW_NET_UNREACHABLE = frames.RESET_NET_UNREACHABLE
FLOW_TIMED_OUT = frames.RESET_TIMED_OUT
FLOW_NAME_UNKNOWN = frames.RESET_NAME_UNKNOWN
FLOW_NO_RESOURCES = frames.RESET_NO_RESOURCES
FLOW_NOT_PERMITTED = frames.RESET_NOT_PERMITTED  # not served, or a host on the way objects
FLOW_OTHER = frames.RESET_OTHER
FLOW_TOO_LARGE = 10  # value: what passes, 0: not known
FLOW_HOPS_EXCEEDED = 11
FLOW_UNKNOWN = 12  # this side does not know the flow: its opener should name it again

_SERIAL = struct.Struct("!I")
_SEGMENT = struct.Struct("!H")
_OPENING = struct.Struct("!BBHIHBH")
_FLOW_ERROR = struct.Struct("!BI")


class FlowTarget(NamedTuple):
    """Where the datagrams of a flow should go, and come from.

    ``source`` is the opener's number for whoever sends: flows of one network and source leave by
    one socket (UDP), or share what one may take (DNS). Where the agent opens a flow, because
    somebody has written to such a socket, host and port are that peer's, and the source is the
    client's. ``source_port``: the one to leave by if it is free, 0: any. ``flags``: of OPENING.
    """

    network: int
    host: str
    port: int
    source: int = 0
    source_port: int = 0
    flags: int = 0


class Datagram(NamedTuple):
    """A DATAGRAM's body, decoded. What its kind does not have is as here."""

    kind: int
    target: Optional[FlowTarget] = None  # OPENING
    segment_bytes: int = 0  # of each datagram in the payload; 0: it is one
    payload: bytes = b""
    code: int = 0  # ERROR, END
    value: int = 0  # ERROR
    serial: Optional[int] = None  # NUMBERED


def encode_datagram_head(
    flow: int, payload_bytes: int, segment_bytes: int = 0, serial: Optional[int] = None
) -> bytes:
    """All but the payload of a DATAGRAM of an open flow: one datagram, or several of
    ``segment_bytes`` each. ``serial``: where it is sent more than once.
    """
    if segment_bytes:
        head, kind = _SEGMENT.pack(segment_bytes), BATCH
    else:
        head, kind = b"", PLAIN
    return _encode_datagram(flow, kind, head, payload_bytes, serial)


def encode_opening_head(
    flow: int,
    target: FlowTarget,
    payload_bytes: int,
    segment_bytes: int = 0,
    serial: Optional[int] = None,
) -> bytes:
    """The same of one that opens the flow; raises LocalProtocolError for an impossible host."""
    network, host, port, source, source_port, flags = target
    address_type, raw = encode_host(host)
    head = _OPENING.pack(network, flags, segment_bytes, source, source_port, address_type, port)
    return _encode_datagram(flow, OPENING, head + raw, payload_bytes, serial)


def _encode_datagram(
    flow: int, kind: int, head: bytes, payload_bytes: int, serial: Optional[int]
) -> bytes:
    if serial is not None:
        head, kind = _SERIAL.pack(serial) + head, kind | NUMBERED
    length = 1 + len(head) + payload_bytes
    return HEADER.pack(DATAGRAM << 24 | length, flow) + bytes((kind,)) + head


def encode_flow_error(flow: int, code: int, value: int = 0) -> bytes:
    """A DATAGRAM frame that says what became of a datagram of the flow."""
    return _encode_datagram(flow, ERROR, _FLOW_ERROR.pack(code, value), 0, None)


def encode_flow_end(flow: int, code: int = FLOW_DONE) -> bytes:
    """A DATAGRAM frame that ends the flow."""
    return _encode_datagram(flow, END, bytes((code,)), 0, None)


def has_serial(head: bytes) -> bool:
    """True if this is the beginning of a DATAGRAM frame that may be sent more than once."""
    return bool(head[HEADER.size] & NUMBERED)


def decode_datagram_untrusted(body: bytes) -> Datagram:
    """What a DATAGRAM frame's body says; raises RemoteProtocolError."""
    kind, at, serial = body[0], 1, None
    try:
        if kind & NUMBERED:
            (serial,) = _SERIAL.unpack_from(body, at)
            kind, at = kind & ~NUMBERED, at + _SERIAL.size
        if kind == PLAIN:
            found = Datagram(kind, payload=body[at:])
        elif kind == BATCH:
            (segment_bytes,) = _SEGMENT.unpack_from(body, at)
            if not segment_bytes:
                raise RemoteProtocolError("batch of no size")
            payload = body[at + _SEGMENT.size :]
            found = Datagram(kind, segment_bytes=segment_bytes, payload=payload)
        elif kind == OPENING:
            found = _decode_opening_untrusted(body, at)
        elif kind == ERROR:
            code, value = _FLOW_ERROR.unpack_from(body, at)
            return Datagram(kind, code=code, value=value)
        elif kind == END:
            return Datagram(kind, code=body[at])
        else:
            return Datagram(kind)
    except (struct.error, IndexError):
        raise RemoteProtocolError("datagram of %d bytes" % len(body))
    if len(found.payload) > DATAGRAM_BYTES:
        raise RemoteProtocolError("datagram of %d bytes" % len(found.payload))
    return found if serial is None else found._replace(serial=serial)


def _decode_opening_untrusted(body: bytes, at: int) -> Datagram:
    fields = _OPENING.unpack_from(body, at)
    network, flags, segment_bytes, source, source_port, address_type, port = fields
    host, end = decode_host_untrusted(body, at + _OPENING.size, address_type)
    target = FlowTarget(network, host, port, source, source_port, flags)
    return Datagram(OPENING, target, segment_bytes, body[end:])
