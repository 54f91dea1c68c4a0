"""Packets that rules log (NFLOG): one group, its packets as they come. Root; Linux.

A rule ``log group N`` hands a copy of a packet to whoever has bound group N; one process may have
it. We take the first free one of a range, which is what the rules then name.

A packet that finds the buffer full is not handed over (ENOBUFS): whoever logs what is worth an
answer relies on senders that try again.

Not here: what a packet is (segments), what is done about it.
"""

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from sshunt.helper.netlink import Netlink, attribute, attributes

_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33

# linux/netfilter/nfnetlink_log.h
_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_BIND = 1
_COPY_PACKET = 2
_MODE = struct.Struct("!IBx")
_NFGENMSG = struct.Struct("!BBH")  # family, version, group
_INDEV, _OUTDEV, _PAYLOAD, _UID, _GID = 4, 5, 9, 11, 14
_U32 = struct.Struct("!I")

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr

#: The buffer for packets that wait to be read: SYNs of a scan of thousands of ports.
_BUFFER_BYTES = 4 * 1024 * 1024

_READ_BYTES = 128 * 1024


class Logged(NamedTuple):
    """One packet: its bytes from the IP header on, as far as they are copied."""

    packet: bytes
    in_index: int  # of the interface by which it came in; 0: this host's own
    out_index: int
    user: int | None = None  # of the program's socket
    group: int | None = None


class LogGroup:
    """A group of packets that are logged. ``number`` is what rules call it."""

    def __init__(self, numbers: range, copy_bytes: int) -> None:
        """Bind the first that is free; raises OSError if none is, or the kernel has no NFLOG."""
        self._netlink = Netlink(_NETLINK_NETFILTER)
        try:
            self.number = self._bind(numbers)
            mode = _MODE.pack(copy_bytes, _COPY_PACKET)
            self._configure(attribute(_CFG_MODE, mode))
            self._configure(attribute(_CFG_QTHRESH, _U32.pack(1)))
            self._sock = socket.socket(fileno=os.dup(self._netlink.fileno()))
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except BaseException:
            self._netlink.close()
            raise

    def _bind(self, numbers: range) -> int:
        taken = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for self.number in numbers:
            try:
                self._configure(attribute(_CFG_CMD, bytes((_BIND,))))
                return self.number
            except OSError as error:
                # Another's group is not ours to configure, the kernel says.
                if error.errno not in (errno.EBUSY, errno.EPERM):
                    raise
                taken = error
        raise taken

    def _configure(self, attributes_: bytes) -> None:
        self._netlink.ask(_CONFIG, _NFGENMSG.pack(socket.AF_UNSPEC, 0, self.number) + attributes_)

    def fileno(self) -> int:
        """Readable when there are packets."""
        return self._sock.fileno()

    def read(self) -> list[Logged]:
        """What has come, up to one datagram of the kernel's; nothing if nothing has."""
        try:
            data, address = self._sock.recvfrom(_READ_BYTES, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return []
            raise
        if address[0] != 0:  # not the kernel
            return []
        return logged_in(data)

    def close(self) -> None:
        """The group is free again; nothing is logged any more."""
        self._sock.close()
        self._netlink.close()


def logged_in(data: bytes) -> list[Logged]:
    """The packets in one datagram of the kernel's; raises OSError for what is none."""
    found = []
    while len(data) >= _MESSAGE.size:
        length, kind, _, _, _ = _MESSAGE.unpack_from(data)
        if not _MESSAGE.size <= length <= len(data):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        if kind == _PACKET:
            of = attributes(data[_MESSAGE.size + _NFGENMSG.size : length])
            found.append(
                Logged(
                    of.get(_PAYLOAD, b""),
                    _number(of.get(_INDEV)) or 0,
                    _number(of.get(_OUTDEV)) or 0,
                    _number(of.get(_UID)),
                    _number(of.get(_GID)),
                )
            )
        data = data[(length + 3) & ~3 :]
    return found


def _number(value: bytes | None) -> int | None:
    return None if value is None or len(value) != _U32.size else int(_U32.unpack(value)[0])
