"""The checksum of the Internet's protocols."""

import struct

from sshunt.helper.checksums import checksum


def test_the_checksum_is_the_internet_s() -> None:
    # RFC 1071, 3: the example's sum is ddf2.
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum(data) == ~0xDDF2 & 0xFFFF
    assert checksum(data + struct.pack("!H", checksum(data))) == 0
    assert checksum(b"\1") == checksum(b"\1\0")
