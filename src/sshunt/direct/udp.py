"""UDP to the real hosts: one socket for each source, whatever it writes to.

    a source's number -> a socket of this host, unconnected, with the program's port if that is free
    one of its flows  -> a far address and port, to which that socket sends

So every far host sees the same address and port of a source (RFC 4787, REQ-1), and one socket here
serves a program that speaks with thousands. Who may write to it (REQ-8):

    somebody it has a flow to    that flow
    an address it has a flow to  but another port (TFTP, a host that answers by a new socket): a
                                 flow begins here, if the near end wants it (``stranger``)
    anybody else                 the same where the source wants to hear from ``any_peer``, else
                                 dropped

What the network says of a datagram (ICMP: refused, unreachable, too large ...) comes by the
socket's error queue (ip(7), IP_RECVERR) with the address it was for, and goes to that flow. Such an
error also makes the next call fail, whatever it is for: so who gets one reads the queue and tries
again, once.

Several datagrams of one size stay together where the kernel can do it (udp(7), UDP_SEGMENT on the
way out, UDP_GRO on the way in); a network that can't is noticed at the first batch, and the socket
then sends them one by one. A datagram that the socket does not take is lost, as in a full router:
to wait for room would only make it late.

Where descriptors run out, the source that has been silent for longest loses its socket, and gets
another with its next datagram. Sockets bear DIALED_PRIORITY for all their life: an sshunt on this
very host does not capture them.

Invariants: a flow that is over hears nothing more; a socket without flows is closed.

Not here: which program sends (front), what is lost on the way here and in which order (mux).
"""

import asyncio
import errno
import os
import socket
import struct
import sys
from typing import Any, Dict, List, Optional, Set, Tuple

from sshunt.direct.dial import Dialer, family_of, lookup_code
from sshunt.relay.flow import (
    FLOW_DONE,
    FLOW_HOPS_EXCEEDED,
    FLOW_NOT_PERMITTED,
    FLOW_TOO_LARGE,
    Association,
    Endpoint,
    Outlet,
)
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import ERROR, READ
from sshunt.relay.sockets import DIALED_PRIORITY, is_reserved, reset_code, set_priority

#: The most that UDP carries over IPv4, and so nearly everywhere (IPv6: 20 bytes more).
MOST_BYTES = 65507

#: Room for a burst; the kernel gives as much of it as net.core.rmem_max allows, and to root all.
RECEIVE_BUFFER_BYTES = 1024 * 1024

#: Datagrams, or batches, that are read before others have their turn.
READS_PER_ROUND = 64

#: How often flows are looked at for how long they have been idle.
SWEEP_EVERY_S = 5.0

#: How long a source must have been silent before another one may have its descriptor.
SILENT_S = 5.0

#: Datagrams of a flow that wait for its name to be looked up.
MOST_WAITING = 16

#: Strangers that one source may hear from at a time, and for how long one that the near end did not
#: want, or did not want any more, is not announced again.
MOST_STRANGERS = 1024
UNWELCOME_S = 30.0

# linux/in.h, linux/in6.h, linux/udp.h: Python knows none of them by name, or not always. Elsewhere
# the same numbers mean something else.
_IS_LINUX = sys.platform == "linux"
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_WANT, _PMTUDISC_DO = 1, 2
_UDP_SEGMENT, _UDP_GRO = 103, 104
_MSG_ERRQUEUE = 0x2000
_SO_RCVBUFFORCE = 33

#: What the kernel cuts a batch into at most, before Linux 6.9.
_MOST_SEGMENTS = 64

_SEGMENT = struct.Struct("=H")
_NUMBER = struct.Struct("=i")
_GRO_ROOM = socket.CMSG_SPACE(_NUMBER.size)

#: struct sock_extended_err: errno, origin, type, code, info.
_ERROR = struct.Struct("=IBBBxI")
_ERROR_ROOM = 512
_ICMP, _ICMPV6 = 2, 3  # origins

#: By origin, type and code, where the error number says less.
_MEANING = {
    (_ICMP, 3, 9): FLOW_NOT_PERMITTED,
    (_ICMP, 3, 10): FLOW_NOT_PERMITTED,
    (_ICMP, 3, 13): FLOW_NOT_PERMITTED,
    (_ICMPV6, 1, 1): FLOW_NOT_PERMITTED,
}
_HOPS_EXCEEDED = ((_ICMP, 11), (_ICMPV6, 3))


class UdpSockets:
    """The far ends of all flows of UDP. ``dialer`` looks names up."""

    def __init__(self, reactor: Reactor, dialer: Dialer) -> None:
        self.reactor = reactor
        self._loop = reactor.loop
        self._dialer = dialer
        self._sockets: Dict[Tuple[int, int], _Source] = {}  # by source and address family
        self._lookups: "Set[asyncio.Future[None]]" = set()
        self._sweeping: Optional[asyncio.TimerHandle] = None

    def associate(self, association: Association) -> Outlet:
        """As in Carrier."""
        outlet = UdpOutlet(self._loop, association)
        host, port = association.flow.destination
        family = family_of(host)
        if family is not None:
            text = socket.inet_ntop(family, socket.inet_pton(family, host))  # as the kernel has it
            self._join(outlet, family, (text, port))
        else:
            lookup = asyncio.ensure_future(self._look_up(outlet), loop=self._loop)
            self._lookups.add(lookup)
            lookup.add_done_callback(self._lookups.discard)
        return outlet

    def close(self) -> None:
        """Close all sockets; nobody is told."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for lookup in list(self._lookups):
            lookup.cancel()
        for source in list(self._sockets.values()):
            source.close()
        self._sockets.clear()

    def forget(self, source: "_Source") -> None:
        """It has no flows any more, and is closed."""
        self._sockets.pop(source.key, None)

    async def _look_up(self, outlet: "UdpOutlet") -> None:
        try:
            found = await self._dialer.look_up(outlet.association.flow.destination)
        except (OSError, UnicodeError, RuntimeError) as error:
            outlet.end(lookup_code(error))
            return
        family, _, _, _, address = found[0]
        self._join(outlet, family, address[:2])

    def _join(self, outlet: "UdpOutlet", family: int, peer: Endpoint) -> None:
        """``outlet`` leads to ``peer`` from now on, by the socket of its source."""
        if outlet.is_over:  # closed while its name was looked up
            return
        association = outlet.association
        key = association.source, family
        source = self._sockets.get(key)
        if source is None:
            port = association.flow.source[1] if association.flow.source else 0
            try:
                source = self._sockets[key] = self._open(key, port)
            except OSError as error:
                outlet.end(reset_code(error.errno or 0))
                return
        source.join(outlet, peer)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _open(self, key: Tuple[int, int], port: int) -> "_Source":
        """The socket of a source; raises OSError."""
        try:
            return _Source(self, key, _new_socket(key[1], port))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._end_silent():
                raise
        return _Source(self, key, _new_socket(key[1], port))

    def _end_silent(self) -> bool:
        """Close the socket of whoever has been silent for longest; False if nobody has."""
        now = self._loop.time()
        silent = min(self._sockets.values(), default=None, key=lambda each: each.used_at)
        if silent is None or now - silent.used_at < SILENT_S:
            return False
        silent.end_idle(now, at_all=True)
        return True

    def _sweep(self) -> None:
        now = self._loop.time()
        for source in list(self._sockets.values()):
            source.end_idle(now)
        self._sweeping = None
        if self._sockets:
            self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)


class UdpOutlet(Outlet):
    """One flow: datagrams of ``association`` to one address and port."""

    __slots__ = ("_loop", "_waiting", "association", "is_over", "is_stranger", "peer", "source",
                 "used_at")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, association: Association) -> None:
        self.association = association
        self.is_over = False
        self.is_stranger = False  # the peer has begun
        self.peer: Endpoint = ("", 0)
        self.source: Optional[_Source] = None  # None: the name is being looked up
        self.used_at = loop.time()
        self._loop = loop
        self._waiting: List[Tuple[bytes, int]] = []

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Outlet."""
        source = self.source
        if source is not None:
            source.used_at = self.used_at = self._loop.time()
            source.send(self, datagram, segment_bytes)
        elif not self.is_over and len(self._waiting) < MOST_WAITING:
            self._waiting.append((datagram, segment_bytes))

    def close(self) -> None:
        """As in Outlet."""
        self.is_over = True
        self._waiting = []
        source, self.source = self.source, None
        if source is not None:
            source.leave(self)

    def end(self, code: int) -> None:
        """It is over, for the near end, too."""
        if not self.is_over:
            self.close()
            self.association.ended(code)

    def joined(self, source: "_Source", peer: Endpoint) -> None:
        """It leads there now."""
        self.source, self.peer = source, peer
        waiting, self._waiting = self._waiting, []
        for datagram, segment_bytes in waiting:
            self.send(datagram, segment_bytes)


class _Source:
    """The socket of one source, which it owns, and the flows that leave by it. ``key``: its number
    and address family.
    """

    __slots__ = ("_all", "_any_peer", "_flows", "_has_gro", "_has_segments", "_hosts", "_is_whole",
                 "_sock", "_strangers", "_unwelcome", "key", "used_at")  # fmt: skip

    def __init__(self, sockets: UdpSockets, key: Tuple[int, int], sock: socket.socket) -> None:
        self.key = key
        self.used_at = sockets.reactor.loop.time()
        self._all = sockets
        self._sock = sock
        self._flows: Dict[Endpoint, UdpOutlet] = {}
        self._hosts: Dict[str, int] = {}  # flows to each address, strangers' not included
        self._strangers = 0
        self._unwelcome: Dict[Endpoint, float] = {}  # until when
        self._any_peer = False
        self._is_whole = False  # what leaves may not be cut
        self._has_segments = _IS_LINUX  # until the kernel says no
        self._has_gro = _IS_LINUX and _has_set(sock, socket.IPPROTO_UDP, _UDP_GRO)
        sockets.reactor.readiness.add(sock.fileno(), self._on_events, READ)

    # --- its flows ----------------------------------------------------------------------------

    def join(self, outlet: UdpOutlet, peer: Endpoint) -> None:
        """One more flow. One that there is to this peer is over: its near end has forgotten it, or
        the peer had begun it.
        """
        before = self._flows.pop(peer, None)
        self._flows[peer] = outlet
        self._hosts[peer[0]] = self._hosts.get(peer[0], 0) + 1
        self._any_peer = self._any_peer or outlet.association.any_peer
        if before is not None:
            self._count(before)
            before.source = None
            before.end(FLOW_DONE)
        outlet.joined(self, peer)

    def leave(self, outlet: UdpOutlet) -> None:
        """The flow is over; with the last one the socket is."""
        del self._flows[outlet.peer]
        self._count(outlet)
        if outlet.is_stranger:
            if len(self._unwelcome) >= MOST_STRANGERS:
                self._unwelcome.clear()
            self._unwelcome[outlet.peer] = self._all.reactor.loop.time() + UNWELCOME_S
        if not self._flows:
            self.close()
            self._all.forget(self)

    def _count(self, gone: UdpOutlet) -> None:
        if gone.is_stranger:
            self._strangers -= 1
            return
        host = gone.peer[0]
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]

    def end_idle(self, now: float, *, at_all: bool = False) -> None:
        """End flows that have been idle for too long, or ``at_all``."""
        for outlet in list(self._flows.values()):
            if at_all or now - outlet.used_at > outlet.association.idle_s:
                outlet.end(FLOW_DONE)

    def close(self) -> None:
        """Nothing more is sent or heard."""
        for outlet in self._flows.values():
            outlet.source = None
            outlet.is_over = True
        self._flows = {}
        self._all.reactor.readiness.forget(self._sock.fileno())
        self._sock.close()

    # --- sending ------------------------------------------------------------------------------

    def send(self, outlet: UdpOutlet, datagram: bytes, segment_bytes: int) -> None:
        """Send it; what is wrong with it is said."""
        if outlet.association.dont_fragment is not self._is_whole:
            self._set_whole(outlet.association.dont_fragment)
        try:
            if segment_bytes and len(datagram) > segment_bytes:
                self._send_batch(outlet, datagram, segment_bytes)
            else:
                self._sock.sendto(datagram, outlet.peer)
        except (BlockingIOError, InterruptedError):
            pass  # no room: lost
        except OSError as error:
            self._on_unsent(outlet, datagram, segment_bytes, error)

    def _send_batch(self, outlet: UdpOutlet, datagram: bytes, segment_bytes: int) -> None:
        """Several of one size, in as few calls as the kernel can do with; raises OSError."""
        many = min(_MOST_SEGMENTS, MOST_BYTES // segment_bytes) or 1
        step = segment_bytes * many if self._has_segments else segment_bytes
        size = [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment_bytes))]
        for at in range(0, len(datagram), step):
            part = datagram[at : at + step]
            if len(part) <= segment_bytes:
                self._sock.sendto(part, outlet.peer)
                continue
            try:
                self._sock.sendmsg([part], size, 0, outlet.peer)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
                    raise
                # No checksums by the device (EIO), larger than the path takes at once (EINVAL).
                self._has_segments = False
                self._send_batch(outlet, datagram[at:], segment_bytes)
                return

    def _on_unsent(
        self, outlet: UdpOutlet, datagram: bytes, segment_bytes: int, error: OSError
    ) -> None:
        """It was not sent: for what it is, or for what became of one before it."""
        if error.errno == errno.EMSGSIZE:
            was_told = self._read_errors() and outlet.association.dont_fragment
            if not was_told:
                outlet.association.failed(FLOW_TOO_LARGE, MOST_BYTES)
            return
        if self._read_errors() and outlet.source is self:
            try:
                if segment_bytes and len(datagram) > segment_bytes:
                    self._send_batch(outlet, datagram, segment_bytes)
                else:
                    self._sock.sendto(datagram, outlet.peer)
                return
            except (BlockingIOError, InterruptedError):
                return
            except OSError as again:
                error = again
        outlet.association.failed(reset_code(error.errno or 0))

    def _set_whole(self, is_whole: bool) -> None:
        self._is_whole = is_whole
        if not _IS_LINUX:
            return
        how = _PMTUDISC_DO if is_whole else _PMTUDISC_WANT
        if self.key[1] == socket.AF_INET6:
            _has_set(self._sock, socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, how)
        else:
            _has_set(self._sock, socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)

    # --- receiving ----------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        if events & ERROR:
            self._read_errors()
        self._read_on()

    def _read_on(self) -> None:
        """Read what is there; when that is much, go on after others have had their turn."""
        sock, segment_bytes = self._sock, 0
        for _ in range(READS_PER_ROUND):
            try:
                if self._has_gro:
                    data, notes, _, address = sock.recvmsg(65535, _GRO_ROOM)
                    segment_bytes = _NUMBER.unpack(notes[0][2])[0] if notes else 0
                else:
                    data, address = sock.recvfrom(65535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                if not self._read_errors():  # closed meanwhile, or out of memory
                    return
                continue
            self._take(data, segment_bytes, address[:2])
        self._all.reactor.loop.call_soon(self._read_on)

    def _take(self, data: bytes, segment_bytes: int, peer: Endpoint) -> None:
        outlet = self._flows.get(peer)
        if outlet is None:
            outlet = self._welcome(peer)
            if outlet is None:
                return
        self.used_at = outlet.used_at = self._all.reactor.loop.time()
        outlet.association.deliver(data, segment_bytes if len(data) > segment_bytes else 0)

    def _welcome(self, peer: Endpoint) -> Optional[UdpOutlet]:
        """A flow for somebody to whom the source has none; None if he is not to be heard."""
        if not self._any_peer and peer[0] not in self._hosts:
            return None
        now = self._all.reactor.loop.time()
        if self._strangers >= MOST_STRANGERS or self._unwelcome.get(peer, 0.0) > now:
            return None
        association = next(iter(self._flows.values())).association.stranger(peer)
        if association is None:
            return None
        outlet = UdpOutlet(self._all.reactor.loop, association)
        outlet.is_stranger = True
        self._strangers += 1
        self._flows[peer] = outlet
        outlet.joined(self, peer)
        association.answers_by(outlet)
        return outlet

    def _read_errors(self) -> bool:
        """Tell flows what became of their datagrams; False if there was nothing to tell."""
        if not _IS_LINUX:
            return False
        for count in range(READS_PER_ROUND):
            try:
                _, notes, _, address = self._sock.recvmsg(0, _ERROR_ROOM, _MSG_ERRQUEUE)
            except OSError:
                return bool(count)
            outlet = self._flows.get(address[:2]) if address else None
            for _, _, raw in notes:
                if outlet is not None and len(raw) >= _ERROR.size:
                    self._tell(outlet.association, *_ERROR.unpack_from(raw))
        return True

    def _tell(
        self, association: Association, number: int, origin: int, kind: int, code: int, info: int
    ) -> None:
        if number == errno.EMSGSIZE:
            if association.dont_fragment:  # else the next one is cut
                head_bytes = 48 if self.key[1] == socket.AF_INET6 else 28
                association.failed(FLOW_TOO_LARGE, max(info - head_bytes, 0))
        elif (origin, kind) in _HOPS_EXCEEDED:
            association.failed(FLOW_HOPS_EXCEEDED)
        else:
            association.failed(_MEANING.get((origin, kind, code)) or reset_code(number))


def _new_socket(family: int, port: int) -> socket.socket:
    """A socket bound to ``port`` if that is free; raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if is_reserved(sock.fileno()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock.setblocking(False)
        set_priority(sock, DIALED_PRIORITY)
        _has_set(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if _IS_LINUX:
            _has_set(sock, socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        if family == socket.AF_INET6:
            _has_set(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        if _IS_LINUX and family == socket.AF_INET6:
            _has_set(sock, socket.IPPROTO_IPV6, _IPV6_RECVERR)
        elif _IS_LINUX:
            _has_set(sock, socket.IPPROTO_IP, _IP_RECVERR)
        try:
            sock.bind(("", port))
        except OSError:  # somebody's already, or for the administrator only
            sock.bind(("", 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _has_set(sock: Any, level: int, option: int, value: int = 1) -> bool:
    """False where the system does not know it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True
