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
from sshunt.relay import dns
from sshunt.relay.flow import NO_RESOURCES, NOT_PERMITTED, Asked, Connection, Question
from sshunt.relay.incoming import StreamConnection
from sshunt.relay.reactor import Reactor
from sshunt.relay.shares import Shares

#: Connections that have not been answered yet; each may hold a query of 64 KiB. A client lets its
#: programs have half as many at all.
MOST_CONVERSATIONS = 256


class Resolver:
    """Answers DNS. Owns the queries under way."""

    def __init__(self, reactor: Reactor) -> None:
        self._loop = reactor.loop
        self._racing = Racing(reactor)
        self._asking: "Dict[int, asyncio.Future[None]]" = {}  # by number
        self._number = 0  # of the last question
        self._shares = Shares(dns.QUERIES_BYTES)
        self._conversations: Set[Conversation] = set()

    def ask(self, question: Question) -> Asked:
        """A program asks by UDP; what is no query is refused."""
        if not dns.is_query(question.message):
            question.refused(NOT_PERMITTED)
            return Asked()
        self._number += 1
        number = self._number
        for other in self._shares.add(number, question.asker, dns.room_of(question.message)):
            self._asking.pop(other).cancel()  # the client has answered it by now
        asking = asyncio.ensure_future(self._resolve(question), loop=self._loop)
        self._asking[number] = asking
        asking.add_done_callback(lambda _: self._forget(number, question))
        return _Asking(asking)

    def connect(self, connection: Connection) -> None:
        """A program asks by TCP."""
        if not isinstance(connection, StreamConnection):
            # Nobody asks so yet.
            connection.refused(NOT_PERMITTED)
            return
        if len(self._conversations) >= MOST_CONVERSATIONS:
            connection.refused(NO_RESOURCES)
            return
        self._conversations.add(Conversation(connection, self._racing, self._conversations.discard))

    def close(self) -> None:
        """Give up what is under way."""
        for asking in list(self._asking.values()):
            asking.cancel()
        for conversation in list(self._conversations):
            conversation.close()
        self._racing.close()

    def _forget(self, number: int, question: Question) -> None:
        self._shares.remove(number, question.asker)
        self._asking.pop(number, None)
        question.refused(NO_RESOURCES)  # unless it was answered

    async def _resolve(self, question: Question) -> None:
        query = question.message
        by_tcp = dns.settings().by_tcp
        heard = await self._racing.ask(query, Exchange.by_tcp if by_tcp else Exchange.by_udp)
        answer = heard.message if heard is not None else dns.servfail(query)
        if by_tcp and len(answer) > dns.most_udp_bytes(query):
            answer = dns.truncated(query)
        question.answer(answer)


class _Asking(Asked):
    """By UDP, under way."""

    def __init__(self, asking: "asyncio.Future[None]") -> None:
        self._asking = asking

    def give_up(self) -> None:
        """As in Asked."""
        self._asking.cancel()
