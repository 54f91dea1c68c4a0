"""The checksum of IP, TCP, UDP and ICMP. Pure."""


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071).

    Modulo 2**16 - 1, where 2**16 is 1, a number is the sum of its 16-bit digits. That sum is never
    0 but of zeros alone.
    """
    total = int.from_bytes(data + bytes(len(data) % 2), "big")
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))
