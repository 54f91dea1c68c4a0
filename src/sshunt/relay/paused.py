"""Notices when a socket dies that nobody reads or writes just now.

A relay stops reading while its stream has no room, and then its event loop does not look at the
socket at all: a reset, or a peer that keepalive found dead, would stay unseen until there is room
again, which may be never. epoll(7) reports errors and hang-ups of a descriptor even if it was asked
for nothing, but asyncio can't ask for nothing. So the paused sockets are in an epoll set of their
own, and the event loop watches that set: it is readable when one of them has died.

Where there is no epoll, nothing is watched and resets are noticed when reading goes on.
"""

import asyncio
import select
import socket
from typing import Callable, Dict, List, Optional, Tuple

#: How long a socket may be paused before it is worth watching.
SOON_S = 1.0


class PausedSockets:
    """Calls back once, with the error number, when a watched socket has an error."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: Dict[int, Tuple[socket.socket, Callable[[int], None]]] = {}
        self._soon: List[Callable[[], None]] = []
        self._timer: Optional[asyncio.TimerHandle] = None
        self._set: "Optional[select.epoll]" = None
        if hasattr(select, "epoll"):
            self._set = select.epoll()
            loop.add_reader(self._set.fileno(), self._on_event)

    def soon(self, look: Callable[[], None]) -> None:
        """Call ``look`` in a second or two, which may then want to watch."""
        if self._set is None:
            return
        self._soon.append(look)
        if self._timer is None:
            self._timer = self._loop.call_later(SOON_S, self._look)

    def _look(self) -> None:
        self._timer = None
        looks, self._soon = self._soon, []
        for look in looks:
            look()

    def watch(self, sock: socket.socket, on_error: Callable[[int], None]) -> None:
        """Watch ``sock`` until it has an error or is unwatched, if it is not watched already."""
        if self._set is not None and sock.fileno() not in self._watched:
            self._watched[sock.fileno()] = (sock, on_error)
            # Nothing but what is always reported, and that once: a socket whose both halves are
            # over hangs up for ever, and what it has received is still to be read.
            self._set.register(sock.fileno(), select.EPOLLONESHOT)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching ``sock``; before it is closed."""
        if self._watched.pop(sock.fileno(), None) is not None and self._set is not None:
            self._set.unregister(sock.fileno())

    def close(self) -> None:
        """Watch nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._soon = []
        if self._set is not None:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()
            self._set = None
        self._watched.clear()

    def _on_event(self) -> None:
        if self._set is None:
            return
        for fd, _ in self._set.poll(0):
            watched = self._watched.get(fd)
            if watched is None:
                continue
            sock, on_error = watched
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                on_error(error)
