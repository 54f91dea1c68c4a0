"""What is carried: flows, the near ends that wait for their far ones, and whoever carries them.

    a front brings a Connection --> somebody decides who carries it --> Carrier.connect(connection)

Whoever holds a Connection, Association or Question owns it, and ends it in one way:

    Connection    refused(code)            there is no far end
                  relay()                  handed over: a Relay that waits for a socket of this host
                  take()                   handed over, where it is a socket: for a stream
    begun(relay)             handed over, where the socket is still to come
    Association   ended(code)
    Question      answer(message), refused(code)

A near end that wants to be told (``wants_opened``: SOCKS, a SYN that is held back) hears ``opened``
from its relay when the far end is up, and only then answers its program; the others have answered
theirs already. Codes are those of frames.RESET_*, of associations FLOW_*.

An Association and its Outlet are two ends of one thing: what a program sends goes into the outlet,
what comes back is delivered to the association. Datagrams may be lost anywhere, and nobody is told;
what is known of one that did not arrive is said (``failed``), and the flow goes on.

Nothing here is a coroutine: a carrier's ``connect`` returns at once, thousands of times a second.

Not here: near ends that are a session's (incoming), what joins two sockets (front.splice), carriers
(direct.carrier, the far sides), who carries what.
"""

import socket
from typing import NamedTuple, Optional, Tuple

from sshunt.mux import datagram_frames, frames
from sshunt.relay.sockets import close_with_reset

#: What a flow is made of, as the protocol numbers it; DNS: whatever a resolver can be asked by.
TCP, UDP, ECHO, DNS = frames.TCP, frames.UDP, frames.ECHO, frames.DNS

#: Codes for refusals of our own.
NO_RESOURCES, NOT_PERMITTED = frames.RESET_NO_RESOURCES, frames.RESET_NOT_PERMITTED
ABORTED = frames.RESET_ABORTED

#: What became of a datagram, or why a flow is over (docs/protocol.md, 6.1).
FLOW_DONE = datagram_frames.FLOW_DONE
FLOW_REFUSED = datagram_frames.FLOW_REFUSED
FLOW_HOST_UNREACHABLE = datagram_frames.FLOW_HOST_UNREACHABLE
FLOW_NET_UNREACHABLE = datagram_frames.FLOW_NET_UNREACHABLE
FLOW_TIMED_OUT = datagram_frames.FLOW_TIMED_OUT
FLOW_NAME_UNKNOWN = datagram_frames.FLOW_NAME_UNKNOWN
FLOW_NO_RESOURCES = datagram_frames.FLOW_NO_RESOURCES
FLOW_NOT_PERMITTED = datagram_frames.FLOW_NOT_PERMITTED
FLOW_OTHER = datagram_frames.FLOW_OTHER
FLOW_TOO_LARGE = datagram_frames.FLOW_TOO_LARGE
FLOW_HOPS_EXCEEDED = datagram_frames.FLOW_HOPS_EXCEEDED

#: A numeric address or a name, and a port.
Endpoint = Tuple[str, int]


class Flow(NamedTuple):
    """Where something should lead, and where it comes from."""

    network: int  # TCP, UDP, ECHO; DNS: to a resolver of the carrier's choice
    destination: Endpoint
    source: Optional[Endpoint] = None
    front: str = ""  # the name of who brought it


class Refused(NamedTuple):
    """Nobody carries it, and why: said in the place of a Carrier."""

    code: int


class Relay:
    """A near end that has been handed over, and waits for a socket of this host or has got it. It
    ends by itself: when both halves are over, or one of the ends dies.
    """

    __slots__ = ()

    @property
    def is_over(self) -> bool:
        """True once neither end is left."""
        raise NotImplementedError

    @property
    def is_connecting(self) -> bool:
        """True while the socket is neither connected nor given up."""
        raise NotImplementedError

    @property
    def is_abandoned(self) -> bool:
        """True if the near end has hung up without having sent anything that still waits."""
        raise NotImplementedError

    @property
    def sock(self) -> socket.socket:
        """The far socket; raises ValueError before there is one."""
        raise NotImplementedError

    def connect(self, sock: socket.socket) -> None:
        """``sock`` is connecting, and the relay's now: it tells the near end how that ends. One
        that is over closes it.
        """
        raise NotImplementedError

    def take_connection(self, sock: socket.socket) -> None:
        """``sock`` is connected, and the relay's now: tell the near end, and begin. One that is
        over closes it.
        """
        raise NotImplementedError

    def abort(self, code: int) -> None:
        """There is no far end, or none any more: tell the near end why, close everything. Nothing
        happens if it is over.
        """
        raise NotImplementedError


class Connection:
    """A flow of TCP, or of DNS by TCP, whose near end waits."""

    __slots__ = ("flow", "wants_opened")

    def __init__(self, flow: Flow, *, wants_opened: bool) -> None:
        self.flow = flow
        self.wants_opened = wants_opened

    def opened(self) -> None:
        """The far end is up."""

    def refused(self, code: int) -> None:
        """There is no far end: say so to the near one, and close it."""
        raise NotImplementedError

    def relay(self) -> Relay:
        """The near end is the relay's from now on, which waits for a socket."""
        raise NotImplementedError


class Relays:
    """Joins near sockets with far ones. Owns what it has joined."""

    def join(self, connection: Connection, near: socket.socket) -> Relay:
        """``near``, the near end of ``connection``, waits for its far end from now on."""
        raise NotImplementedError


class SocketConnection(Connection):
    """A connection of a program of this host, accepted as ``sock`` (non-blocking)."""

    __slots__ = ("_relays", "_sock")

    def __init__(
        self, relays: Relays, flow: Flow, sock: socket.socket, *, wants_opened: bool = False
    ) -> None:
        super().__init__(flow, wants_opened=wants_opened)
        self._relays = relays
        self._sock = sock

    def refused(self, code: int) -> None:
        """As in Connection: the program sees a reset."""
        close_with_reset(self._sock)

    def relay(self) -> Relay:
        """As in Connection."""
        return self._relays.join(self, self._sock)

    def take(self) -> socket.socket:
        """Handed over: the socket is whoever's that takes it, a stream's for instance."""
        return self._sock


class LateConnection(Connection):
    """A connection whose near socket comes only when its far end is up: a SYN that is held back.
    Whoever carries it says so with ``begun``, and then one of ``opened`` and ``refused``.
    """

    __slots__ = ()

    @property
    def is_over(self) -> bool:
        """True if nobody waits any more."""
        raise NotImplementedError

    def begun(self, relay: Relay) -> None:
        """``relay`` has it: its ``take_connection`` is for the socket, ``abort`` for the end."""
        raise NotImplementedError


class Association:
    """A flow of datagrams (UDP, ECHO) of a program, as whoever carries it sees it.

    ``idle_s``         it is over after that long without a datagram either way; may change
    ``source``         the number of the program's socket: flows of one network and number leave the
                       far host by one socket, which has the port of ``flow.source`` if that is free
    ``dont_fragment``  what does not pass in one piece is to be dropped, and said (FLOW_TOO_LARGE)
    ``any_peer``       the source wants to hear from everybody, not only from addresses it wrote to
    """

    __slots__ = ("any_peer", "dont_fragment", "flow", "idle_s", "source")

    def __init__(
        self,
        flow: Flow,
        idle_s: float,
        *,
        source: int = 0,
        dont_fragment: bool = False,
        any_peer: bool = False,
    ) -> None:
        self.flow = flow
        self.idle_s = idle_s
        self.source = source
        self.dont_fragment = dont_fragment
        self.any_peer = any_peer

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """One that came back, or several of ``segment_bytes`` each (the last may be shorter)."""
        raise NotImplementedError

    def failed(self, code: int, value: int = 0) -> None:
        """One did not arrive; the flow goes on. ``value``, of FLOW_TOO_LARGE: the most bytes that a
        datagram may have there, 0 if that is not known.
        """

    def ended(self, code: int) -> None:
        """It is over; its outlet takes nothing more."""
        raise NotImplementedError

    def stranger(self, peer: Endpoint) -> "Optional[Association]":
        """``peer``, to whom this source has no flow, has written to it: a flow for what he sends;
        None: it is not wanted. What the source answers him is a flow of its own, and then his is
        over.
        """
        return None

    def answers_by(self, outlet: "Outlet") -> None:
        """Of a stranger's flow: what he is answered could leave by ``outlet``, too."""


class Outlet:
    """Where an association's datagrams leave; this one leads nowhere."""

    __slots__ = ()

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """One more, or several of ``segment_bytes`` each (the last may be shorter); they may be
        lost.
        """

    def close(self) -> None:
        """There are no more, and nothing that comes back is wanted. May be called twice."""


class Question:
    """A DNS query that came by UDP. ``asker``: who takes part in a share of the carrier's room."""

    __slots__ = ("asker", "message")

    def __init__(self, message: bytes, asker: int) -> None:
        self.message = message
        self.asker = asker

    def answer(self, message: bytes) -> None:
        """What a resolver says."""
        raise NotImplementedError

    def refused(self, code: int) -> None:
        """It will not be answered."""
        raise NotImplementedError


class Asked:
    """A question under way, as who asked it holds it; this one is over already."""

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""


class Carrier:
    """Brings the far end. ``name`` is for people."""

    name = ""

    @property
    def is_up(self) -> bool:
        """True if it can do so now."""
        raise NotImplementedError

    def connect(self, connection: Connection) -> Optional[Relay]:
        """Bring the far end of ``connection``, or refuse it. Returns its relay if it has got one at
        once.
        """
        raise NotImplementedError

    def associate(self, association: Association) -> Outlet:
        """Bring the far end of ``association``, or end it."""
        raise NotImplementedError

    def ask(self, question: Question) -> Asked:
        """Have ``question`` answered, or refuse it."""
        raise NotImplementedError
