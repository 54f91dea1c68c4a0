"""Netlink as far as the helper speaks it: requests and batches, acknowledged; dumps; news. Linux.

Only what the kernel itself has sent is read (its port is 0), and of that only the answer to our own
request: other messages are skipped. What does not add up is an OSError like any refusal.

Not here: what any message means (addresses, interfaces, nftables).
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# linux/netlink.h
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
EXCLUSIVE, CREATE, APPEND = 0x200, 0x400, 0x800
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_CODE = struct.Struct("=i")  # begins nlmsgerr, and a dump's end: a negative errno, or 0
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource: a subsystem
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_TYPE_MASK = 0x3FFF  # the upper two bits are flags

#: The size of the buffer for a datagram: twice the most that the kernel sends in one
#: (netlink_dump).
_RECEIVED_BYTES = 64 * 1024

#: The deadline for an answer. The kernel answers while it is asked; this is for one that is not
#: quite Linux.
_DEADLINE_S = 5.0

#: The most tries of a dump: one during which something has changed is asked for again.
_DUMPS = 8


class Change(NamedTuple):
    """One message of a batch."""

    kind: int
    body: bytes
    flags: int = 0


class Netlink:
    """A netlink socket. ``groups`` is what it hears news of (``drain``)."""

    def __init__(
        self, protocol: int, groups: int = 0, *, sock: socket.socket | None = None
    ) -> None:
        """``sock`` is one that there is already; it belongs to us from now on."""
        self._sequence = 0
        if sock is None:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            try:
                sock.bind((0, groups))
            except OSError:
                sock.close()
                raise
        self._sock = sock
        self._sock.settimeout(_DEADLINE_S)

    def close(self) -> None:
        """Send and hear nothing more."""
        self._sock.close()

    def fileno(self) -> int:
        """For poll(2)."""
        return self._sock.fileno()

    @property
    def port(self) -> int:
        """Its address: what the kernel tells others of who has asked for a change."""
        port: int = self._sock.getsockname()[0]
        return port

    def ask(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement; raises OSError if it is an error."""
        self._send(kind, _REQUEST | _ACK | flags, body)
        self._wait_for_acknowledgement()

    def change(self, changes: Sequence[Change]) -> None:
        """The same for changes of nftables: one batch (nfnetlink.h), all of them or none.

        The kernel answers each message that it refuses, asked or not, and before the last one's
        acknowledgement: so what comes first is an error, or everything is done. Whoever has the
        same socket counts for himself, so what has been asked before is forgotten first.
        """
        self._sequence += 1
        batch = _NFGENMSG.pack(0, 0, changes[-1].kind >> 8)
        *others, last = changes
        parts = [Change(_BATCH_BEGIN, batch), *others]
        parts += [last._replace(flags=last.flags | _ACK), Change(_BATCH_END, batch)]
        sent = b"".join(self._message(kind, _REQUEST | flags, body) for kind, body, flags in parts)
        self.drain()
        self._sock.sendto(sent, (0, 0))
        try:
            self._wait_for_acknowledgement()
        finally:
            self.drain()

    def _wait_for_acknowledgement(self) -> None:
        while True:
            for answer, _, payload in self._receive():
                if answer == _ERROR:
                    return _check(payload)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages that answer a request for a list; raises OSError."""
        for _ in range(_DUMPS):
            found = self._dump(kind, body)
            if found is not None:
                return found
        raise _broken()

    def drain(self) -> None:
        """Forget all news that have come; that some were lost is news, too."""
        while select.select([self._sock], [], [], 0)[0]:
            try:
                self._sock.recv(1)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def heard(self) -> Iterator[tuple[int, int, bytes]]:
        """Type, asker's port and body of all news that have come; raises OSError, with ENOBUFS if
        some were lost.
        """
        while select.select([self._sock], [], [], 0)[0]:
            data, _, flags, (port, _) = self._sock.recvmsg(_RECEIVED_BYTES)
            if flags & socket.MSG_TRUNC:
                raise _broken()
            for kind, _, _, asker, body in _messages(data) if port == 0 else ():
                yield kind, asker, body

    def _dump(self, kind: int, body: bytes) -> list[bytes] | None:
        found: list[bytes] = []
        whole = True
        self._send(kind, _REQUEST | _DUMP, body)
        while True:
            for answer, flags, payload in self._receive():
                whole = whole and not flags & _DUMP_INTERRUPTED
                if answer in (_ERROR, _DONE):
                    _check(payload)
                    return found if whole else None
                found.append(payload)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._sock.sendto(self._message(kind, flags, body), (0, 0))

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        head = _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, self._sequence, 0)
        return head + body + bytes(_aligned(len(body)) - len(body))

    def _receive(self) -> list[tuple[int, int, bytes]]:
        """Type, flags and body of the messages in one datagram that answer our last request."""
        data, _, flags, (port, _) = self._sock.recvmsg(_RECEIVED_BYTES)
        if flags & socket.MSG_TRUNC:
            raise _broken()
        return [
            (kind, message_flags, body)
            for kind, message_flags, sequence, _, body in (_messages(data) if port == 0 else ())
            if sequence == self._sequence
        ]


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Type, flags, sequence, port and body of the messages in one datagram; raises OSError."""
    while data:
        if len(data) < _MESSAGE.size:
            raise _broken()
        length, kind, flags, sequence, port = _MESSAGE.unpack_from(data)
        if not _MESSAGE.size <= length <= len(data):
            raise _broken()
        yield kind, flags, sequence, port, data[_MESSAGE.size : length]
        data = data[_aligned(length) :]


def attribute(kind: int, body: bytes) -> bytes:
    """One attribute, padded for the next."""
    length = _ATTRIBUTE.size + len(body)
    return _ATTRIBUTE.pack(length, kind) + body + bytes(_aligned(length) - length)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in the rest of a message; raises OSError."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise _broken()
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _check(payload: bytes) -> None:
    if len(payload) < _CODE.size:
        raise _broken()
    (code,) = _CODE.unpack_from(payload)
    if code:
        raise OSError(-code, os.strerror(-code))


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _broken() -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
