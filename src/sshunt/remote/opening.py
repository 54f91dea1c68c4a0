"""A program that hears only when its far end is up: meanwhile its stream waits, and so does it.

    OPENING --OPENED, or the first bytes--> its connection hears ``opened``; a relay's from now on
            --RESET-----------------------> its connection hears ``refused``, with the code
            --the program resets it-------> the far side hears of it

The program is not read meanwhile: what it says stays in the kernel. A program that need not be told
(one that was redirected: the kernel has answered it) is a relay's at once, and never here.

Of a SYN that is held back there is no socket yet: it comes when the program has been let go, or
never. What the far end says meanwhile waits in the relay.
"""

import socket

from sshunt.mux import frames
from sshunt.mux.payload import Payload
from sshunt.mux.streams import Stream
from sshunt.relay.flow import NO_RESOURCES, LateConnection, Relay, SocketConnection
from sshunt.relay.sockets import close_with_reset, error_of, reset_code
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import Tunnel


class Opening(Relay):
    """Owns ``stream`` and the socket of ``connection`` until they are a relay's, or over."""

    __slots__ = ("_connection", "_relay", "_sock", "_tunnel", "stream")

    def __init__(self, tunnel: Tunnel, stream: Stream, connection: SocketConnection) -> None:
        self._tunnel = tunnel
        self._connection = connection
        self._sock = connection.take()
        self._relay: TcpRelay | None = None
        self.stream = stream
        stream.owner = self
        tunnel.relays.add(self)
        try:
            tunnel.reactor.readiness.add(self._sock.fileno(), self._on_event, 0)
        except OSError as error:
            self.abort(reset_code(error.errno or 0))

    # --- as a relay ---------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """As in Relay."""
        if self._relay is not None:
            return self._relay.is_over
        return self.stream.owner is not self

    @property
    def is_connecting(self) -> bool:
        """As in Relay."""
        return self.stream.owner is self

    @property
    def sock(self) -> socket.socket:
        """The program's."""
        return self._sock

    def abort(self, code: int) -> None:
        """As in Relay."""
        if self._relay is not None:
            self._relay.abort(code)
        elif not self.is_over:
            self._tunnel.session.reset(self.stream, code)
            self._tunnel.wake()
            self._end(code, is_told=True)

    # --- from the session ---------------------------------------------------------------------

    def on_opened(self) -> None:
        """The far end is up."""
        self._hand_over()

    def on_data(self, payload: Payload) -> None:
        """It must be up: OPENED has come by a slower lane, and is still to come."""
        relay = self._hand_over()
        if not relay.is_over:
            relay.on_data(payload)

    def on_fin(self) -> None:
        """The same."""
        relay = self._hand_over()
        if not relay.is_over:
            relay.on_fin()

    def on_reset(self, code: int) -> None:
        """There is no far end."""
        self._end(code, is_told=True)

    def on_writable(self) -> None:
        """There is room; nothing has been read yet."""

    def direct_fd(self) -> int:
        """Bytes must come by here."""
        return -1

    # --- inside -------------------------------------------------------------------------------

    def _hand_over(self) -> TcpRelay:
        self._tunnel.reactor.readiness.remove(self._sock.fileno())
        self._tunnel.relays.discard(self)
        self._relay = self._tunnel.relay(self.stream)
        self._connection.opened()
        self._relay.start(self._sock)
        return self._relay

    def _on_event(self, _events: int) -> None:
        if error_of(self._sock):  # nobody is there to be told why
            self._tunnel.session.reset(self.stream, frames.RESET_ABORTED)
            self._tunnel.wake()
            self._end(frames.RESET_ABORTED, is_told=False)

    def _end(self, code: int, *, is_told: bool) -> None:
        self._tunnel.reactor.readiness.forget(self._sock.fileno())
        if is_told:
            self._connection.refused(code)
        else:
            close_with_reset(self._sock)
        self.stream.owner = None
        self._tunnel.relay_ended(self)


class LateOpening(Relay):
    """The same for a connection without a socket. Owns ``stream`` until it is a relay's."""

    __slots__ = ("_connection", "_relay", "_tunnel", "stream")

    def __init__(self, tunnel: Tunnel, stream: Stream, connection: LateConnection) -> None:
        self._tunnel = tunnel
        self._connection = connection
        self._relay: TcpRelay | None = None
        self.stream = stream
        stream.owner = self
        tunnel.relays.add(self)
        connection.begun(self)

    # --- as a relay ---------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """As in Relay."""
        return self._relay.is_over if self._relay is not None else self.stream.owner is not self

    @property
    def is_connecting(self) -> bool:
        """As in Relay."""
        return self.stream.owner is self

    @property
    def sock(self) -> socket.socket:
        """As in Relay."""
        if self._relay is None:
            raise ValueError("there is no socket yet")
        return self._relay.sock

    def take_connection(self, sock: socket.socket) -> None:
        """As in Relay. It may come before the far end is up, and is then closed with it."""
        if self._relay is None and self.is_over:
            close_with_reset(sock)
        else:
            self._hand_over().start(sock)

    def abort(self, code: int) -> None:
        """As in Relay."""
        if self._relay is not None:
            self._relay.abort(code)
        elif not self.is_over:
            self._tunnel.session.reset(self.stream, code)
            self._tunnel.wake()
            self._end(NO_RESOURCES)  # whatever it is, it is not the far host's answer

    # --- from the session ---------------------------------------------------------------------

    def on_opened(self) -> None:
        """The far end is up."""
        self._hand_over()
        self._connection.opened()

    def on_data(self, payload: Payload) -> None:
        """It must be up: OPENED has come by a slower lane, and is still to come."""
        relay = self._hand_over()
        if not relay.is_over:
            relay.on_data(payload)
        self._connection.opened()

    def on_fin(self) -> None:
        """The same."""
        relay = self._hand_over()
        if not relay.is_over:
            relay.on_fin()
        self._connection.opened()

    def on_reset(self, code: int) -> None:
        """There is no far end."""
        self._end(code)

    def on_writable(self) -> None:
        """There is room; nothing has been read yet."""

    def direct_fd(self) -> int:
        """Bytes must come by here."""
        return -1

    # --- inside -------------------------------------------------------------------------------

    def _hand_over(self) -> TcpRelay:
        if self._relay is None:
            self._tunnel.relays.discard(self)
            self._relay = self._tunnel.relay(self.stream)
        return self._relay

    def _end(self, code: int) -> None:
        self.stream.owner = None
        self._connection.refused(code)
        self._tunnel.relay_ended(self)
