"""The packet process' part for UDP: where flows lead, strangers' datagrams, and errors. Root;
Linux.

    LOOK_UP   connection tracking is asked, and a FOUND sent
    DELIVER   a datagram from a peer that the program has not written to, by a raw socket in the
              peer's name: for those it has written to the listener answers, and needs nobody
    FAIL      an ICMP error with the flow's own ends in it: the program's socket gets ECONNREFUSED,
              EHOSTUNREACH ... where it is connected or has asked for errors (IP_RECVERR)

**What a client may have of it.** It says which flow, by the addresses between the program and our
listener, and connection tracking says each time whether there is one, whose datagrams the rules
have redirected to the listener of the plan that is applied, if that is his (listening). So nothing
is told of the flows of others; no datagram and no error goes anywhere but to the programs of those
flows, in the name of anybody but hosts in the plan's regions, whom it may speak for anyway; and all
ends with the flow. Errors are limited in rate.

Nothing is remembered here but rates, and which peers lie in the regions; both are bounded.

Not here: the bytes of messages (udp_messages), sockets (in_their_name), questions (conntrack).
"""

from contextlib import suppress
from ipaddress import ip_address

from sshunt.capture.plan import Plan, Region, remote_regions
from sshunt.helper.conntrack import Conntrack, Reply
from sshunt.helper.in_their_name import InTheirName
from sshunt.helper.packet_protocol import UDP_KINDS, PacketError
from sshunt.helper.part import Out, Part
from sshunt.helper.udp_messages import (
    DELIVER,
    FAIL,
    FOUND,
    LOOK_UP,
    Delivery,
    Failure,
    Key,
    Original,
    decode_delivery_untrusted,
    decode_failure_untrusted,
    decode_look_up_untrusted,
    encode_found,
)

#: ICMP errors a second, of one flow and of all. A kernel sends a thousand a second itself
#: (icmp_msgs_per_sec), and to one host some.
ERRORS_A_SECOND = 1000
ERRORS_A_SECOND_OF_ONE = 100

#: Peers of which is remembered whether they lie in the regions.
MOST_PEERS = 4096

#: Datagrams of one DELIVER at most: as many as the kernel makes of one (UDP_MAX_SEGMENTS).
_MOST_SEGMENTS = 128


class UdpFlows(Part):
    """See the module's head."""

    kinds = UDP_KINDS

    def __init__(self, out: Out) -> None:
        """Raises OSError where the kernel has nothing for it."""
        self._out = out
        self._conntrack = Conntrack()
        self._sockets: dict[int, InTheirName] = {}
        for family in (4, 6):
            with suppress(OSError):  # a host without IPv6
                self._sockets[family] = InTheirName(family)
        self._listeners: dict[int, tuple[bytes, int]] = {}  # packed; zeros: at any address
        self._regions: dict[int, list[Region]] = {}
        self._peers: dict[tuple[bytes, int], bool] = {}
        self._errors: dict[Key, int] = {}  # in this half second, by flow
        self._errors_in_all = 0

    def on_plan(self, plan: Plan | None) -> None:
        """As in Part."""
        self._listeners, self._regions, self._peers = {}, {}, {}
        for family in (4, 6):
            listener = plan.datagrams(family) if plan is not None else None
            if plan is not None and listener is not None:
                self._listeners[family] = (ip_address(listener[0]).packed, listener[1])
                self._regions[family] = remote_regions(plan.routes, family)

    def on_tick(self, now: float) -> None:
        """As in Part."""
        self._errors.clear()
        self._errors_in_all = 0

    def on_message(self, kind: int, body: bytes) -> None:
        """As in Part."""
        if kind == LOOK_UP:
            family, keys = decode_look_up_untrusted(body)
            found = zip(keys, self._look_up(family, keys), strict=True)
            self._out.send(FOUND, encode_found(family, list(found)))
        elif kind == DELIVER:
            self._deliver(decode_delivery_untrusted(body))
        elif kind == FAIL:
            self._fail(*decode_failure_untrusted(body))
        else:
            raise PacketError(f"a message of kind {kind}")

    def _look_up(self, family: int, keys: list[Key]) -> list[Original | None]:
        """None for each flow that is not one of our listener's."""
        listener, port = self._listeners.get(family, (b"", 0))
        if not port:
            return [None] * len(keys)
        ours = [key for key in keys if listener in (key.local, bytes(len(key.local)))]
        replies = [Reply(key.local, port, key.program, key.port) for key in ours]
        try:
            found = dict(zip(ours, self._conntrack.find(family, replies), strict=True))
        except OSError:  # the kernel has no memory for the answer: as if there was none
            found = {}
        return [found.get(key) for key in keys]

    def _deliver(self, delivery: Delivery) -> None:
        sockets = self._sockets.get(delivery.family)
        (program,) = self._look_up(delivery.family, [delivery.key])
        if sockets is None or program is None or not self._is_peer(delivery):
            return
        payload, size = delivery.payload, delivery.segment_bytes or len(delivery.payload)
        starts = range(0, len(payload), size) if payload else (0,)
        for start in starts[:_MOST_SEGMENTS]:
            piece = payload[start : start + size]
            sockets.send(delivery.peer, delivery.peer_port, program, piece)

    def _is_peer(self, delivery: Delivery) -> bool:
        """True if it lies in the regions of the plan."""
        endpoint = delivery.peer, delivery.peer_port
        known = self._peers.get(endpoint)
        if known is None:
            address = int.from_bytes(delivery.peer, "big")
            known = any(
                region.first_address <= address <= region.last_address
                and region.first_port <= delivery.peer_port <= region.last_port
                for region in self._regions.get(delivery.family, ())
            )
            if len(self._peers) >= MOST_PEERS:
                self._peers.clear()
            self._peers[endpoint] = known
        return known

    def _fail(self, family: int, key: Key, failure: Failure) -> None:
        of_this = self._errors.get(key, 0)
        if of_this >= ERRORS_A_SECOND_OF_ONE // 2 or self._errors_in_all >= ERRORS_A_SECOND // 2:
            return
        sockets = self._sockets.get(family)
        (program,) = self._look_up(family, [key])
        if sockets is None or program is None:
            return
        self._errors[key] = of_this + 1
        self._errors_in_all += 1
        sockets.fail(failure, program)
