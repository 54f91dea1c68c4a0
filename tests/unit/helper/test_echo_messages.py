"""What client and packet process say of echo requests is understood as it was meant, or refused."""

import pytest

from sshunt.helper.echo_messages import (
    ERRORS,
    Asked,
    Failed,
    Replied,
    decode_asked,
    decode_failed_untrusted,
    decode_replied_untrusted,
    encode_asked,
    encode_failed,
    encode_replied,
)
from sshunt.helper.packet_protocol import PacketError


@pytest.mark.parametrize(
    "asked",
    [
        Asked(1, "192.0.2.1", "10.0.0.1", 64, False, 7, 1, b""),
        Asked(0xFFFFFFFF, "192.0.2.1", "10.0.0.1", 0, True, 0xFFFF, 0xFFFF, bytes(8192)),
        Asked(2, "2001:db8::1", "fd00::1", 255, False, 0, 0, b"data"),
    ],
)
def test_a_request_is_told_as_it_is(asked: Asked) -> None:
    assert decode_asked(encode_asked(asked)) == asked


def test_a_reply_is_told_as_it_is_and_has_one_length() -> None:
    replied = Replied(0xFFFFFFFF, 255, 0xFFFF)
    body = encode_replied(replied)
    assert decode_replied_untrusted(body) == replied
    for wrong in (body[:-1], body + b"\0", b""):
        with pytest.raises(PacketError):
            decode_replied_untrusted(wrong)


@pytest.mark.parametrize("offender", ["10.0.0.1", "fd00::1"])
def test_an_error_is_told_as_it_is_if_a_request_can_have_it(offender: str) -> None:
    possible = ERRORS[6 if ":" in offender else 4]
    for what in range(256):
        for code in (0, 1, 4, 7, 15, 16, 255):
            failed = Failed(9, what, code, 0xFFFFFFFF, offender)
            if code in possible.get(what, ()):
                assert decode_failed_untrusted(encode_failed(failed)) == failed
            else:
                with pytest.raises(PacketError):
                    decode_failed_untrusted(encode_failed(failed))


def test_an_error_of_another_length_is_none() -> None:
    body = encode_failed(Failed(9, 3, 1, 0, "10.0.0.1"))
    for wrong in (body[:-1], body + b"\0", body + bytes(13), b""):
        with pytest.raises(PacketError):
            decode_failed_untrusted(wrong)
