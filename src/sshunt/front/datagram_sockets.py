"""The sockets at which redirected datagrams arrive, and by which answers leave. Linux.

One for each family, however many flows there are. Each is at the port at which connections arrive,
for whoever looks at one host from another; what a flow is known by there is how the socket sees it:

    Seen      the program's address as the kernel gives it; where the socket is at all addresses,
              also the one of them at which the datagram arrived, which is the one to answer from

What a program has sent in one call (UDP_SEGMENT) stays whole: it arrives as one (UDP_GRO), and so
do answers leave. Where the kernel can't (no such option, or a link on which the segments do not
fit), they leave one by one.

Not here: what flows are (datagrams), what is redirected (capture).
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from sshunt.front.listener import CannotListen
from sshunt.helper.udp_messages import Key
from sshunt.model import Endpoint

# linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h
_SOL_UDP = 17
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50
_PKTINFO4 = struct.Struct("=i4s4s")  # interface, source to send from, destination
_PKTINFO6 = struct.Struct("=16si")
_SEGMENT = struct.Struct("=H")
_GRO = struct.Struct("=i")

#: The buffer for datagrams that wait to be read: 130 ms of 30,000 a second, as the kernel counts
#: small ones. It gives what net.core.rmem_max allows.
BUFFER_BYTES = 4 * 1024 * 1024

#: The longest that is read: of one datagram, or of a batch.
READ_BYTES = 65536

#: Segments that the kernel takes in one call (UDP_MAX_SEGMENTS; 128 from Linux 6.9 on).
MOST_SEGMENTS = 64

_ANCILLARY_BYTES = socket.CMSG_SPACE(_GRO.size) + socket.CMSG_SPACE(_PKTINFO6.size)


class Seen(NamedTuple):
    """How the listener sees a flow."""

    program: Any  # as recvmsg gives it
    local: bytes  # packed; nothing where the listener is at one address


class Received(NamedTuple):
    """One datagram, or several of ``segment_bytes``."""

    seen: Seen
    data: bytes
    segment_bytes: int


class DatagramSocket:
    """One of them. Owns its descriptor until ``close``."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises OSError."""
        address, port = endpoint
        self.family = 6 if ":" in address else 4
        self._af = socket.AF_INET6 if self.family == 6 else socket.AF_INET
        self._sock = socket.socket(self._af, socket.SOCK_DGRAM)
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._segments = True
        try:
            self._sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self._sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            if self.family == 6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with suppress(OSError):  # Linux 5.0
                self._sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            self._sock.bind((address, port))
            self._local = socket.inet_pton(self._af, address)
            self._at_any = not any(self._local)
            if self._at_any:
                self._ask_for_own_address()
        except OSError:
            self._sock.close()
            raise

    def _ask_for_own_address(self) -> None:
        if self.family == 4:
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            self._sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)

    @property
    def endpoint(self) -> Endpoint:
        """Where it is."""
        address, port = self._sock.getsockname()[:2]
        return address, port

    def fileno(self) -> int:
        """For the event loop; -1 once it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._sock.close()

    def receive(self) -> Received:
        """The next; raises OSError if there is none."""
        size, ancillary, _, program = self._sock.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
        segment_bytes, local = 0, b""
        for level, kind, value in ancillary:
            if level == _SOL_UDP and kind == _UDP_GRO:
                (segment_bytes,) = _GRO.unpack_from(value)
            elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                _, _, local = _PKTINFO4.unpack_from(value)
            elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                local, _ = _PKTINFO6.unpack_from(value)
        data = bytes(self._view[:size])
        return Received(Seen(program, local), data, segment_bytes if segment_bytes < size else 0)

    def key(self, seen: Seen) -> Key:
        """A flow, for the packet process."""
        address, port = seen.program[:2]
        packed = socket.inet_pton(self._af, address.partition("%")[0])
        return Key(seen.local or self._local, packed, port)

    def send(self, seen: Seen, data: bytes, segment_bytes: int = 0) -> None:
        """An answer of a flow, or several; raises OSError, PermissionError where the kernel has
        forgotten the flow (capture.nft_datagrams, strays).
        """
        source = self._said_source(seen)
        if not 0 < segment_bytes < len(data):
            self._send(seen, data, source)
            return
        for batch in _pieces(data, segment_bytes * MOST_SEGMENTS):
            if self._segments and len(batch) > segment_bytes:
                said = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment_bytes))
                try:
                    self._sock.sendmsg([batch], [*source, said], 0, seen.program)
                    continue
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EIO, errno.EMSGSIZE):
                        raise
                    # EINVAL: the segments are too long for this program's link.
                    self._segments = error.errno != errno.EIO
            for piece in _pieces(batch, segment_bytes):
                self._send(seen, piece, source)

    def _send(self, seen: Seen, data: bytes, source: list[tuple[int, int, bytes]]) -> None:
        if source:
            self._sock.sendmsg([data], source, 0, seen.program)
        else:
            self._sock.sendto(data, seen.program)

    def _said_source(self, seen: Seen) -> list[tuple[int, int, bytes]]:
        if not seen.local:
            return []
        if self.family == 4:
            value = _PKTINFO4.pack(0, seen.local, bytes(4))
            return [(socket.IPPROTO_IP, _IP_PKTINFO, value)]
        return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(seen.local, 0))]


def bind_datagrams(endpoint: Endpoint) -> DatagramSocket:
    """A socket for datagrams at (address, port); raises CannotListen."""
    address, port = endpoint
    try:
        return DatagramSocket(endpoint)
    except OSError as error:
        problem = f"can't take in UDP on {address} port {port}: {error.strerror}"
        hint = "choose another port with --listen, or leave UDP alone: --no-udp"
        raise CannotListen(problem, hint, error.errno or 0)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
