"""What is made of a held SYN: right checksums, the right ends, nothing that was not in it."""

import struct
from ipaddress import ip_address

import pytest

from sshunt.capture import nft_held
from sshunt.helper.segments import (
    SNAP_BYTES,
    SegmentError,
    Unreachable,
    again,
    decode_syn_untrusted,
    refusal,
    retraction,
    unreachable,
)
from tests.unit.helper.syns import OPTIONS, syn

SYN4 = syn()
SYN6 = syn("2001:db8::9", "fd00::1")
ROUTER_ALERT = bytes.fromhex("94040000")
HOP_BY_HOP = bytes.fromhex("0600010400000000")


def total(data: bytes) -> int:
    """The one's complement sum of RFC 1071, word by word."""
    data += bytes(len(data) % 2)
    result: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while result >> 16:
        result = (result & 0xFFFF) + (result >> 16)
    return result


def has_right_checksums(packet: bytes) -> bool:
    if packet[0] >> 4 == 6:
        payload = packet[40:]
        pseudo = packet[8:40] + struct.pack("!II", len(payload), packet[6])
        return total(pseudo + payload) == 0xFFFF
    length = (packet[0] & 0x0F) * 4
    head, payload = packet[:length], packet[length:]
    if struct.unpack_from("!H", packet, 2)[0] != len(packet) or total(head) != 0xFFFF:
        return False
    pseudo = packet[12:20] + struct.pack("!HH", packet[9], len(payload))
    return total(payload if packet[9] == 1 else pseudo + payload) == 0xFFFF


def tcp_of(packet: bytes) -> tuple[int, ...]:
    offset = 40 if packet[0] >> 4 == 6 else (packet[0] & 0x0F) * 4
    return struct.unpack_from("!HHIIBBHHH", packet, offset)


@pytest.mark.parametrize("packet", [SYN4, SYN6])
def test_a_syn_says_whence_it_comes_and_where_it_leads(packet: bytes) -> None:
    found = decode_syn_untrusted(packet)
    ipv6 = packet is SYN6
    assert found.source == ("2001:db8::9" if ipv6 else "192.0.2.9", 40000)
    assert found.destination == ("fd00::1" if ipv6 else "10.0.0.1", 80)
    assert found.sequence == 7
    assert found.is_ipv6 == ipv6


@pytest.mark.parametrize(
    "packet",
    [
        SYN4,
        SYN6,
        syn(options=b""),
        syn(data=b"GET / HTTP/1.0"),  # Fast Open
        syn(data=b"odd"),
        syn(flags=0xC2),  # asks for ECN
        syn(extensions=ROUTER_ALERT),
        syn("2001:db8::9", "fd00::1", data=b"early", flags=0xC2),
    ],
)
def test_again_it_is_the_same_without_data_and_with_right_checksums(packet: bytes) -> None:
    found = decode_syn_untrusted(packet)
    sent = again(found)
    assert has_right_checksums(sent)
    assert tcp_of(sent)[:7] == tcp_of(packet)[:7]
    assert len(sent) == len(found.headers)
    once_more = decode_syn_untrusted(sent)
    assert once_more[:3] == found[:3]
    assert sent.endswith(found.headers[found.transport_offset + 20 :])


def test_headers_before_tcp_s_stay_where_they_were() -> None:
    packet = syn("2001:db8::9", "fd00::1", extensions=HOP_BY_HOP, data=b"early")
    sent = again(decode_syn_untrusted(packet))
    assert sent[40:48] == HOP_BY_HOP
    assert struct.unpack_from("!H", sent, 4)[0] == len(sent) - 40
    assert sent.endswith(OPTIONS)


@pytest.mark.parametrize("packet", [SYN4, SYN6, syn(sequence=0xFFFFFFFF)])
def test_a_refusal_is_the_reset_that_the_destination_would_send(packet: bytes) -> None:
    found = decode_syn_untrusted(packet)
    sent = refusal(found)
    assert has_right_checksums(sent)
    source_port, port, sequence, acknowledged, _, flags, *_ = tcp_of(sent)
    assert (source_port, port) == (80, 40000)
    assert (sequence, acknowledged) == (0, (found.sequence + 1) % 2**32)
    assert flags == 0x14
    here = slice(24, 40) if found.is_ipv6 else slice(16, 20)
    assert ip_address(sent[here]) == ip_address(found.source[0])


@pytest.mark.parametrize("why", Unreachable)
@pytest.mark.parametrize("packet", [SYN4, SYN6])
def test_an_error_has_the_syn_s_headers_inside(packet: bytes, why: Unreachable) -> None:
    found = decode_syn_untrusted(packet)
    sent = unreachable(found, why)
    assert has_right_checksums(sent)
    length = 40 if found.is_ipv6 else 20
    assert tuple(sent[length : length + 2]) == why.value[found.is_ipv6]
    assert decode_syn_untrusted(sent[length + 8 :])[:3] == found[:3]


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_a_retraction_names_a_destination_and_is_a_fin(address: str) -> None:
    sent = retraction((address, 443))
    assert has_right_checksums(sent)
    assert tcp_of(sent)[1] == 443
    assert tcp_of(sent)[5] == 0x01


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x00",
        SYN4[:19],
        SYN4[:39],
        SYN4[:59],  # its options are not whole
        SYN6[:39],
        SYN6[:79],
        syn(flags=0x12),
        syn(flags=0x03),
        syn(flags=0x06),
        syn(fragment=0x2000),
        syn(fragment=0x0001),
        SYN4[:9] + b"\x11" + SYN4[10:],  # UDP
        SYN6[:6] + b"\x11" + SYN6[7:],
        SYN6[:6] + b"\x2c" + SYN6[7:],  # a fragment
        SYN6[:6] + b"\x00" + SYN6[7:40],  # extensions without an end
        b"\x54" + SYN4[1:],  # version 5
        b"\x44" + SYN4[1:],  # a header of 16 bytes
        SYN4[:32] + b"\x40" + SYN4[33:],  # a TCP header of 16 bytes
    ],
)
def test_what_is_no_whole_syn_is_an_error(packet: bytes) -> None:
    with pytest.raises(SegmentError):
        decode_syn_untrusted(packet)


def test_as_much_is_logged_as_is_looked_at() -> None:
    assert nft_held.SNAP_BYTES == SNAP_BYTES
