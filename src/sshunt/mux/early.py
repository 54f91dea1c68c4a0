"""What a receiver keeps because something before it is missing.

Lanes overtake each other by whole frames, and what a dead lane lost comes again, so an honest peer
leaves a few dozen pieces. A hostile one sends single bytes with gaps between them, and the same
again and again. So a place is found by bisection, what is there already is dropped before anything
else is done, and a new piece is joined with its neighbours only: no frame costs a walk over all
pieces.

Invariants: the pieces are disjoint and in order; of two that touch, both together have more than
EARLY_JOIN_BYTES; ``size_bytes`` is the sum of their lengths; all receivers of a session keep at
most EARLY_PIECES_ALL of them.

Not here: whether the peer may send the bytes at all (streams, windows).
"""

from bisect import bisect_right
from typing import List

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import EARLY_JOIN_BYTES, EARLY_PIECES, EARLY_PIECES_ALL
from sshunt.mux.payload import Payload


class PieceCount:
    """How many pieces all receivers of a session keep."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces = 0


class EarlyPieces:
    """The pieces of one receiver. ``count`` is the session's."""

    __slots__ = ("_count", "_pieces", "_starts", "size_bytes")

    def __init__(self, count: PieceCount) -> None:
        self._count = count
        self._starts: List[int] = []  # offsets, in order
        self._pieces: List[Payload] = []  # what begins there
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def end(self) -> int:
        """The offset behind the last piece; there must be one."""
        return self._starts[-1] + len(self._pieces[-1])

    def add(self, offset: int, payload: Payload) -> None:
        """Keep what is new of ``payload``; raises RemoteProtocolError when there are too many
        pieces.
        """
        while len(payload):
            index = bisect_right(self._starts, offset)  # of the first piece that begins behind it
            if index:
                end = self._starts[index - 1] + len(self._pieces[index - 1])
                offset = _drop(offset, payload, end)
            size = len(payload)
            if index < len(self._starts):
                size = min(size, self._starts[index] - offset)
            if size:
                self._insert(index, offset, payload.cut(size))
                offset += size
        if len(self._pieces) > EARLY_PIECES or self._count.pieces > EARLY_PIECES_ALL:
            raise RemoteProtocolError("more early pieces than anybody needs")

    def take(self, offset: int) -> List[Payload]:
        """The pieces that are in order now that everything up to ``offset`` is there."""
        ready: List[Payload] = []
        taken = 0
        while taken < len(self._starts) and self._starts[taken] <= offset:
            start, piece = self._starts[taken], self._pieces[taken]
            taken += 1
            self.size_bytes -= len(piece)
            _drop(start, piece, offset)
            if len(piece):
                offset += len(piece)
                ready.append(piece)
        self._remove(0, taken)
        return ready

    def release(self) -> None:
        """Drop all of them."""
        for piece in self._pieces:
            piece.release()
        self._remove(0, len(self._pieces))
        self.size_bytes = 0

    def _insert(self, index: int, offset: int, piece: Payload) -> None:
        """Keep ``piece``, all of which is new, in front of the one at ``index``."""
        piece.keep()
        self.size_bytes += len(piece)
        self._starts.insert(index, offset)
        self._pieces.insert(index, piece)
        self._count.pieces += 1
        if index and self._join(index - 1):
            index -= 1
        if index + 1 < len(self._pieces):
            self._join(index)

    def _join(self, index: int) -> bool:
        """Make one of the piece at ``index`` and the next if they touch and are small."""
        piece, following = self._pieces[index], self._pieces[index + 1]
        size = len(piece)
        if self._starts[index] + size != self._starts[index + 1]:
            return False
        if size + len(following) > EARLY_JOIN_BYTES:
            return False
        piece.join(following)
        self._remove(index + 1, index + 2)
        return True

    def _remove(self, begin: int, end: int) -> None:
        del self._starts[begin:end]
        del self._pieces[begin:end]
        self._count.pieces -= end - begin


def _drop(offset: int, payload: Payload, end: int) -> int:
    """Drop what ``payload``, beginning at ``offset``, has before ``end``; where it begins now."""
    size = min(end - offset, len(payload))
    if size <= 0:
        return offset
    payload.cut(size).release()
    return offset + size
