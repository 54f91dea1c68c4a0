"""The sockets that redirected connections arrive at, and how fast they are taken in.

Out of descriptors, or with no more left than are kept for our own needs (the next ssh), accepting
pauses: the connections wait in the kernel's backlog; it goes on when a connection ends or after a
moment.

Not here: accepting itself (relay.accepting), what is redirected (capture, helper), what becomes of
what was accepted (redirect, dns).
"""

import asyncio
import errno
import socket
from collections.abc import Callable

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.relay.accepting import Acceptor
from sshunt.relay.sockets import keep_alive, without_delay
from sshunt.tell.report import FrontPaused, FrontResumed, Report

#: Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096

#: Connections accepted in one round of the event loop: a flood leaves time for the others, and what
#: was accepted is under way while the next are.
ACCEPTS_PER_ROUND = 16

#: The pause in accepting when descriptors have run out, unless one is freed earlier.
PAUSE_S = 0.5


def bind(endpoint: Endpoint) -> socket.socket:
    """A listening TCP socket at (address, port), port 0 for any; raises CannotListen."""
    address, port = endpoint
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(address, port, error)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        without_delay(sock)
        keep_alive(sock)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot_listen(address, port, error)
    return sock


class CannotListen(UserError):  # noqa: N818 (an error for people, like its base)
    """A listener can't be had; ``error_number`` says why."""

    def __init__(self, message: str, hint: str, error_number: int) -> None:
        super().__init__(message, hint, ExitCode.LISTEN)
        self.error_number = error_number


def _cannot_listen(address: str, port: int, error: OSError) -> CannotListen:
    hints = {
        errno.EADDRINUSE: "choose another port with --listen, or leave --listen out",
        errno.EACCES: "choose a port above 1023 with --listen",
        errno.EADDRNOTAVAIL: "give --listen an address of this host",
    }
    reason = error.strerror or str(error)
    hint = hints.get(error.errno or 0, "leave --listen out to have an address chosen")
    message = f"can't listen on {address} port {port}: {reason}"
    return CannotListen(message, hint, error.errno or 0)


class Listener:
    """Accepts from ``sock`` while it is started, and says when that pauses and goes on. Owns it;
    what was accepted is ``take``'s.

    ``why_not`` says why no more can be taken just now; "": they can.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        report: Report,
        take: Callable[[socket.socket], None],
        why_not: Callable[[], str] = str,
    ) -> None:
        address, port = sock.getsockname()[:2]
        self._name = f"{address} port {port}"
        self._report = report
        self._take = take
        self._is_paused = False
        self._acceptor = Acceptor(
            loop,
            sock,
            self._on_accepted,
            per_round=ACCEPTS_PER_ROUND,
            pause_s=PAUSE_S,
            keeps_reserve=True,
            why_not=why_not,
            on_pause=self._on_pause,
        )
        #: A descriptor has become free: if accepting pauses, go on.
        self.resume = self._acceptor.resume

    def start(self) -> None:
        """Accept connections from now on."""
        self._acceptor.start()

    def close(self) -> None:
        """Accept no more; may be called twice. The kernel resets connections that still wait."""
        self._acceptor.close()

    def _on_accepted(self, sock: socket.socket) -> None:
        if self._is_paused:
            self._is_paused = False
            self._report.say(FrontResumed(self._name))
        self._take(sock)

    def _on_pause(self, why: str) -> None:
        self._is_paused = True
        self._report.say(FrontPaused(self._name, why))
