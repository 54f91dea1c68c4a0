"""What becomes of a connection that the kernel redirected to us: it is handed to who carries it.

Not here: accepting (listener); who that is, and what becomes of it while nobody can.
"""

import socket
from collections.abc import Callable

from sshunt.front.arrival import Arrivals
from sshunt.front.held import HeldSyns
from sshunt.front.original import NotRedirected
from sshunt.model import Endpoint
from sshunt.relay.flow import TCP, Connection, Flow, Relays, SocketConnection
from sshunt.relay.sockets import close_with_reset
from sshunt.tell.report import CallerRefused, Report


class Redirected:
    """Takes what was accepted, and hands it to ``carry`` as a connection that leads where its
    program meant.

    ``original`` finds that out (it raises NotRedirected, or OSError where the program is gone
    again); ``held`` has those whose far side has been connected already; ``is_ours`` tells
    connections of our own ssh, which nobody must carry.
    """

    def __init__(
        self,
        original: Callable[[socket.socket], Endpoint],
        carry: Callable[[Connection], object],
        relays: Relays,
        report: Report,
        arrivals: Arrivals,
        held: HeldSyns,
        is_ours: Callable[[socket.socket, Endpoint], bool],
    ) -> None:
        self._original = original
        self._carry = carry
        self._relays = relays
        self._report = report
        self._arrivals = arrivals
        self._held = held
        self._is_ours = is_ours

    def take(self, sock: socket.socket) -> None:
        """``sock``, a program's connection, is ours from now on."""
        try:
            destination = self._original(sock)
        except NotRedirected as error:
            self._report.say(CallerRefused(str(error)))
            close_with_reset(sock)
            return
        except OSError:  # the peer was faster and is gone
            close_with_reset(sock)
            return
        if self._arrivals.take(sock, destination):
            sock.close()
        elif self._held.take(sock, destination):
            pass
        elif self._is_ours(sock, destination):
            close_with_reset(sock)
        else:
            self._carry(SocketConnection(self._relays, Flow(TCP, destination), sock))
