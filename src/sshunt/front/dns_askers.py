"""Which user of this host asks: the kernel knows of the socket at the other end (sock_diag(7)).

Queries and connections come from this host's own programs, each from a port of its own; only the
user behind the port tells one program that asks for thousands of names from another that asks for
one. Where the kernel does not say, in a sandbox or without its modules, all are the same asker.

Not here: what each may take (relay.shares, dns_connections).
"""

import socket
import struct
from collections.abc import Iterable
from typing import Any

from sshunt.model import Endpoint

#: Askers that are told apart; two users may share a number, and then they share what it may take.
ASKERS = 256
UNKNOWN = 0

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ANSWER_BYTES = 4096

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to its id
_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid: ports and addresses ...
_ANY = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # ... any interface, no cookie
_UID = struct.Struct("=I")
_UID_AT = _HEADER.size + 4 + _ID.size + len(_ANY) + 12  # inet_diag_msg


class Askers:
    """Asks the kernel. ``own`` are bound sockets of ours, to see at once whether it answers."""

    def __init__(self, own: Iterable[socket.socket]) -> None:
        self._netlink: socket.socket | None = None
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
            )
            self._netlink.setblocking(False)
        except OSError:
            return
        # Without a module for it each question would start modprobe; this is the only one, then.
        for sock in own:
            name = sock.getsockname()[:2]
            if self._uid(sock, name, ("::" if ":" in name[0] else "0.0.0.0", 0)) is None:
                self.close()

    def of(self, sock: socket.socket, program: Any, asked: Iterable[Endpoint]) -> int:
        """The number of whoever has sent to our ``sock`` from ``program``, which believes to talk
        to one of ``asked``.
        """
        for endpoint in asked:
            uid = self._uid(sock, program[:2], endpoint)
            if uid is not None:
                return 1 + uid % (ASKERS - 1)
        return UNKNOWN

    def close(self) -> None:
        """Ask no more; may be called twice."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _uid(self, ours: socket.socket, program: Endpoint, asked: Endpoint) -> int | None:
        """Whose socket it is; None if there is none like that."""
        if self._netlink is None or (":" in program[0]) != (":" in asked[0]):
            return None
        is_udp = ours.type == socket.SOCK_DGRAM
        protocol = socket.IPPROTO_UDP if is_udp else socket.IPPROTO_TCP
        # "src and dst are swapped for historical reasons" (udp_diag.c)
        source, destination = (asked, program) if is_udp else (program, asked)
        try:
            request = _REQUEST.pack(ours.family, protocol, 0, 0, 0xFFFFFFFF)
            request += _ID.pack(
                source[1],
                destination[1],
                _packed(ours.family, source[0]),
                _packed(ours.family, destination[0]),
            )
            request += _ANY
            size = _HEADER.size + len(request)
            head = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
            self._netlink.send(head + request)
            answer = self._netlink.recv(_ANSWER_BYTES)
        except OSError:
            return None
        if len(answer) < _UID_AT + _UID.size or _HEADER.unpack_from(answer)[1] != (
            _SOCK_DIAG_BY_FAMILY
        ):
            return None
        (uid,) = _UID.unpack_from(answer, _UID_AT)
        return int(uid)


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0]).ljust(16, b"\0")
