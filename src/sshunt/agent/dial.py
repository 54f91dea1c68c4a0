"""Connections to the real hosts, for the streams that the client asks for.

The client is told the truth: OPENED when the connection is up, RESET with the system's own reason
when it is not. Data that came with the OPEN waits in the relay meanwhile. A numeric address is
connected at once, without a task; a name is looked up here, in a thread, and its addresses are
tried in the resolver's order.

The deadline of a connect is the kernel's (about two minutes of SYNs on Linux): a local program
would wait as long.
"""

import asyncio
import errno
import socket
from typing import Optional, Set

from sshunt.mux import frames
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay.sockets import prepare, reset_code
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import Tunnel

#: How long one of a name's addresses may take before the next is tried.
ADDRESS_DEADLINE_S = 10.0


class Dialer:
    """Answers the tunnel's requests. Owns the look-ups under way."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._lookups: "Set[asyncio.Future[None]]" = set()

    def on_request(self, stream: Stream, destination: Destination) -> None:
        """A stream was asked for: connect it or refuse it."""
        if destination.kind != frames.TCP or not destination.port:
            self._tunnel.session.reset(stream, frames.RESET_NOT_PERMITTED)
            self._tunnel.wake()
            return
        relay = TcpRelay(self._tunnel, stream)
        family = _family(destination.host)
        if family is not None:
            self._connect(relay, family, destination)
            return
        lookup = asyncio.ensure_future(self._look_up(relay, destination), loop=self._tunnel.loop)
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)

    def close(self) -> None:
        """Give up the look-ups under way."""
        for lookup in list(self._lookups):
            lookup.cancel()

    def _connect(self, relay: TcpRelay, family: int, destination: Destination) -> None:
        """Connect to a numeric address; success or failure is the relay's to report."""
        try:
            sock = _new_socket(family)
        except OSError as error:
            relay.abort(reset_code(error.errno or 0))
            return
        error_number = sock.connect_ex((destination.host, destination.port))
        if error_number in (0, errno.EINPROGRESS):
            relay.wait_for_connection(sock)
        else:
            sock.close()
            relay.abort(reset_code(error_number))

    async def _look_up(self, relay: TcpRelay, destination: Destination) -> None:
        """Connect to the first address of a name that answers."""
        loop = self._tunnel.loop
        code = frames.RESET_NAME_UNKNOWN
        try:
            found = await loop.getaddrinfo(
                destination.host, destination.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):
            found = []
        for family, _, _, _, address in found:
            try:
                sock = _new_socket(family)
            except OSError as error:
                code = reset_code(error.errno or 0)
                continue
            try:
                await asyncio.wait_for(loop.sock_connect(sock, address), ADDRESS_DEADLINE_S)
            except (OSError, asyncio.TimeoutError) as error:
                sock.close()
                code = reset_code(getattr(error, "errno", None) or errno.ETIMEDOUT)
                continue
            if relay.stream.owner is not relay:  # the client gave up meanwhile
                sock.close()
                return
            relay.take_connection(sock)
            return
        if relay.stream.owner is relay:
            relay.abort(code)


def _new_socket(family: int) -> socket.socket:
    # Made non-blocking where the system can; elsewhere it takes a second system call.
    sock = socket.socket(family, socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0))
    if sock.gettimeout() != 0:
        sock.setblocking(False)
    prepare(sock)
    return sock


def _family(host: str) -> Optional[int]:
    """The address family of a numeric address, None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, UnicodeEncodeError):
            continue
        return family
    return None
