"""Flows of UDP that the kernel redirected here: whose they are, where they lead, when they are
over.

    program --datagram--> rules --> socket: who is that? --> packet process: connection tracking
                                       |                            |
                                       |      source, destination <-+
                                       v
                              Association -> carrier -> the far side's socket for this source
    program <--the kernel turns it back-- socket <-- answers, from the destination
    program <--packet process, in the peer's name--  answers, from somebody else of that host

A *place* is how our socket sees a flow (its ``Seen``): the kernel gives each destination of a
program's socket a source port of its own. The first datagrams of a place wait until it is known
where they lead; a look-up is one message for all places of a moment. What is known is looked up
again now and then, because the kernel may forget (somebody flushes its table): then a place may be
another flow's. A *flow* is what the program means: its own end, and the destination.

Flows of one source share its number, by which the far side has one socket for them: so a peer sees
the program's socket as one, and so may others answer. Those that the program has not written to are
*strangers*: what they send has no place here, and the packet process gives it to the program.

When a flow is over (RFC 4787, REQ-5, and what others do): ANSWERED_S after the answer to
the last query of DNS (programs ask for two kinds of addresses from one socket), QUERY_S after one
that nobody answers, else IDLE_S, or QUIC_S. The kernel remembers longer (capture.nft_datagrams). So
a source's socket over there lives as long as one of its flows.

Invariants: datagrams in wait, and places and flows, are bounded, each and all together; the longest
unused go first. Nothing waits for longer than LOOK_UP_TRIES look-ups.

Not here: who carries a flow (route.router), what waits and ages on the way (mux.datagrams), sockets
(datagram_sockets), who answers a look-up (helper.udp_flows).
"""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from sshunt.front.datagram_sockets import DatagramSocket, Seen
from sshunt.helper.packet_protocol import UDP_KINDS
from sshunt.helper.udp_messages import (
    DELIVER,
    FAIL,
    FOUND,
    LOOK_UP,
    MAX_LOOK_UPS,
    Delivery,
    Failure,
    Key,
    Original,
    decode_found,
    encode_delivery,
    encode_failure,
    encode_look_up,
)
from sshunt.host.packets import PacketChannel
from sshunt.model import Endpoint
from sshunt.relay.flow import (
    FLOW_HOST_UNREACHABLE,
    FLOW_NET_UNREACHABLE,
    FLOW_NOT_PERMITTED,
    FLOW_REFUSED,
    UDP,
    Association,
    Carrier,
    Flow,
    Outlet,
)

#: How long flows may be idle: those of DNS when all is answered, and when it is not (whoever asks
#: has a new port for each name, and so a socket over there; resolvers give up sooner), all others,
#: answered or not, and QUIC's, whose ends keep quiet for longest (RFC 9308, 3.2).
ANSWERED_S = 10.0
QUERY_S = 30.0
IDLE_S = 120.0
QUIC_S = 180.0

_DNS_PORT = 53

#: Flows at most: a scan has ten thousand. Beyond it the MOST_EVICTED longest unused are over.
MAX_FLOWS = 16384
MOST_EVICTED = 1024

#: What waits for one look-up at most, in datagrams and bytes; and for all of them.
MOST_WAITING = 64
MOST_WAITING_BYTES = 128 * 1024
MOST_WAITING_BYTES_ALL = 4 * 1024 * 1024

#: How often a place is looked up again, at least; with many flows it is less often, so that it
#: takes the packet process a twentieth of its time (20 us each).
CHECK_EVERY_S = 1.0
CHECKS_A_SECOND = 2500

#: Of a place that must be looked up before anything leaves.
UNKNOWN = -1.0

#: When a look-up is asked once more, and how often it is: a message may be lost.
LOOK_UP_AGAIN_S = 0.5
LOOK_UP_TRIES = 4

#: How often it is looked what has become old.
TICK_S = 0.5

#: Datagrams read in one round of the event loop: a flood leaves time for connections.
READS_PER_ROUND = 32

#: A datagram that may begin a connection of QUIC: a long header, and at least this long
#: (RFC 9000, 14.1).
_LONG_HEADER = 0xC0
_QUIC_BYTES = 1200

_FAILURES = {
    FLOW_REFUSED: Failure.REFUSED,
    FLOW_HOST_UNREACHABLE: Failure.HOST_UNREACHABLE,
    FLOW_NET_UNREACHABLE: Failure.NET_UNREACHABLE,
    FLOW_NOT_PERMITTED: Failure.NOT_PERMITTED,
}


class _Ends(NamedTuple):
    """A flow as its program sees it."""

    source: Endpoint
    destination: Endpoint


class _Source:
    """A program's socket: its number, and its flows."""

    __slots__ = ("flows", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.flows: set[DatagramFlow] = set()


class _Place:
    """See the module's head. ``flow`` is None until it is known."""

    __slots__ = (
        "asked_at",
        "bytes",
        "checked_at",
        "flow",
        "seen",
        "sock",
        "tries",
        "waiting",
    )

    @property
    def key(self) -> Key:
        """As the packet process knows it."""
        return self.sock.key(self.seen)

    def __init__(self, sock: DatagramSocket, seen: Seen) -> None:
        self.sock = sock
        self.seen = seen
        self.flow: DatagramFlow | None = None
        self.checked_at = UNKNOWN
        self.waiting: list[tuple[bytes, int]] | None = None  # a list for each would be most of it
        self.bytes = 0
        self.tries = 0  # 0: no look-up is under way
        self.asked_at = 0.0


class DatagramFlow(Association):
    """One of them, as whoever carries it knows it."""

    __slots__ = (
        "_front",
        "ends",
        "is_over",
        "is_quic",
        "outlet",
        "place",
        "unanswered",
        "used_at",
    )

    def __init__(self, front: "Datagrams", ends: _Ends, number: int, first: bytes) -> None:
        self.is_quic = _looks_like_quic(first)
        super().__init__(
            Flow(UDP, ends.destination, ends.source),
            QUIC_S,
            source=number,
            dont_fragment=self.is_quic,
            any_peer=front.any_peer,
        )
        self._front = front
        self.ends = ends
        self.place: _Place | None = None
        self.outlet: Outlet | None = None
        self.used_at = front.now()
        self.is_over = False
        self.unanswered = 0  # datagrams of the program's

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Association."""
        self.used_at = self._front.now()
        self.unanswered -= 1
        place = self.place
        if place is None:  # the kernel has forgotten it, and shows it with the next datagram
            self._front.deliver_strange(self.ends, datagram, segment_bytes)
            return
        try:
            place.sock.send(place.seen, datagram, segment_bytes)
        except PermissionError:
            place.checked_at = UNKNOWN  # the kernel has forgotten it: a new datagram shows it again
        except OSError:
            pass  # its buffer is full, or the program's link does not take it

    def failed(self, code: int, value: int = 0) -> None:
        """As in Association."""
        place, failure = self.place, _FAILURES.get(code)
        if place is not None and failure is not None:
            self._front.fail(place, failure)

    def ended(self, code: int) -> None:
        """As in Association."""
        self.failed(code)
        self.outlet = None
        self._front.forget(self)

    def stranger(self, peer: Endpoint) -> Association | None:
        """As in Association."""
        return None if self.is_over else self._front.stranger_of(self, peer)

    def idle_limit_s(self) -> float:
        """How long it may be unused."""
        if self.is_quic:
            return QUIC_S
        if self.ends.destination[1] != _DNS_PORT:
            return IDLE_S
        return QUERY_S if self.unanswered > 0 else ANSWERED_S


class _Stranger(Association):
    """Somebody who writes to a source that has not written to him."""

    __slots__ = ("_ends", "_front")

    def __init__(self, front: "Datagrams", ends: _Ends, number: int) -> None:
        flow = Flow(UDP, ends.destination, ends.source)
        super().__init__(flow, IDLE_S, source=number, any_peer=front.any_peer)
        self._front = front
        self._ends = ends

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Association."""
        self._front.deliver_strange(self._ends, datagram, segment_bytes)

    def ended(self, code: int) -> None:
        """As in Association."""


class Datagrams:
    """All flows that arrive at ``sockets``, which it owns; ``carrier`` carries them. ``any_peer``:
    programs hear from strangers of all hosts.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Iterable[DatagramSocket],
        carrier: Carrier,
        packets: PacketChannel,
        *,
        any_peer: bool,
    ) -> None:
        self._loop = loop
        self.now = loop.time
        self._sockets = tuple(sockets)
        self._carrier = carrier
        self._packets = packets
        self.any_peer = any_peer
        self._places: dict[tuple[int, Seen], _Place] = {}  # by the socket's family
        self._flows: dict[_Ends, DatagramFlow] = {}
        self._sources: dict[Endpoint, _Source] = {}
        self._asked: dict[tuple[int, Key], _Place] = {}
        self._to_ask: list[_Place] = []
        self._waiting_bytes = 0
        self._last_number = 0
        self._tick: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take what arrives from now on."""
        self._packets.subscribe(UDP_KINDS, self._on_message)
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._on_readable, sock)
        self._tick = self._loop.call_later(TICK_S, self._on_tick)

    def close(self) -> None:
        """Take nothing more; all flows are over. May be called twice."""
        if self._tick is not None:
            self._tick.cancel()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        for flow in tuple(self._flows.values()):
            self._end(flow)
        self._places.clear()
        self._asked.clear()

    @property
    def flows(self) -> int:
        """How many there are."""
        return len(self._flows)

    # --- what arrives -------------------------------------------------------------------------

    def _on_readable(self, sock: DatagramSocket) -> None:
        now = self.now()
        check_before = now - max(CHECK_EVERY_S, len(self._flows) / CHECKS_A_SECOND)
        places, family = self._places, sock.family
        for _ in range(READS_PER_ROUND):
            try:
                seen, data, segment_bytes = sock.receive()
            except OSError:  # no more, or an answer before did not reach its program
                break
            place = places.get((family, seen))
            if place is None:
                place = self._new_place(sock, seen)
                if place is None:
                    continue  # nobody knows yet where all of these lead
            flow = place.flow
            if flow is None or place.checked_at < 0:
                self._hold(place, data, segment_bytes)
                continue
            if place.checked_at < check_before and not place.tries:
                self._look_up(place)  # but it need not wait for that
            self._send(flow, data, segment_bytes, now)
        if self._to_ask:
            self._ask(now)

    def _send(self, flow: DatagramFlow, data: bytes, segment_bytes: int, now: float) -> None:
        flow.used_at = now
        flow.unanswered += 1
        if flow.outlet is not None:
            flow.outlet.send(data, segment_bytes)

    def _new_place(self, sock: DatagramSocket, seen: Seen) -> _Place | None:
        if len(self._places) >= MAX_FLOWS:
            self._make_room()
            if len(self._places) >= MAX_FLOWS:
                return None
        place = self._places[sock.family, seen] = _Place(sock, seen)
        return place

    def _hold(self, place: _Place, data: bytes, segment_bytes: int) -> None:
        """It is not known where this leads."""
        if not place.tries:
            self._look_up(place)
        size = len(data)
        if place.waiting is None:
            place.waiting = []
        if (
            len(place.waiting) < MOST_WAITING
            and place.bytes + size <= MOST_WAITING_BYTES
            and self._waiting_bytes + size <= MOST_WAITING_BYTES_ALL
        ):
            place.waiting.append((data, segment_bytes))
            place.bytes += size
            self._waiting_bytes += size

    def _taken(self, place: _Place) -> list[tuple[bytes, int]]:
        """What has waited there."""
        waiting, place.waiting = place.waiting or [], None
        self._waiting_bytes -= place.bytes
        place.bytes = 0
        return waiting

    # --- look-ups -----------------------------------------------------------------------------

    def _look_up(self, place: _Place) -> None:
        place.tries = 1
        self._to_ask.append(place)

    def _ask(self, now: float) -> None:
        """Look all places up that are to be."""
        for family in (4, 6):
            keys = []
            for place in self._to_ask:
                if place.sock.family == family:
                    place.asked_at = now
                    self._asked[family, place.key] = place
                    keys.append(place.key)
            for start in range(0, len(keys), MAX_LOOK_UPS):
                asked = keys[start : start + MAX_LOOK_UPS]
                self._packets.send(LOOK_UP, encode_look_up(family, asked))
        self._to_ask.clear()

    def _on_message(self, kind: int, body: bytes) -> None:
        if kind == FOUND:
            family, answers = decode_found(body)
            now = self.now()
            for key, original in answers:
                place = self._asked.pop((family, key), None)
                if place is not None:
                    self._on_found(place, original, now)

    def _on_found(self, place: _Place, original: Original | None, now: float) -> None:
        place.tries = 0
        waiting = self._taken(place)
        if original is None:  # nobody redirected it: somebody has found our socket
            self._forget_place(place)
            return
        place.checked_at = now
        first = waiting[0][0] if waiting else b""
        flow = self._flow_at(place, _ends(place.sock.family, original), first)
        for data, segment_bytes in waiting:
            self._send(flow, data, segment_bytes, now)

    def _flow_at(self, place: _Place, ends: _Ends, first: bytes) -> DatagramFlow:
        """The flow with these ends, which is at this place now."""
        flow = self._flows.get(ends) or self._new_flow(ends, first)
        if place.flow is not flow:
            if place.flow is not None:
                place.flow.place = None
            if flow.place is not None:
                self._forget_place(flow.place)
            if not flow.is_over:
                place.flow, flow.place = flow, place
        if flow.outlet is None and not flow.is_over:
            outlet = self._carrier.associate(flow)
            if not flow.is_over:
                flow.outlet = outlet
        return flow

    # --- flows --------------------------------------------------------------------------------

    def _new_flow(self, ends: _Ends, first: bytes) -> DatagramFlow:
        if len(self._flows) >= MAX_FLOWS:
            self._make_room()
        source = self._sources.get(ends.source)
        if source is None:
            self._last_number = self._last_number % 0xFFFFFFFF + 1
            source = self._sources[ends.source] = _Source(self._last_number)
        flow = self._flows[ends] = DatagramFlow(self, ends, source.number, first)
        source.flows.add(flow)
        return flow

    def stranger_of(self, flow: DatagramFlow, peer: Endpoint) -> Association | None:
        """For a peer who writes to the same source; None if he can't be heard by it."""
        address = str(ip_address(peer[0]))
        if (":" in address) != (":" in flow.ends.source[0]):
            return None
        return _Stranger(self, _Ends(flow.ends.source, (address, peer[1])), flow.source)

    def deliver_strange(self, ends: _Ends, data: bytes, segment_bytes: int) -> None:
        """Have the program told what somebody says to whom it has not written, or to whom the
        kernel has forgotten that it has: the packet process does it, for a source that has a flow
        elsewhere.
        """
        source = self._sources.get(ends.source)
        for other in source.flows if source is not None else ():
            place = other.place
            if place is not None:
                address, port = ends.destination
                peer = ip_address(address).packed
                family, key = place.sock.family, place.key
                delivery = Delivery(family, key, peer, port, segment_bytes, data)
                self._packets.send(DELIVER, encode_delivery(delivery))
                return

    def fail(self, place: _Place, failure: Failure) -> None:
        """Tell the program that a datagram of this place did not arrive."""
        self._packets.send(FAIL, encode_failure(place.sock.family, place.key, failure))

    def _end(self, flow: DatagramFlow) -> None:
        """It is over here; whoever carries it is told."""
        outlet, flow.outlet = flow.outlet, None
        self.forget(flow)
        if outlet is not None:
            outlet.close()

    def forget(self, flow: DatagramFlow) -> None:
        """It is over everywhere. May be called twice."""
        flow.is_over = True
        if self._flows.get(flow.ends) is not flow:
            return
        del self._flows[flow.ends]
        source = self._sources[flow.ends.source]
        source.flows.discard(flow)
        if not source.flows:
            del self._sources[flow.ends.source]
        if flow.place is not None:
            self._forget_place(flow.place)

    def _forget_place(self, place: _Place) -> None:
        """What arrives there is somebody else's, or shows anew whose it is."""
        self._taken(place)
        if place.flow is not None:
            place.flow.place = None
            place.flow = None
        family = place.sock.family
        if self._places.get((family, place.seen)) is place:
            del self._places[family, place.seen]
        if self._asked.get((family, place.key)) is place:
            del self._asked[family, place.key]

    # --- what becomes old ---------------------------------------------------------------------

    def _on_tick(self) -> None:
        now = self.now()
        self._tick = self._loop.call_later(TICK_S, self._on_tick)
        for flow in tuple(self._flows.values()):
            if now - flow.used_at > flow.idle_limit_s():
                self._end(flow)
        for place in tuple(self._asked.values()):
            if now - place.asked_at < LOOK_UP_AGAIN_S:
                continue
            place.tries += 1
            if place.tries <= LOOK_UP_TRIES:
                self._to_ask.append(place)
            else:
                self._forget_place(place)
        self._ask(now)

    def _make_room(self) -> None:
        """End the flows that have been unused for longest."""
        by_use = sorted(self._flows.values(), key=lambda flow: flow.used_at)
        for flow in by_use[:MOST_EVICTED]:
            self._end(flow)


def _ends(family: int, original: Original) -> _Ends:
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    source, source_port, destination, destination_port = original
    return _Ends(
        (socket.inet_ntop(af, source), source_port),
        (socket.inet_ntop(af, destination), destination_port),
    )


def _looks_like_quic(datagram: bytes) -> bool:
    """True for one that may begin a connection of QUIC (RFC 8999, 5.1)."""
    return (
        len(datagram) >= _QUIC_BYTES
        and datagram[0] & _LONG_HEADER == _LONG_HEADER
        and any(datagram[1:5])
    )
