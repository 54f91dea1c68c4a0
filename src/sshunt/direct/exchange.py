"""One question to one resolver, by UDP or TCP.

Every exchange has a socket of its own, connected, with a port that the kernel chose: nobody else
can answer it. By UDP the question is sent again after a second and after three, on the same socket:
a lost datagram is no reason to ask somebody else. An exchange listens until its deadline, however
long that is after the last of them.

All raise OSError: ETIMEDOUT for silence.

Not here: whom to ask, for how long (race, order).
"""

import asyncio
import errno
import os
import socket
from typing import NamedTuple, Optional

from sshunt.relay import dns
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import READ, WRITE, settle
from sshunt.relay.sockets import (
    DIALED_PRIORITY,
    error_of,
    is_reserved,
    set_priority,
    without_delay,
)

#: The time until the question is sent again; each time it is twice as long. A query may take that
#: long where a resolver has to ask others; then the second is one datagram too many.
RESEND_S = 1.0

#: Datagrams of a resolver that answer something else.
MOST_STRAYS = 16


class Heard(NamedTuple):
    """What a resolver said: the message or its beginning, and the connection it goes on by."""

    message: bytes
    sock: Optional[socket.socket] = None
    read: bytes = b""  # all that came by the connection so far, lengths included

    def close(self) -> None:
        """It is not wanted."""
        if self.sock is not None:
            self.sock.close()


class Exchange:
    """Asks ``host``. ``sends`` is how often the question may leave by UDP."""

    def __init__(
        self, reactor: Reactor, host: str, query: bytes, sends: int, deadline: float
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._query = query
        self._sends = sends
        self._deadline = deadline

    async def by_udp(self) -> Heard:
        """Its answer."""
        sock = await self._connected(socket.SOCK_DGRAM)
        try:
            return Heard(await self._converse(sock))
        finally:
            sock.close()

    async def by_tcp(self) -> Heard:
        """Its answer, whole."""
        heard = await self.begin_by_tcp()
        if heard.sock is None:
            return heard
        try:
            (size,) = dns.LENGTH.unpack_from(heard.read)
            message = heard.message[:size]
            return Heard(message + await self._exactly(heard.sock, size - len(message)))
        finally:
            heard.close()

    async def begin_by_tcp(self) -> Heard:
        """The beginning of its answer, and the connection."""
        sock = await self._connected(socket.SOCK_STREAM)
        try:
            await self._send_all(sock, dns.LENGTH.pack(len(self._query)) + self._query)
            read = await self._exactly(sock, dns.LENGTH.size + dns.HEAD_BYTES)
            (size,) = dns.LENGTH.unpack_from(read)
            message = read[dns.LENGTH.size :]
            if size < dns.HEAD_BYTES or not dns.is_answer(message, self._query):
                raise _error(errno.EPROTO)
        except BaseException:
            sock.close()
            raise
        return Heard(message, sock, read)

    async def _connected(self, kind: int) -> socket.socket:
        found = socket.getaddrinfo(self._host, dns.PORT, 0, kind, 0, socket.AI_NUMERICHOST)
        family, _, _, _, address = found[0]
        sock = socket.socket(family, kind)
        try:
            if is_reserved(sock.fileno()):
                raise _error(errno.EMFILE)
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:  # it may become a program's, whose every write counts
                without_delay(sock)
            set_priority(sock, DIALED_PRIORITY)  # never one of our own host's sshunt
            error_number = sock.connect_ex(address)
            if error_number == errno.EINPROGRESS:
                await self._ready(sock, WRITE, self._deadline)
                error_number = error_of(sock)
            if error_number:
                raise _error(error_number)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _converse(self, sock: socket.socket) -> bytes:
        pause_s, strays = RESEND_S, 0
        self._send(sock)
        send_at = self._reactor.loop.time() + pause_s
        while strays < MOST_STRAYS:
            try:
                answer = sock.recv(65535)
            except (BlockingIOError, InterruptedError):
                until = send_at if self._sends else self._deadline
                try:
                    await self._ready(sock, READ, min(until, self._deadline))
                except OSError as error:
                    if error.errno != errno.ETIMEDOUT or until >= self._deadline:
                        raise
                    self._send(sock)
                    pause_s *= 2
                    send_at += pause_s
                continue
            if dns.is_answer(answer, self._query):
                return answer
            strays += 1
        raise _error(errno.EPROTO)

    def _send(self, sock: socket.socket) -> None:
        self._sends -= 1
        try:
            sock.send(self._query)
        except (BlockingIOError, InterruptedError):
            pass  # as good as lost

    async def _send_all(self, sock: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[sock.send(data) :]
            except (BlockingIOError, InterruptedError):
                await self._ready(sock, WRITE, self._deadline)

    async def _exactly(self, sock: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                more = sock.recv(size - len(data))
            except (BlockingIOError, InterruptedError):
                await self._ready(sock, READ, self._deadline)
                continue
            if not more:
                raise _error(errno.ECONNRESET)
            data += more
        return bytes(data)

    async def _ready(self, sock: socket.socket, events: int, until: float) -> None:
        """Return when ``sock`` is, or has died; raises OSError (ETIMEDOUT).

        Not loop.sock_recv under wait_for: see dial._connected.
        """
        loop = self._reactor.loop
        ready: "asyncio.Future[int]" = loop.create_future()
        self._reactor.readiness.add(sock.fileno(), lambda _: settle(ready, 0), events)
        timer = loop.call_at(until, settle, ready, errno.ETIMEDOUT)
        try:
            error_number = await ready
        finally:
            timer.cancel()
            self._reactor.readiness.remove(sock.fileno())
        if error_number:
            raise _error(error_number)


def _error(error_number: int) -> OSError:
    return OSError(error_number, os.strerror(error_number))
