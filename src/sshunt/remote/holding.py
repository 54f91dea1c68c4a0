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

A SYN that is held back has no socket yet, and is reset in its own way: it is not answered, and its
program's kernel sends it again (relay.flow, LateConnection).

Invariants: at most MOST_HELD, over all listeners; one timer, for the oldest.
"""

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from sshunt.relay.flow import NO_RESOURCES, LateConnection, SocketConnection
from sshunt.relay.reactor import Reactor
from sshunt.relay.sockets import error_of

#: Limit of held connections. Each costs a descriptor and up to a receive buffer of the kernel; the
#: usual limit of descriptors that a process may raise its own to was 4,096 for long. A browser that
#: restores its tabs has some hundreds.
MOST_HELD = 1024

#: Age at which a held connection is reset. By then a link that flapped is back; most programs give
#: up by themselves after 30 s to two minutes, and should rather be told than find out.
LONGEST_WAIT_S = 30.0


Holdable: TypeAlias = SocketConnection | LateConnection


class _Held(NamedTuple):
    sock: socket.socket | None
    deadline: float


class HeldConnections:
    """Holds accepted sockets until ``release``. Owns them meanwhile."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._held: dict[Holdable, _Held] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline

    def __len__(self) -> int:
        return len(self._held)

    @property
    def sockets(self) -> Iterator[socket.socket]:
        """Those that are held now."""
        return (held.sock for held in self._held.values() if held.sock is not None)

    def hold(self, connection: Holdable) -> None:
        """It is ours until it can go on its way; without room it is reset."""
        if len(self._held) >= MOST_HELD and not self._make_room():
            connection.refused(NO_RESOURCES)
            return
        sock = connection.take() if isinstance(connection, SocketConnection) else None
        if sock is not None:
            try:
                self._reactor.readiness.add(
                    sock.fileno(), lambda _events: self._on_event(connection), 0
                )
            except OSError:
                connection.refused(NO_RESOURCES)
                return
        deadline = self._reactor.loop.time() + LONGEST_WAIT_S
        self._held[connection] = _Held(sock, deadline)
        if self._timer is None:
            self._timer = self._reactor.loop.call_at(deadline, self._on_timer)

    def release(self, open_one: Callable[[Holdable], object]) -> None:
        """The connection is back: ``open_one`` for each, which refuses those that are too many."""
        held, self._held = self._held, {}
        self._stop_timer()
        for connection, (sock, _) in held.items():
            if sock is not None:
                self._reactor.readiness.remove(sock.fileno())
            if not _is_over(connection):
                open_one(connection)

    def reset_all(self) -> None:
        """Reset all of them. May be called twice."""
        self._stop_timer()
        for connection in list(self._held):
            self._reset(connection)

    def _on_event(self, connection: Holdable) -> None:
        sock = self._held[connection].sock
        if sock is not None and error_of(sock):
            self._reset(connection)

    def _reset(self, connection: Holdable) -> None:
        sock = self._held.pop(connection).sock
        if sock is not None:
            self._reactor.readiness.forget(sock.fileno())
        if not _is_over(connection):
            connection.refused(NO_RESOURCES)

    def _make_room(self) -> bool:
        """Reset the oldest of those that nobody waits for, or that send no more; False if there is
        none.
        """
        hung_up = select.poll()
        for sock in self.sockets:
            hung_up.register(sock, select.POLLRDHUP)
        found = {number for number, _ in hung_up.poll(0)}
        for connection, held in self._held.items():
            if _is_over(connection) or (held.sock and held.sock.fileno() in found):
                self._reset(connection)
                return True
        return False

    def _on_timer(self) -> None:
        """Reset those that have waited too long; be back for the next one's sake."""
        self._timer = None
        now = self._reactor.loop.time()
        for connection, (_, deadline) in list(self._held.items()):
            if deadline > now:
                self._timer = self._reactor.loop.call_at(deadline, self._on_timer)
                return
            self._reset(connection)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_over(connection: Holdable) -> bool:
    return isinstance(connection, LateConnection) and connection.is_over
