"""The local end of DNS: queries that the kernel redirected here, answered by way of the far side.

    UDP   program --query--> system resolver's address --rules--> this --DATAGRAM--> agent
          program <-answer------------------------------------- this <-DATAGRAM--- agent
    TCP   the connection is a stream, like any other but for where it leads: to a resolver that the
          agent chooses. So messages of any size and number pass, zone transfers and updates too

Only what this host's programs ask is captured, at the addresses in resolv.conf. What a local
resolver (systemd-resolved, dnsmasq) asks by itself is left alone: our own ssh finds its server
through it while the connection is lost.

Every query is answered: by who is asked for it (FarResolver), by SERVFAIL at once while he can't be
asked; programs then fail or ask again, but don't hang. Connections that are open when the far side
is lost are reset: their programs connect again, and are told.

What is under way has limits, shared by users (connections).

Not here: which queries (capture), what becomes of one (remote.queries), asking (direct.resolve),
the message itself (relay.dns).
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from sshunt.front.dns_askers import Askers
from sshunt.front.dns_connections import Connection, Connections
from sshunt.front.dns_sockets import DnsSockets
from sshunt.front.listener import Listener
from sshunt.model import Endpoint
from sshunt.relay import dns
from sshunt.relay.sockets import close_with_reset
from sshunt.tell.report import Report

#: How long a program may take with its query while the connection is lost.
LAST_QUERY_S = 5.0

#: Queries read in one round of the event loop.
READS_PER_ROUND = 32


class Relayed(Protocol):
    """A connection that goes on to a resolver of the far side."""

    def is_over(self) -> bool:
        """True if nothing more comes of it."""

    def end(self) -> None:
        """End it at once, with a reset."""


class FarResolver(Protocol):
    """Who knows the answers."""

    @property
    def is_down(self) -> bool:
        """True while nobody can be asked."""

    def ask(self, message: bytes, asker: int, answer: Callable[[bytes], None]) -> None:
        """``answer`` gets the answer to a query of user ``asker``'s, or SERVFAIL, if anything."""

    def connect(self, sock: socket.socket) -> Relayed | None:
        """Takes over a connection; None if that is not possible: then it is still the caller's."""


class DnsForwarder:
    """Answers what comes in by ``sockets``, which it owns, once it is started.

    ``resolvers`` are the addresses that programs believe to ask; what they are is the owner's to
    say.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        report: Report,
        sockets: Iterable[DnsSockets],
        far: FarResolver,
    ) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._far = far
        self._askers = Askers(sock for pair in self._sockets for sock in pair)
        self._listeners = [
            Listener(pair.tcp, loop, report, partial(self._take, pair)) for pair in self._sockets
        ]
        self._connections = Connections(loop)
        self.resolvers: tuple[str, ...] = ()

    def start(self) -> None:
        """Answer from now on."""
        for pair, listener in zip(self._sockets, self._listeners, strict=True):
            self._loop.add_reader(pair.udp.fileno(), self._on_readable, pair)
            listener.start()

    def on_down(self) -> None:
        """The far side is lost: nothing that was asked will be answered."""
        self._connections.end_all()

    def close(self) -> None:
        """Answer nobody any more; may be called twice."""
        for pair, listener in zip(self._sockets, self._listeners, strict=True):
            if pair.udp.fileno() >= 0:
                self._loop.remove_reader(pair.udp.fileno())
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
                asker = self._asker(pair, pair.udp, program)
                self._far.ask(message, asker, partial(_send, pair.udp, program))

    # --- by TCP -------------------------------------------------------------------------------

    def _take(self, pair: DnsSockets, sock: socket.socket) -> None:
        try:
            asker = self._asker(pair, sock, sock.getpeername())
        except OSError:  # it has hung up
            sock.close()
            return
        if self._far.is_down:
            self._tell(sock, asker)
            return
        relayed = self._far.connect(sock)
        if relayed is None:
            close_with_reset(sock)
            return
        self._connections.enter(Connection(sock, asker, relayed.is_over, relayed.end))

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


def _send(sock: socket.socket, program: Any, answer: bytes) -> None:
    with suppress(OSError):  # it is gone, or its buffer is full: it asks again
        sock.sendto(answer, program)
