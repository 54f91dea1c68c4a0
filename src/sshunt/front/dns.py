"""The local end of DNS: queries that the kernel redirected here, answered by whoever carries them.

    UDP   program --query--> system resolver's address --rules--> this --Question--> carrier
          program <-answer------------------------------------- this <-answer------- carrier
    TCP   the connection is one like any other but for where it leads: to a resolver that the far
          side chooses. So messages of any size and number pass, zone transfers and updates too

Only what this host's programs ask is captured, at the addresses in resolv.conf. What a local
resolver (systemd-resolved, dnsmasq) asks by itself is left alone: our own ssh finds its server
through it while the connection is lost.

Every query is answered, if need be by SERVFAIL, and at once while the carrier is down; programs
then fail or ask again, but don't hang. Connections that are open when it goes down are reset
(``on_down``): their programs connect again, and are told.

Who asks is known, so that whoever takes most of what there is room for loses the oldest: queries at
the carrier, connections here.

Not here: which queries (capture), what becomes of them (remote.queries), the message itself
(relay.dns).
"""

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from sshunt.front.dns_askers import Askers
from sshunt.front.dns_connections import Connection, Connections
from sshunt.front.dns_sockets import DnsSockets
from sshunt.front.listener import Listener
from sshunt.model import Endpoint
from sshunt.relay import dns
from sshunt.relay.flow import ABORTED, DNS, Carrier, Flow, Question, Relays, SocketConnection
from sshunt.tell.report import Report

#: The time a program has for its query while the carrier is down.
LAST_QUERY_S = 5.0

#: Queries read in one round of the event loop.
READS_PER_ROUND = 32

#: To a resolver of the carrier's choice; the address says nothing.
_ANY_RESOLVER = Flow(DNS, (".", dns.PORT))


class _DatagramQuestion(Question):
    """A program's, that came to ``sock``."""

    __slots__ = ("_program", "_sock")

    def __init__(self, message: bytes, asker: int, sock: socket.socket, program: Any) -> None:
        super().__init__(message, asker)
        self._sock = sock
        self._program = program

    def answer(self, message: bytes) -> None:
        """As in Question."""
        with suppress(OSError):  # it is gone, or its buffer is full: it asks again
            self._sock.sendto(message, self._program)

    def refused(self, _code: int) -> None:
        """As in Question."""
        self.answer(dns.servfail(self.message))


class DnsForwarder:
    """Gives what comes in by ``sockets``, which it owns, to ``carrier``, once it is started.

    ``resolvers`` are the addresses that programs believe to ask; what they are is the owner's to
    say.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        report: Report,
        sockets: Iterable[DnsSockets],
        carrier: Carrier,
        relays: Relays,
    ) -> None:
        self._loop = loop
        self._relays = relays
        self._sockets = tuple(sockets)
        self._carrier = carrier
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
        """The carrier is down: nobody will answer on the connections that are open."""
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

    def _on_readable(self, pair: DnsSockets) -> None:
        for _ in range(READS_PER_ROUND):
            try:
                message, program = pair.udp.recvfrom(65535)
            except OSError:  # no more, or the answer before did not reach its program
                return
            if dns.is_query(message):
                asker = self._asker(pair, pair.udp, program)
                self._carrier.ask(_DatagramQuestion(message, asker, pair.udp, program))

    def _take(self, pair: DnsSockets, sock: socket.socket) -> None:
        try:
            asker = self._asker(pair, sock, sock.getpeername())
        except OSError:  # it has hung up
            sock.close()
            return
        if not self._carrier.is_up:
            self._tell(sock, asker)
            return
        relay = self._carrier.connect(SocketConnection(self._relays, _ANY_RESOLVER, sock))
        if relay is not None:
            end = partial(relay.abort, ABORTED)
            self._connections.enter(Connection(sock, asker, lambda: relay.is_over, end))

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
