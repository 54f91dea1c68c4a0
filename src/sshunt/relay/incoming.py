"""What the other side of a session asks for, as near ends of flows.

    a stream that it opens         a Connection: relayed to a socket here, or reset
    a flow of datagrams with DNS   a Question: its answer goes back by the same flow

The agent gives them to the host it runs on (direct.carrier). At the client they are connections to
ports that it exposes on the far side.
"""

from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay.flow import Asked, Connection, Flow, Question, Relay
from sshunt.relay.tunnel import Tunnel


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
