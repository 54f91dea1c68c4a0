"""The running session: its tunnel, its lanes, and everything whose end ends it.

Made by ``up`` while ssh logs in, for it takes most of what there is to load. It is the place
where the parts meet that run side by side until the end: the upkeep, the helper, the listeners, the
telemetry, the news of the network, other commands of this user.

Not here: in which order things start and stop (up).
"""

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sshunt.capture.plan import Plan
from sshunt.config.options import Options
from sshunt.errors import ExitCode, UserError
from sshunt.front.arrival import Arrivals
from sshunt.front.dns import DnsForwarder
from sshunt.front.dns_sockets import DnsSockets, left_alone, system_resolvers
from sshunt.front.listener import Listener
from sshunt.front.original import OriginalDestinations
from sshunt.front.redirect import Redirected
from sshunt.helper.protocol import MAX_BYPASS
from sshunt.host.network import NetworkEvents
from sshunt.host.retained_addresses import RetainedAddresses
from sshunt.host.rules import Rules
from sshunt.host.wanted import Facts, wanted
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.streams import Stream
from sshunt.relay.lane import LaneIO
from sshunt.relay.reactor import AUTO, COPY, SPLICE, Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner
from sshunt.remote.holding import HeldConnections
from sshunt.remote.pool import Pool, new_session
from sshunt.remote.queries import Queries
from sshunt.remote.telemetry import Telemetry, traffic
from sshunt.remote.upkeep import Upkeep
from sshunt.tell.console import Console
from sshunt.tell.control import ControlServer, about, says
from sshunt.tell.report import (
    AddressesRetained,
    FarSideNotTold,
    PeersBypassed,
    RemoteClosed,
    Report,
    ResolversChanged,
    ResolversSkipped,
    SshPeerSeen,
    StreamOpened,
    StreamReset,
)
from sshunt.tell.status import Snapshot, StatusLine
from sshunt.transport.channel import Transport
from sshunt.transport.endings import cancelled
from sshunt.transport.peers import behind, is_made_by_a_child

#: How long the far side may take to answer our goodbye before we just hang up.
GOODBYE_DEADLINE_S = 1.0

#: How long ssh may take to end by itself once its pipes are closed.
SSH_END_DEADLINE_S = 0.5

#: How long the first round trip through the lane is waited for, to show it.
FIRST_RTT_DEADLINE_S = 2.0

#: The status line is redrawn this often.
STATUS_EVERY_S = 1.0

_WAYS = {"auto": AUTO, "always": SPLICE, "never": COPY}


class Up(TunnelOwner):
    """The running session: its tunnel, its lanes, and everything whose end ends it."""

    def __init__(
        self,
        options: Options,
        console: Console,
        report: Report,
        rules: Rules,
        transport: Transport,
        name: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name  # of the server, as lines for people call it
        self._up_at = loop.time()
        self._options = options
        self._console = console
        self._report = report
        self._rules = rules
        self._facts = Facts(fail_open=options.fail_open)
        self._wanted = wanted(self._facts)
        self.listeners: list[Listener] = []
        self.arrivals = Arrivals()
        self.names: DnsForwarder | None = None
        self.unseen_ways: tuple[Endpoint, ...] = ()  # programs of other users that ssh goes through
        self.ways_of_others: tuple[Endpoint, ...] = ()  # see neighbours
        self._emptied = asyncio.Event()  # the last lane has ended
        self._bug: asyncio.Future[BaseException] = loop.create_future()
        loop.set_exception_handler(self._on_bug)
        # What the far side grants is known when it has answered; ours grants what is taken here.
        self._reactor = Reactor(loop, way=_WAYS[options.zero_copy])
        self.tunnel = Tunnel(self._reactor, new_session(), self, outlives_lanes=options.grace_s > 0)
        self.held = HeldConnections(self.tunnel)
        self.queries = Queries(self.tunnel, lambda: self.is_down)
        self.pool = Pool(
            self.tunnel,
            transport,
            report,
            name,
            most=options.lanes,
            grace_s=options.grace_s,
        )
        self._upkeep = Upkeep(
            name,
            self.tunnel,
            transport,
            self.pool,
            report,
            self,
            is_attended=console.is_terminal,
            grace_s=options.grace_s,
            max_retries=options.max_retries,
        )
        self._telemetry = Telemetry(name, self.tunnel, self.pool, report)
        self._events: NetworkEvents | None = None
        self._control: ControlServer | None = None
        self._retained = RetainedAddresses()
        self._uncovered = left_alone(ipv6=options.listen6 is not None)  # which has been said

    def let_in(self, socks: Iterable[socket.socket], dns_sockets: Iterable[DnsSockets]) -> None:
        """Accept what the kernel redirects to these, which are ours now: connections, queries."""
        loop, report = self.tunnel.loop, self._report
        for sock in socks:
            original = OriginalDestinations(sock).of
            redirected = Redirected(original, self._carry, report, self.arrivals, self._is_ours)
            listener = Listener(sock, loop, report, redirected.take, self._why_not)
            self.listeners.append(listener)
            listener.start()
        self.names = DnsForwarder(loop, report, dns_sockets, self.queries)
        self.names.resolvers = system_resolvers()
        self.names.start()

    @property
    def is_down(self) -> bool:
        """True while the connection is lost."""
        return self._upkeep.link.is_down

    def _why_not(self) -> str:
        """Why no more connections can be taken just now; "": they can."""
        if self.is_down or self.tunnel.session.can_open:
            return ""
        return "as many connections are open as the far side allows"

    def _carry(self, sock: socket.socket, endpoint: Endpoint) -> None:
        """``sock``, a program's connection to ``endpoint``, is ours from now on. While the far side
        is lost, it waits.
        """
        destination = Destination(TCP, *endpoint, wants_opened=False)
        if self.is_down:
            self.held.hold(sock, destination)
        else:
            self._open(sock, destination)

    def _open(self, sock: socket.socket, destination: Destination) -> None:
        stream = self.tunnel.open(destination)
        if self._report.hears_streams:
            self._report.say(StreamOpened(self.name, stream.id, destination.host, destination.port))
        self.tunnel.relay(stream).start(sock)

    def _is_ours(self, program: socket.socket, destination: Endpoint) -> bool:
        """True for a connection of our own ssh to another address of its server. Only where no
        control group keeps those from being captured; the next one there will not be.
        """
        peers = self._facts.peers
        if self._rules.guarded or self._facts.plan is None:
            return False
        known_ports = {port for _, port in peers}
        if destination[1] not in known_ports and not self.is_down:
            return False  # looking at processes takes its time, and further lanes go the same way
        try:
            source_port = program.getpeername()[1]
        except OSError:
            return False  # it has gone
        if not is_made_by_a_child(source_port):
            return False
        if destination not in peers:
            self._learn(peers=(*peers, destination)[-MAX_BYPASS:])
            self._report.say(SshPeerSeen(self.name, destination[0]))
        return True

    async def capture(self, plan: Plan) -> None:
        """From now on: what the plan says, as rules; raises UserError."""
        self._learn(plan=plan, peers=plan.bypass, resolvers=plan.resolvers)
        await self._rules.settled()

    def _learn(self, **news: Any) -> None:
        """Let the rules follow the facts, of which these are new."""
        before = self._wanted
        self._facts = replace(self._facts, is_down=self.is_down, **news)
        self._wanted = wanted(self._facts)
        if "peers" in news:
            self._report.say(PeersBypassed(self.name, self._facts.peers))
        retained = self._wanted.retained
        if retained != before.retained and self._wanted.plan is not None:
            self._report.say(AddressesRetained(retained))
        self._rules.want(self._wanted)

    def peers(self) -> tuple[Endpoint, ...]:
        """Whom ssh is connected to; if that is a program on this host, also whom that one is. And
        the same of sessions that were there before.
        """
        peers = self._upkeep.note_peers()
        beyond, self.unseen_ways = behind(peers)
        return tuple(dict.fromkeys((*peers, *beyond, *self.ways_of_others)))

    def listen_to_others(self, place: socket.socket | None) -> None:
        """From now on: news of the network, and other commands of this user, at ``place``."""
        loop = self.tunnel.loop
        self._up_at = loop.time()
        self._events = NetworkEvents(loop, self._on_network)
        self._control = ControlServer(loop, place, self._answer)

    def listen_no_more(self) -> None:
        """The opposite."""
        if self._events is not None:
            self._events.close()
        if self._control is not None:
            self._control.close()

    def _answer(self, verb: str) -> dict[str, object]:
        """What another command of this user asks; raises KeyError."""
        if verb == "about":
            return about(self._report, self.name)
        if verb != "reconnect":
            raise KeyError(verb)
        self._upkeep.on_news("asked to by sshunt reconnect", asked=True)
        does = "connecting again" if self.is_down else "looking at the connection"
        return {"says": says(self._report, self.name, does)}

    def closed(self, signal: str) -> RemoteClosed:
        """What there is to say at the end; ``signal``: that asked for it, if one did."""
        moved = traffic(self.tunnel)
        lasted_s = self.tunnel.loop.time() - self._up_at
        return RemoteClosed(self.name, signal, lasted_s, moved.received, moved.sent)

    async def first_rtt(self) -> float:
        """The first measured round-trip time in seconds, 0 if it takes too long."""
        deadline = self.tunnel.loop.time() + FIRST_RTT_DEADLINE_S
        while (
            not self.tunnel.session.rtt_s
            and self.tunnel.lanes
            and self.tunnel.loop.time() < deadline
        ):
            await asyncio.sleep(0.002)
        return self.tunnel.session.rtt_s

    async def check(self) -> None:
        """Raise UserError if the session has been lost while we were still starting."""
        last = self.pool.last
        if self.tunnel.lanes or last is None:
            return
        await asyncio.wait({last.ended}, timeout=SSH_END_DEADLINE_S)
        raise UserError(
            f"the connection to {self.name} was lost while starting:"
            f" {last.last_words() or 'the far side closed it'}",
            "check the network and the ssh server, then start sshunt again",
            ExitCode.LOST,
        )

    async def watch(self, stop: "asyncio.Future[str]") -> None:
        """Return when asked to stop; raise UserError when something we need has ended."""
        status = asyncio.ensure_future(self._show_status())
        keeping = asyncio.ensure_future(self._upkeep.run())
        helper_gone = asyncio.ensure_future(self._rules.gone.wait())
        works: list[asyncio.Future[Any]] = [status, keeping, helper_gone]
        if self.pool.may_be_several or self._console.verbosity:  # else nobody would do anything
            works.append(asyncio.ensure_future(self._telemetry.run()))
        ends: list[asyncio.Future[Any]] = [stop, self._bug, self._rules.failed, *works]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._upkeep.stop()
            for work in works:
                work.cancel()
            for work in works:
                await cancelled(work)
        if self._bug.done():
            raise self._bug.result()
        if self._rules.failed.done():
            raise self._rules.failed.result()
        if stop.done():
            return
        if self._rules.gone.is_set():
            removed = "the kernel has removed them" if self._rules.owner else "they stay in place"
            raise UserError(
                f"the helper that holds the rules ended: {removed}",
                "start sshunt again (it removes what is left of such sessions)",
                ExitCode.LOST,
            )
        for work in works:
            if not work.cancelled():
                work.result()

    def end_local(self) -> None:
        """Accept no more, and reset the programs' connections. May be called twice.

        Before the rules go: it is they that give the resets their addresses. Without them a reset
        comes from our listener, which the program has never heard of, and it would wait for ever.
        """
        for listener in self.listeners:
            listener.close()
        if self.names is not None:
            self.names.close()
        self.queries.close()
        self.held.reset_all()
        self.tunnel.reset_all()

    async def say_goodbye(self) -> None:
        """End the session in order: the agent then leaves at once, not after its grace time."""
        answered = False
        if self.tunnel.lanes:
            self._emptied.clear()
            self.tunnel.session.say_goodbye(frames.GOODBYE_DONE, "")
            self.tunnel.pump()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), GOODBYE_DEADLINE_S)
                answered = True
        if not answered and self.tunnel.outlives_lanes and self.pool.is_resumable:
            lost = self.is_down or not self.tunnel.lanes
            self._report.say(FarSideNotTold(self.name, lost, self._options.grace_s))
        self.tunnel.close()
        self._reactor.close()

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """As the tunnel says."""
        self.pool.on_lane_ended(lane, reason)
        if not self.tunnel.lanes:
            self._emptied.set()
        self._upkeep.on_lane_ended(reason)

    def on_goodbye(self, code: int, sentence: str) -> None:
        """As the tunnel says."""
        if code != frames.GOODBYE_DONE:
            self._upkeep.on_goodbye(sentence or "its agent ended")

    def on_down(self) -> None:
        """No lane works any more."""
        self.queries.on_down()
        if self.names is not None:
            self.names.on_down()
        self._learn()

    def on_up(self) -> None:
        """A lane works again."""
        self.held.release(self._open)
        self._learn(peers=self.peers())
        self._retain_addresses()

    def _on_network(self, why: str) -> None:
        self._upkeep.on_news(why)
        self._retain_addresses()

    def _retain_addresses(self) -> None:
        """Let the addresses that open connections bear stay this host's own."""
        relayed = [relay.sock for relay in self.tunnel.relays]
        ends = _other_ends([*relayed, *self.held.sockets])
        self._learn(retained=self._retained.needed(ends))

    def _follow_resolvers(self) -> None:
        """Another network has other resolvers."""
        if not self._options.dns or self._facts.plan is None:
            return
        found, beyond = system_resolvers(), left_alone(ipv6=self._options.listen6 is not None)
        if beyond != self._uncovered:
            self._uncovered = beyond
            if beyond:
                self._report.say(ResolversSkipped(beyond))
        if found != self._facts.resolvers:
            if self.names is not None:
                self.names.resolvers = found
            self._report.say(ResolversChanged(found))
            self._learn(resolvers=found)

    def on_reset(self, stream: Stream, code: int) -> None:
        """As the tunnel says."""
        if self._report.hears_streams:
            why = frames.MEANING_OF_RESET.get(code, "reset")
            self._report.say(StreamReset(self.name, stream.id, why))

    def on_forgotten(self) -> None:
        """As the tunnel says."""
        for listener in self.listeners:
            listener.resume()

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if not self._bug.done():
            text = str(context.get("message"))
            self._bug.set_result(error if isinstance(error, BaseException) else RuntimeError(text))

    async def _show_status(self) -> None:
        line = StatusLine(self._console, self._snapshot(), STATUS_EVERY_S)
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            if self._events is not None:
                self._events.check_clock()
            if self._facts.retained:
                self._retain_addresses()
            self._follow_resolvers()
            if self._console.is_terminal:
                line.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        moved, now = traffic(self.tunnel), self.tunnel.loop.time()
        rtt_s = self.tunnel.session.rtt_s
        lost_at, next_at = self._upkeep.link.down_since, self._upkeep.link.next_attempt_at
        if lost_at is None:
            connections = len(self.tunnel.session.streams)
            return Snapshot(connections, moved.received, moved.sent, rtt_s)
        return Snapshot(
            len(self.tunnel.relays) + len(self.held),
            moved.received,
            moved.sent,
            rtt_s,
            lost_for_s=now - lost_at,
            next_attempt_s=None if next_at is None else max(next_at - now, 0.0),
        )


def _other_ends(socks: Iterable[socket.socket]) -> set[str]:
    """The addresses of the programs' ends of all connections."""
    found = set()
    for sock in socks:
        with suppress(OSError):  # it is just being closed
            found.add(str(sock.getpeername()[0]).partition("%")[0])
    return found
