"""Which programs of this host wait for connect(2) just now: their sockets' two ends. Linux.

The kernel lists sockets to everybody (sock_diag(7)). Those that wait are in the state SYN_SENT. A
socket of IPv6 may connect to an IPv4 address; its ends are IPv4's here, as they are on the wire.

Not here: whose they are, and what follows (front.held).
"""

import os
import socket
import struct
from contextlib import suppress
from ipaddress import IPv6Address
from typing import TypeAlias

from sshunt.model import Endpoint

Ends: TypeAlias = tuple[Endpoint, Endpoint]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_ASKED = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states
_FOUND = struct.Struct("!4xHH16s16s")  # inet_diag_msg: ports, addresses
_SYN_SENT = 1 << 2

#: The size of the buffer for a datagram: twice the most that the kernel sends in one
#: (netlink_dump).
_RECEIVED_BYTES = 64 * 1024

#: The longest wait for the kernel, which answers while it is asked.
_DEADLINE_S = 1.0


def connecting() -> set[Ends]:
    """The ends, as (own, other), of all TCP sockets that wait to be connected; raises OSError."""
    found: set[Ends] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            found |= _of_family(family)
    return found


def _of_family(family: int) -> set[Ends]:
    found: set[Ends] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_DEADLINE_S)
        asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, _SYN_SENT)
        length = _MESSAGE.size + len(asked)
        sock.send(_MESSAGE.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0) + asked)
        while not _read(sock.recv(_RECEIVED_BYTES), family, found):
            pass
    return found


def _read(data: bytes, family: int, found: set[Ends]) -> bool:
    """Add what is in a datagram of the kernel's; True if it was the last. Raises OSError."""
    while len(data) >= _MESSAGE.size:
        length, kind, _, _, _ = _MESSAGE.unpack_from(data)
        if kind == _DONE:
            return True
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", data, _MESSAGE.size)
            raise OSError(-code, os.strerror(-code))
        own_port, port, own, other = _FOUND.unpack_from(data, _MESSAGE.size)
        found.add(((_address(own, family), own_port), (_address(other, family), port)))
        data = data[(length + 3) & ~3 :]
    return False


def _address(packed: bytes, family: int) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    mapped = IPv6Address(packed).ipv4_mapped
    return str(mapped) if mapped is not None else socket.inet_ntop(socket.AF_INET6, packed)
