"""Echo requests of this host, for flows of network ECHO: what ping and traceroute are made of.

    a socket for each flow      an ICMP socket (icmp(7)), or a raw one for root: what comes back is
                                its reply, or in its error queue (ip(7), IP_RECVERR) the error, with
                                who has sent it
    ping(8), as a child         where the host allows neither (net.ipv4.ping_group_range)

This host is the first that passes a request on: one that may not be passed on has come to its end
here, unless it is for this host. Nothing is kept of a request: the kernel gives back what belongs
to it, so the answer says which one it is for.

A child says less than a socket: data and sizes are not carried back but taken for granted, and each
costs a process, so there are MOST_CHILDREN at a time. What is too much is dropped, as a network
would; the client hears that it is so (FLOW_NOT_PERMITTED, value CHILDREN), and tells people.

Open question: an sshunt on the agent's own host knows an agent's sockets, but not its children.
What it captures of those it would have asked again, until MOST_CHILDREN of them wait.

Invariants: an answer is given only for what the kernel or ping says is one; MOST_FLOWS at most.

Not here: what datagrams have in them (relay.echo), how often somebody may ask (front.echo), for how
long a flow lives (the session).
"""

import errno
import os
import re
import socket
import struct
import subprocess
import sys
from typing import Any, Dict, NamedTuple, Tuple

from sshunt.mux.datagram_frames import FLOW_NAME_UNKNOWN, FLOW_NO_RESOURCES, FLOW_NOT_PERMITTED
from sshunt.relay.echo import ANSWER, CHILDREN, DONT_FRAGMENT, REQUEST, VALUE
from sshunt.relay.flow import Association, Outlet
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import READ
from sshunt.relay.sockets import DIALED_PRIORITY, is_reserved, reset_code, set_priority

#: Flows at a time, a descriptor each. Somebody who looks for living hosts asks 254 of them.
MOST_FLOWS = 512

#: Children at a time, and how long each waits. A host that lives answers within a second.
MOST_CHILDREN = 20
CHILD_S = 4

_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_SOCK_EXTENDED_ERR = struct.Struct("=IBBBxI")
_FROM_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_ERRORS = 0x2000  # MSG_ERRQUEUE
_READS_A_ROUND = 64

_REPLIED = re.compile("(?:ttl|hlim)=([0-9]+)")
_FAILED = re.compile("From ([0-9a-f.:]+?):? .*?(xceeded|Net|route|nreach)")


class _Family(NamedTuple):
    """Numbers of ICMP, and of Linux; another system says less of what became of a request."""

    family: int
    protocol: int
    request: int
    reply: int
    exceeded: Tuple[int, int]  # type and code
    refusals: Dict[int, Tuple[int, int]]
    level: int  # of the socket options, and of control messages
    hops: int
    errors: int
    tell_hops: int
    hops_told: int
    discover: int
    mtu: int
    offender: slice  # in the control message of an error


_NETWORK, _HOST = errno.ENETUNREACH, errno.EHOSTUNREACH
_REFUSALS4 = {_NETWORK: (3, 0), _HOST: (3, 1), errno.EMSGSIZE: (3, 4), errno.EACCES: (3, 13)}
_REFUSALS6 = {_NETWORK: (1, 0), _HOST: (1, 3), errno.EMSGSIZE: (2, 0), errno.EACCES: (1, 1)}
_IPV4 = _Family(2, 1, 8, 0, (11, 0), _REFUSALS4, 0, socket.IP_TTL, 11, 12, 2, 10, 14, slice(20, 24))
_IPV6 = _Family(
    socket.AF_INET6, 58, 128, 129, (3, 0), _REFUSALS6, 41, 16, 25, 51, 52, 23, 24, slice(24, 40)
)


class Echoes:
    """Owns the flows' sockets, and the children."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.outlets: Dict[Outlet, None] = {}
        self.children: Dict["subprocess.Popen[str]", None] = {}

    def associate(self, association: Association) -> Outlet:
        """As in Carrier, for flows of network ECHO."""
        host = association.flow.destination[0]
        family = _IPV6 if ":" in host else _IPV4
        try:
            socket.inet_pton(family.family, host)
        except (OSError, ValueError):
            association.ended(FLOW_NAME_UNKNOWN)
            return Outlet()
        code = FLOW_NO_RESOURCES
        if len(self.outlets) < MOST_FLOWS:
            try:
                return _Asked(self, association, family, host)
            except OSError as error:
                code = reset_code(error.errno or 0)
            if code == FLOW_NOT_PERMITTED:
                return _AskedByChildren(self, association, family, host)
        association.ended(code)
        return Outlet()

    def close(self) -> None:
        """Nothing is answered any more."""
        for outlet in list(self.outlets):
            outlet.close()
        for child in list(self.children):
            child.kill()
            self.reap(child)

    def reap(self, child: "subprocess.Popen[str]") -> str:
        """What it has said; it is over, or will be at once."""
        del self.children[child]
        said: Any = child.stdout
        self.reactor.loop.remove_reader(said)
        return child.communicate()[0]


class _Flow(Outlet):
    """What both ways of asking have in common."""

    def __init__(
        self, echoes: Echoes, association: Association, family: _Family, host: str
    ) -> None:
        self._echoes = echoes
        self._association = association
        self._family = family
        self._host = host
        self._own = ""  # this host's address towards that one, once it is known
        echoes.outlets[self] = None

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Outlet; what is no request is ignored."""
        if len(datagram) >= REQUEST.size and self in self._echoes.outlets:
            hops, flags, sequence = REQUEST.unpack_from(datagram)
            self._ask(hops, flags, sequence, datagram[REQUEST.size :])

    def _ask(self, hops: int, flags: int, sequence: int, data: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """As in Outlet. May be called twice."""
        self._echoes.outlets.pop(self, None)

    def _tell(self, what: int, code: int, hops: int, sequence: int, rest: bytes) -> None:
        if self in self._echoes.outlets:
            self._association.deliver(ANSWER.pack(what, code, max(hops, 0), sequence) + rest)

    def _tell_error(
        self, kind: Tuple[int, int], sequence: int, offender: str, value: int = 0
    ) -> None:
        address = socket.inet_pton(self._family.family, offender) if offender else b""
        self._tell(*kind, 0, sequence, VALUE.pack(value) + address)


class _AskedByChildren(_Flow):
    """A flow whose requests ping(8) sends."""

    _is_told = False

    def _ask(self, hops: int, flags: int, sequence: int, data: bytes) -> None:
        echoes = self._echoes
        if not self._is_told:
            self._is_told = True
            self._association.failed(FLOW_NOT_PERMITTED, CHILDREN)
        if hops <= 1:
            self._tell_error(self._family.exceeded, sequence, "")
        elif len(echoes.children) < MOST_CHILDREN:
            words = "ping -n -c 1 -W %d -t %d -s %d %s"
            try:
                child = subprocess.Popen(
                    (words % (CHILD_S, hops - 1, len(data), self._host)).split(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    universal_newlines=True,
                    env=dict(os.environ, LC_ALL="C"),
                )
            except OSError as error:
                self.close()
                missing = isinstance(error, FileNotFoundError)
                code = FLOW_NOT_PERMITTED if missing else reset_code(error.errno or 0)
                self._association.ended(code)
                return
            echoes.children[child] = None
            said: Any = child.stdout
            echoes.reactor.loop.add_reader(said, self._on_said, child, sequence, data)

    def _on_said(self, child: "subprocess.Popen[str]", sequence: int, data: bytes) -> None:
        said, family = self._echoes.reap(child), self._family
        replied, failed = _REPLIED.search(said), _FAILED.search(said)
        if replied:
            self._tell(family.reply, 0, int(replied.group(1)) - 1, sequence, data)
        elif failed:
            offender, why = failed.groups()
            kind = family.refusals[_HOST if why == "nreach" else _NETWORK]
            self._tell_error(family.exceeded if why == "xceeded" else kind, sequence, offender)


class _Asked(_Flow):
    """A flow with a socket. Raises OSError if the host allows none."""

    def __init__(
        self, echoes: Echoes, association: Association, family: _Family, host: str
    ) -> None:
        self._sock, self._is_raw = _opened(family)
        self._identifier = id(self) >> 4 & 0xFFFF  # of a raw one; others have one of the kernel's
        super().__init__(echoes, association, family, host)
        try:
            echoes.reactor.readiness.add(self._sock.fileno(), self._on_events, READ)
        except OSError:
            self.close()
            raise
        self._set(family.errors, 1)
        self._set(family.tell_hops, 1)

    def close(self) -> None:
        """As in Outlet."""
        super().close()
        self._echoes.reactor.readiness.forget(self._sock.fileno())
        self._sock.close()

    def _set(self, option: int, value: int) -> None:
        try:
            self._sock.setsockopt(self._family.level, option, value)
        except OSError:
            pass  # answers say less without it

    def _ask(self, hops: int, flags: int, sequence: int, data: bytes) -> None:
        family = self._family
        try:
            if not self._own:
                self._sock.connect((self._host, 0))
                self._own = self._sock.getsockname()[0]
            if hops <= 1 and not self._is_from(self._own):
                self._tell_error(family.exceeded, sequence, self._own)
                return
            self._set(family.hops, max(hops - 1, 1))
            self._set(family.discover, 2 if flags & DONT_FRAGMENT else 0)  # IP_PMTUDISC_DO, _DONT
            message = self._message(sequence, data)
            try:
                self._sock.send(message)
            except OSError:
                # It may be the error of an earlier one, which is told with more in its queue.
                self._hear_errors()
                self._sock.send(message)
        except OSError as error:
            number, value = error.errno, 0
            if number == errno.EMSGSIZE:
                value = self._sock.getsockopt(family.level, family.mtu)
            if number in family.refusals:
                self._tell_error(family.refusals[number], sequence, self._own, value)
            # Or there is no room in a queue, and it is lost.

    def _message(self, sequence: int, data: bytes) -> bytes:
        """Where the kernel makes checksum and identifier, it does not mind ours."""
        head = [self._family.request, 0, 0, self._identifier, sequence]
        head[2] = _checksum(_ECHO.pack(*head) + data)
        return _ECHO.pack(*head) + data

    def _on_events(self, events: int) -> None:
        family = self._family
        for _ in range(_READS_A_ROUND):
            try:
                message, control, _, peer = self._sock.recvmsg(65535, 256)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # of an earlier one, as above
                if self._sock.fileno() < 0:
                    return
                continue
            if self._is_raw and family is _IPV4:
                message = message[(message[0] & 15) * 4 :]
            if self._is_ours(message, family.reply) and self._is_from(peer[0]):
                told = _told(control, family.level, family.hops_told)
                hops = int.from_bytes(told, sys.byteorder)
                self._tell(family.reply, 0, hops - 1, _sequence(message), message[_ECHO.size :])
        else:  # others have their turn first
            self._echoes.reactor.loop.call_soon(self._on_events, events)
        self._hear_errors()

    def _hear_errors(self) -> None:
        family = self._family
        while self._sock.fileno() >= 0:
            try:
                message, control, _, _ = self._sock.recvmsg(_ECHO.size, 512, _ERRORS)
            except OSError:
                return
            told = _told(control, family.level, family.errors)
            offender = told[family.offender]
            if offender and self._is_ours(message, family.request):
                _, origin, what, code, value = _SOCK_EXTENDED_ERR.unpack_from(told)
                if origin in _FROM_ICMP:
                    self._tell(what, code, 0, _sequence(message), VALUE.pack(value) + offender)

    def _is_ours(self, message: bytes, wanted: int) -> bool:
        if len(message) < _ECHO.size:
            return False
        what, _, _, identifier, _ = _ECHO.unpack_from(message)
        return bool(what == wanted and (identifier == self._identifier or not self._is_raw))

    def _is_from(self, address: str) -> bool:
        """True if it is the host that was asked."""
        family, address = self._family.family, address.partition("%")[0]  # Python 3.6 adds the link
        return socket.inet_pton(family, address) == socket.inet_pton(family, self._host)


def _opened(family: _Family) -> Tuple[socket.socket, bool]:
    """A socket for echo requests that never waits, and whether it is raw. Raises OSError."""
    is_raw = False
    try:
        sock = socket.socket(family.family, socket.SOCK_DGRAM, family.protocol)
    except OSError:
        is_raw = True
        sock = socket.socket(family.family, socket.SOCK_RAW, family.protocol)
    if is_reserved(sock.fileno()):
        sock.close()
        raise OSError(errno.EMFILE, "")
    sock.setblocking(False)
    set_priority(sock, DIALED_PRIORITY)  # never one of our own host's sshunt
    return sock, is_raw


def _sequence(message: bytes) -> int:
    sequence: int = _ECHO.unpack_from(message)[4]
    return sequence


def _told(control: Any, level: int, what: int) -> bytes:
    """The control message of this kind, b"" if there is none."""
    return b"".join(each[2] for each in control if each[:2] == (level, what))


def _checksum(message: bytes) -> int:
    """RFC 1071."""
    message += b"\0" * (len(message) % 2)
    total: int = sum(struct.unpack("!%dH" % (len(message) // 2), message)) % 0xFFFF
    return 0xFFFF - total
