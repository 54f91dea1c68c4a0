"""What a client says of held SYNs: any bytes are a message or one error, and mean what was said."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.syn_messages import (
    Answer,
    decode_failed_untrusted,
    decode_number_untrusted,
    decode_refused_untrusted,
    encode_failed,
    encode_number,
    encode_refused,
)

pytestmark = pytest.mark.fuzz

_numbers = st.integers(0, 2**32 - 1)
_destinations = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


@given(_numbers, st.sampled_from(Answer), _destinations)
def test_what_is_said_comes_back(number: int, answer: Answer, destination: tuple[str, int]) -> None:
    assert decode_number_untrusted(encode_number(number)) == number
    assert decode_refused_untrusted(encode_refused(number, answer)) == (number, answer)
    address, port = decode_failed_untrusted(encode_failed(destination))
    assert (ip_address(address), port) == (ip_address(destination[0]), destination[1])


@given(st.binary(max_size=40))
def test_any_other_bytes_are_one_error(body: bytes) -> None:
    for decode in (decode_number_untrusted, decode_refused_untrusted, decode_failed_untrusted):
        try:
            decode(body)
        except PacketError:
            continue
