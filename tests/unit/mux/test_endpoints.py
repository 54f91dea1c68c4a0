"""A host on the wire: an address or a name, and what is neither."""

import pytest

from sshunt.mux.endpoints import decode_host_untrusted, encode_host
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError


@pytest.mark.parametrize(
    ("host", "address_type", "raw"),
    [
        ("10.1.2.3", 4, bytes((10, 1, 2, 3))),
        ("2001:db8::1", 6, bytes.fromhex("20010db8000000000000000000000001")),
        ("web.example", 0, b"\x0bweb.example"),
        ("x" * 255, 0, b"\xff" + b"x" * 255),
    ],
)
def test_a_host_is_these_bytes_and_is_read_back_wherever_it_stands(
    host: str, address_type: int, raw: bytes
) -> None:
    assert encode_host(host) == (address_type, raw)
    assert decode_host_untrusted(raw, 0, address_type) == (host, len(raw))
    assert decode_host_untrusted(b"abc" + raw + b"def", 3, address_type) == (host, 3 + len(raw))


@pytest.mark.parametrize("host", ["", "x" * 256, "two words", "bücher.example", "nul\0", "del\x7f"])
def test_a_host_that_the_other_side_would_not_take_is_never_sent(host: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_host(host)


@pytest.mark.parametrize(
    ("address_type", "raw"),
    [
        (4, b"abc"),
        (6, bytes(15)),
        (5, b"abcd"),
        (0, b""),
        (0, b"\0"),
        (0, b"\5four"),
        (0, b"\x09two words"),
        (0, b"\4caf\xe9"),
    ],
)
def test_an_impossible_host_is_an_error_of_the_peer(address_type: int, raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_host_untrusted(raw, 0, address_type)
