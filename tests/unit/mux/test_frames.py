"""The wire format: each frame's bytes, what a reader makes of them, what it refuses."""

import struct

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import encode_datagram_head
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.frames import Destination, Frame, FrameReader
from sshunt.mux.limits import (
    CONTROL_BYTES,
    DATA_BYTES,
    DATAGRAM_BYTES,
    DATAGRAM_HEAD_BYTES,
    SENTENCE_BYTES,
)
from tests.unit.mux.ends import body, read_frames


def header(kind: int, length: int, stream: int = 0) -> bytes:
    return struct.pack("!BBHI", kind, length >> 16, length & 0xFFFF, stream)


#: The beginning of an OPEN of TCP, up to its endpoint: network, flags, credit.
TCP_70000 = b"\1\1" + struct.pack("!I", 70000)


def plain(frame: Frame) -> tuple[int, int, int, bytes]:
    return (frame[0], frame[1], frame[2], body(frame[3]))


def read_one(data: bytes) -> tuple[int, int, int, bytes]:
    (frame,) = read_frames(data)
    return plain(frame)


def read_in_pieces(data: bytes, size: int) -> list[tuple[int, int, int, bytes]]:
    reader = FrameReader()
    return [
        plain(frame)
        for at in range(0, len(data), size)
        for frame in reader.feed(memoryview(data)[at : at + size])
    ]


@pytest.mark.parametrize(
    ("encoded", "wire", "decoded"),
    [
        (
            frames.encode_data_head(7, 258, 3) + b"abc",
            header(1, 11, 7) + bytes.fromhex("0000000000000102") + b"abc",
            (frames.DATA, 7, 258, b"abc"),
        ),
        (
            frames.encode_fin(7, 261),
            header(2, 8, 7) + bytes.fromhex("0000000000000105"),
            (frames.FIN, 7, 261, bytes.fromhex("0000000000000105")),
        ),
        (
            frames.encode_window(7, 262144, 5),
            header(3, 12, 7) + bytes.fromhex("000000000004000000000005"),
            (frames.WINDOW, 7, 0, bytes.fromhex("000000000004000000000005")),
        ),
        (frames.encode_opened(9), header(5, 0, 9), (frames.OPENED, 9, 0, b"")),
        (
            frames.encode_reset(9, frames.RESET_REFUSED),
            header(6, 2, 9) + b"\0\2",
            (frames.RESET, 9, frames.RESET_REFUSED, b"\0\2"),
        ),
        (frames.encode_ping(), header(8, 0), (frames.PING, 0, 0, b"")),
        (
            encode_datagram_head(5, 2) + b"hi",
            header(9, 3, 5) + b"\1hi",
            (frames.DATAGRAM, 5, 0, b"\1hi"),
        ),
    ],
)
def test_a_frame_is_these_bytes_and_is_read_back_whole_or_byte_by_byte(
    encoded: bytes, wire: bytes, decoded: tuple[int, int, int, bytes]
) -> None:
    assert encoded == wire
    assert read_one(wire) == decoded
    pieces = read_in_pieces(wire, 1)
    assert [piece[:2] for piece in pieces] == [decoded[:2]] * len(pieces)
    if decoded[0] == frames.DATA:
        assert b"".join(piece[3] for piece in pieces) == decoded[3]
    else:
        assert pieces == [decoded]


@pytest.mark.parametrize(
    ("destination", "tail"),
    [
        (Destination(frames.TCP, "10.1.2.3", 80), "01 01 00011170 04 0050 0a010203"),
        (
            Destination(frames.TCP, "2001:db8::1", 443),
            "01 01 00011170 06 01bb 20010db8" + "00" * 11 + "01",
        ),
        (
            Destination(frames.TCP, "web.example", 22),
            "01 01 00011170 00 0016 0b" + b"web.example".hex(),
        ),
        (
            Destination(frames.TCP, "10.1.2.3", 80, wants_opened=False),
            "01 00 00011170 04 0050 0a010203",
        ),
        (
            Destination(frames.EXPOSED, "10.1.2.3", 50000, exposure=7),
            "06 01 00011170 04 c350 0a010203 00000007",
        ),
    ],
)
def test_an_open_names_its_destination_by_address_or_by_name(
    destination: Destination, tail: str
) -> None:
    raw = frames.encode_open(3, destination, 70000)
    assert raw[8:] == bytes.fromhex(tail)
    kind, stream, _, tail_read = read_one(raw)
    assert (kind, stream) == (frames.OPEN, 3)
    assert frames.decode_open_untrusted(tail_read) == (destination, 70000)


@pytest.mark.parametrize("host", ["", "x" * 256, "two words", "bücher.example", "nul\0", "del\x7f"])
def test_a_host_that_the_other_side_would_not_take_is_never_sent(host: str) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_open(1, Destination(frames.TCP, host, 80))


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        TCP_70000,
        TCP_70000 + b"\4\0\x50",
        TCP_70000 + b"\4\0\x50" + b"abc",
        TCP_70000 + b"\6\0\x50" + bytes(15),
        TCP_70000 + b"\5\0\x50" + b"abcd",
        TCP_70000 + b"\0\0\x50" + b"\0x",
        TCP_70000 + b"\0\0\x50" + b"\5four",
        TCP_70000 + b"\0\0\x50" + b"\x09two words",
        TCP_70000 + b"\0\0\x50" + b"\4caf\xe9",
        b"\6" + TCP_70000[1:] + b"\4\0\x50" + b"abcd" + b"\0\0\7",
    ],
)
def test_an_open_with_an_impossible_destination_is_refused(tail: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        frames.decode_open_untrusted(tail)


def test_unknown_bytes_at_the_end_of_an_open_are_ignored() -> None:
    raw = frames.encode_open(1, Destination(frames.TCP, "10.1.2.3", 80))[frames.HEADER_BYTES :]
    more = raw[:1] + b"\xff" + raw[2:] + b"more"
    assert frames.decode_open_untrusted(more) == frames.decode_open_untrusted(raw)


@pytest.mark.parametrize(
    ("held_s", "read_s"), [(0.0015, 0.0015), (-1.0, 0.0), (1e9, 0xFFFFFFFF / 1e6)]
)
def test_a_lane_ack_carries_a_position_and_a_delay_within_its_field(
    held_s: float, read_s: float
) -> None:
    raw = frames.encode_lane_ack(1 << 40, held_s, 3.0)
    assert raw[:8] == header(7, 16)
    _, _, _, tail = read_one(raw)
    position, decoded_s, arrived_us = frames.decode_ack_untrusted(tail)
    assert (position, round(decoded_s, 9), arrived_us) == (1 << 40, read_s, 3_000_000)


def test_the_clock_in_a_lane_ack_wraps_at_32_bits() -> None:
    _, _, _, tail = read_one(frames.encode_lane_ack(0, 0.0, 2**32 / 1e6 + 1.5))
    assert frames.decode_ack_untrusted(tail)[2] == 1_500_000


def test_a_goodbye_carries_a_code_and_a_sentence() -> None:
    raw = frames.encode_goodbye(frames.GOODBYE_DONE, "bye")
    assert raw == header(10, 5) + b"\0\0bye"
    assert frames.decode_goodbye_untrusted(raw[8:]) == (frames.GOODBYE_DONE, "bye")


def test_a_goodbye_is_cut_to_one_line_and_made_printable() -> None:
    raw = frames.encode_goodbye(1, "x" * (SENTENCE_BYTES + 100))
    assert frames.decode_goodbye_untrusted(raw[8:]) == (1, "x" * SENTENCE_BYTES)
    assert frames.decode_goodbye_untrusted(b"\0\1a\x1b[2Jb\n\xff") == (1, "a [2Jb \ufffd")
    longer = b"\0\1" + b"y" * (SENTENCE_BYTES + 1)
    assert frames.decode_goodbye_untrusted(longer) == (1, "y" * SENTENCE_BYTES)


def test_a_partly_arrived_data_frame_is_delivered_at_once_with_its_offset() -> None:
    reader = FrameReader()
    payload = bytes(range(256)) * (frames.WHOLE_BYTES // 256)
    wire = frames.encode_data_head(1, 100, len(payload)) + payload
    first = reader.feed(memoryview(wire[:20]))
    second = reader.feed(memoryview(wire[20:] + frames.encode_ping()))
    assert [plain(f) for f in first] == [(frames.DATA, 1, 100, payload[:4])]
    assert [plain(f) for f in second] == [
        (frames.DATA, 1, 104, payload[4:]),
        (frames.PING, 0, 0, b""),
    ]


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_small_payload_is_handed_on_whole_wherever_the_lane_was_cut(cut: int) -> None:
    reader = FrameReader()
    wire = frames.encode_data_head(1, 100, 6) + b"abcdef"
    found = reader.feed(memoryview(wire[:cut])) + reader.feed(memoryview(wire[cut:]))
    assert [plain(f) for f in found] == [(frames.DATA, 1, 100, b"abcdef")]


@pytest.mark.parametrize("size", range(1, 40))
def test_frames_mean_the_same_in_pieces_of_any_size(size: int) -> None:
    wire = (
        frames.encode_data_head(1, 100, 6)
        + b"abcdef"
        + frames.encode_window(1, 7, 1)
        + frames.encode_opened(1)
        + frames.encode_data_head(1, 106, 2)
        + b"gh"
        + frames.encode_lane_ack(5, 0.1, 7.0)
    )
    read = read_in_pieces(wire, size)
    others = [frame[:3] for frame in read if frame[0] != frames.DATA]
    assert others == [(frames.WINDOW, 1, 0), (frames.OPENED, 1, 0), (frames.LANE_ACK, 0, 0)]
    assert b"".join(frame[3] for frame in read if frame[0] == frames.DATA) == b"abcdefgh"


def test_payloads_are_views_of_what_was_fed_and_small_bodies_are_copies() -> None:
    buffer = bytearray(frames.encode_data_head(1, 0, 3) + b"abc" + frames.encode_reset(1, 7))
    data, reset = FrameReader().feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert body(data[3]) == bytes(3)
    assert body(reset[3]) == b"\0\7"


def test_one_read_may_hold_many_frames() -> None:
    wire = frames.encode_ping() + frames.encode_opened(3) + frames.encode_reset(5, 1)
    assert [frame[:2] for frame in read_frames(wire)] == [
        (frames.PING, 0),
        (frames.OPENED, 3),
        (frames.RESET, 5),
    ]


LENGTHS = {
    frames.DATA: (9, 8 + DATA_BYTES),
    frames.FIN: (8, 8),
    frames.WINDOW: (12, 12),
    frames.OPEN: (11, CONTROL_BYTES),
    frames.OPENED: (0, 0),
    frames.RESET: (2, 2),
    frames.LANE_ACK: (16, 16),
    frames.PING: (0, 0),
    frames.DATAGRAM: (1, DATAGRAM_HEAD_BYTES + DATAGRAM_BYTES),
    frames.GOODBYE: (2, CONTROL_BYTES),
    frames.LANE_GONE: (0, 0),
}


@pytest.mark.parametrize(("kind", "lengths"), LENGTHS.items())
def test_the_longest_and_the_shortest_frame_of_a_type_are_taken(
    kind: int, lengths: tuple[int, int]
) -> None:
    for length in lengths:
        (frame,) = read_frames(header(kind, length, 1) + bytes(length))
        assert frame[0] == kind


@pytest.mark.parametrize(("kind", "lengths"), LENGTHS.items())
@pytest.mark.parametrize("size", [1, 8])
def test_an_impossible_length_is_refused_as_soon_as_the_header_is_there(
    kind: int, lengths: tuple[int, int], size: int
) -> None:
    for length in (lengths[0] - 1, lengths[1] + 1):
        if length < 0:
            continue
        with pytest.raises(RemoteProtocolError):
            read_in_pieces(header(kind, length), size)


@pytest.mark.parametrize("kind", [0, 12, 255])
@pytest.mark.parametrize("size", [1, 8])
def test_an_unknown_type_is_refused(kind: int, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        read_in_pieces(header(kind, 0), size)


@pytest.mark.parametrize("kind", [frames.DATA, frames.FIN])
@pytest.mark.parametrize("size", [1, 1000])
def test_an_offset_above_63_bits_is_refused(kind: int, size: int) -> None:
    wire = header(kind, 9 if kind == frames.DATA else 8) + struct.pack("!Q", 1 << 63) + b"x"
    with pytest.raises(RemoteProtocolError):
        read_in_pieces(wire, size)


def test_the_largest_offset_is_taken() -> None:
    wire = header(frames.FIN, 8, 1) + struct.pack("!Q", frames.MAX_OFFSET)
    assert read_one(wire)[2] == frames.MAX_OFFSET


def test_a_window_limit_above_63_bits_is_refused() -> None:
    largest = struct.pack("!QI", frames.MAX_OFFSET, 1)
    assert frames.decode_window_untrusted(largest) == (frames.MAX_OFFSET, 1)
    with pytest.raises(RemoteProtocolError):
        frames.decode_window_untrusted(struct.pack("!QI", frames.MAX_OFFSET + 1, 1))


def test_a_lane_s_end_is_told_by_its_number_alone() -> None:
    assert frames.encode_lane_gone(7) == header(11, 0, 7)
    assert read_one(header(11, 0, 7)) == (frames.LANE_GONE, 7, 0, b"")


@pytest.mark.parametrize("cut", range(1, frames.DATA_HEAD_BYTES))
def test_a_large_frame_whose_head_is_cut_is_handed_on_from_its_first_byte(cut: int) -> None:
    reader = FrameReader()
    payload = bytes(range(256)) * (frames.WHOLE_BYTES // 128)
    wire = frames.encode_data_head(1, 100, len(payload)) + payload
    assert reader.feed(memoryview(wire[:cut])) == []
    (frame,) = reader.feed(memoryview(wire[cut:]))
    assert plain(frame) == (frames.DATA, 1, 100, payload)


def test_bytes_that_somebody_else_took_from_the_lane_are_not_awaited() -> None:
    reader = FrameReader()
    payload = bytes(frames.WHOLE_BYTES)
    reader.feed(memoryview(frames.encode_data_head(1, 100, len(payload))))
    assert (reader.stream, reader.offset, reader.data_left) == (1, 100, len(payload))
    reader.skip(len(payload) - 1)
    (last, ping) = reader.feed(memoryview(b"x" + frames.encode_ping()))
    assert plain(last) == (frames.DATA, 1, 100 + len(payload) - 1, b"x")
    assert ping[0] == frames.PING


def test_a_reader_says_how_large_the_last_payload_is_that_began() -> None:
    reader = frames.FrameReader()
    head = frames.encode_data_head(1, 0, 5000)
    for piece, newest in (
        (frames.encode_ping(), 0),
        (head + bytes(100), 5000),
        (bytes(4900), 0),
        (frames.encode_data_head(1, 5000, 3) + b"abc" + head, 5000),
    ):
        reader.feed(memoryview(piece))
        assert reader.newest_bytes == newest
