"""Properties of the wire format: what is encoded is decoded, in whatever pieces it arrives."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    BATCH,
    END,
    ERROR,
    OPENING,
    PLAIN,
    Datagram,
    FlowTarget,
    decode_datagram_untrusted,
    encode_datagram_head,
    encode_flow_end,
    encode_flow_error,
    encode_opening_head,
)
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.frames import Destination, FrameReader
from sshunt.mux.limits import DATAGRAM_BYTES, SENTENCE_BYTES
from tests.unit.mux.ends import body

pytestmark = pytest.mark.fuzz

streams = st.integers(0, frames.MAX_STREAM)
offsets = st.integers(0, frames.MAX_OFFSET)
codes = st.integers(0, 0xFFFF)
hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255),
)
destinations = st.builds(
    lambda network, host, port, wants_opened, exposure: Destination(
        network, host, port, wants_opened, exposure if network == frames.EXPOSED else 0
    ),
    st.integers(0, 255) | st.just(frames.EXPOSED),
    hosts,
    st.integers(0, 65535),
    st.booleans(),
    st.integers(0, (1 << 32) - 1),
)

targets = st.builds(
    FlowTarget,
    st.integers(0, 255),
    hosts,
    st.integers(0, 65535),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 65535),
    st.integers(0, 255),
)
payloads = st.binary(max_size=300)
segments = st.one_of(st.just(0), st.integers(1, 65535))
serials = st.one_of(st.none(), st.integers(0, (1 << 32) - 1))

#: What a reader makes of a frame: type, stream, number, and the payload or what its body means.
Meaning = tuple[int, int, int, object]


def data(stream: int, offset: int, payload: bytes) -> tuple[bytes, Meaning]:
    raw = frames.encode_data_head(stream, offset, len(payload)) + payload
    return raw, (frames.DATA, stream, offset, payload)


def datagram(
    flow: int, payload: bytes, segment_bytes: int, serial: int | None
) -> tuple[bytes, Meaning]:
    raw = encode_datagram_head(flow, len(payload), segment_bytes, serial) + payload
    kind = BATCH if segment_bytes else PLAIN
    found = Datagram(kind, segment_bytes=segment_bytes, payload=payload, serial=serial)
    return raw, (frames.DATAGRAM, flow, 0, found)


def opening(
    flow: int, target: FlowTarget, payload: bytes, segment_bytes: int, serial: int | None
) -> tuple[bytes, Meaning]:
    raw = encode_opening_head(flow, target, len(payload), segment_bytes, serial) + payload
    found = Datagram(OPENING, target, segment_bytes, payload, serial=serial)
    return raw, (frames.DATAGRAM, flow, 0, found)


def lane_ack(position: int, held_us: int, arrived_us: int) -> tuple[bytes, Meaning]:
    raw = frames.encode_lane_ack(position, (held_us + 0.5) / 1e6, (arrived_us + 0.5) / 1e6)
    return raw, (frames.LANE_ACK, 0, 0, (position, held_us / 1e6, arrived_us))


#: (bytes, meaning) of any frame that we can send.
encoded = st.one_of(
    st.builds(data, streams, offsets, st.binary(min_size=1, max_size=300)),
    st.builds(lambda s, o: (frames.encode_fin(s, o), (frames.FIN, s, o, None)), streams, offsets),
    st.builds(
        lambda s, o: (frames.encode_window(s, o, 3), (frames.WINDOW, s, 0, (o, 3))),
        streams,
        offsets,
    ),
    st.builds(
        lambda s, d: (frames.encode_open(s, d, 9), (frames.OPEN, s, 0, (d, 9))),
        streams,
        destinations,
    ),
    st.builds(lambda s: (frames.encode_opened(s), (frames.OPENED, s, 0, None)), streams),
    st.builds(lambda s, c: (frames.encode_reset(s, c), (frames.RESET, s, c, None)), streams, codes),
    st.builds(
        lane_ack,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 0xFFFFFFFE),
        st.integers(0, 0xFFFFFFFF),
    ),
    st.builds(
        lambda n: (frames.encode_lane_gone(n), (frames.LANE_GONE, n, 0, None)),
        st.integers(0, 65535),
    ),
    st.just((frames.encode_ping(), (frames.PING, 0, 0, None))),
    st.builds(datagram, streams, payloads, segments, serials),
    st.builds(opening, streams, targets, payloads, segments, serials),
    st.builds(
        lambda f, c, v: (
            encode_flow_error(f, c, v),
            (frames.DATAGRAM, f, 0, Datagram(ERROR, code=c, value=v)),
        ),
        streams,
        st.integers(0, 255),
        st.integers(0, (1 << 32) - 1),
    ),
    st.builds(
        lambda f, c: (encode_flow_end(f, c), (frames.DATAGRAM, f, 0, Datagram(END, code=c))),
        streams,
        st.integers(0, 255),
    ),
    st.builds(
        lambda c, s: (frames.encode_goodbye(c, s), (frames.GOODBYE, 0, 0, (c, s))),
        codes,
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=SENTENCE_BYTES),
    ),
)


def meanings(pieces: list[bytes]) -> list[Meaning]:
    """What a reader makes of a byte stream that arrives in ``pieces``; DATA is put together."""
    found: list[Meaning] = []
    reader = FrameReader()
    for piece in pieces:
        for kind, stream, number, raw in reader.feed(memoryview(piece)):
            found.append((kind, stream, number, meaning(kind, body(raw))))
    return found


def meaning(kind: int, raw: bytes) -> object:
    if kind == frames.DATA:
        return raw
    if kind == frames.OPEN:
        return frames.decode_open_untrusted(raw)
    if kind == frames.WINDOW:
        return frames.decode_window_untrusted(raw)
    if kind == frames.LANE_ACK:
        return frames.decode_ack_untrusted(raw)
    if kind == frames.GOODBYE:
        return frames.decode_goodbye_untrusted(raw)
    return decode_datagram_untrusted(raw) if kind == frames.DATAGRAM else None


def data_joined(found: list[Meaning]) -> list[Meaning]:
    """``found`` with DATA that continues the DATA before it added to that."""
    joined: list[Meaning] = []
    for kind, stream, number, rest in found:
        if joined and kind == frames.DATA and isinstance(rest, bytes):
            before = joined[-1][3]
            if isinstance(before, bytes) and joined[-1][:3] == (kind, stream, number - len(before)):
                joined[-1] = (*joined[-1][:3], before + rest)
                continue
        joined.append((kind, stream, number, rest))
    return joined


def split(whole: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(places)]


@settings(deadline=None, max_examples=200)
@given(encoded)
def test_what_is_encoded_is_decoded(frame: tuple[bytes, Meaning]) -> None:
    raw, expected = frame
    assert meanings([raw]) == [expected]


@settings(deadline=None, max_examples=200)
@given(st.lists(encoded, max_size=8), st.lists(st.integers(0, 5000), max_size=12))
def test_frames_mean_the_same_however_the_bytes_are_split(
    sent: list[tuple[bytes, Meaning]], cuts: list[int]
) -> None:
    wire = b"".join(raw for raw, _ in sent)
    expected = data_joined([expected for _, expected in sent])
    assert data_joined(meanings(split(wire, cuts))) == expected
    assert data_joined(meanings([wire[at : at + 1] for at in range(len(wire))])) == expected


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(encoded.map(lambda frame: frame[0]), st.binary(max_size=40)), max_size=6))
def test_any_bytes_are_frames_or_an_error_of_the_peer(pieces: list[bytes]) -> None:
    wire = b"".join(pieces)
    outcomes: list[list[Meaning] | None] = []
    for fed in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
        try:
            outcomes.append(data_joined(meanings(fed)))
        except RemoteProtocolError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_body_of_an_open_is_a_destination_that_can_be_sent_or_an_error(raw: bytes) -> None:
    try:
        destination, window_bytes = frames.decode_open_untrusted(raw)
    except RemoteProtocolError:
        return
    again = frames.encode_open(1, destination, window_bytes)[frames.HEADER_BYTES :]
    assert frames.decode_open_untrusted(again) == (destination, window_bytes)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.binary(min_size=1, max_size=300), encoded.map(lambda frame: frame[0][8:] or b"x"))
)
def test_any_body_of_a_datagram_is_one_that_can_be_sent_or_an_error(raw: bytes) -> None:
    try:
        found = decode_datagram_untrusted(raw)
    except RemoteProtocolError:
        return
    size, serial = len(found.payload), found.serial
    if found.target is not None:
        head = encode_opening_head(1, found.target, size, found.segment_bytes, serial)
    elif found.kind in (PLAIN, BATCH):
        head = encode_datagram_head(1, size, found.segment_bytes, serial)
    else:
        return
    assert decode_datagram_untrusted(head[frames.HEADER_BYTES :] + found.payload) == found


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=260))
def test_any_host_is_sent_as_it_is_or_refused_here(host: str) -> None:
    destination = Destination(frames.TCP, host, 80)
    try:
        raw = frames.encode_open(1, destination, 7)
    except LocalProtocolError:
        return
    assert frames.decode_open_untrusted(raw[frames.HEADER_BYTES :]) == (destination, 7)


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=2, max_size=1024))
def test_any_goodbye_is_one_printable_line(raw: bytes) -> None:
    _, sentence = frames.decode_goodbye_untrusted(raw)
    assert sentence.isprintable()
    assert len(sentence) <= SENTENCE_BYTES


def test_a_reader_never_holds_more_than_one_small_body() -> None:
    reader = FrameReader()
    head = encode_datagram_head(1, DATAGRAM_BYTES)
    tracemalloc.start()
    try:
        reader.feed(memoryview(head + bytes(DATAGRAM_BYTES - 1)))
        for _ in range(50):  # each completes one datagram and begins the next
            reader.feed(memoryview(b"x" + head + bytes(DATAGRAM_BYTES - 1)))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 3 * DATAGRAM_BYTES
