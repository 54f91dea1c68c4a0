"""The packet process' part for ping: echo requests that the rules logged, and their answers. Root.

    a program's request --rules--> NFLOG --ASKED--> client ... far side ... the host
    program <--a raw socket-- reply or error <--REPLY, ERROR-- client

The rules swallow the request in such a way that its sender hears of no error (capture.nft), so what
nobody answers is as silent as a host that is.

**What a client may have of it**: an answer to a request that was logged here, once, to whom sent
it: a reply with exactly its identifier, number and data, from the host that was asked; or an error
with the request inside. The error's sender is the client's to say, since routers of a network that
only the far side knows are who sends it; and it is an error about an echo request and nothing else.
So he can tell a pinging program lies about the hosts of the networks that are his to tell of.

Answers bear INJECTED_MARK: the rules neither capture nor track them. The sockets are the kernel's
raw ones with IP_TRANSPARENT, which may send from any address and cut what is too large; a filter
keeps them from receiving anything.

Invariants: at most MOST_ASKED requests of MOST_BYTES are remembered, each for AGE_S; the oldest go
first, and then are not answered.

Not here: packets as bytes (echo_packets), what the client does (front.echo).
"""

import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

from sshunt.capture.echo_rules import GROUPS
from sshunt.helper.echo_messages import (
    ASKED,
    ERROR,
    REPLY,
    Asked,
    decode_failed_untrusted,
    decode_replied_untrusted,
    encode_asked,
)
from sshunt.helper.echo_packets import (
    SNAP_BYTES,
    Echo,
    NoEchoError,
    decode_echo_untrusted,
    error,
    reply,
)
from sshunt.helper.injected import raw_socket
from sshunt.helper.nflog import Logged, LogGroup
from sshunt.helper.packet_protocol import ECHO_KINDS, PacketError
from sshunt.helper.part import Out, Part

#: The age at which nobody waits for an answer any more: ping(8) itself does for 10 s.
AGE_S = 60.0

#: The room for requests that wait for an answer: several people's flood of large ones.
MOST_ASKED = 4096
MOST_BYTES = 8 * 1024 * 1024

#: Datagrams of the log that are read before the others have their turn.
_READS_A_TURN = 64

_HOPS = 64

_IP_TTL, _IP_PKTINFO, _IP_TRANSPARENT = 2, 8, 19
_IPV6_HOPLIMIT, _IPV6_PKTINFO, _IPV6_TRANSPARENT = 52, 50, 75
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_IN_PKTINFO, _IN6_PKTINFO = struct.Struct("=i4s4x"), struct.Struct("=16si")
_INT = struct.Struct("=i")


class Echoes(Part):
    """See the module's head. Raises OSError if this kernel has no NFLOG, or no group is free."""

    kinds = ECHO_KINDS

    def __init__(self, out: Out) -> None:
        self._out = out
        self._log = LogGroup(GROUPS, SNAP_BYTES)
        self.group = self._log.number
        self._sockets = {4: _socket4()}
        with suppress(OSError):  # a kernel without IPv6
            self._sockets[6] = _socket6()
        self._asked: OrderedDict[int, tuple[float, Echo]] = OrderedDict()
        self._bytes = 0
        self._next = 1

    def descriptors(self) -> Sequence[int]:
        """As in Part."""
        return (self._log.fileno(),)

    def close(self) -> None:
        """Log and answer nothing any more."""
        self._log.close()
        for sock in self._sockets.values():
            sock.close()

    def on_readable(self, descriptor: int) -> None:
        """As in Part: requests were logged."""
        for _ in range(_READS_A_TURN):
            logged = self._log.read()
            if not logged:
                return
            for each in logged:
                self.take(each)

    def on_message(self, kind: int, body: bytes) -> None:
        """As in Part: the client knows what became of a request."""
        if kind == REPLY:
            replied = decode_replied_untrusted(body)
            echo = self._forget(replied.number)
            if echo is not None:
                self._send(
                    echo, reply(echo, replied.data_bytes), echo.destination, replied.hops or _HOPS
                )
        elif kind == ERROR:
            failed = decode_failed_untrusted(body)
            echo = self._forget(failed.number)
            if echo is not None and (":" in failed.offender) == (echo.version == 6):
                message = error(echo, failed.type, failed.code, failed.value)
                self._send(echo, message, failed.offender, _HOPS)
        else:
            raise PacketError(f"a message of kind {kind}")

    def on_tick(self, now: float) -> None:
        """As in Part: forget what is old."""
        while self._asked:
            number, (at, _) = next(iter(self._asked.items()))
            if now - at < AGE_S:
                return
            self._forget(number)

    @property
    def remembered(self) -> list[int]:
        """The numbers of the requests that may still be answered, the oldest first."""
        return list(self._asked)

    def take(self, logged: Logged) -> None:
        """Tell the client of a request; what is none, or can't be answered, is as if lost."""
        try:
            echo = decode_echo_untrusted(logged.packet)
        except NoEchoError:
            return
        number, self._next = self._next, self._next % 0xFFFFFFFF + 1
        self._asked[number] = time.monotonic(), echo
        self._bytes += len(echo.data) + len(echo.quoted)
        while len(self._asked) > MOST_ASKED or self._bytes > MOST_BYTES:
            self._forget(next(iter(self._asked)))
        # What another host sent has come by this one.
        hops = echo.hops - 1 if logged.in_index else echo.hops
        asked = Asked(
            number,
            echo.source,
            echo.destination,
            max(hops, 0),
            echo.dont_fragment,
            echo.identifier,
            echo.sequence,
            echo.data,
        )
        if not self._out.send(ASKED, encode_asked(asked)):
            self._forget(number)

    def _forget(self, number: int) -> Echo | None:
        """Take it out; None if it is not there, or not any more."""
        _, echo = self._asked.pop(number, (0.0, None))
        if echo is not None:
            self._bytes -= len(echo.data) + len(echo.quoted)
        return echo

    def _send(self, echo: Echo, message: bytes, source: str, hops: int) -> None:
        """Send it to whoever asked. What can't be sent is lost."""
        sock = self._sockets.get(echo.version)
        if sock is None:
            return
        if echo.version == 4:
            info = _IN_PKTINFO.pack(0, socket.inet_aton(source))
            control = [
                (socket.IPPROTO_IP, _IP_PKTINFO, info),
                (socket.IPPROTO_IP, _IP_TTL, _INT.pack(hops)),
            ]
        else:
            info = _IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, source), 0)
            control = [
                (socket.IPPROTO_IPV6, _IPV6_PKTINFO, info),
                (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, _INT.pack(hops)),
            ]
        with suppress(OSError):
            sock.sendmsg([message], control, socket.MSG_DONTWAIT, (echo.source, 0))


def _socket4() -> socket.socket:
    """For ICMP messages from any address; it receives none."""
    sock = raw_socket(socket.AF_INET, socket.IPPROTO_ICMP)
    try:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, b"\xff" * 4)
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _socket6() -> socket.socket:
    """The same for ICMPv6."""
    sock = raw_socket(socket.AF_INET6, socket.IPPROTO_ICMPV6)
    try:
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, b"\xff" * 32)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    except OSError:
        sock.close()
        raise
    return sock
