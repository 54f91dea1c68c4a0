"""The DNS queries of a session that are under way: each is answered, whatever happens.

    asked --the far side answers--------> its answer
          --it says that it will not----> SERVFAIL
          --QUERY_DEADLINE_S------------> SERVFAIL
          --the connection is lost------> SERVFAIL, at once: programs then fail or ask again
          --others need the room--------> SERVFAIL: whoever has asked most loses the oldest (shares)

A query that was lost on the way is asked again by the program, as ever.

Not here: sockets, and who asks (front.dns), asking resolvers (direct.resolve).
"""

import asyncio
from typing import NamedTuple

from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.relay import dns
from sshunt.relay.flow import NO_RESOURCES, Asked, Question
from sshunt.relay.shares import Shares
from sshunt.relay.tunnel import Tunnel

#: The time a query has. The agent gives up after 9 s; then its SERVFAIL is on its way.
QUERY_DEADLINE_S = 12.0


class _Query(NamedTuple):
    tunnel: Tunnel
    flow: DatagramFlow
    question: Question
    deadline: float


class Queries:
    """Those of one far side, session after session: who loses one calls ``fail_all``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queries: dict[int, _Query] = {}  # by flow, in the order in which they came
        self._shares = Shares(dns.QUERIES_BYTES)
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline

    def __len__(self) -> int:
        return len(self._queries)

    def ask(self, tunnel: Tunnel, question: Question) -> Asked:
        """Have it answered by the far side at the end of ``tunnel``, or fail it."""
        loop = self._loop
        flow = tunnel.ask(frames.DNS, question.message, self, question.asker)
        if flow is None:
            question.refused(NO_RESOURCES)
            return Asked()
        self._queries[flow.number] = _Query(tunnel, flow, question, loop.time() + QUERY_DEADLINE_S)
        room = dns.room_of(question.message)
        for other in self._shares.add(flow.number, question.asker, room):
            self._fail(other)
        if self._timer is None:
            self._timer = loop.call_later(QUERY_DEADLINE_S, self._on_timer)
        return _Asked(self, flow.number)

    def give_up(self, number: int) -> None:
        """Nobody waits for the answer any more. Nothing happens if it has come."""
        query = self._queries.get(number)
        if query is not None:
            self._forget(query)

    def fail_all(self) -> None:
        """Nothing that was asked will be answered."""
        for number in list(self._queries):
            self._fail(number)

    def close(self) -> None:
        """The same, for good."""
        self.fail_all()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- as the tunnel says -------------------------------------------------------------------

    def on_datagram(self, event: DatagramReceived) -> None:
        """The far side has answered."""
        query = self._queries.get(event.flow.number)
        if query is not None and dns.is_answer(event.data, query.question.message):
            self._forget(query)
            query.question.answer(event.data)

    def on_flow_failed(self, event: FlowFailed) -> None:
        """The far side could not take a query; its end follows."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The far side will not answer."""
        if event.flow.number in self._queries:
            self._fail(event.flow.number)

    def _fail(self, number: int) -> None:
        query = self._queries[number]
        self._forget(query)
        query.question.refused(NO_RESOURCES)

    def _forget(self, query: _Query) -> None:
        flow = query.flow
        del self._queries[flow.number]
        self._shares.remove(flow.number, query.question.asker)
        query.tunnel.give_up(flow)  # unless it was answered

    def _on_timer(self) -> None:
        self._timer = None
        loop = self._loop
        now = loop.time()
        for number, query in list(self._queries.items()):
            if query.deadline > now:
                self._timer = loop.call_at(query.deadline, self._on_timer)
                return
            self._fail(number)


class _Asked(Asked):
    """A query under way."""

    def __init__(self, queries: Queries, number: int) -> None:
        self._queries = queries
        self._number = number

    def give_up(self) -> None:
        """As in Asked."""
        self._queries.give_up(self._number)
