"""A second reader of the wire format, written from docs/protocol.md and not from our code.

It knows only whole frames and raises AssertionError for anything that a sender must not send. The
simulation reads with it everything that a session puts on a lane, so that a mistake which both
ends share (encoder and decoder wrong in the same way, a rule that neither keeps) does not pass.
"""

from typing import NamedTuple

DATA, FIN, WINDOW, OPEN, OPENED, RESET, LANE_ACK, PING, DATAGRAM, GOODBYE, LANE_GONE = range(1, 12)


# Kinds of DATAGRAM, and the code in ERROR for a flow that its sender does not know.
PLAIN, BATCH, OPENING, ERROR, END = range(1, 6)
FLOW_UNKNOWN = 12


class WireFrame(NamedTuple):
    """One frame as it was sent. ``end`` is the lane position behind it."""

    kind: int
    stream: int
    body: bytes
    end: int

    @property
    def offset(self) -> int:
        """The first eight bytes of the body: offset, limit or position."""
        return int.from_bytes(self.body[:8], "big")

    @property
    def payload(self) -> bytes:
        return self.body[8:]

    @property
    def serial(self) -> int:
        """Of a WINDOW."""
        return int.from_bytes(self.body[8:12], "big")

    @property
    def code(self) -> int:
        return int.from_bytes(self.body[:2], "big")

    @property
    def datagram_kind(self) -> int:
        return self.body[0] & 0x7F

    @property
    def datagram_serial(self) -> int | None:
        """Of one that may be sent over two lanes."""
        return int.from_bytes(self.body[1:5], "big") if self.body[0] & 0x80 else None


def read_sent(data: bytes, position: int) -> list[WireFrame]:
    """The frames of one transmit, the first of which begins at lane position ``position``."""
    found = []
    at = 0
    while at < len(data):
        assert len(data) - at >= 8, "half a header was handed out"
        kind = data[at]
        length = int.from_bytes(data[at + 1 : at + 4], "big")
        stream = int.from_bytes(data[at + 4 : at + 8], "big")
        body = data[at + 8 : at + 8 + length]
        assert len(body) == length, "half a frame was handed out"
        at += 8 + length
        frame = WireFrame(kind, stream, body, position + at)
        check_shape(frame)
        found.append(frame)
    return found


def check_shape(frame: WireFrame) -> None:
    """The rules that need no memory."""
    size = len(frame.body)
    assert DATA <= frame.kind <= LANE_GONE, f"type {frame.kind}"
    assert {
        DATA: 9 <= size <= 8 + 1048576,
        FIN: size == 8,
        WINDOW: size == 12,
        OPEN: 13 <= size <= 9 + 1 + 255 + 4,
        OPENED: size == 0,
        RESET: size == 2,
        LANE_ACK: size == 16,
        PING: size == 0,
        DATAGRAM: 1 <= size <= 512 + 65535,
        GOODBYE: 2 <= size <= 2 + 400,
        LANE_GONE: size == 0,
    }[frame.kind], f"type {frame.kind} with {size} bytes"
    of_session = frame.kind in (LANE_ACK, PING, GOODBYE)
    if frame.kind not in (DATAGRAM, LANE_GONE):
        assert (frame.stream == 0) == of_session, f"type {frame.kind} of stream {frame.stream}"
    if frame.kind in (DATA, FIN, WINDOW):
        assert frame.offset < 1 << 63
    if frame.kind == DATAGRAM:
        check_datagram(frame)


def check_datagram(frame: WireFrame) -> None:
    assert frame.stream, "a datagram of no flow"
    body = frame.body
    if frame.datagram_serial is not None:
        assert frame.datagram_kind in (PLAIN, BATCH, OPENING)
        body = body[:1] + body[5:]
    size = len(body)
    if frame.datagram_kind == BATCH:
        assert size >= 3
        assert body[1:3] != b"\0\0", "a batch of no size"
    elif frame.datagram_kind == OPENING:
        least = {4: 4, 6: 16, 0: 2}[body[11]]
        assert size >= 14 + least
    elif frame.datagram_kind in (ERROR, END):
        assert size == {ERROR: 6, END: 2}[frame.datagram_kind]
    else:
        assert frame.datagram_kind == PLAIN
