"""What is said about held SYNs: it comes back as it was said, and nothing else is taken for it."""

import pytest

from sshunt.helper.packet_protocol import SYN_KINDS, PacketError
from sshunt.helper.syn_messages import (
    FAILED,
    GONE,
    HELD,
    OPENED,
    REFUSED,
    Answer,
    Held,
    decode_failed_untrusted,
    decode_held,
    decode_number_untrusted,
    decode_refused_untrusted,
    encode_failed,
    encode_held,
    encode_number,
    encode_refused,
)


@pytest.mark.parametrize(
    "held",
    [
        Held(1, False, ("192.0.2.9", 40000), ("10.0.0.1", 80)),
        Held(2**32 - 1, True, ("2001:db8::9", 1), ("fd00::1", 65535)),
    ],
)
def test_a_held_syn_comes_back_as_it_was_told(held: Held) -> None:
    assert decode_held(encode_held(held)) == held


def test_numbers_answers_and_destinations_come_back_as_they_were_told() -> None:
    assert decode_number_untrusted(encode_number(77)) == 77
    for answer in Answer:
        assert decode_refused_untrusted(encode_refused(77, answer)) == (77, answer)
    for destination in (("10.0.0.1", 80), ("fd00::1", 443)):
        assert decode_failed_untrusted(encode_failed(destination)) == destination


def test_each_kind_of_message_is_one_of_those_of_held_syns() -> None:
    assert len({HELD, GONE, OPENED, REFUSED, FAILED} & set(SYN_KINDS)) == 5


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 6, 7, 18, 19, 1000])
def test_bodies_of_another_length_are_errors(size: int) -> None:
    body = b"\x01" * size
    if size != 4:
        with pytest.raises(PacketError):
            decode_number_untrusted(body)
    if size != 5:
        with pytest.raises(PacketError):
            decode_refused_untrusted(body)
    if size not in (6, 18):
        with pytest.raises(PacketError):
            decode_failed_untrusted(body)
    with pytest.raises(PacketError):
        decode_held(body)


def test_an_answer_that_there_is_not_is_an_error() -> None:
    with pytest.raises(PacketError):
        decode_refused_untrusted(encode_number(77) + b"\x05")
