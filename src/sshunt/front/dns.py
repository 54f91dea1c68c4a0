"""The local end of DNS: queries that the kernel redirected here, answered by way of the far side.

    UDP   program --query--> system resolver's address --rules--> this --DATAGRAM--> agent
          program <-answer------------------------------------- this <-DATAGRAM--- agent
    TCP   the connection is a stream, like any other but for where it leads: to a resolver that the
          agent chooses. So messages of any size and number pass, zone transfers and updates too

Only what this host's programs ask is captured, at the addresses in resolv.conf. What a local
resolver (systemd-resolved, dnsmasq) asks by itself is left alone: our own ssh finds its server
through it while the connection is lost.

Every query is answered: by the far side, by SERVFAIL when that says nothing for QUERY_DEADLINE_S,
and by SERVFAIL at once while the connection is lost; programs then fail or ask again, but don't
hang. A query of UDP that was lost on the way is asked again by the program, as ever. Connections
that are open when it is lost are reset: their programs connect again, and are told.

What is under way has limits, shared by users: whoever takes most loses the oldest (relay.shares,
connections).

Not here: which queries (capture), asking (direct.resolve), the message itself (relay.dns).
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from sshunt.front.dns_askers import Askers
from sshunt.front.dns_connections import Connection, Connections
from sshunt.front.dns_sockets import DnsSockets
from sshunt.front.listener import Listener
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.frames import Destination
from sshunt.relay import dns
from sshunt.relay.shares import Shares
from sshunt.relay.sockets import close_with_reset
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import Tunnel
from sshunt.tell.report import Report

#: The agent gives up after 9 s; then its SERVFAIL is on its way.
QUERY_DEADLINE_S = 12.0

#: How long a program may take with its query while the connection is lost.
LAST_QUERY_S = 5.0

#: Queries read in one round of the event loop.
READS_PER_ROUND = 32

#: To a resolver of the far side's choice; the address says nothing.
_ANY_RESOLVER = Destination(frames.DNS, ".", dns.PORT)


class _Query(NamedTuple):
    flow: dns.QueryFlow
    message: bytes
    answer: Callable[[bytes], None]
    deadline: float


class DnsForwarder:
    """Answers what comes in by ``sockets``, which it owns, once it is started.

    ``resolvers`` are the addresses that programs believe to ask; what they are is the owner's to
    say.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        report: Report,
        sockets: Iterable[DnsSockets],
        is_down: Callable[[], bool],
    ) -> None:
        self._tunnel = tunnel
        self._sockets = tuple(sockets)
        self._is_down = is_down
        self._askers = Askers(sock for pair in self._sockets for sock in pair)
        self._queries: dict[int, _Query] = {}  # by flow, in the order in which they came
        self._shares = Shares(dns.QUERIES_BYTES)
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline
        self._listeners = [
            Listener(pair.tcp, tunnel.loop, report, partial(self._take, pair))
            for pair in self._sockets
        ]
        self._connections = Connections(tunnel.loop)
        self.resolvers: tuple[str, ...] = ()

    def start(self) -> None:
        """Answer from now on."""
        for pair, listener in zip(self._sockets, self._listeners, strict=True):
            self._tunnel.loop.add_reader(pair.udp.fileno(), self._on_readable, pair)
            listener.start()

    def on_datagram(self, event: DatagramReceived) -> None:
        """The far side has answered."""
        query = self._queries.get(event.flow.number)
        if query is not None and dns.is_answer(event.data, query.message):
            self._forget(query)
            query.answer(event.data)

    def on_flow_failed(self, event: FlowFailed) -> None:
        """The far side could not take a query; its end follows."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The far side will not answer."""
        if event.flow.number in self._queries:
            self._fail(event.flow.number)

    def on_down(self) -> None:
        """The connection is lost: nothing that was asked will be answered."""
        for number in list(self._queries):
            self._fail(number)
        self._connections.end_all()

    def close(self) -> None:
        """Answer nobody any more; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        for pair, listener in zip(self._sockets, self._listeners, strict=True):
            if pair.udp.fileno() >= 0:
                self._tunnel.loop.remove_reader(pair.udp.fileno())
            listener.close()
            pair.close()
        self._connections.end_all()
        self._askers.close()

    def _asker(self, pair: DnsSockets, sock: socket.socket, program: Any) -> int:
        asked: list[Endpoint] = [(address, dns.PORT) for address in self.resolvers]
        return self._askers.of(sock, program, [*asked, pair.endpoint])

    # --- by UDP -------------------------------------------------------------------------------

    def _on_readable(self, pair: DnsSockets) -> None:
        for _ in range(READS_PER_ROUND):
            try:
                message, program = pair.udp.recvfrom(65535)
            except OSError:  # no more, or the answer before did not reach its program
                return
            if dns.is_query(message):
                self._ask(self._asker(pair, pair.udp, program), message, pair.udp, program)

    def _ask(self, asker: int, message: bytes, sock: socket.socket, program: Any) -> None:
        answer = partial(_send, sock, program)
        if self._is_down():
            answer(dns.servfail(message))
            return
        now = self._tunnel.loop.time()
        flow = self._tunnel.ask(frames.DNS, message, self, asker)
        if flow is None:
            answer(dns.servfail(message))
            return
        self._queries[flow.number] = _Query(flow, message, answer, now + QUERY_DEADLINE_S)
        for other in self._shares.add(flow.number, asker, dns.room_of(message)):
            self._fail(other)
        if self._timer is None:
            self._timer = self._tunnel.loop.call_later(QUERY_DEADLINE_S, self._on_timer)

    def _fail(self, number: int) -> None:
        query = self._queries[number]
        self._forget(query)
        query.answer(dns.servfail(query.message))

    def _forget(self, query: _Query) -> None:
        flow = query.flow
        del self._queries[flow.number]
        self._shares.remove(flow.number, flow.target.source)
        self._tunnel.give_up(flow)  # unless it was answered

    def _on_timer(self) -> None:
        self._timer = None
        now = self._tunnel.loop.time()
        for number, query in list(self._queries.items()):
            if query.deadline > now:
                self._timer = self._tunnel.loop.call_at(query.deadline, self._on_timer)
                return
            self._fail(number)

    # --- by TCP -------------------------------------------------------------------------------

    def _take(self, pair: DnsSockets, sock: socket.socket) -> None:
        try:
            asker = self._asker(pair, sock, sock.getpeername())
        except OSError:  # it has hung up
            sock.close()
            return
        if self._is_down():
            self._tell(sock, asker)
        elif self._tunnel.session.can_open:
            relay = self._tunnel.relay(self._tunnel.open(_ANY_RESOLVER))
            relay.start(sock)
            end = partial(relay.abort, frames.RESET_ABORTED)
            self._connections.enter(Connection(sock, asker, lambda: _is_over(relay), end))
        else:
            close_with_reset(sock)

    def _tell(self, sock: socket.socket, asker: int) -> None:
        """Answer one query with SERVFAIL."""
        telling = asyncio.ensure_future(_serve_failure(sock))
        self._connections.enter(Connection(sock, asker, telling.done, lambda: _cancel(telling)))


async def _serve_failure(sock: socket.socket) -> None:
    try:
        reader, writer = await asyncio.open_connection(sock=sock)
    except OSError:  # it has hung up
        sock.close()
        return
    try:
        await asyncio.wait_for(_fail_one(reader, writer), LAST_QUERY_S)
    except (OSError, EOFError, asyncio.TimeoutError):
        pass  # it has hung up, or was silent for too long
    finally:
        writer.close()


async def _fail_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    message = await reader.readexactly(
        *dns.LENGTH.unpack(await reader.readexactly(dns.LENGTH.size))
    )
    if dns.is_query(message):
        answer = dns.servfail(message)
        writer.write(dns.LENGTH.pack(len(answer)) + answer)
        await writer.drain()


def _cancel(telling: "asyncio.Future[None]") -> None:
    telling.cancel()


def _is_over(relay: TcpRelay) -> bool:
    return relay.stream.owner is not relay


def _send(sock: socket.socket, program: Any, answer: bytes) -> None:
    with suppress(OSError):  # it is gone, or its buffer is full: it asks again
        sock.sendto(answer, program)
