"""The client's datagrams of ECHO: what it asks, and what it makes of any answer."""

import pytest

from sshunt.front.echo_datagrams import Answer, decode_answer_untrusted, encode_request
from sshunt.helper.echo_messages import Asked

ASKED = Asked(9, "192.0.2.1", "10.0.0.1", 64, False, 7, 0x0102, b"data")


def test_a_request_says_how_far_it_may_go_and_has_its_data() -> None:
    assert encode_request(ASKED) == b"\x40\0\1\2data"
    assert encode_request(ASKED._replace(dont_fragment=True, hops=0)) == b"\0\1\1\2data"


@pytest.mark.parametrize(("destination", "kind"), [("10.0.0.1", 0), ("fd00::1", 129)])
def test_a_reply_has_the_data_that_came_back(destination: str, kind: int) -> None:
    datagram = bytes((kind, 0, 55, 1, 2)) + b"data"
    answer = decode_answer_untrusted(datagram, destination)
    assert answer == Answer(kind, 0, 55, 0x0102, is_reply=True, data=b"data")


def test_an_error_says_who_says_so_if_that_is_known() -> None:
    datagram = b"\x0b\0\0\1\2\0\0\5\x14"
    assert decode_answer_untrusted(datagram, "10.0.0.1") == Answer(
        11, 0, 0, 0x0102, is_reply=False, value=1300
    )
    named = decode_answer_untrusted(datagram + b"\x0a\0\0\xfe", "10.0.0.1")
    assert named is not None
    assert named.offender == "10.0.0.254"
    named = decode_answer_untrusted(datagram + b"\xfd" + bytes(14) + b"\1", "fd00::1")
    assert named is not None
    assert named.offender == "fd00::1"


@pytest.mark.parametrize(
    ("datagram", "destination"),
    [
        (b"", "10.0.0.1"),
        (b"\0\0\0\0", "10.0.0.1"),
        (b"\x0b\0\0\1\2\0\0\0", "10.0.0.1"),
        (b"\x0b\0\0\1\2\0\0\0\0\1\2\3", "10.0.0.1"),
        (b"\x0b\0\0\1\2\0\0\0\0\1\2\3\4\5", "10.0.0.1"),
        (b"\x0b\0\0\1\2\0\0\0\0" + bytes(16), "10.0.0.1"),
        (b"\x03\0\0\1\2\0\0\0\0" + bytes(4), "fd00::1"),
        (b"\0\0\0\1\2dat", "fd00::1"),
    ],
)
def test_what_makes_no_sense_is_no_answer(datagram: bytes, destination: str) -> None:
    assert decode_answer_untrusted(datagram, destination) is None
