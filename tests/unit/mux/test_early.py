"""What waits for something before it: in order, each byte once, at a price that does not grow."""

import pytest

from sshunt.mux.early import EarlyPieces, PieceCount
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import EARLY_JOIN_BYTES, EARLY_PIECES, EARLY_PIECES_ALL
from sshunt.mux.payload import Payload


class Watched(Payload):
    """Counts how often anybody looks at any of its kind."""

    __slots__ = ()
    looks = 0

    def __len__(self) -> int:
        Watched.looks += 1
        return super().__len__()


def pieces(*items: tuple[int, bytes]) -> EarlyPieces:
    early = EarlyPieces(PieceCount())
    for offset, data in items:
        early.add(offset, Payload(data))
    return early


def taken(early: EarlyPieces, offset: int) -> list[bytes]:
    return [bytes(piece.view) for piece in early.take(offset)]


def test_pieces_come_out_in_order_up_to_the_next_gap() -> None:
    early = pieces((8, b"ij"), (4, b"ef"), (2, b"cd"))
    assert (len(early), early.end, early.size_bytes) == (2, 10, 6)
    assert taken(early, 2) == [b"cdef"]
    assert (len(early), early.size_bytes) == (1, 2)


def test_a_piece_that_spans_several_fills_the_gaps_between_them() -> None:
    early = pieces((2, b"c"), (4, b"e"), (7, b"h"), (1, b"bcdefghi"))
    assert (len(early), early.size_bytes) == (1, 8)
    assert taken(early, 1) == [b"bcdefghi"]


def test_bytes_that_were_delivered_meanwhile_are_cut_off() -> None:
    early = pieces((2, b"cd"), (6, b"ghi"))
    assert taken(early, 7) == [b"hi"]
    assert (len(early), early.size_bytes) == (0, 0)


def test_the_price_of_a_frame_does_not_grow_with_what_is_kept() -> None:
    def looks_with(kept: int) -> int:
        early = EarlyPieces(PieceCount())
        for index in range(kept):
            early.add(2 * index, Watched(b"x"))
        Watched.looks = 0
        for index in (0, kept // 2, kept - 1):
            early.add(2 * index, Watched(b"x"))
        early.add(2 * kept, Watched(b"x"))
        return Watched.looks

    assert looks_with(1000) <= looks_with(10)


def test_too_many_pieces_of_one_stream_break_the_protocol() -> None:
    early = pieces(*((2 * index, b"x") for index in range(EARLY_PIECES)))
    early.add(0, Payload(b"x"))  # nothing new
    with pytest.raises(RemoteProtocolError):
        early.add(2 * EARLY_PIECES, Payload(b"x"))


def test_too_many_pieces_of_all_streams_break_the_protocol() -> None:
    count = PieceCount()
    for _ in range(EARLY_PIECES_ALL // EARLY_PIECES):
        early = EarlyPieces(count)
        for index in range(EARLY_PIECES):
            early.add(2 * index, Payload(b"x"))
    another = EarlyPieces(count)
    with pytest.raises(RemoteProtocolError):
        another.add(0, Payload(b"x"))
    another.release()
    early.release()
    assert count.pieces == EARLY_PIECES_ALL - EARLY_PIECES


def test_touching_pieces_are_joined_while_they_are_cheap_to_copy() -> None:
    half = bytes(EARLY_JOIN_BYTES // 2)
    early = pieces((0, half), (2 * len(half), half), (len(half), half))
    assert [len(piece) for piece in early.take(0)] == [2 * len(half), len(half)]
