"""Messages about flows of UDP: any bytes are one, or PacketError."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.udp_messages import (
    decode_delivery_untrusted,
    decode_failure_untrusted,
    decode_found,
    decode_look_up_untrusted,
    encode_delivery,
    encode_failure,
    encode_look_up,
)

_DECODERS = [
    decode_look_up_untrusted,
    decode_delivery_untrusted,
    decode_failure_untrusted,
    decode_found,
]
_bodies = st.binary(max_size=200) | st.builds(
    lambda family, rest: bytes((family,)) + rest, st.sampled_from([4, 6]), st.binary(max_size=500)
)


@pytest.mark.parametrize("decode", _DECODERS)
@given(body=_bodies)
def test_any_bytes_are_a_message_or_one_named_error(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    with suppress(PacketError):
        decode(body)


@given(body=_bodies)
def test_what_is_read_is_written_as_it_was(body: bytes) -> None:
    with suppress(PacketError):
        assert encode_look_up(*decode_look_up_untrusted(body)) == body
    with suppress(PacketError):
        assert encode_delivery(decode_delivery_untrusted(body)) == body
    with suppress(PacketError):
        assert encode_failure(*decode_failure_untrusted(body)) == body
