"""Programs' connections that came while the connection to the far side is lost: they are held.

    accepted --hold--> held --release-------------------> the connection is back: each goes on its
                        |                                 way, in the order in which they came
                        +--LONGEST_WAIT_S---------------> reset
                        +--the program resets it--------> closed, its place is free at once
                        +--reset_all--------------------> reset: sshunt stops

What is held is the accepted socket and where it wanted to go, nothing else: what the program sends
meanwhile stays in the kernel's buffer. The session does not know of them, so it owes the far side
nothing for those that leave again; an hour of programs that try and give up costs it nothing. Nor
does it matter to them if the session is lost meanwhile: the next one takes them.

A program that only says that it sends no more (FIN) may want an answer, as "printf x | nc" does, or
may be gone: after close(2) the other end looks the same. So such a connection is held on, but it is
the first to go when there is no room for a new one.

Invariants: at most MOST_HELD, over all listeners; one timer, for the oldest.
"""

import asyncio
import select
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sshunt.relay.flow import NO_RESOURCES, SocketConnection
from sshunt.relay.reactor import Reactor
from sshunt.relay.sockets import error_of

#: Limit of held connections. Each costs a descriptor and up to a receive buffer of the kernel; the
#: usual limit of descriptors that a process may raise its own to was 4,096 for long. A browser that
#: restores its tabs has some hundreds.
MOST_HELD = 1024

#: Age at which a held connection is reset. By then a link that flapped is back; most programs give
#: up by themselves after 30 s to two minutes, and should rather be told than find out.
LONGEST_WAIT_S = 30.0


class _Held(NamedTuple):
    connection: SocketConnection
    deadline: float


class HeldConnections:
    """Holds accepted sockets until ``release``. Owns them meanwhile."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._held: dict[socket.socket, _Held] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline

    def __len__(self) -> int:
        return len(self._held)

    @property
    def sockets(self) -> Iterable[socket.socket]:
        """Those that are held now."""
        return self._held.keys()

    def hold(self, connection: SocketConnection) -> None:
        """It is ours until it can go on its way; without room it is reset."""
        sock = connection.take()
        if len(self._held) >= MOST_HELD and not self._make_room():
            connection.refused(NO_RESOURCES)
            return
        try:
            self._reactor.readiness.add(sock.fileno(), lambda _events: self._on_event(sock), 0)
        except OSError:
            connection.refused(NO_RESOURCES)
            return
        deadline = self._reactor.loop.time() + LONGEST_WAIT_S
        self._held[sock] = _Held(connection, deadline)
        if self._timer is None:
            self._timer = self._reactor.loop.call_at(deadline, self._on_timer)

    def release(self, open_one: Callable[[SocketConnection], object]) -> None:
        """The connection is back: ``open_one`` for each, which refuses those that are too many."""
        held, self._held = self._held, {}
        self._stop_timer()
        for sock, (connection, _) in held.items():
            self._reactor.readiness.remove(sock.fileno())
            open_one(connection)

    def reset_all(self) -> None:
        """Reset all of them. May be called twice."""
        self._stop_timer()
        for sock in list(self._held):
            self._reset(sock)

    def _on_event(self, sock: socket.socket) -> None:
        if error_of(sock):
            self._reset(sock)

    def _reset(self, sock: socket.socket) -> None:
        held = self._held.pop(sock)
        self._reactor.readiness.forget(sock.fileno())
        held.connection.refused(NO_RESOURCES)

    def _make_room(self) -> bool:
        """Reset the oldest of those that send no more; False if there is none."""
        hung_up = select.poll()
        for sock in self._held:
            hung_up.register(sock, select.POLLRDHUP)
        found = {number for number, _ in hung_up.poll(0)}
        oldest = next((sock for sock in self._held if sock.fileno() in found), None)
        if oldest is None:
            return False
        self._reset(oldest)
        return True

    def _on_timer(self) -> None:
        """Reset those that have waited too long; be back for the next one's sake."""
        self._timer = None
        now = self._reactor.loop.time()
        for sock, (_, deadline) in list(self._held.items()):
            if deadline > now:
                self._timer = self._reactor.loop.call_at(deadline, self._on_timer)
                return
            self._reset(sock)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
