"""What becomes of a connection that the kernel redirected to us: a stream to where it wanted to go.

While the connection to the far side is lost, it waits for it instead.

Not here: accepting (listener), who waits for how long (remote.holding), how bytes move (relay).
"""

import socket
from collections.abc import Callable

from sshunt.front.arrival import Arrivals
from sshunt.front.original import NotRedirected, OriginalDestinations
from sshunt.model import Endpoint
from sshunt.mux.frames import TCP, Destination
from sshunt.relay.sockets import close_with_reset
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import Tunnel
from sshunt.remote.holding import WaitingRoom
from sshunt.tell.console import Console


def begin(tunnel: Tunnel, console: Console, sock: socket.socket, destination: Destination) -> None:
    """A stream for ``sock``, a program's connection, which is the relay's from now on."""
    stream = tunnel.open(destination)
    if console.verbosity:
        console.detail(1, f"stream {stream.id}: to {destination.host} port {destination.port}")
    TcpRelay(tunnel, stream).start(sock)


class Redirected:
    """Takes what the kernel redirected to ``listener``, a listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        tunnel: Tunnel,
        console: Console,
        waiting: WaitingRoom,
        is_down: Callable[[], bool],
        arrivals: Arrivals,
        is_ours: Callable[[socket.socket, Endpoint], bool],
    ) -> None:
        self._original = OriginalDestinations(listener)
        self._tunnel = tunnel
        self._console = console
        self._waiting = waiting
        self._is_down = is_down
        self._arrivals = arrivals
        self._is_ours = is_ours

    def why_not(self) -> str:
        """Why no more connections can be taken just now; "": they can."""
        if self._is_down() or self._tunnel.session.can_open:
            return ""
        return "as many connections are open as the far side allows"

    def take(self, sock: socket.socket) -> None:
        """``sock``, a program's connection, is ours from now on."""
        try:
            address, port = self._original.of(sock)
        except NotRedirected as error:
            self._console.detail(1, f"refused a local connection: {error}")
            close_with_reset(sock)
            return
        except OSError:  # the peer was faster and is gone
            close_with_reset(sock)
            return
        if self._arrivals.take(sock, (address, port)):
            sock.close()
            return
        if self._is_ours(sock, (address, port)):
            close_with_reset(sock)
            return
        destination = Destination(TCP, address, port, wants_opened=False)
        if self._is_down():
            self._waiting.enter(sock, destination)
        else:
            begin(self._tunnel, self._console, sock, destination)
