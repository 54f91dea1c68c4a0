"""The connections by which this host's programs ask names: how many, and which must go.

Like relay.shares: the newest always finds room, and whoever has most loses the one that has been
silent for longest. The kernel knows that of each (tcp(7), TCP_INFO), so nobody counts.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

#: Connections of all users together. A resolver's library keeps one or two.
MOST_CONNECTIONS = 128

#: Silence after which a connection is closed. RFC 7766, 6.2.3 wants "of the order of a few seconds"
#: where room is short; where there is room, the resolver decides, which has less.
IDLE_S = 120.0

#: The interval at which silent ones are looked for.
SWEEP_EVERY_S = 30.0

# tcpi_last_data_sent and tcpi_last_data_recv of tcp_info, in milliseconds ago, and what is between.
_LAST_DATA = struct.Struct("=I4xI")
_LAST_DATA_AT = 44


class Connection(NamedTuple):
    """``end`` closes it, if it is not over."""

    sock: socket.socket
    asker: int
    is_over: Callable[[], bool]
    end: Callable[[], None]


class Connections:
    """Those that are open. Owns none: whoever entered one does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: list[Connection] = []
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: Connection) -> None:
        """A new one; another may have to go for it."""
        self._open = [each for each in self._open if not each.is_over()]
        while len(self._open) >= MOST_CONNECTIONS:
            self._end(self._to_go())
        self._open.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_EVERY_S, self._sweep)

    def end_all(self) -> None:
        """Close all of them; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._open):
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._open.remove(connection)
        if not connection.is_over():
            connection.end()

    def _to_go(self) -> Connection:
        """The idlest of whoever has most."""
        by_asker: dict[int, list[Connection]] = {}
        for connection in self._open:
            by_asker.setdefault(connection.asker, []).append(connection)
        greediest = max(by_asker, key=lambda each: len(by_asker[each]))
        return max(by_asker[greediest], key=lambda each: idle_s(each.sock))

    def _sweep(self) -> None:
        self._timer = None
        self._open = [each for each in self._open if not each.is_over()]
        for connection in list(self._open):
            if idle_s(connection.sock) > IDLE_S:
                self._end(connection)
        if self._open:
            self._timer = self._loop.call_later(SWEEP_EVERY_S, self._sweep)


def idle_s(sock: socket.socket) -> float:
    """Seconds since a byte came or left; without end if the connection is dead."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_AT + 12)
        return float(min(_LAST_DATA.unpack_from(info, _LAST_DATA_AT))) / 1000
    except (OSError, struct.error):
        return float("inf")
