"""Accepting: the sockets that redirected connections arrive at, and how fast they are taken in.

Out of descriptors, or with no more left than are kept for our own needs (the next ssh), accepting
pauses: the connections wait in the kernel's backlog and nothing spins; it goes on when a connection
ends or after a moment.

Not here: what is redirected (capture, helper), what becomes of what was accepted (redirect,
dns).
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.relay.sockets import (
    OUT_OF_RESOURCES,
    is_reserved,
    keep_alive,
    without_delay,
)
from sshunt.tell.console import Console

#: Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096

#: Connections accepted in one round of the event loop: a flood leaves time for the others, and what
#: was accepted is under way while the next are.
ACCEPTS_PER_ROUND = 16

#: How long accepting pauses when descriptors have run out, unless one is freed earlier.
PAUSE_S = 0.5

#: The same complaint is not repeated more often than this.
COMPLAIN_EVERY_S = 10.0


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
    """Accepts from ``sock`` while it is started. Owns it; what was accepted is ``take``'s.

    ``why_not`` says why no more can be taken just now; "": they can.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        console: Console,
        take: Callable[[socket.socket], None],
        why_not: Callable[[], str] = str,
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._console = console
        self._take = take
        self._why_not = why_not
        self._accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._complained_at = float("-inf")

    def start(self) -> None:
        """Accept connections from now on."""
        self._accept_later()

    def resume(self) -> None:
        """A descriptor has become free: if accepting pauses, go on."""
        if self._pause is not None:
            self._pause.cancel()
            self._accept_later()

    def close(self) -> None:
        """Accept no more; may be called twice. The kernel resets connections that still wait."""
        self._accept_no_more()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._sock.close()

    def _accept_later(self) -> None:
        self._pause = None
        if _are_spent(self._sock):
            self._wait(_SPENT)
        elif not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock.fileno())

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_PER_ROUND):
            why_not = self._why_not()
            if why_not:
                self._wait(why_not)
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    continue  # accept(2): an error of the new connection, which is gone with it
                self._wait(f"can't accept more connections: {error.strerror}")
                return
            sock.setblocking(False)
            spent = is_reserved(sock.fileno())
            self._take(sock)
            if spent:
                self._wait(_SPENT)
                return

    def _wait(self, why: str) -> None:
        self._accept_no_more()
        self._pause = self._loop.call_later(PAUSE_S, self._accept_later)
        now = self._loop.time()
        if now - self._complained_at > COMPLAIN_EVERY_S:
            self._complained_at = now
            self._console.line(f"{why}; new ones wait until one of the open ones ends")


_SPENT = f"can't accept more connections: {os.strerror(errno.EMFILE)}"


def _are_spent(sock: socket.socket) -> bool:
    """True if the next descriptor would be one of those kept for our own needs, or none at all."""
    try:
        number = os.dup(sock.fileno())
    except OSError:
        return True
    os.close(number)
    return is_reserved(number)
