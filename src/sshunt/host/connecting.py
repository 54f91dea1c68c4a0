"""Which programs of this host wait for connect(2) just now: their sockets' two ends. Linux.

The kernel lists sockets to everybody (sock_diag(7)). Those that wait are in the state SYN_SENT. A
socket of IPv6 may connect to an IPv4 address; its ends are IPv4's here, as they are on the wire.

One that is bound to an interface (SO_BINDTODEVICE) is listed as any, but who asks for the socket
with these ends, and names no interface, is told that there is none.

Not here: whose they are, and what follows (front.held).
"""

import errno
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
_ASKED = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states ...
_ID = struct.Struct("!HH16s16sIII")  # ... inet_diag_sockid: ports, addresses, interface, cookie
_NO_COOKIE = 0xFFFFFFFF
_ANY = _ID.pack(0, 0, b"", b"", 0, 0, 0)
_FOUND = struct.Struct("!4xHH16s16s")  # inet_diag_msg: ports, addresses
_CODE = struct.Struct("=i")  # begins nlmsgerr: a negative errno
_SYN_SENT = 1 << 2

#: The size of the buffer for a datagram: twice the most that the kernel sends in one
#: (netlink_dump).
_RECEIVED_BYTES = 64 * 1024

#: The longest wait for the kernel, which answers while it is asked.
_DEADLINE_S = 1.0


class Connecting:
    """Asks the kernel. Owns a socket until ``close``."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._sock.settimeout(_DEADLINE_S)

    def close(self) -> None:
        """Ask no more. May be called twice."""
        self._sock.close()

    def all(self) -> set[Ends]:
        """The ends, as (own, other), of all TCP sockets that wait to be connected; raises
        OSError.
        """
        found: set[Ends] = set()
        self._add(socket.AF_INET, found)
        with suppress(FileNotFoundError):  # a kernel without IPv6
            self._add(socket.AF_INET6, found)
        return found

    def is_bound(self, ends: Ends) -> bool:
        """True if the socket with these ends waits, and is bound to an interface; raises
        OSError.
        """
        (own, own_port), (other, port) = ends
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        packed = socket.inet_pton(family, own), socket.inet_pton(family, other)
        asked = _ID.pack(own_port, port, *packed, 0, _NO_COOKIE, _NO_COOKIE)
        self._ask(family, _SYN_SENT, asked, 0)
        answer = self._sock.recv(_RECEIVED_BYTES)
        _, kind, _, _, _ = _MESSAGE.unpack_from(answer)
        if kind != _ERROR or _CODE.unpack_from(answer, _MESSAGE.size)[0] != -errno.ENOENT:
            return False
        return ends in self.all()  # else it is gone

    def _add(self, family: int, found: set[Ends]) -> None:
        self._ask(family, _SYN_SENT, _ANY, _DUMP)
        while not _read(self._sock.recv(_RECEIVED_BYTES), family, found):
            pass

    def _ask(self, family: int, states: int, ends: bytes, flags: int) -> None:
        asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, states) + ends
        length = _MESSAGE.size + len(asked)
        message = _MESSAGE.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST | flags, 1, 0)
        self._sock.send(message + asked)


def _read(data: bytes, family: int, found: set[Ends]) -> bool:
    """Add what is in a datagram of the kernel's; True if it was the last. Raises OSError."""
    while len(data) >= _MESSAGE.size:
        length, kind, _, _, _ = _MESSAGE.unpack_from(data)
        if kind == _DONE:
            return True
        if kind == _ERROR:
            (code,) = _CODE.unpack_from(data, _MESSAGE.size)
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
