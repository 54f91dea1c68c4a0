"""One far side, from the first login to the goodbye: all that belongs to it and to nobody else.

    connect, ask --up----> a stream, a question of the session
                 --down--> held until it is up again; refused
    associate    --------> a flow, whose datagrams are lost while it is down

It has a transport, a session in the process's reactor, a pool of lanes, the upkeep of its link, the
connections that wait while it is lost, the DNS queries under way, the flows of datagrams, and what
both ends say of their lanes. There may be several in a process: they share the reactor and the
report, which are given to them, and nothing else. Whatever ends here ends nobody else's.

Its owner hears when it goes down and up, and when a connection is over, whose descriptor somebody
may be waiting for.

Invariants: what is handed over (a socket, a query) is this remote's from then on, and it answers or
ends it whatever happens.

Not here: who is connected over it (route.router), what its state means for the kernel's rules
(commands), what is said to people (tell).
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay.flow import (
    DNS,
    NO_RESOURCES,
    NOT_PERMITTED,
    Asked,
    Association,
    Carrier,
    Connection,
    LateConnection,
    Outlet,
    Question,
    Relay,
    SocketConnection,
)
from sshunt.relay.lane import LaneIO
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import TunnelOwner
from sshunt.remote.associations import Associations
from sshunt.remote.holding import HeldConnections
from sshunt.remote.opening import LateOpening, Opening
from sshunt.remote.pool import Pool, Traffic
from sshunt.remote.queries import Queries
from sshunt.remote.resets import MEANING_OF_RESET, NOBODY_IS_THERE
from sshunt.remote.telemetry import Telemetry
from sshunt.remote.upkeep import Upkeep
from sshunt.tell.report import FarSideNotTold, Report, StreamOpened, StreamReset
from sshunt.tell.snapshot import Snapshot
from sshunt.transport.channel import Transport
from sshunt.transport.endings import cancelled

#: How long the far side may take to answer our goodbye before we just hang up.
GOODBYE_DEADLINE_S = 1.0

#: How long ssh may take to end by itself once its pipes are closed.
SSH_END_DEADLINE_S = 0.5

#: The latest connections of which it is known whither they lead, should there be nobody. That is
#: known after a round trip.
_MOST_TRUSTING = 1024

#: How long the first round trip through the lane is waited for, to show it.
FIRST_RTT_DEADLINE_S = 2.0


class Terms(NamedTuple):
    """What a person wants of one remote. ``name``: as lines for people call it."""

    name: str
    lanes: int  # at most
    grace_s: int  # how long the far side keeps the session without a lane
    max_retries: int | None  # None: for ever
    is_attended: bool = False  # somebody may be at a terminal, and look for a password


class RemoteOwner(Protocol):
    """What a remote tells whoever has it."""

    def on_down(self, remote: "Remote") -> None:
        """No lane works any more."""

    def on_up(self, remote: "Remote") -> None:
        """A lane works again."""

    def on_freed(self) -> None:
        """A connection is over, and its descriptor free."""

    def on_failed(self, destination: Endpoint) -> None:
        """A program was told that it is connected there, and it is not."""


class Remote(TunnelOwner, Carrier):
    """See the module's head. ``start`` it, then ``run`` it until ``end``."""

    def __init__(
        self,
        reactor: Reactor,
        transport: Transport,
        report: Report,
        owner: RemoteOwner,
        terms: Terms,
    ) -> None:
        self.name = terms.name
        self._terms = terms
        self._loop = reactor.loop
        self._report = report
        self._owner = owner
        self._emptied = asyncio.Event()  # the last lane has ended
        self._held = HeldConnections(reactor)
        self._pool = Pool(
            reactor, self, transport, report, terms.name, most=terms.lanes, grace_s=terms.grace_s
        )
        self._queries = Queries(reactor.loop)
        self._associations = Associations(reactor.loop, self._pool)
        self._trusting: dict[int, Endpoint] = {}  # streams whose program was told too early
        self._telemetry = Telemetry(terms.name, self._pool, report)
        self._upkeep = Upkeep(
            terms.name,
            transport,
            self._pool,
            report,
            self,
            is_attended=terms.is_attended,
            grace_s=terms.grace_s,
            max_retries=terms.max_retries,
        )

    # --- its life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Log in, and begin the session. May ask a person. Raises UserError."""
        await self._pool.connect()

    async def check(self) -> None:
        """Raise UserError if the session has been lost while it was still starting."""
        last = self._pool.last
        if self._pool.tunnel.lanes or last is None:
            return
        await asyncio.wait({last.ended}, timeout=SSH_END_DEADLINE_S)
        raise UserError(
            f"the connection to {self.name} was lost while starting:"
            f" {last.last_words() or 'the far side closed it'}",
            "check the network and the ssh server, then start sshunt again",
            ExitCode.LOST,
        )

    async def first_rtt(self) -> float:
        """The first measured round-trip time in seconds, 0 if it takes too long."""
        deadline = self._loop.time() + FIRST_RTT_DEADLINE_S
        session = self._pool.tunnel.session
        while not session.rtt_s and self._pool.tunnel.lanes and self._loop.time() < deadline:
            await asyncio.sleep(0.002)
        return session.rtt_s

    async def run(self) -> None:
        """Keep it up until cancelled. Raises UserError when it is given up (--max-retries)."""
        works = [asyncio.ensure_future(self._upkeep.run())]
        if self._pool.may_be_several or self._report.hears_streams:  # else it is for nobody
            works.append(asyncio.ensure_future(self._telemetry.run()))
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._upkeep.stop()
            await cancelled(*works)
        for work in done:
            work.result()

    def end_connections(self) -> None:
        """Reset the programs' connections, fail their queries. May be called twice."""
        self._held.reset_all()
        self._queries.fail_all()
        self._associations.end_all()
        self._pool.tunnel.reset_all()

    async def end(self) -> None:
        """End the session in order: the agent then leaves at once, not after its grace time."""
        answered = False
        if self._pool.tunnel.lanes:
            self._emptied.clear()
            self._pool.tunnel.session.say_goodbye(frames.GOODBYE_DONE, "")
            self._pool.tunnel.pump()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), GOODBYE_DEADLINE_S)
                answered = True
        if not answered and self._pool.tunnel.outlives_lanes and self._pool.is_resumable:
            is_lost = not self.is_up or not self._pool.tunnel.lanes
            self._report.say(FarSideNotTold(self.name, is_lost, self._terms.grace_s))
        self._held.reset_all()
        self._queries.close()
        self._associations.close()
        self._pool.tunnel.close()

    async def close(self) -> None:
        """End its ssh connections; ``end`` has been before."""
        await self._pool.close()

    # --- as a carrier -------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """False while the connection is lost."""
        return not self._upkeep.link.is_down

    def why_not(self) -> str:
        """Why no more connections can be taken just now; "": they can."""
        if not self.is_up or self._pool.tunnel.session.can_open:
            return ""
        return "as many connections are open as the far side allows"

    def connect(self, connection: Connection) -> Relay | None:
        """As in Carrier. While it is down, the connection is held."""
        if not isinstance(connection, (SocketConnection, LateConnection)):
            connection.refused(NOT_PERMITTED)  # no session's stream leads into another one
        elif self.is_up:
            return self._open(connection)
        else:
            self._held.hold(connection)
        return None

    def ask(self, question: Question) -> Asked:
        """As in Carrier; a resolver of the far side's choice answers."""
        if self.is_up:
            return self._queries.ask(self._pool.tunnel, question)
        question.refused(NO_RESOURCES)
        return Asked()

    def associate(self, association: Association) -> Outlet:
        """As in Carrier. While it is down, datagrams are lost, as on any cut cable."""
        return self._associations.associate(association)

    def _open(self, connection: SocketConnection | LateConnection) -> Relay | None:
        tunnel = self._pool.tunnel
        if not tunnel.session.can_open:
            connection.refused(NO_RESOURCES)
            return None
        (network, (host, port), _, _), wants_opened = connection.flow, connection.wants_opened
        stream = tunnel.open(Destination(network, host, port, wants_opened=wants_opened))
        if self._report.hears_streams and network != DNS:  # a resolver's address says nothing
            self._report.say(StreamOpened(self.name, stream.id, host, port))
        if isinstance(connection, LateConnection):
            return LateOpening(tunnel, stream, connection)
        if wants_opened:
            return Opening(tunnel, stream, connection)
        self._note_trusting(stream, (host, port))
        relay = tunnel.relay(stream)
        relay.start(connection.take())
        return relay

    def _note_trusting(self, stream: Stream, destination: Endpoint) -> None:
        if len(self._trusting) >= _MOST_TRUSTING:
            del self._trusting[next(iter(self._trusting))]
        self._trusting[stream.id] = destination

    # --- what can be seen ---------------------------------------------------------------------

    def peers(self) -> tuple[Endpoint, ...]:
        """Whom its ssh is connected to, as far as that can be seen."""
        return self._upkeep.note_peers()

    def sockets(self) -> Iterator[socket.socket]:
        """Ours, of the programs' connections, those included that wait."""
        for relay in self._pool.tunnel.relays:
            with suppress(ValueError):  # it has none yet
                yield relay.sock
        yield from self._held.sockets

    def moved(self) -> Traffic:
        """What has gone over its lanes so far."""
        return self._pool.moved()

    def snapshot(self) -> Snapshot:
        """Its figures just now."""
        moved, now, link = self.moved(), self._loop.time(), self._upkeep.link
        rtt_s = self._pool.tunnel.session.rtt_s
        if link.down_since is None:
            count = len(self._pool.tunnel.session.streams)
            return Snapshot(count, moved.received, moved.sent, rtt_s)
        next_at = link.next_attempt_at
        return Snapshot(
            len(self._pool.tunnel.relays) + len(self._held),
            moved.received,
            moved.sent,
            rtt_s,
            lost_for_s=now - link.down_since,
            next_attempt_s=None if next_at is None else max(next_at - now, 0.0),
        )

    # --- what happens -------------------------------------------------------------------------

    def on_news(self, why: str, *, asked: bool = False) -> None:
        """There is reason to doubt the link, or to hope; ``asked``: by a person."""
        self._upkeep.on_news(why, asked=asked)

    def on_down(self) -> None:
        """As the upkeep says."""
        self._queries.fail_all()
        self._owner.on_down(self)

    def on_up(self) -> None:
        """As the upkeep says."""
        self._held.release(self._open)
        self._owner.on_up(self)

    def on_datagram(self, event: DatagramReceived) -> bool:
        """As the tunnel says: somebody has written to a source of ours."""
        return self._associations.take_stranger(event)

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """As the tunnel says."""
        self._pool.on_lane_ended(lane, reason)
        if not self._pool.tunnel.lanes:
            self._emptied.set()
        self._upkeep.on_lane_ended(reason)

    def on_goodbye(self, code: int, sentence: str) -> None:
        """As the tunnel says."""
        if code != frames.GOODBYE_DONE:
            self._upkeep.on_goodbye(sentence or "its agent ended")

    def on_reset(self, stream: Stream, code: int) -> None:
        """As the tunnel says."""
        destination = self._trusting.pop(stream.id, None)
        if destination is not None and code in NOBODY_IS_THERE:
            self._owner.on_failed(destination)
        if self._report.hears_streams:
            why = MEANING_OF_RESET.get(code, "reset")
            self._report.say(StreamReset(self.name, stream.id, why))

    def on_forgotten(self) -> None:
        """As the tunnel says."""
        self._owner.on_freed()
