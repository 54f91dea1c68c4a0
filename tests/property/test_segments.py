"""Logged packets, which may be anything: what is made of them has their two ends, or nothing is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.helper.segments import (
    SegmentError,
    Unreachable,
    again,
    decode_syn_untrusted,
    refusal,
    unreachable,
)
from tests.unit.helper.syns import syn
from tests.unit.helper.test_segments import has_right_checksums

pytestmark = pytest.mark.fuzz

_ports = st.integers(0, 65535)
_options = st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))
_flags = st.sampled_from([0x02, 0x42, 0x82, 0xC2, 0x22, 0x0A])


@st.composite
def _syns(draw: st.DrawFn) -> bytes:
    addresses = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    source, destination = (str(draw(addresses)) for _ in range(2))
    return syn(
        source,
        destination,
        source_port=draw(_ports),
        port=draw(_ports),
        sequence=draw(st.integers(0, 2**32 - 1)),
        flags=draw(_flags),
        options=draw(_options),
        data=draw(st.binary(max_size=40)),
    )


@given(_syns())
def test_what_is_made_of_a_syn_is_well_formed_and_between_its_ends(packet: bytes) -> None:
    found = decode_syn_untrusted(packet)
    assert decode_syn_untrusted(again(found)) == found._replace(headers=again(found))
    assert has_right_checksums(again(found))
    here, there = (packet[8:24], packet[24:40]) if found.is_ipv6 else (packet[12:16], packet[16:20])
    for sent in (refusal(found), *(unreachable(found, why) for why in Unreachable)):
        assert has_right_checksums(sent)
        assert sent[8:40] == there + here if found.is_ipv6 else sent[12:20] == there + here


@given(st.binary(max_size=300) | st.tuples(_syns(), st.integers(0, 80)).map(lambda p: p[0][: p[1]]))
def test_any_other_bytes_are_an_error_and_nothing_else(packet: bytes) -> None:
    try:
        found = decode_syn_untrusted(packet)
    except SegmentError:
        return
    assert packet.startswith(found.headers)
