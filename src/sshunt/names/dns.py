"""The local end of DNS: queries that the kernel redirected here, answered by way of the far side.

    program --query--> system resolver's address --rules--> this --DATAGRAM--> agent --> resolvers
    program <-answer------------------------------------- this <-DATAGRAM--- agent <-- there

Only what this host's programs ask is captured, at the addresses in resolv.conf. What a local
resolver (systemd-resolved, dnsmasq) asks by itself is left alone: our own ssh finds its server
through it while the connection is lost.

Every query is answered: by the far side, by SERVFAIL when that says nothing for QUERY_DEADLINE_S,
and by SERVFAIL at once while the connection is lost; programs then fail or ask again, but don't
hang. A query of UDP that was lost on the way is asked again by the program, as ever.

Not here: which queries (capture), asking (agent.resolve), the message itself (relay.dns).
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from sshunt.console import Console
from sshunt.listener import Listener
from sshunt.mux import frames
from sshunt.mux.session import DatagramReceived
from sshunt.names.doors import Door
from sshunt.relay import dns
from sshunt.relay.readiness import settle
from sshunt.relay.sockets import close_with_reset
from sshunt.relay.tunnel import Tunnel

#: The agent gives up after 9 s; then its SERVFAIL is on its way.
QUERY_DEADLINE_S = 12.0

#: Queries under way at the same time; more are told to ask again.
MOST_QUERIES = 1024

#: Connections of TCP at the same time, and how long one may be silent (RFC 7766, 6.2.3: "of the
#: order of a few seconds").
MOST_CONNECTIONS = 128
IDLE_S = 10.0

#: Queries read in one round of the event loop.
READS_PER_ROUND = 32

#: A flow's number has 32 bits. 0 is that of BELIEFS.
_LAST_FLOW = (1 << 32) - 1

_LENGTH = struct.Struct("!H")


class _Query(NamedTuple):
    message: bytes
    answer: Callable[[bytes], None]
    deadline: float


class DnsForwarder:
    """Answers what comes in by ``doors``, which it owns, once it is started."""

    def __init__(
        self,
        tunnel: Tunnel,
        console: Console,
        doors: Iterable[Door],
        is_down: Callable[[], bool],
    ) -> None:
        self._tunnel = tunnel
        self._doors = tuple(doors)
        self._is_down = is_down
        self._queries: dict[int, _Query] = {}  # by flow, in the order in which they came
        self._flow = 0
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline
        self._listeners = [Listener(d.tcp, tunnel.loop, console, self._take) for d in self._doors]
        self._conversations: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Answer from now on."""
        for door, listener in zip(self._doors, self._listeners, strict=True):
            self._tunnel.loop.add_reader(door.udp.fileno(), self._on_readable, door.udp)
            listener.start()

    def on_datagram(self, event: DatagramReceived) -> None:
        """The far side has answered."""
        query = self._queries.get(event.flow)
        if query is not None and dns.is_answer(event.data, query.message):
            del self._queries[event.flow]
            query.answer(event.data)

    def on_down(self) -> None:
        """The connection is lost: nothing that was asked will be answered."""
        queries, self._queries = self._queries, {}
        for query in queries.values():
            query.answer(dns.servfail(query.message))

    def close(self) -> None:
        """Answer nobody any more; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        for conversation in self._conversations:
            conversation.cancel()
        for door, listener in zip(self._doors, self._listeners, strict=True):
            if door.udp.fileno() >= 0:
                self._tunnel.loop.remove_reader(door.udp.fileno())
            listener.close()
            door.close()

    def _ask(self, kind: int, message: bytes, answer: Callable[[bytes], None]) -> None:
        """``answer`` is called with one, sooner or later."""
        now = self._tunnel.loop.time()
        if self._is_down() or len(self._queries) >= MOST_QUERIES:
            answer(dns.servfail(message))
            return
        self._flow = self._flow % _LAST_FLOW + 1
        self._queries[self._flow] = _Query(message, answer, now + QUERY_DEADLINE_S)
        self._tunnel.session.send_datagram(self._flow, kind, message, now)
        self._tunnel.wake()
        if self._timer is None:
            self._timer = self._tunnel.loop.call_later(QUERY_DEADLINE_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._tunnel.loop.time()
        for flow, query in list(self._queries.items()):
            if query.deadline > now:
                self._timer = self._tunnel.loop.call_at(query.deadline, self._on_timer)
                return
            del self._queries[flow]
            query.answer(dns.servfail(query.message))

    # --- by UDP -------------------------------------------------------------------------------

    def _on_readable(self, sock: socket.socket) -> None:
        for _ in range(READS_PER_ROUND):
            try:
                message, program = sock.recvfrom(65535)
            except OSError:  # no more, or the answer before did not reach its program
                return
            if dns.is_query(message):
                self._ask(frames.DNS, message, partial(_send, sock, program))

    # --- by TCP -------------------------------------------------------------------------------

    def _take(self, sock: socket.socket) -> None:
        if len(self._conversations) >= MOST_CONNECTIONS:
            close_with_reset(sock)
            return
        conversation = asyncio.ensure_future(self._serve(sock))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=sock)
        except OSError:  # it has hung up
            sock.close()
            return
        try:
            await self._converse(reader, writer)
        except (OSError, EOFError, asyncio.TimeoutError):
            pass  # it has hung up, or was silent for too long
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One query after the other; the next is read when this one has been answered."""
        while True:
            head = await asyncio.wait_for(reader.readexactly(_LENGTH.size), IDLE_S)
            message = await asyncio.wait_for(reader.readexactly(*_LENGTH.unpack(head)), IDLE_S)
            if not dns.is_query(message):
                return
            answered: asyncio.Future[bytes] = self._tunnel.loop.create_future()
            self._ask(frames.DNS_TCP, message, partial(settle, answered))
            answer = await answered
            writer.write(_LENGTH.pack(len(answer)) + answer)
            await asyncio.wait_for(writer.drain(), IDLE_S)


def _send(sock: socket.socket, program: Any, answer: bytes) -> None:
    with suppress(OSError):  # it is gone, or its buffer is full: it asks again
        sock.sendto(answer, program)
