"""SYNs as the kernel logs them, for the tests of what is made of them."""

import struct
from ipaddress import ip_address

#: A usual set of options: MSS, SACK, timestamps, no-op, window scaling.
OPTIONS = bytes.fromhex("020405b40402080a00000001000000000103030a")


def syn(
    source: str = "192.0.2.9",
    destination: str = "10.0.0.1",
    *,
    source_port: int = 40000,
    port: int = 80,
    sequence: int = 7,
    flags: int = 0x02,
    options: bytes = OPTIONS,
    data: bytes = b"",
    extensions: bytes = b"",
    fragment: int = 0x4000,
) -> bytes:
    """The packet; ``extensions`` are IPv6's between its header and TCP's, or IPv4's options. Its
    checksums are wrong, as where the network card computes them.
    """
    length = 5 + len(options) // 4
    tcp = struct.pack(
        "!HHIIBBHHH", source_port, port, sequence, 0, length << 4, flags, 64240, 0xBEEF, 0
    )
    payload = tcp + options + data
    ends = ip_address(source).packed + ip_address(destination).packed
    if ":" in source:
        kind = 0 if extensions else 6
        head = struct.pack("!IHBB", 6 << 28, len(extensions) + len(payload), kind, 64)
        return head + ends + extensions + payload
    words = 5 + len(extensions) // 4
    total = words * 4 + len(payload)
    head = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, total, 1, fragment, 64, 6, 0)
    return head + ends + extensions + payload
