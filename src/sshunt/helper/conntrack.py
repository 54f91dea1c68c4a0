"""What connection tracking knows of redirected flows of UDP: ctnetlink, many questions at once.

A flow is asked for by its answers' addresses: from our listener to the program. It has one entry at
most, which says where the program meant. An entry that the kernel finds by these addresses the
other way round, of something that we have sent ourselves, is none.

The kernel answers while it is asked; nobody else's messages come to this socket.

What has been redirected stays so as long as others have nat rules, also when ours are gone; a
program that goes on with the same socket would speak to nobody's port. So at the end of a plan its
flows are forgotten (``forget_flows``), and the next datagram goes as if we had not been there.
Whose the listener is has been looked at before (listening): another's flows are not forgotten.

Not here: whose flows may be asked for (udp_flows), netlink for everything else (netlink).
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from sshunt.helper.netlink import Netlink, attribute, attributes
from sshunt.helper.udp_messages import ADDRESS_BYTES, Original

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
_NETLINK_NETFILTER = 12
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_NFGENMSG = struct.Struct("!BBH")
_REQUEST = 0x1
_ERROR = 2
_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_FROM_TO = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC ...
_NUMBER, _FROM_PORT, _TO_PORT = 1, 2, 3  # CTA_PROTO_NUM ...
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_PORT = struct.Struct("!H")
_FILTER, _FILTER_ORIGINAL, _FILTER_REPLY = 25, 1, 2  # CTA_FILTER, CTA_FILTER_ORIG_FLAGS ...
_BY_NUMBER, _BY_FROM_PORT = 1 << 3, 1 << 4  # nf_internals.h
_ANSWERED = 1 << 1  # IPS_SEEN_REPLY
_DESTINATION_TRANSLATED = 1 << 5  # IPS_DST_NAT

#: The entries that are looked at for what was not answered: 10 us each.
MOST_EXAMINED = 20_000

#: The deadline for an answer that comes at once.
_DEADLINE_S = 1.0

_READ_BYTES = 64 * 1024


class Reply(NamedTuple):
    """The addresses that answers of a flow bear before they are translated; packed."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


class Conntrack:
    """A socket of ctnetlink."""

    def __init__(self) -> None:
        """Raises OSError, also where the kernel does not know the question."""
        self._sequence = 0
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.settimeout(_DEADLINE_S)
            self.find(4, [Reply(bytes(4), 0, bytes(4), 0)])
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Ask nothing more."""
        self._sock.close()

    def find(self, family: int, replies: Sequence[Reply]) -> list[Original | None]:
        """For each of them where its program meant; None if it is not redirected, or not known.
        Raises OSError, and then the answers to the rest of the questions are not waited for.
        """
        found: list[Original | None] = [None] * len(replies)
        first = self._sequence + 1
        self._sequence += len(replies)
        asked = (_question(family, reply, first + i) for i, reply in enumerate(replies))
        self._sock.sendto(b"".join(asked), (0, 0))
        waiting = set(range(len(replies)))
        while waiting:
            data, (port, _) = self._sock.recvfrom(_READ_BYTES)
            for kind, sequence, body in _messages(data) if port == 0 else ():
                number = sequence - first
                if number not in waiting:
                    continue  # the answer to a question whose asker gave up
                waiting.remove(number)
                if kind == _NEW:
                    found[number] = _original(family, replies[number], body)
                elif kind == _ERROR:
                    _check(body)
        return found


def forget_flows(family: int, listener: tuple[str, int], here: Collection[bytes]) -> None:
    """Have the kernel forget the flows that are redirected to a listener (0.0.0.0, ::: at any
    address of this host, which are ``here``; what somebody else sends on to another host, at the
    same port, is not meant); raises OSError.
    """
    address = socket.inet_pton(_FAMILIES[family], listener[0])
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        for body in netlink.dump(_GET, _NFGENMSG.pack(_FAMILIES[family], 0, 0) + _to(listener[1])):
            of = attributes(body[_NFGENMSG.size :])
            flow = of.get(_ORIGINAL, b"")
            status = int.from_bytes(of.get(_STATUS, b""), "big")
            if not status & _DESTINATION_TRANSLATED or not _is_udp(flow):
                continue
            source, port, _, _ = _tuple(family, of.get(_REPLY, b""))
            if port == listener[1] and (source == address if any(address) else source in here):
                with suppress(OSError):  # it is gone
                    netlink.ask(
                        _DELETE, body[: _NFGENMSG.size] + attribute(_NESTED | _ORIGINAL, flow)
                    )
    finally:
        netlink.close()


def forget_unanswered(family: int, is_meant: Callable[[bytes, int], bool]) -> None:
    """Have the kernel forget flows that nobody has answered, to the (address, port)s that are
    meant: a program that goes on asking with one socket would keep them for ever, and so past the
    rules that have been made meanwhile. Raises OSError.
    """
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        listed = netlink.dump(_GET, _NFGENMSG.pack(_FAMILIES[family], 0, 0) + _to(None))
        for body in listed[:MOST_EXAMINED]:
            of = attributes(body[_NFGENMSG.size :])
            flow = of.get(_ORIGINAL, b"")
            status = int.from_bytes(of.get(_STATUS, b""), "big")
            if status & (_DESTINATION_TRANSLATED | _ANSWERED) or not _is_udp(flow):
                continue
            _, _, address, port = _tuple(family, flow)
            if is_meant(address, port):
                with suppress(OSError):  # it is gone
                    netlink.ask(
                        _DELETE, body[: _NFGENMSG.size] + attribute(_NESTED | _ORIGINAL, flow)
                    )
    finally:
        netlink.close()


def _to(port: int | None) -> bytes:
    """What has the kernel (5.8 and newer) list answers of UDP only, of one port or of all."""
    ports, by = attribute(_NUMBER, bytes((socket.IPPROTO_UDP,))), _BY_NUMBER
    if port is not None:
        ports, by = ports + attribute(_FROM_PORT, _PORT.pack(port)), by | _BY_FROM_PORT
    flags = attribute(_FILTER_ORIGINAL, bytes(4)) + attribute(
        _FILTER_REPLY, by.to_bytes(4, sys.byteorder)
    )
    reply = attribute(_PROTOCOL | _NESTED, ports)
    return attribute(_REPLY | _NESTED, reply) + attribute(_FILTER | _NESTED, flags)


def _is_udp(flow: bytes) -> bool:
    protocol = attributes(attributes(flow).get(_PROTOCOL, b"")).get(_NUMBER, b"")
    return protocol == bytes((socket.IPPROTO_UDP,))


def _question(family: int, reply: Reply, sequence: int) -> bytes:
    from_, to = _FROM_TO[family]
    addresses = attribute(from_, reply.source) + attribute(to, reply.destination)
    ports = (
        attribute(_NUMBER, bytes((socket.IPPROTO_UDP,)))
        + attribute(_FROM_PORT, _PORT.pack(reply.source_port))
        + attribute(_TO_PORT, _PORT.pack(reply.destination_port))
    )
    tuple_ = attribute(_ADDRESSES | _NESTED, addresses) + attribute(_PROTOCOL | _NESTED, ports)
    body = _NFGENMSG.pack(_FAMILIES[family], 0, 0) + attribute(_REPLY | _NESTED, tuple_)
    return _MESSAGE.pack(_MESSAGE.size + len(body), _GET, _REQUEST, sequence, 0) + body


def _messages(data: bytes) -> list[tuple[int, int, bytes]]:
    """Type, sequence and body of each; raises OSError."""
    found = []
    while data:
        if len(data) < _MESSAGE.size:
            raise _broken()
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(data)
        if not _MESSAGE.size <= length <= len(data):
            raise _broken()
        found.append((kind, sequence, data[_MESSAGE.size : length]))
        data = data[(length + 3) & ~3 :]
    return found


def _check(body: bytes) -> None:
    """Raises OSError, but where the error is that there is no such entry."""
    code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
    if code not in (0, errno.ENOENT):
        raise OSError(code, os.strerror(code))


def _original(family: int, reply: Reply, body: bytes) -> Original | None:
    of = attributes(body[_NFGENMSG.size :])
    status = int.from_bytes(of.get(_STATUS, b""), "big")
    if not status & _DESTINATION_TRANSLATED or _tuple(family, of.get(_REPLY, b"")) != reply:
        return None
    return Original(*_tuple(family, of.get(_ORIGINAL, b"")))


def _tuple(family: int, data: bytes) -> tuple[bytes, int, bytes, int]:
    """Addresses and ports; raises OSError."""
    of = attributes(data)
    addresses, ports = attributes(of.get(_ADDRESSES, b"")), attributes(of.get(_PROTOCOL, b""))
    from_, to = (addresses.get(kind, b"") for kind in _FROM_TO[family])
    from_port, to_port = ports.get(_FROM_PORT, b""), ports.get(_TO_PORT, b"")
    if {len(from_), len(to)} != {ADDRESS_BYTES[family]} or {len(from_port), len(to_port)} != {2}:
        raise _broken()
    return from_, int.from_bytes(from_port, "big"), to, int.from_bytes(to_port, "big")


def _broken() -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
