"""Connections of a listening socket are taken in: a few in a round, with pauses, never spinning.

    LISTENING  --the round is full-------------------> LISTENING  the others have had their turn
    LISTENING  --strangers, no descriptors, why_not--> PAUSING    callers wait in the backlog
    PAUSING    --a moment later, or resume-----------> LISTENING

Out of descriptors there is nothing to do but wait. Any other error of accept(2) is that of a
connection that is gone with it; a round in which every call fails is followed by a pause all the
same, so that no caller can make us spin.

Strangers (callers whom ``is_welcome`` does not know) are hung up on, as many as a round has, so
that a friend among them has his turn. Then the socket is left alone for a moment.

Not here: making the listening socket, what becomes of what was accepted.
"""

import asyncio
import errno
import os
import socket
from typing import Callable, Optional

from sshunt.relay.sockets import OUT_OF_RESOURCES, is_reserved

#: The pause after strangers have called. Friends don't notice it.
STRANGER_PAUSE_S = 0.1

#: The reason given for a pause where the next descriptor is kept for our own needs.
SPENT = "can't accept more connections: %s" % os.strerror(errno.EMFILE)


def anybody(_sock: socket.socket) -> bool:
    """Everybody is welcome."""
    return True


def unheard(_why: str) -> None:
    """Nobody wants to hear why there is a pause."""


class Acceptor:
    """Accepts from ``sock``, which it owns, from ``start`` on; each connection is ``take``'s, and
    non-blocking.

    ``per_round``     connections accepted in one round of the event loop, at most
    ``pause_s``       how long accepting pauses when it fails
    ``keeps_reserve`` leaves the last descriptors for our own needs (``is_reserved``)
    ``is_welcome``    False for a stranger, who is hung up on
    ``why_not``       why no more can be taken just now; "": they can
    ``on_pause``      hears why, at each pause but those for strangers
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        take: Callable[[socket.socket], None],
        *,
        per_round: int,
        pause_s: float,
        keeps_reserve: bool = False,
        is_welcome: Callable[[socket.socket], bool] = anybody,
        why_not: Callable[[], str] = str,
        on_pause: Callable[[str], None] = unheard,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._take = take
        self._per_round = per_round
        self._pause_s = pause_s
        self._keeps_reserve = keeps_reserve
        self._is_welcome = is_welcome
        self._why_not = why_not
        self._on_pause = on_pause
        self._is_listening = False
        self._pause: Optional[asyncio.TimerHandle] = None
        sock.setblocking(False)

    def start(self) -> None:
        """Accept from now on, or again."""
        self._end_pause()
        if self._keeps_reserve and _are_spent(self._sock):
            self._wait(self._pause_s, SPENT)
        elif not self._is_listening:
            self._is_listening = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def resume(self) -> None:
        """What was missing may be there again: if accepting pauses, go on."""
        if self._pause is not None:
            self.start()

    def close(self) -> None:
        """Accept no more; may be called twice. The kernel resets connections that still wait."""
        self._listen_no_more()
        self._end_pause()
        self._sock.close()

    def _on_readable(self) -> None:
        failed, strangers = 0, False
        for _ in range(self._per_round):
            why_not = self._why_not()
            if why_not:
                self._wait(self._pause_s, why_not)
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                failed += 1
                if error.errno in OUT_OF_RESOURCES or failed == self._per_round:
                    why = "can't accept more connections: %s" % os.strerror(error.errno or 0)
                    self._wait(self._pause_s, why)
                    return
                continue
            if not self._is_welcome(sock):
                strangers = True
                sock.close()
                continue
            sock.setblocking(False)
            is_last = self._keeps_reserve and is_reserved(sock.fileno())
            self._take(sock)
            if not self._is_listening:  # closed by whoever took it
                return
            if is_last:
                self._wait(self._pause_s, SPENT)
                return
        if strangers:
            self._wait(STRANGER_PAUSE_S)

    def _wait(self, seconds: float, why: str = "") -> None:
        self._listen_no_more()
        self._pause = self._loop.call_later(seconds, self.start)
        if why:
            self._on_pause(why)

    def _listen_no_more(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_reader(self._sock.fileno())

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None


def _are_spent(sock: socket.socket) -> bool:
    """True if the next descriptor would be one of those kept for our own needs, or none at all."""
    try:
        number = os.dup(sock.fileno())
    except OSError:
        return True
    os.close(number)
    return is_reserved(number)
