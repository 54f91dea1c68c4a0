"""What a flow of ECHO has in its datagrams, as the protocol's document says."""

import re
from pathlib import Path

from sshunt.relay.echo import ANSWER, CHILDREN, DONT_FRAGMENT, REPLIES, REQUEST, VALUE

_SECTION = (
    Path(__file__)
    .parents[3]
    .joinpath("docs/protocol.md")
    .read_text()
    .partition("### 6.4 ECHO")[2]
    .partition("\n## ")[0]
)


def test_the_fields_have_the_sizes_of_the_document() -> None:
    tables = [
        [int(size) for size in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
        for table in _SECTION.split("Each datagram of the agent's")
    ]
    assert [sum(sizes) for sizes in tables] == [REQUEST.size, ANSWER.size]
    assert VALUE.size == 4
    assert "u32 *value*" in _SECTION


def test_the_numbers_are_those_of_the_document() -> None:
    assert f"{DONT_FRAGMENT}: what does not pass in one piece" in _SECTION
    assert f"(type {REPLIES[4]} in IPv4, {REPLIES[6]} in IPv6)" in _SECTION
    assert f"ERROR(FLOW_NOT_PERMITTED, value {CHILDREN})" in _SECTION


def test_they_are_big_endian_without_padding() -> None:
    assert REQUEST.pack(64, 1, 0x0102) == b"\x40\1\1\2"
    assert ANSWER.pack(11, 0, 7, 0x0102) == b"\x0b\0\7\1\2"
