"""The wire format of everything after HELLO. Normative text: docs/protocol.md.

    header       u8 type, u24 length of what follows the header, u32 stream       8 bytes
    DATA         u64 offset, payload                              offset of the payload's first byte
    FIN          u64 offset                                       where the stream ends
    WINDOW       u64 offset, u32 serial                           the sender may send up to here
    OPEN         u8 network, u8 flags, u32 window, endpoint, and for EXPOSED u32 exposure
    OPENED       -
    RESET        u16 code
    LANE_ACK     u64 position, u32 held, u32 clock (microseconds) stream is 0
    PING         -                                                stream is 0
    DATAGRAM     u8 kind, rest by kind                            stream is the flow's number
    GOODBYE      u16 code, sentence (UTF-8)                       stream is 0
    LANE_GONE    -                                                stream is the lane's number

An endpoint is u8 address type, u16 port, address (endpoints); the rest of a DATAGRAM is another
module's affair (datagram_frames).

Every number is absolute (an offset, a limit, a position), so that a frame may arrive twice or by
another lane and mean the same. A reader does not wait for a whole large DATA frame: what has
arrived of its payload is handed on at once as if it were a smaller frame at its own offset. So only
headers and small bodies are ever copied, and a frame's size is the sender's affair alone. A small
payload is handed on whole: programs have no right to expect that, but some do.

Not here: what frames mean (session), and which may be lost (sent).
"""

import struct
from typing import Any, List, NamedTuple, Tuple

from sshunt.mux.endpoints import decode_host_untrusted, encode_host
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import (
    CONTROL_BYTES,
    DATA_BYTES,
    DATAGRAM_BYTES,
    DATAGRAM_HEAD_BYTES,
    LEAST_WINDOW_BYTES,
    SENTENCE_BYTES,
)
from sshunt.mux.payload import Payload
from sshunt.mux.text import printable

DATA = 1
FIN = 2
WINDOW = 3
OPEN = 4
OPENED = 5
RESET = 6
LANE_ACK = 7
PING = 8
DATAGRAM = 9
GOODBYE = 10
LANE_GONE = 11

#: Frame type -> (shortest, longest) body in bytes.
_BODY_BYTES = {
    DATA: (9, 8 + DATA_BYTES),
    FIN: (8, 8),
    WINDOW: (12, 12),
    OPEN: (11, CONTROL_BYTES),
    OPENED: (0, 0),
    RESET: (2, 2),
    LANE_ACK: (16, 16),
    PING: (0, 0),
    DATAGRAM: (1, DATAGRAM_HEAD_BYTES + DATAGRAM_BYTES),
    GOODBYE: (2, CONTROL_BYTES),
    LANE_GONE: (0, 0),
}

# Networks: what a stream (OPEN) or a flow of datagrams (DATAGRAM) leads to.
TCP = 1
UDP = 2
ECHO = 3  # ICMP: a host that is asked whether it is there
DNS = 4  # a resolver of the far side, which chooses it: by TCP as a stream, by UDP as a datagram
STATISTICS = 5  # what the far side's pacers know, as JSON
EXPOSED = 6  # from the agent: a connection to a port that the client exposes there

# Flags of OPEN.
_WANTS_OPENED = 1  # the opener wants to hear that the connection is up, not only if it fails

# Reset codes: what became of a connection, so that the other end can show the same.
RESET_ABORTED = 1  # the peer of this connection reset it
RESET_REFUSED = 2
RESET_HOST_UNREACHABLE = 3
RESET_NET_UNREACHABLE = 4
RESET_TIMED_OUT = 5
RESET_NAME_UNKNOWN = 6
RESET_NO_RESOURCES = 7  # no descriptors, no ports, too many streams
RESET_NOT_PERMITTED = 8
RESET_OTHER = 9

# Goodbye codes.
GOODBYE_DONE = 0  # the client stops; the agent ends
GOODBYE_PROTOCOL = 1  # the other side broke the protocol
GOODBYE_INTERNAL = 2  # a bug on our own side

MAX_OFFSET = (1 << 63) - 1
MAX_STREAM = (1 << 32) - 1

HEADER = struct.Struct("!II")
_OFFSET_FRAME = struct.Struct("!IIQ")  # DATA's head, FIN
_WINDOW_FRAME = struct.Struct("!IIQI")
_OPEN_HEAD = struct.Struct("!IIBBIBH")
_RESET_FRAME = struct.Struct("!IIH")
_ACK_FRAME = struct.Struct("!IIQII")
_OFFSET = struct.Struct("!Q")
_ACK_BODY = struct.Struct("!QII")
_WINDOW_BODY = struct.Struct("!QI")
_OPEN_BODY = struct.Struct("!BBIBH")
_EXPOSURE = struct.Struct("!I")
_CODE = struct.Struct("!H")

#: Bodies of DATA up to this size are handed on whole: a segment or a line of a conversation.
WHOLE_BYTES = 2048

HEADER_BYTES = 8
DATA_HEAD_BYTES = 16

#: One decoded frame: kind, stream, number, body. ``number`` is DATA's and FIN's offset, RESET's
#: code; ``body`` is the Payload of DATA and the raw body (bytes) of the others.
Frame = Tuple[int, int, int, Any]


class Destination(NamedTuple):
    """Where a stream should lead. ``host`` is a numeric address or a name to be resolved there.

    Where ``network`` is EXPOSED, host and port are the peer's, who connected to the exposure of
    this number: the client knows where that leads, and nobody else has a say in it.
    """

    network: int
    host: str
    port: int
    wants_opened: bool = True  # the opener waits for OPENED
    exposure: int = 0


def encode_data_head(stream: int, offset: int, payload_bytes: int) -> bytes:
    """All of a DATA frame but its payload."""
    return _OFFSET_FRAME.pack(DATA << 24 | (payload_bytes + 8), stream, offset)


def encode_fin(stream: int, offset: int) -> bytes:
    """A FIN frame."""
    return _OFFSET_FRAME.pack(FIN << 24 | 8, stream, offset)


def encode_window(stream: int, limit: int, serial: int) -> bytes:
    """A WINDOW frame."""
    return _WINDOW_FRAME.pack(WINDOW << 24 | 12, stream, limit, serial)


def encode_open(
    stream: int, destination: Destination, window_bytes: int = LEAST_WINDOW_BYTES
) -> bytes:
    """An OPEN frame; raises LocalProtocolError for a host that can't be sent."""
    address_type, tail = encode_host(destination.host)
    if destination.network == EXPOSED:
        tail += _EXPOSURE.pack(destination.exposure)
    return (
        _OPEN_HEAD.pack(
            OPEN << 24 | (_OPEN_BODY.size + len(tail)),
            stream,
            destination.network,
            _WANTS_OPENED if destination.wants_opened else 0,
            window_bytes,
            address_type,
            destination.port,
        )
        + tail
    )


def encode_opened(stream: int) -> bytes:
    """An OPENED frame."""
    return HEADER.pack(OPENED << 24, stream)


def encode_reset(stream: int, code: int) -> bytes:
    """A RESET frame."""
    return _RESET_FRAME.pack(RESET << 24 | 2, stream, code)


def encode_lane_ack(position: int, held_s: float, arrived_at: float) -> bytes:
    """A LANE_ACK frame: the newest acknowledged byte that asked for it came at ``arrived_at`` (any
    clock, modulo 2^32 microseconds) and waited ``held_s`` for it.
    """
    held_us = min(max(int(held_s * 1e6), 0), 0xFFFFFFFF)
    arrived_us = int(arrived_at * 1e6) & 0xFFFFFFFF
    return _ACK_FRAME.pack(LANE_ACK << 24 | 16, 0, position, held_us, arrived_us)


def encode_ping() -> bytes:
    """A PING frame."""
    return HEADER.pack(PING << 24, 0)


def encode_lane_gone(lane: int) -> bytes:
    """A LANE_GONE frame."""
    return HEADER.pack(LANE_GONE << 24, lane)


def encode_goodbye(code: int, sentence: str) -> bytes:
    """A GOODBYE frame."""
    raw = sentence.encode("utf-8")[:SENTENCE_BYTES]
    return HEADER.pack(GOODBYE << 24 | (2 + len(raw)), 0) + _CODE.pack(code) + raw


def decode_window_untrusted(body: bytes) -> Tuple[int, int]:
    """(limit, serial) of a WINDOW frame's body; raises RemoteProtocolError."""
    limit, serial = _WINDOW_BODY.unpack(body)
    if limit > MAX_OFFSET:
        raise RemoteProtocolError("limit %d" % limit)
    return limit, serial


def decode_open_untrusted(body: bytes) -> Tuple[Destination, int]:
    """(destination, credit that the opener gives) of an OPEN frame's body; raises
    RemoteProtocolError.
    """
    if len(body) <= _OPEN_BODY.size:
        raise RemoteProtocolError("OPEN of %d bytes" % len(body))
    network, flags, window_bytes, address_type, port = _OPEN_BODY.unpack_from(body)
    host, end = decode_host_untrusted(body, _OPEN_BODY.size, address_type)
    exposure = 0
    if network == EXPOSED:
        if len(body) < end + _EXPOSURE.size:
            raise RemoteProtocolError("OPEN of no exposure")
        (exposure,) = _EXPOSURE.unpack_from(body, end)
    # What is behind that, and other flags, may mean something to later versions of us.
    wants_opened = bool(flags & _WANTS_OPENED)
    return Destination(network, host, port, wants_opened, exposure), window_bytes


def decode_ack_untrusted(body: bytes) -> Tuple[int, float, int]:
    """(position, held in seconds, the peer's clock in microseconds) of a LANE_ACK frame's body."""
    position, held_us, arrived_us = _ACK_BODY.unpack(body)
    return position, held_us / 1e6, arrived_us


def decode_goodbye_untrusted(body: bytes) -> Tuple[int, str]:
    """(code, sentence) of a GOODBYE frame's body; the sentence is printable."""
    (code,) = _CODE.unpack_from(body)
    sentence = body[2 : 2 + SENTENCE_BYTES].decode("utf-8", "replace")
    return code, printable(sentence)


class FrameReader:
    """Cuts a lane's byte stream into frames, in whatever pieces it arrives.

    Memory: at most one header and one body of a non-DATA frame (64 KiB) are held. Payloads are
    views of the bytes given to ``feed`` and no longer valid than those.
    """

    __slots__ = ("_carry", "data_left", "newest_bytes", "offset", "stream")

    def __init__(self) -> None:
        self._carry = bytearray()  # a header or body that is not complete yet
        # Of the DATA frame being read: the payload bytes still to come, whose, and from where on.
        self.data_left = 0
        self.stream = 0
        self.offset = 0
        self.newest_bytes = 0  # the whole payload of the last DATA frame that began in it; 0: none

    def skip(self, size: int) -> None:
        """``size`` of the payload bytes still to come were taken from the lane by somebody else."""
        self.data_left -= size
        self.offset += size

    def feed(self, data: memoryview) -> List[Frame]:
        """The frames in ``data``, in order; raises RemoteProtocolError."""
        self.newest_bytes = 0
        frames: List[Frame] = []
        at, end = 0, len(data)
        while at < end:
            if self.data_left:
                size = min(self.data_left, end - at)
                self._data(Payload(data[at : at + size]), frames)
                at += size
            elif self._carry:
                at = self._complete_carry(data, at, frames)
            else:
                at = self._read_frame(data, at, end, frames)
        return frames

    def _read_frame(self, data: memoryview, at: int, end: int, frames: List[Frame]) -> int:
        """Read one frame that begins at ``at``, or carry what is there of it; where it stopped."""
        left = end - at
        if left >= HEADER_BYTES:
            word, stream = HEADER.unpack_from(data, at)
            kind, length = word >> 24, word & 0xFFFFFF
            limits = _BODY_BYTES.get(kind)
            if limits is None or not limits[0] <= length <= limits[1]:
                raise _impossible(kind, length)
            stop: int = at + HEADER_BYTES + length
            if kind == DATA and (length > WHOLE_BYTES or stop <= end):
                if left >= DATA_HEAD_BYTES:
                    (offset,) = _OFFSET.unpack_from(data, at + HEADER_BYTES)
                    self._begin_data(stream, length, offset)
                    at += DATA_HEAD_BYTES
                    if stop > end:
                        return at
                    frames.append((DATA, stream, offset, Payload(data[at:stop])))
                    self.data_left = 0
                    return stop
            elif stop <= end:
                frames.append(_decode_small(kind, stream, bytes(data[at + HEADER_BYTES : stop])))
                return stop
        self._carry += data[at:end]
        return end

    def _complete_carry(self, data: memoryview, at: int, frames: List[Frame]) -> int:
        """Add to the carried beginning of a frame what it still needs; where that ended."""
        carry = self._carry
        missing = _carry_bytes(carry) - len(carry)
        piece = data[at : at + missing]
        carry += piece
        at += len(piece)
        # Asked anew: a completed header may have shown that a body must follow.
        if len(piece) == missing and _carry_bytes(carry) == len(carry):
            whole = bytes(carry)
            del carry[:]
            word, stream = HEADER.unpack_from(whole)
            kind, length = word >> 24, word & 0xFFFFFF
            if kind == DATA:
                self._begin_data(stream, length, _OFFSET.unpack_from(whole, HEADER_BYTES)[0])
                if len(whole) > DATA_HEAD_BYTES:
                    self._data(Payload(whole[DATA_HEAD_BYTES:]), frames)
            else:
                frames.append(_decode_small(kind, stream, whole[HEADER_BYTES:]))
        return at

    def _data(self, payload: Payload, frames: List[Frame]) -> None:
        frames.append((DATA, self.stream, self.offset, payload))
        self.skip(len(payload))

    def _begin_data(self, stream: int, length: int, offset: int) -> None:
        if offset > MAX_OFFSET:
            raise RemoteProtocolError("offset %d" % offset)
        self.stream = stream
        self.offset = offset
        self.data_left = self.newest_bytes = length - _OFFSET.size


def _carry_bytes(carry: bytearray) -> int:
    """How many bytes must be carried before the frame's small part is complete."""
    if len(carry) < HEADER_BYTES:
        return HEADER_BYTES
    word: int = HEADER.unpack_from(carry)[0]
    kind, length = word >> 24, word & 0xFFFFFF
    limits = _BODY_BYTES.get(kind)
    if limits is None or not limits[0] <= length <= limits[1]:
        raise _impossible(kind, length)
    if kind == DATA and length > WHOLE_BYTES:
        return DATA_HEAD_BYTES
    return HEADER_BYTES + length


def _impossible(kind: int, length: int) -> RemoteProtocolError:
    if kind in _BODY_BYTES:
        return RemoteProtocolError("frame of type %d with %d bytes" % (kind, length))
    return RemoteProtocolError("frame of unknown type %d" % kind)


def _decode_small(kind: int, stream: int, body: bytes) -> Frame:
    """A frame other than DATA; its length has been checked."""
    number = 0
    if kind == FIN:
        (number,) = _OFFSET.unpack(body)
        if number > MAX_OFFSET:
            raise RemoteProtocolError("offset %d" % number)
    elif kind == RESET:
        (number,) = _CODE.unpack(body)
    return (kind, stream, number, body)
