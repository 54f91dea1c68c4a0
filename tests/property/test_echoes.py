"""Echo requests, and what is said of them, by whoever may be hostile: any bytes give a value or one
named error.
"""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from sshunt.front.echo_datagrams import decode_answer_untrusted
from sshunt.helper.echo_messages import (
    ERRORS,
    decode_failed_untrusted,
    decode_replied_untrusted,
    encode_failed,
    encode_replied,
)
from sshunt.helper.echo_packets import (
    MOST_DATA_BYTES,
    NoEchoError,
    decode_echo_untrusted,
    error,
    reply,
)
from sshunt.helper.packet_protocol import PacketError

_HEADS = st.sampled_from(
    [
        b"",
        b"\x45\0\0\x1c\0\0\0\0\x40\1\0\0" + bytes(8) + b"\x08\0",
        b"\x60\0\0\0\0\x08\x3a\x40" + bytes(32) + b"\x80\0",
    ]
)


@given(_HEADS, st.binary(max_size=9000), st.integers(0, 0xFFFF))
def test_any_packet_is_a_request_that_can_be_answered_or_none(
    head: bytes, rest: bytes, data_bytes: int
) -> None:
    with suppress(NoEchoError):
        echo = decode_echo_untrusted(head + rest)
        assert len(echo.data) <= MOST_DATA_BYTES
        assert reply(echo, data_bytes)[8:] == echo.data[:data_bytes]
        for what, codes in ERRORS[echo.version].items():
            assert error(echo, what, codes[0], 0xFFFFFFFF)[8:] == echo.quoted


@given(st.binary(max_size=40))
def test_any_message_of_a_client_is_understood_as_it_would_be_written_or_refused(
    body: bytes,
) -> None:
    with suppress(PacketError):
        assert encode_replied(decode_replied_untrusted(body)) == body
    with suppress(PacketError):
        assert encode_failed(decode_failed_untrusted(body)) == body


@given(st.binary(max_size=40), st.sampled_from(["10.0.0.1", "fd00::1"]))
def test_any_datagram_of_the_far_side_is_an_answer_or_none(
    datagram: bytes, destination: str
) -> None:
    answer = decode_answer_untrusted(datagram, destination)
    if answer is not None and answer.offender:
        assert (":" in answer.offender) == (":" in destination)
