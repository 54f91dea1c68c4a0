"""Makes what ``table inet foreign { set s { type ipv4_addr; } }`` is to nft 1.1, by netlink.

What such an nft notes beside a set's type (user data, which the kernel keeps and does not look at)
makes older libnftables, Debian 12's for one, call a function that is not there. With the word
"delete": removes it, which such a library can't do either.
"""

import socket
import struct
import sys

from sshunt.helper.netlink import attribute

NETFILTER = 12
NFT = 10 << 8
NEW_TABLE, DELETE_TABLE, NEW_SET = NFT | 0, NFT | 2, NFT | 9
BEGIN, END = 16, 17
REQUEST, CREATE = 0x1, 0x400
OF_NFT = struct.pack("!BBH", 0, 0, 10)
OF_INET = struct.pack("!BBH", 1, 0, 0)

# Key byte order: big endian. "typeof" of the key: an expression of kind 4 (value), with no data.
USER_DATA = bytes.fromhex("00 04 02000000  03 08 00 04 04000000 01 00")


def message(kind: int, body: bytes) -> bytes:
    flags = REQUEST if kind in (BEGIN, END) else REQUEST | CREATE
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def main() -> None:
    name = attribute(1, b"foreign\0")
    a_set = name + attribute(2, b"s\0") + number(4, 7) + number(5, 4) + number(10, 1)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as netlink:
        netlink.settimeout(5)
        if sys.argv[1:] == ["delete"]:
            change = message(DELETE_TABLE, OF_INET + name)
        else:
            change = message(NEW_TABLE, OF_INET + name)
            change += message(NEW_SET, OF_INET + a_set + attribute(13, USER_DATA))
        netlink.send(message(BEGIN, OF_NFT) + change + message(END, OF_NFT))


if __name__ == "__main__":
    main()
