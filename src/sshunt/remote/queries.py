"""The queries for names that the far side was asked, and has yet to answer.

    by UDP   ask: a flow of datagrams for each query; it ends with its answer
    by TCP   connect: a stream to a resolver that the far side chooses, like any other

Every query is answered: by the far side, by SERVFAIL when that says nothing for QUERY_DEADLINE_S,
when too many are under way, and at once while the connection is lost. A query that was lost on the
way is asked again by its program, as ever.

What is under way has limits, shared by users: whoever takes most loses the oldest (relay.shares).

Invariants: one timer, for the oldest; each query is answered once, unless we end.

Not here: where queries come from (front.dns), the message itself (relay.dns).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.frames import Destination
from sshunt.relay import dns
from sshunt.relay.shares import Shares
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import Tunnel

#: The agent gives up after 9 s; then its SERVFAIL is on its way.
QUERY_DEADLINE_S = 12.0

#: A resolver of the far side's choice; the address says nothing.
_ANY_RESOLVER = Destination(frames.DNS, ".", dns.PORT)


class _Query(NamedTuple):
    flow: dns.QueryFlow
    message: bytes
    answer: Callable[[bytes], None]
    deadline: float


class Queries:
    """The owner of their flows. ``lost`` says whether the connection is lost just now."""

    def __init__(self, tunnel: Tunnel, lost: Callable[[], bool]) -> None:
        self._tunnel = tunnel
        self._lost = lost
        self._queries: dict[int, _Query] = {}  # by flow, in the order in which they came
        self._shares = Shares(dns.QUERIES_BYTES)
        self._timer: asyncio.TimerHandle | None = None  # not later than the oldest one's deadline

    @property
    def is_down(self) -> bool:
        """True while nobody can be asked."""
        return self._lost()

    def ask(self, message: bytes, asker: int, answer: Callable[[bytes], None]) -> None:
        """``answer`` gets the answer to a query of user ``asker``'s, or SERVFAIL."""
        flow = None if self._lost() else self._tunnel.ask(frames.DNS, message, self, asker)
        if flow is None:
            answer(dns.servfail(message))
            return
        deadline = self._tunnel.loop.time() + QUERY_DEADLINE_S
        self._queries[flow.number] = _Query(flow, message, answer, deadline)
        for other in self._shares.add(flow.number, asker, dns.room_of(message)):
            self._fail(other)
        if self._timer is None:
            self._timer = self._tunnel.loop.call_later(QUERY_DEADLINE_S, self._on_timer)

    def connect(self, sock: socket.socket) -> "Relayed | None":
        """``sock`` goes on as a stream to a resolver; None if there can be no more streams."""
        if not self._tunnel.session.can_open:
            return None
        relay = self._tunnel.relay(self._tunnel.open(_ANY_RESOLVER))
        relay.start(sock)
        return Relayed(relay)

    def on_down(self) -> None:
        """The connection is lost: nothing that was asked by UDP will be answered."""
        for number in list(self._queries):
            self._fail(number)

    def close(self) -> None:
        """The end; programs hear nothing more. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()

    # --- what the far side says ---------------------------------------------------------------

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

    # --- the end of a query -------------------------------------------------------------------

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


class Relayed:
    """A connection that goes on to a resolver of the far side."""

    def __init__(self, relay: TcpRelay) -> None:
        self._relay = relay

    def is_over(self) -> bool:
        """True if nothing more comes of it."""
        return self._relay.stream.owner is not self._relay

    def end(self) -> None:
        """End it at once, with a reset."""
        self._relay.abort(frames.RESET_ABORTED)
