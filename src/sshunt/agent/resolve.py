"""DNS queries of the client's programs, asked of the resolvers of this host.

All of them in the order of resolv.conf, as the C library does: a network with two has one that does
not know the inner names, or is down. Those that are silent are asked again, with twice the patience
each time, until the deadline, and last for a while. Where all fail, the first such answer is the
answer; where none is heard, SERVFAIL. A query that came by UDP is asked by UDP, one that came by
TCP by TCP: whether an answer is truncated is between the program and its resolver.

Every query has a socket of its own, connected, with a port that the kernel chose: nobody else can
answer it.
"""

import asyncio
import errno
import os
import socket
import struct
from typing import Any, Awaitable, Callable, Dict, List, Set

from sshunt.mux import frames
from sshunt.relay import dns
from sshunt.relay.readiness import READ, WRITE, settle
from sshunt.relay.sockets import DIALED_PRIORITY, error_of, is_reserved, set_priority
from sshunt.relay.tunnel import Tunnel

#: How long a resolver may take at first before the next is asked, and all of it: the C library
#: asks again after 5 s, and gives up after 10 to 30.
TRY_S = 1.5
DEADLINE_S = 9.0

#: A resolver that was silent is asked last for so long.
SILENT_S = 30.0

#: Queries at the same time; each has a descriptor. A browser that restores its tabs has hundreds.
MOST_QUERIES = 512

#: Datagrams of a resolver that answer something else.
MOST_STRAYS = 16

_LENGTH = struct.Struct("!H")


class Resolver:
    """Answers the tunnel's DNS datagrams. Owns the queries under way."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._asking: "Set[asyncio.Future[None]]" = set()
        self._silent: Dict[str, float] = {}  # until when

    def on_query(self, flow: int, kind: int, query: bytes) -> None:
        """A program asks; what is no query is dropped."""
        if not dns.is_query(query):
            return
        if len(self._asking) >= MOST_QUERIES:
            self._answer(flow, kind, dns.servfail(query))
            return
        asking = asyncio.ensure_future(self._resolve(flow, kind, query), loop=self._tunnel.loop)
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    def close(self) -> None:
        """Give up the queries under way."""
        for asking in list(self._asking):
            asking.cancel()

    def _answer(self, flow: int, kind: int, answer: bytes) -> None:
        self._tunnel.session.send_datagram(flow, kind, answer, self._tunnel.loop.time())
        self._tunnel.wake()

    async def _resolve(self, flow: int, kind: int, query: bytes) -> None:
        exchange = self._by_tcp if kind == frames.DNS_TCP else self._by_udp
        self._answer(flow, kind, await self._ask(query, exchange) or dns.servfail(query))

    async def _ask(
        self, query: bytes, exchange: Callable[[socket.socket, bytes, float], Awaitable[bytes]]
    ) -> bytes:
        """The best answer that a resolver gives; b"" if none does."""
        loop = self._tunnel.loop
        deadline, patience_s = loop.time() + DEADLINE_S, TRY_S
        while True:
            failure, silent = b"", False
            for host in self._in_order():
                if loop.time() >= deadline:
                    return failure
                until = min(loop.time() + patience_s, deadline)
                try:
                    answer = await self._ask_one(host, query, exchange, until)
                except OSError as error:
                    if error.errno == errno.ETIMEDOUT:
                        silent = True
                        self._silent[host] = loop.time() + SILENT_S
                    continue
                if dns.rcode(answer) not in (dns.SERVFAIL, dns.REFUSED):
                    return answer
                failure = failure or answer
            if failure or not silent:
                return failure
            patience_s *= 2.0

    def _in_order(self) -> List[str]:
        now = self._tunnel.loop.time()
        return sorted(dns.resolvers(), key=lambda host: self._silent.get(host, 0.0) > now)

    async def _ask_one(self, host: str, query: bytes, exchange: Any, until: float) -> bytes:
        """One resolver's answer; raises OSError."""
        kind = socket.SOCK_STREAM if exchange == self._by_tcp else socket.SOCK_DGRAM
        found = socket.getaddrinfo(host, dns.PORT, 0, kind, 0, socket.AI_NUMERICHOST)
        family, _, _, _, address = found[0]
        sock = socket.socket(family, kind)
        try:
            if is_reserved(sock.fileno()):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sock.setblocking(False)
            set_priority(sock, DIALED_PRIORITY)  # never one of our own host's sshunt
            error_number = sock.connect_ex(address)
            if error_number == errno.EINPROGRESS:
                await self._ready(sock, WRITE, until)
                error_number = error_of(sock)
            if error_number:
                raise OSError(error_number, os.strerror(error_number))
            answer: bytes = await exchange(sock, query, until)
            return answer
        finally:
            sock.close()

    async def _by_udp(self, sock: socket.socket, query: bytes, until: float) -> bytes:
        sock.send(query)
        for _ in range(MOST_STRAYS):
            answer = await self._receive(sock, 65535, until)
            if dns.is_answer(answer, query):
                return answer
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))

    async def _by_tcp(self, sock: socket.socket, query: bytes, until: float) -> bytes:
        sock.send(_LENGTH.pack(len(query)) + query)  # a new connection takes it whole
        (size,) = _LENGTH.unpack(await self._receive_exactly(sock, _LENGTH.size, until))
        answer = await self._receive_exactly(sock, size, until)
        if not dns.is_answer(answer, query):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        return answer

    async def _receive_exactly(self, sock: socket.socket, size: int, until: float) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._receive(sock, size - len(data), until)
            if not more:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            data += more
        return data

    async def _receive(self, sock: socket.socket, most: int, until: float) -> bytes:
        while True:
            try:
                return sock.recv(most)
            except (BlockingIOError, InterruptedError):
                await self._ready(sock, READ, until)

    async def _ready(self, sock: socket.socket, events: int, until: float) -> None:
        """Return when ``sock`` is, or has died; raises OSError (ETIMEDOUT).

        Not loop.sock_recv under wait_for: see dial._connected.
        """
        loop = self._tunnel.loop
        ready: "asyncio.Future[int]" = loop.create_future()
        self._tunnel.readiness.add(sock.fileno(), lambda _: settle(ready, 0), events)
        timer = loop.call_at(until, settle, ready, errno.ETIMEDOUT)
        try:
            error_number = await ready
        finally:
            timer.cancel()
            self._tunnel.readiness.remove(sock.fileno())
        if error_number:
            raise OSError(error_number, os.strerror(error_number))
