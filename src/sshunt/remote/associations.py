"""Flows of datagrams that the far side carries, whichever session is the present one.

    associate   a near end, and the outlet by which its datagrams leave; the flow begins with the
                first of them
    stranger    somebody has written to a source of ours to whom it has no flow: its near end says
                whether that is wanted

    the link is lost            what is under way or sent meanwhile is lost; nobody is told
    it comes back               the flow goes on, with the same port over there
    another session begins      the next datagram begins the flow anew
    the far side has forgotten  the same (END with FLOW_DONE: it was idle there, or others needed
                                the room)
    it ends it otherwise        so does the near end
    idle for ``idle_s``         over at both ends

Invariants: a near end that is over hears nothing more; its outlet drops what it is given.

Not here: whose turn it is, and what is too old (mux.datagrams); sockets and their sources (front);
the far end's sockets (direct.udp).
"""

import asyncio
from typing import Protocol

from sshunt.mux.datagram_frames import ANY_PEER, DONT_FRAGMENT, FlowTarget
from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.relay.flow import (
    FLOW_DONE,
    FLOW_NAME_UNKNOWN,
    FLOW_NO_RESOURCES,
    Association,
    Outlet,
)
from sshunt.relay.tunnel import Tunnel

#: How often flows are looked at for how long they have been idle. The shortest time that anybody
#: gives one is some ten seconds.
SWEEP_EVERY_S = 2.0


class HasTunnel(Protocol):
    """Who knows the present session's tunnel."""

    @property
    def tunnel(self) -> Tunnel:
        """It may be another one than a moment ago."""


class Associations:
    """Those of one far side. ``sessions`` knows by which tunnel they go."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sessions: HasTunnel) -> None:
        self._loop = loop
        self.sessions = sessions
        # By network and source, in the order in which they came.
        self._carried: dict[tuple[int, int], dict[_Carried, None]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._carried.values()))

    def associate(self, association: Association) -> Outlet:
        """Carry it until one of the two ends it, or it is idle."""
        return self._add(_Carried(self, association))

    def take_stranger(self, event: DatagramReceived) -> bool:
        """The far side has opened a flow. False: nobody here wants it."""
        target = event.flow.target
        carried = self._carried.get((target.network, target.source))
        if not carried:
            return False
        stranger = next(iter(carried)).association.stranger((target.host, target.port))
        if stranger is None:
            return False
        added = self._add(_Carried(self, stranger, self.sessions.tunnel, event.flow))
        stranger.answers_by(added)
        added.on_datagram(event)
        return True

    def end_all(self) -> None:
        """Nothing more will come back."""
        for same in list(self._carried.values()):
            for carried in list(same):
                carried.end(FLOW_DONE)

    def close(self) -> None:
        """The same, for good."""
        self.end_all()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    # --- for what is carried ------------------------------------------------------------------

    def forget(self, carried: "_Carried") -> None:
        """It is over."""
        key = _key(carried.association)
        same = self._carried.get(key, {})
        same.pop(carried, None)
        if not same:
            self._carried.pop(key, None)

    def _add(self, carried: "_Carried") -> "_Carried":
        self._carried.setdefault(_key(carried.association), {})[carried] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)
        return carried

    def _sweep(self) -> None:
        now = self._loop.time()
        for same in list(self._carried.values()):
            for carried in list(same):
                if now - carried.active_at > carried.association.idle_s:
                    carried.end(FLOW_DONE)
        self._sweeping = None
        if self._carried:
            self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)


def _key(association: Association) -> tuple[int, int]:
    return association.flow.network, association.source


class _Carried(Outlet):
    """One flow. ``tunnel`` and ``flow``: of one that the far side has opened."""

    __slots__ = ("_all", "_began_at", "_flow", "_is_over", "_is_stranger", "_tunnel", "association")

    def __init__(
        self,
        carriers: Associations,
        association: Association,
        tunnel: Tunnel | None = None,
        flow: DatagramFlow | None = None,
    ) -> None:
        self.association = association
        self._all = carriers
        self._tunnel = tunnel or carriers.sessions.tunnel
        self._flow = flow
        self._is_stranger = flow is not None
        self._is_over = False
        self._began_at = self._tunnel.loop.time()
        if flow is not None:
            flow.owner = self

    @property
    def active_at(self) -> float:
        """When its newest datagram was sent or came."""
        flow = self._flow
        return self._began_at if flow is None else max(flow.sent_at, flow.heard_at)

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Outlet."""
        tunnel = self._all.sessions.tunnel
        flow = self._flow
        if flow is None or self._tunnel is not tunnel:
            flow = self._open(tunnel)
            if flow is None:
                return
        tunnel.session.datagrams.send(flow, datagram, tunnel.loop.time(), segment_bytes)
        tunnel.wake()

    def close(self) -> None:
        """As in Outlet."""
        if self._leave():
            self._end_flow()

    def end(self, code: int) -> None:
        """It is over, for both."""
        if self._leave():
            self._end_flow()
            self.association.ended(code)

    # --- as the tunnel says -------------------------------------------------------------------

    def on_datagram(self, event: DatagramReceived) -> None:
        """Something came back."""
        self.association.deliver(event.data, event.segment_bytes)

    def on_flow_failed(self, event: FlowFailed) -> None:
        """Something did not arrive."""
        self.association.failed(event.code, event.value)

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The far side has forgotten it, or does not carry it."""
        self._began_at = self.active_at
        self._flow = None
        if event.code != FLOW_DONE or self._is_stranger:
            self.end(event.code)

    # --- its flow -----------------------------------------------------------------------------

    def _open(self, tunnel: Tunnel) -> DatagramFlow | None:
        """It is over if there can't be one. What a stranger was sent needs a flow of its own."""
        if self._is_over or self._is_stranger:
            return None
        datagrams, now = tunnel.session.datagrams, tunnel.loop.time()
        if not datagrams.can_open:
            self.end(FLOW_NO_RESOURCES)
            return None
        try:
            flow = datagrams.open(_target(self.association), now)
        except LocalProtocolError:
            self.end(FLOW_NAME_UNKNOWN)
            return None
        flow.owner = self
        self._tunnel, self._flow = tunnel, flow
        return flow

    def _leave(self) -> bool:
        """Hear and send nothing more; False if that was so already."""
        if self._is_over:
            return False
        self._is_over = True
        self._all.forget(self)
        return True

    def _end_flow(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.owner = None  # nothing is left to the collector
            self._tunnel.give_up(flow)


def _target(association: Association) -> FlowTarget:
    network, (host, port), source, _ = association.flow
    flags = ANY_PEER if association.any_peer else 0
    if association.dont_fragment:
        flags |= DONT_FRAGMENT
    source_port = source[1] if source is not None else 0
    return FlowTarget(network, host, port, association.source, source_port, flags)
