"""DNS of the client's programs: what they ask is asked of the resolvers of this host.

A query that came by UDP is asked by UDP (by TCP where resolv.conf has ``use-vc``): whether an
answer is truncated is between the program and its resolver. What came by TCP is a stream
(conversation).

Not here: which resolver (race, order), how one is asked (exchange).
"""

import asyncio
from typing import Dict, Set

from sshunt.direct.conversation import Conversation
from sshunt.direct.exchange import Exchange
from sshunt.direct.race import Racing
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_NO_RESOURCES, FLOW_NOT_PERMITTED
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.streams import Stream
from sshunt.relay import dns
from sshunt.relay.shares import Shares
from sshunt.relay.tunnel import Tunnel

#: Connections that have not been answered yet; each may hold a query of 64 KiB. A client lets its
#: programs have half as many at all.
MOST_CONVERSATIONS = 256


class Resolver:
    """Answers the tunnel's DNS. Owns the queries under way."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._racing = Racing(tunnel.reactor)
        self._asking: "Dict[int, asyncio.Future[None]]" = {}  # by flow
        self._shares = Shares(dns.QUERIES_BYTES)
        self._conversations: Set[Conversation] = set()

    def on_query(self, flow: DatagramFlow, query: bytes) -> None:
        """A program asks by UDP, in a flow of its own; what is no query is dropped."""
        if not dns.is_query(query):
            self._end(flow, FLOW_NOT_PERMITTED)
            return
        flow.owner = self
        for other in self._shares.add(flow.number, flow.target.source, dns.room_of(query)):
            self._asking.pop(other).cancel()  # the client has answered it by now
        asking = asyncio.ensure_future(self._resolve(flow, query), loop=self._tunnel.loop)
        self._asking[flow.number] = asking
        asking.add_done_callback(lambda _: self._forget(flow))

    def on_datagram(self, event: DatagramReceived) -> None:
        """The query came twice."""

    def on_flow_failed(self, event: FlowFailed) -> None:
        """An answer did not reach the program, which asks again."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The client does not wait for the answer any more."""
        asking = self._asking.get(event.flow.number)
        if asking is not None:
            asking.cancel()

    def on_request(self, stream: Stream) -> None:
        """A program asks by TCP."""
        if len(self._conversations) >= MOST_CONVERSATIONS:
            self._tunnel.session.reset(stream, frames.RESET_NO_RESOURCES)
            self._tunnel.wake()
            return
        conversation = Conversation(self._tunnel, stream, self._racing)
        self._conversations.add(conversation)
        conversation.on_over = self._conversations.discard

    def close(self) -> None:
        """Give up what is under way."""
        for asking in list(self._asking.values()):
            asking.cancel()
        for conversation in list(self._conversations):
            conversation.close()
        self._racing.close()

    def _forget(self, flow: DatagramFlow) -> None:
        self._shares.remove(flow.number, flow.target.source)
        self._asking.pop(flow.number, None)
        self._end(flow, FLOW_NO_RESOURCES)  # unless it was answered

    def _end(self, flow: DatagramFlow, code: int) -> None:
        self._tunnel.session.datagrams.end(flow, self._tunnel.loop.time(), code)

    async def _resolve(self, flow: DatagramFlow, query: bytes) -> None:
        by_tcp = dns.settings().by_tcp
        heard = await self._racing.ask(query, Exchange.by_tcp if by_tcp else Exchange.by_udp)
        answer = heard.message if heard is not None else dns.servfail(query)
        if by_tcp and len(answer) > dns.most_udp_bytes(query):
            answer = dns.truncated(query)
        self._tunnel.session.datagrams.send(flow, answer, self._tunnel.loop.time())
        self._tunnel.wake()
