"""Messages about flows of UDP: what is written is read again, and nothing else is read."""

import pytest

from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.udp_messages import (
    ADDRESS_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_LOOK_UPS,
    Delivery,
    Failure,
    Key,
    Original,
    decode_delivery_untrusted,
    decode_failure_untrusted,
    decode_found,
    decode_look_up_untrusted,
    encode_delivery,
    encode_failure,
    encode_found,
    encode_look_up,
)


def key(family: int, number: int = 1) -> Key:
    size = ADDRESS_BYTES[family]
    return Key(b"\x7f" * size, bytes((number,)) * size, 5000 + number)


def original(family: int) -> Original:
    size = ADDRESS_BYTES[family]
    return Original(b"s" * size, 1, b"d" * size, 65535)


@pytest.mark.parametrize("family", [4, 6])
def test_look_ups_and_answers_are_read_as_they_were_written(family: int) -> None:
    keys = [key(family, number) for number in range(MAX_LOOK_UPS)]
    assert decode_look_up_untrusted(encode_look_up(family, keys)) == (family, keys)
    answers = [(each, original(family) if each.port % 2 else None) for each in keys]
    assert decode_found(encode_found(family, answers)) == (family, answers)


@pytest.mark.parametrize("family", [4, 6])
def test_deliveries_and_failures_are_read_as_they_were_written(family: int) -> None:
    delivery = Delivery(family, key(family), b"p" * ADDRESS_BYTES[family], 69, 3, b"payload")
    assert decode_delivery_untrusted(encode_delivery(delivery)) == delivery
    empty = delivery._replace(payload=b"", segment_bytes=0)
    assert decode_delivery_untrusted(encode_delivery(empty)) == empty
    for failure in Failure:
        body = encode_failure(family, key(family), failure)
        assert decode_failure_untrusted(body) == (family, key(family), failure)


def test_a_list_that_is_too_long_or_not_whole_is_refused() -> None:
    one = key(4).encode()
    for body in (
        b"\4",
        b"\4" + one[:-1],
        b"\4" + one + b"x",
        encode_look_up(4, [key(4)] * (MAX_LOOK_UPS + 1)),
    ):
        with pytest.raises(PacketError):
            decode_look_up_untrusted(body)
    for body in (b"\4x", encode_found(4, [(key(4), None)] * (MAX_LOOK_UPS + 1))):
        with pytest.raises(PacketError):
            decode_found(body)


def test_what_is_of_no_family_is_refused() -> None:
    for decode in (
        decode_look_up_untrusted,
        decode_found,
        decode_delivery_untrusted,
        decode_failure_untrusted,
    ):
        for body in (b"", b"\0", b"\5" + bytes(100)):
            with pytest.raises(PacketError):
                decode(body)


def test_a_delivery_without_its_ends_or_too_long_is_refused() -> None:
    whole = encode_delivery(Delivery(4, key(4), b"peer", 1, 0, b""))
    with pytest.raises(PacketError):
        decode_delivery_untrusted(whole[:-1])
    with pytest.raises(PacketError):
        decode_delivery_untrusted(whole + bytes(MAX_DATAGRAM_BYTES + 1))
    batch = encode_delivery(Delivery(4, key(4), b"peer", 1, 1200, bytes(MAX_DATAGRAM_BYTES + 1)))
    assert decode_delivery_untrusted(batch).segment_bytes == 1200


def test_a_failure_of_no_kind_or_another_length_is_refused() -> None:
    whole = encode_failure(6, key(6), Failure.REFUSED)
    for body in (whole[:-1], whole + b"\1", whole[:-1] + b"\0", whole[:-1] + b"\x63"):
        with pytest.raises(PacketError):
            decode_failure_untrusted(body)
