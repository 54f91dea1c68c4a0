"""What a session must and must not put on its lanes, kept apart from the session's own books.

An observer stands at each end. It sees every byte that leaves over every lane, every byte that
arrives, and what the programs did (wrote, finished, reset). From that alone it knows which bytes of
which stream may leave now, what an acknowledgement must say, and how many bytes the session must
still hold. Rules are those of docs/protocol.md.
"""

from collections import deque
from collections.abc import Sequence

from sshunt.mux.limits import (
    DUPLICATE_BYTES,
    LANE_IN_FLIGHT_BYTES,
    TRANSMIT_BYTES,
)
from sshunt.mux.payload import Payload
from sshunt.mux.streams import Stream
from tests.sim import wire
from tests.sim.wire import WireFrame


class Ledger:
    """Bytes of payloads that somebody still has to release."""

    def __init__(self) -> None:
        self.live_bytes = 0


class CountedPayload(Payload):
    """A payload whose bytes stay in a ledger until they are released."""

    __slots__ = ("_ledger",)

    def __init__(self, data: bytes | memoryview, ledger: Ledger) -> None:
        super().__init__(data)
        self._ledger = ledger
        ledger.live_bytes += len(self.view)

    def cut(self, size: int) -> Payload:
        head = CountedPayload(self.view[:size], self._ledger)
        self.view = self.view[size:]
        self._ledger.live_bytes -= len(head)  # moved, not made
        return head

    def duplicate(self) -> Payload:
        return DuplicatePayload(self.view)

    def release(self) -> None:
        self._ledger.live_bytes -= len(self.view)
        super().release()


class DuplicatePayload(Payload):
    """A second copy: nobody waits for it, nobody sends it again."""

    __slots__ = ()


class StreamBook:
    """What one end has sent of one stream."""

    def __init__(self, content: bytes, own: bool, stream: Stream) -> None:
        self.content = content
        self.own = own  # this end opens it
        self.written = 0
        self.finished = False
        self.reset = False
        self.fin_left = False
        self.credit = stream.sender.limit
        self.credit_serial = 0
        self.granted = stream.receiver.window.limit  # by us to the peer
        self.next_new = 0
        self.lost: list[tuple[int, int]] = []
        self.acked_bytes = 0
        self.on_lanes_bytes = 0
        self.open_lane: int | None = None
        self.open_acked = not own

    @property
    def held_bytes(self) -> int:
        """What the session must not have released, and nothing more."""
        return self.on_lanes_bytes if self.reset else self.written - self.acked_bytes


class LaneBook:
    """What one end has sent and received on one lane."""

    def __init__(self) -> None:
        self.sent = 0
        self.acked = 0
        self.received = 0
        self.outstanding: deque[WireFrame] = deque()
        self.arriving = bytearray()  # not yet a whole frame


class Observer:
    """Watches one end. ``known_flows``: those whose other end has heard what they are."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.streams: dict[int, StreamBook] = {}
        self.lanes: dict[int, LaneBook] = {}
        self.opened_flows: set[int] = set()
        self.known_flows: set[int] = set()
        self.numbered: dict[tuple[int, int], bytes] = {}  # datagrams by flow and serial
        self.newest_serials: dict[int, int] = {}
        self.datagram_copies = 0

    # --- what leaves --------------------------------------------------------------------------

    def saw_sent(self, lane_id: int, pieces: Sequence[bytes | Payload]) -> bytes:
        """What the session hands out for the lane; the same as bytes."""
        lane = self.lanes[lane_id]
        data = b""
        duplicates = set()  # where they end
        for piece in pieces:
            data += piece if isinstance(piece, bytes) else bytes(piece.view)
            if isinstance(piece, DuplicatePayload):
                duplicates.add(lane.sent + len(data))
        for frame in wire.read_sent(data, lane.sent):
            if frame.end in duplicates:
                self._check_duplicate(lane_id, frame)
                lane.outstanding.append(frame._replace(kind=wire.PING))
                continue
            self._check_sent(lane_id, lane, frame)
            if frame.kind != wire.LANE_ACK:
                lane.outstanding.append(frame)
        lane.sent += len(data)
        unacknowledged = lane.sent - lane.acked if lane.outstanding else 0
        assert unacknowledged <= LANE_IN_FLIGHT_BYTES + TRANSMIT_BYTES, "the lane is overfull"
        return data

    def _check_duplicate(self, lane_id: int, frame: WireFrame) -> None:
        """A second copy of DATA: small, of an open stream, and of nothing but what had left."""
        assert frame.kind == wire.DATA
        assert len(frame.payload) <= DUPLICATE_BYTES
        book = self.streams[frame.stream]
        end = frame.offset + len(frame.payload)
        assert book.open_acked, "overtakes its OPEN"
        assert not book.reset, "data of a stream that was reset"
        assert frame.payload == book.content[frame.offset : end], "other bytes than were written"
        assert end <= book.next_new, "the copy before the original"

    def _is_copy(self, frame: WireFrame, serial: int) -> bool:
        """False for the first one with this serial."""
        before = self.numbered.setdefault((frame.stream, serial), frame.body)
        if before is not frame.body:
            assert before == frame.body, "a copy that is none"
            self.datagram_copies += 1
            return True
        assert serial > self.newest_serials.get(frame.stream, 0), "serials must ascend"
        self.newest_serials[frame.stream] = serial
        return False

    def _check_sent(self, lane_id: int, lane: LaneBook, frame: WireFrame) -> None:
        if frame.kind == wire.LANE_ACK:
            assert frame.offset == lane.received, "acknowledged what was not processed"
            return
        if frame.kind == wire.DATAGRAM:
            if frame.datagram_serial is not None and self._is_copy(frame, frame.datagram_serial):
                return
            if frame.datagram_kind == wire.OPENING:
                self.opened_flows.add(frame.stream)
            elif frame.datagram_kind in (wire.PLAIN, wire.BATCH):
                assert frame.stream in self.known_flows, "a datagram of nobody knows what"
            return
        book = self.streams.get(frame.stream)
        if book is None:
            return
        if frame.kind == wire.OPEN:
            assert book.own, "opened the peer's stream"
            assert book.open_lane is None, "opened twice"
            book.open_lane = lane_id
        elif frame.kind == wire.WINDOW:
            book.granted = max(book.granted, frame.offset)
        elif frame.kind in (wire.DATA, wire.FIN):
            assert book.open_acked or book.open_lane == lane_id, "overtakes its OPEN"
            assert not book.reset, "data of a stream that was reset"
            if frame.kind == wire.FIN:
                assert book.finished, "FIN of a writer that has not finished"
                assert frame.offset == len(book.content), "FIN at the wrong place"
                book.fin_left = True
            else:
                self._check_data(book, frame)

    @staticmethod
    def _check_data(book: StreamBook, frame: WireFrame) -> None:
        start, end = frame.offset, frame.offset + len(frame.payload)
        assert frame.payload == book.content[start:end], "other bytes than were written"
        assert end <= max(book.credit, book.next_new), "more than the peer granted"
        book.on_lanes_bytes += end - start
        if start >= book.next_new:
            assert start == book.next_new, "a hole was left"
            assert end <= book.written
            book.next_new = end
            return
        for index, (lost_start, lost_end) in enumerate(book.lost):
            if lost_start <= start and end <= lost_end:
                book.lost[index : index + 1] = [
                    piece for piece in ((lost_start, start), (end, lost_end)) if piece[0] < piece[1]
                ]
                return
        raise AssertionError(f"bytes {start}..{end} sent again though no lane lost them")

    # --- what arrives -------------------------------------------------------------------------

    def saw_received(self, lane_id: int, data: bytes) -> None:
        """Before the session gets ``data``."""
        lane = self.lanes[lane_id]
        lane.received += len(data)
        lane.arriving += data
        while len(lane.arriving) >= 8:
            length = int.from_bytes(lane.arriving[1:4], "big")
            if len(lane.arriving) < 8 + length:
                return
            (frame,) = wire.read_sent(bytes(lane.arriving[: 8 + length]), 0)
            del lane.arriving[: 8 + length]
            if frame.kind == wire.LANE_ACK:
                self._on_ack(lane, frame.offset)
            elif frame.kind == wire.DATAGRAM:
                self._on_datagram(frame)
            elif frame.kind == wire.WINDOW and frame.stream in self.streams:
                book = self.streams[frame.stream]
                if frame.serial > book.credit_serial:
                    book.credit_serial = frame.serial
                    book.credit = max(frame.offset, book.next_new)

    def _on_datagram(self, frame: WireFrame) -> None:
        is_unknown = frame.datagram_kind == wire.ERROR and frame.body[1] == wire.FLOW_UNKNOWN
        if frame.datagram_kind in (wire.PLAIN, wire.BATCH, wire.OPENING):
            self.known_flows.add(frame.stream)
        elif is_unknown and frame.stream in self.opened_flows:
            self.known_flows.discard(frame.stream)

    def _on_ack(self, lane: LaneBook, position: int) -> None:
        lane.acked = max(lane.acked, position)
        while lane.outstanding and lane.outstanding[0].end <= position:
            frame = lane.outstanding.popleft()
            if frame.kind == wire.DATAGRAM and frame.datagram_kind == wire.OPENING:
                self.known_flows.add(frame.stream)
                continue
            book = self.streams.get(frame.stream)
            if book is None:
                continue
            if frame.kind == wire.OPEN:
                book.open_acked = True
            elif frame.kind == wire.DATA:
                book.acked_bytes += len(frame.payload)
                book.on_lanes_bytes -= len(frame.payload)

    def lane_lost(self, lane_id: int) -> None:
        for frame in self.lanes.pop(lane_id).outstanding:
            book = self.streams.get(frame.stream)
            if book is None:
                continue
            if frame.kind == wire.OPEN:
                book.open_lane = None
            elif frame.kind == wire.FIN:
                book.fin_left = False
            elif frame.kind == wire.DATA:
                book.on_lanes_bytes -= len(frame.payload)
                book.lost.append((frame.offset, frame.offset + len(frame.payload)))

    # --- memory -------------------------------------------------------------------------------

    def check_memory(self) -> None:
        """The session holds exactly the bytes that it may still have to send again."""
        held = sum(book.held_bytes for book in self.streams.values())
        assert self.ledger.live_bytes == held, "released too early, too late or twice"
