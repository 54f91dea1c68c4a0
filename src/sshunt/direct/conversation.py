"""DNS over TCP: a stream to the resolver that knows the answer to its first query.

    ASKING      the first query is complete: race (race) whose connection brings an answer to it
    JOINED      what that resolver has said so far is passed on, and its connection becomes the
                stream's, as any other's does (relay.tcp): answers of many messages (AXFR), of any
                size, in any order, further queries, all of it between the program and its resolver
    ENDED       nobody has answered: SERVFAIL, and the end

So the order of the resolvers means the same as with UDP, and all that comes behind the first answer
means what it would without us. Credit for the first query returns as it arrives, for it may be
longer than a window; what the program sends behind it waits here, and its credit with it.
"""

import asyncio
from typing import Callable, Optional

from sshunt.direct.exchange import Exchange, Heard
from sshunt.direct.race import Racing
from sshunt.mux import frames
from sshunt.mux.payload import Payload
from sshunt.relay import dns
from sshunt.relay.incoming import StreamConnection
from sshunt.relay.sockets import keep_alive, set_priority


class Conversation:
    """Owns the stream of ``connection`` until it is a relay's, or over; then ``on_over`` hears."""

    def __init__(
        self,
        connection: StreamConnection,
        racing: Racing,
        on_over: Callable[["Conversation"], None],
    ) -> None:
        self._connection = connection
        self._tunnel = connection.tunnel
        self._racing = racing
        self._received = bytearray()
        self._returned = 0  # bytes of the first query whose credit has been returned
        self._fin_received = False
        self._asking: "Optional[asyncio.Future[None]]" = None
        self._ended = False
        self.stream = connection.stream
        self._on_over = on_over
        self.stream.owner = self

    def on_data(self, payload: Payload) -> None:
        """The next bytes of the program."""
        if self._ended:
            self._consumed(len(payload))
            return
        self._received += payload.view
        returned = min(len(self._received), self._first_end)
        if returned > self._returned:
            self._consumed(returned - self._returned)
            self._returned = returned
        if self._asking is None and self._first_query is not None:
            self._asking = asyncio.ensure_future(self._ask(), loop=self._tunnel.loop)

    def on_writable(self) -> None:
        """There is room; nobody has waited for it."""

    def on_fin(self) -> None:
        """The program sends nothing more."""
        self._fin_received = True
        if self._ended:
            self._over()
        elif self._asking is None:
            self.abort(frames.RESET_ABORTED)  # it has asked nothing

    def on_reset(self, _code: int) -> None:
        """The program is gone."""
        self._over()

    def abort(self, code: int) -> None:
        """End it at once."""
        self._connection.refused(code)
        self._over()

    def close(self) -> None:
        """The session is over."""
        self._over()

    def direct_fd(self) -> int:
        """Bytes must come by here."""
        return -1

    @property
    def _first_end(self) -> int:
        """Where the first query ends, as far as is known."""
        if len(self._received) < dns.LENGTH.size:
            return dns.LENGTH.size
        (size,) = dns.LENGTH.unpack_from(self._received)
        return dns.LENGTH.size + int(size)

    @property
    def _first_query(self) -> Optional[bytes]:
        """None until it is complete."""
        end = self._first_end
        if len(self._received) < end:
            return None
        return bytes(self._received[dns.LENGTH.size : end])

    async def _ask(self) -> None:
        query = self._first_query
        if query is None or not dns.is_query(query):
            self._asking = None
            self.abort(frames.RESET_ABORTED)
            return
        heard = await self._racing.ask(query, Exchange.begin_by_tcp)
        self._asking = None
        if self.stream.owner is not self:
            if heard is not None:
                heard.close()
        elif heard is not None and heard.sock is not None:
            self._join(heard)
        else:
            self._end(dns.servfail(query))

    def _join(self, heard: Heard) -> None:
        """The stream is that connection's from now on."""
        sock, rest, fin_received = heard.sock, self._received[self._returned :], self._fin_received
        if sock is None:
            return
        self._over()
        set_priority(sock, 0)  # see DIALED_PRIORITY
        keep_alive(sock)
        self._write(heard.read)
        relay = self._tunnel.relay(self.stream)
        relay.take_connection(sock)
        if rest and not relay.is_over:
            relay.on_data(Payload(bytes(rest)))
        if fin_received and not relay.is_over:
            relay.on_fin()

    def _end(self, answer: bytes) -> None:
        """Say this, and nothing more."""
        self._ended = True
        self._consumed(len(self._received) - self._returned)
        self._received.clear()
        self._tunnel.session.accept(self.stream)
        self._write(dns.LENGTH.pack(len(answer)) + answer)
        self._tunnel.session.finish(self.stream, self._tunnel.loop.time())
        if self._fin_received:
            self._over()

    def _write(self, data: bytes) -> None:
        self._tunnel.session.write(self.stream, Payload(data), self._tunnel.loop.time())
        self._tunnel.wake()

    def _consumed(self, size: int) -> None:
        if size:
            self._tunnel.session.consumed(self.stream, size, self._tunnel.loop.time())
            self._tunnel.wake()

    def _over(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self.stream.owner is self:
            self.stream.owner = None
        self._on_over(self)
