"""What the other side of a session asks for, as near ends of flows.

    a stream that it opens         a Connection: relayed to a socket here, or reset
    a flow of datagrams with DNS   a Question: its answer goes back by the same flow
    any other flow of datagrams    an Association

The agent gives them to the host it runs on (direct.carrier). At the client they are connections to
ports that it exposes on the far side.
"""

from typing import Optional

from sshunt.mux.datagram_frames import ANY_PEER, DONT_FRAGMENT, FlowTarget
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay.flow import (
    Asked,
    Association,
    Connection,
    Endpoint,
    Flow,
    Outlet,
    Question,
    Relay,
)
from sshunt.relay.tunnel import Tunnel

#: How long a flow may be idle before this end forgets it. The other end, which knows the programs,
#: mostly ends it long before; this is for where the word of that was lost.
IDLE_S = 300.0


class StreamConnection(Connection):
    """A stream that the other side has opened to ``destination``."""

    __slots__ = ("stream", "tunnel")

    def __init__(self, tunnel: Tunnel, stream: Stream, destination: Destination) -> None:
        network, host, port, wants_opened, _ = destination
        super().__init__(Flow(network, (host, port)), wants_opened=wants_opened)
        self.tunnel = tunnel
        self.stream = stream

    def refused(self, code: int) -> None:
        """As in Connection."""
        self.tunnel.session.reset(self.stream, code)
        self.tunnel.wake()

    def relay(self) -> Relay:
        """As in Connection."""
        return self.tunnel.relay(self.stream)


class FlowQuestion(Question):
    """A query that has opened ``flow``, whose owner it is."""

    __slots__ = ("_flow", "_tunnel", "asked")

    def __init__(self, tunnel: Tunnel, flow: DatagramFlow, message: bytes) -> None:
        super().__init__(message, flow.target.source)
        self._tunnel = tunnel
        self._flow = flow
        self.asked = Asked()  # what its carrier has made of it
        flow.owner = self

    def answer(self, message: bytes) -> None:
        """As in Question."""
        self._tunnel.session.datagrams.send(self._flow, message, self._tunnel.loop.time())
        self._flow.owner = None  # nothing is left to the collector, see GC_THRESHOLD
        self._tunnel.wake()

    def refused(self, code: int) -> None:
        """As in Question; nothing happens if it was answered: with that the flow is over."""
        self._tunnel.session.datagrams.end(self._flow, self._tunnel.loop.time(), code)
        self._flow.owner = None
        self._tunnel.wake()

    def on_datagram(self, event: DatagramReceived) -> None:
        """The query came twice."""

    def on_flow_failed(self, event: FlowFailed) -> None:
        """The answer did not reach the program, which asks again."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The other side does not wait for the answer any more."""
        self.asked.give_up()


class FlowAssociation(Association):
    """A flow of datagrams that one side has opened, as the near end of whoever carries it here.
    ``outlet``: where what comes by the flow leaves.
    """

    __slots__ = ("_flow", "_tunnel", "outlet")

    def __init__(self, tunnel: Tunnel, flow: DatagramFlow) -> None:
        network, host, port, source, source_port, flags = flow.target
        super().__init__(
            Flow(network, (host, port), ("", source_port)),
            IDLE_S,
            source=source,
            dont_fragment=bool(flags & DONT_FRAGMENT),
            any_peer=bool(flags & ANY_PEER),
        )
        self._tunnel = tunnel
        self._flow = flow
        self.outlet = Outlet()
        flow.owner = self
        flow.idle_s = IDLE_S

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Association."""
        tunnel = self._tunnel
        tunnel.session.datagrams.send(self._flow, datagram, tunnel.loop.time(), segment_bytes)
        tunnel.wake()

    def failed(self, code: int, value: int = 0) -> None:
        """As in Association."""
        self._tunnel.session.datagrams.fail(self._flow, code, self._tunnel.loop.time(), value)
        self._tunnel.wake()

    def ended(self, code: int) -> None:
        """As in Association."""
        self._flow.owner = None  # nothing is left to the collector, see GC_THRESHOLD
        self._tunnel.session.datagrams.end(self._flow, self._tunnel.loop.time(), code)
        self._tunnel.wake()

    def stranger(self, peer: Endpoint) -> Optional[Association]:
        """As in Association: a flow that begins here."""
        datagrams = self._tunnel.session.datagrams
        if not datagrams.can_open:
            return None
        target = FlowTarget(self.flow.network, *peer, source=self.source)
        return FlowAssociation(self._tunnel, datagrams.open(target, self._tunnel.loop.time()))

    def answers_by(self, outlet: Outlet) -> None:
        """As in Association."""
        self.outlet = outlet

    def on_datagram(self, event: DatagramReceived) -> None:
        """Something more of the flow."""
        self.outlet.send(event.data, event.segment_bytes)

    def on_flow_failed(self, event: FlowFailed) -> None:
        """What has come back did not reach the program, to which nobody could say why."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The other side needs it no more."""
        self._flow.owner = None
        self.outlet.close()
