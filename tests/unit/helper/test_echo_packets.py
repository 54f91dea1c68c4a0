"""Echo requests are read from logged packets, and answered by ICMP messages with right sums."""

import struct
from ipaddress import ip_address

import pytest

from sshunt.helper.echo_packets import (
    MOST_DATA_BYTES,
    QUOTED_BYTES,
    SNAP_BYTES,
    NoEchoError,
    decode_echo_untrusted,
    error,
    reply,
)

SOURCE, HERE = ip_address("192.0.2.1").packed, ip_address("10.0.0.9").packed
SOURCE6, HERE6 = ip_address("2001:db8::1").packed, ip_address("fd00::9").packed


def request4(data: bytes = b"data", *, options: bytes = b"", fragment: int = 0x4000) -> bytes:
    words = 5 + len(options) // 4
    length = words * 4 + 8 + len(data)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, 1, fragment, 33, 1, 0)
    return head + SOURCE + HERE + options + struct.pack("!BBHHH", 8, 0, 0, 7, 65535) + data


def request6(data: bytes = b"data", *, protocol: int = 58, what: int = 128) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 8 + len(data), protocol, 44)
    return head + SOURCE6 + HERE6 + struct.pack("!BBHHH", what, 0, 0, 7, 3) + data


def sum_of(message: bytes) -> int:
    """0xFFFF where the checksum is right."""
    total: int = sum(
        struct.unpack(f"!{(len(message) + 1) // 2}H", message + bytes(len(message) % 2))
    )
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def test_a_request_is_read() -> None:
    echo = decode_echo_untrusted(request4(b"odd"))
    assert (echo.source, echo.destination, echo.version) == ("192.0.2.1", "10.0.0.9", 4)
    assert (echo.hops, echo.dont_fragment) == (33, True)
    assert (echo.identifier, echo.sequence, echo.data) == (7, 65535, b"odd")
    assert not decode_echo_untrusted(request4(fragment=0)).dont_fragment
    assert decode_echo_untrusted(request4(b"x", options=bytes(8))).data == b"x"
    echo = decode_echo_untrusted(request6())
    assert (echo.source, echo.destination, echo.version) == ("2001:db8::1", "fd00::9", 6)
    assert (echo.hops, echo.dont_fragment, echo.sequence, echo.data) == (44, False, 3, b"data")


def test_padding_behind_a_packet_is_not_its_data() -> None:
    assert decode_echo_untrusted(request4(b"data") + bytes(18)).data == b"data"


def test_the_most_data_is_answered_and_no_more() -> None:
    most = bytes(MOST_DATA_BYTES)
    for make in (request4, request6):
        assert len(make(most)) <= SNAP_BYTES
        assert decode_echo_untrusted(make(most)).data == most
        with pytest.raises(NoEchoError):
            decode_echo_untrusted(make(most + b"\0"))
    assert decode_echo_untrusted(request4(most, options=bytes(40))).data == most


@pytest.mark.parametrize("packet", [request4(), request6()])
def test_what_is_cut_off_is_no_request(packet: bytes) -> None:
    for length in range(len(packet)):
        with pytest.raises(NoEchoError):
            decode_echo_untrusted(packet[:length])


@pytest.mark.parametrize(
    "packet",
    [
        b"\x95" + request4()[1:],
        b"\x44" + request4()[1:],
        request4(fragment=0x2000),
        request4(fragment=0x0001),
        request4()[:9] + b"\x06" + request4()[10:],
        request4()[:20] + b"\0" + request4()[21:],
        request4()[:21] + b"\1" + request4()[22:],
        request6(protocol=17),
        request6(what=129),
    ],
)
def test_what_is_something_else_is_no_request(packet: bytes) -> None:
    with pytest.raises(NoEchoError):
        decode_echo_untrusted(packet)


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"odd", b"data", bytes(8192)])
def test_a_reply_has_what_the_request_had(data: bytes) -> None:
    echo = decode_echo_untrusted(request4(data))
    message = reply(echo, len(data))
    assert message[:2] == b"\0\0"
    assert message[4:] == struct.pack("!HH", 7, 65535) + data
    assert sum_of(message) == 0xFFFF
    assert reply(echo, 2)[8:] == data[:2]
    assert reply(decode_echo_untrusted(request6(data)), 9999)[:2] == b"\x81\0"


def test_an_error_has_the_beginning_of_the_request_inside() -> None:
    for packet in (request4(), request4(bytes(4000))):
        message = error(decode_echo_untrusted(packet), 11, 0, 999)
        assert message[:2] + message[4:8] == b"\x0b\0\0\0\0\0"
        assert message[8:] == packet[:QUOTED_BYTES]
        assert sum_of(message) == 0xFFFF
    message = error(decode_echo_untrusted(request6()), 1, 3, 999)
    assert message == b"\1\3\0\0\0\0\0\0" + request6()


def test_an_error_about_a_size_says_which_would_pass() -> None:
    echo, echo6 = decode_echo_untrusted(request4()), decode_echo_untrusted(request6())
    assert error(echo, 3, 4, 1300)[4:8] == struct.pack("!HH", 0, 1300)
    assert error(echo, 3, 4, 70_000)[4:8] == struct.pack("!HH", 0, 0xFFFF)
    assert error(echo6, 2, 0, 70_000)[4:8] == struct.pack("!I", 70_000)
