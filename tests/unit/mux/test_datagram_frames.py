"""A DATAGRAM's body: each kind's bytes, what is made of them, what is refused."""

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    ANY_PEER,
    BATCH,
    END,
    ERROR,
    FLOW_NO_RESOURCES,
    FLOW_TOO_LARGE,
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
from sshunt.mux.limits import DATAGRAM_BYTES, DATAGRAM_HEAD_BYTES

TARGET = FlowTarget(frames.UDP, "10.1.2.3", 5004, 7, 40000, ANY_PEER)
NAMED = FlowTarget(frames.UDP, "web.example", 443)


@pytest.mark.parametrize(
    ("wire", "body", "found"),
    [
        (encode_datagram_head(5, 2) + b"hi", "01 6869", Datagram(PLAIN, payload=b"hi")),
        (encode_datagram_head(5, 0), "01", Datagram(PLAIN)),
        (
            encode_datagram_head(5, 3, 2) + b"abc",
            "02 0002 616263",
            Datagram(BATCH, segment_bytes=2, payload=b"abc"),
        ),
        (
            encode_opening_head(5, TARGET, 2) + b"hi",
            "03 02 01 0000 00000007 9c40 04 138c 0a010203 6869",
            Datagram(OPENING, TARGET, payload=b"hi"),
        ),
        (
            encode_opening_head(5, NAMED, 2, 1) + b"hi",
            "03 02 00 0001 00000000 0000 00 01bb 0b" + b"web.example".hex() + "6869",
            Datagram(OPENING, NAMED, 1, b"hi"),
        ),
        (
            encode_flow_error(5, FLOW_TOO_LARGE, 1472),
            "04 0a 000005c0",
            Datagram(ERROR, code=FLOW_TOO_LARGE, value=1472),
        ),
        (
            encode_flow_end(5, FLOW_NO_RESOURCES),
            "05 07",
            Datagram(END, code=FLOW_NO_RESOURCES),
        ),
        (
            encode_datagram_head(5, 2, serial=9) + b"hi",
            "81 00000009 6869",
            Datagram(PLAIN, payload=b"hi", serial=9),
        ),
        (
            encode_opening_head(5, TARGET, 0, serial=9),
            "83 00000009 02 01 0000 00000007 9c40 04 138c 0a010203",
            Datagram(OPENING, TARGET, serial=9),
        ),
    ],
)
def test_a_datagram_is_these_bytes_and_is_read_back(
    wire: bytes, body: str, found: Datagram
) -> None:
    raw = bytes.fromhex(body)
    assert wire == bytes((frames.DATAGRAM, 0, 0, len(raw), 0, 0, 0, 5)) + raw
    assert decode_datagram_untrusted(raw) == found


@pytest.mark.parametrize(
    "body",
    [
        "02",
        "02 00",
        "02 0000 616263",
        "03",
        "03 02 01 0000 00000007 9c40 04 13",
        "03 02 01 0000 00000007 9c40 04 138c 0a0102",
        "03 02 01 0000 00000007 9c40 09 138c 0a010203",
        "04",
        "04 0a 000005",
        "05",
        "81",
        "81 000000",
        "82 00000009",
    ],
)
def test_a_body_too_short_or_impossible_is_an_error_of_the_peer(body: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_datagram_untrusted(bytes.fromhex(body))


def test_what_a_later_version_adds_is_ignored() -> None:
    assert decode_datagram_untrusted(b"\x06whatever") == Datagram(6)
    assert decode_datagram_untrusted(b"\x05\x07more") == Datagram(END, code=7)
    assert decode_datagram_untrusted(b"\x04\x07\0\0\0\0more") == Datagram(ERROR, code=7)


def test_the_largest_datagram_passes_whatever_stands_before_it_and_no_larger_one() -> None:
    longest = FlowTarget(frames.UDP, "x" * 255, 1)
    head = encode_opening_head(1, longest, DATAGRAM_BYTES, 1, serial=1)[frames.HEADER_BYTES :]
    assert len(head) <= DATAGRAM_HEAD_BYTES
    payload = bytes(DATAGRAM_BYTES)
    assert decode_datagram_untrusted(head + payload).payload == payload
    for kind in (b"\1", b"\2\0\1", head):
        with pytest.raises(RemoteProtocolError):
            decode_datagram_untrusted(kind + payload + b"x")


def test_a_host_that_the_other_side_would_not_take_is_never_sent() -> None:
    with pytest.raises(LocalProtocolError):
        encode_opening_head(1, FlowTarget(frames.UDP, "no such name", 1), 0)
