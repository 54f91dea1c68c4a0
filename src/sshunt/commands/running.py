"""The running session: what a process has once, and everything whose end ends it.

    programs --> fronts (redirect, datagrams, dns) --> router --> remotes
                                                         | down, up, peers
              network, resolvers, addresses ------> facts --> rules

It is the place where the parts meet that run side by side until the end. Made by ``up`` while ssh
logs in, for it takes most of what there is to load.

Not here: in which order things start and stop (up), what belongs to one far side (remote), which
rules the facts lead to (host.wanted).
"""

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sshunt.capture.plan import Connect, Plan
from sshunt.config.options import Options
from sshunt.direct.carrier import Direct
from sshunt.errors import ExitCode, UserError
from sshunt.front.arrival import Arrivals
from sshunt.front.datagram_sockets import DatagramSocket
from sshunt.front.datagrams import Datagrams
from sshunt.front.dns import DnsForwarder
from sshunt.front.dns_sockets import DnsSockets, left_alone, system_resolvers
from sshunt.front.echo import Echoes
from sshunt.front.held import HeldSyns
from sshunt.front.listener import Listener
from sshunt.front.original import OriginalDestinations
from sshunt.front.redirect import Redirected
from sshunt.front.splice import Splices
from sshunt.helper.packet_protocol import ECHO_KINDS, SYN_KINDS
from sshunt.helper.protocol import MAX_BYPASS
from sshunt.host.connecting import Connecting
from sshunt.host.namespace import entered
from sshunt.host.near_resolvers import near
from sshunt.host.network import NetworkEvents
from sshunt.host.retained_addresses import RetainedAddresses
from sshunt.host.rules import Rules
from sshunt.host.wanted import Facts, wanted
from sshunt.model import Action, Endpoint, Route
from sshunt.relay.reactor import AUTO, COPY, SPLICE, Reactor
from sshunt.remote.remote import Remote, RemoteOwner, Terms
from sshunt.route.router import Claim, Router
from sshunt.tell.console import Console
from sshunt.tell.control import ControlServer, about, says
from sshunt.tell.neighbours import ways_of_others
from sshunt.tell.report import (
    AddressesRetained,
    EchoesSkipped,
    PeersBypassed,
    RemoteClosed,
    Report,
    ResolversChanged,
    ResolversSkipped,
    SshPeerSeen,
    TargetsStayBlocked,
    UnseenWayFound,
)
from sshunt.tell.status import StatusLine
from sshunt.transport.channel import Transport
from sshunt.transport.endings import cancelled
from sshunt.transport.peers import behind, is_made_by_a_child

#: The interval at which the status line is drawn, and this host's own state looked at.
TICK_S = 1.0

#: The deadline for rules that are only needed to reset connections.
RESTORE_DEADLINE_S = 2.0

_WAYS = {"auto": AUTO, "always": SPLICE, "never": COPY}


class Up(RemoteOwner):
    """What a process has once: reactor, router, fronts, rules; and the remote that it is up for."""

    def __init__(
        self,
        options: Options,
        console: Console,
        report: Report,
        rules: Rules,
        transport: Transport,
        name: str,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bug: asyncio.Future[BaseException] = self._loop.create_future()
        self._loop.set_exception_handler(self._on_bug)
        self._up_at = self._loop.time()
        self._options = options
        self._console = console
        self._report = report
        self._rules = rules
        self._reactor = Reactor(self._loop, way=_WAYS[options.zero_copy])
        terms = Terms(
            name,
            lanes=options.lanes,
            grace_s=options.grace_s,
            max_retries=options.max_retries,
            is_attended=console.is_terminal,
        )
        self.remote = Remote(self._reactor, transport, report, self, terms)
        self._direct = Direct(self._reactor)
        self._router = Router(rest=self._direct)
        self._splices = Splices(self._reactor, self.on_freed)
        self.arrivals = Arrivals()
        self._echoes = Echoes(
            rules.packets.send, self._router.associate, self._loop.time, self._report
        )
        with entered(options.namespace):
            connecting = Connecting()
        self._held = HeldSyns(
            self._loop,
            rules.packets.send,
            self._router.connect,
            self.arrivals,
            self._is_ours,
            connecting,
        )
        rules.packets.subscribe(SYN_KINDS, self._held.hear)
        self._listeners: list[Listener] = []
        self._datagrams: Datagrams | None = None
        self._names: DnsForwarder | None = None
        self._facts = Facts(fail_open=options.fail_open)
        self._wanted = wanted(self._facts)
        self._stays_blocked = False  # at our end
        self._unseen_ways: tuple[Endpoint, ...] = ()  # other users' programs that ssh goes through
        self._ways_of_others: tuple[Endpoint, ...] = ()  # see neighbours
        self._events: NetworkEvents | None = None
        self._control: ControlServer | None = None
        self._retained = RetainedAddresses()
        self._uncovered = left_alone(ipv6=options.listen6 is not None)  # which has been said

    # --- its life -----------------------------------------------------------------------------

    def accept(
        self,
        socks: Iterable[socket.socket],
        datagram_sockets: Iterable[DatagramSocket],
        dns_sockets: Iterable[DnsSockets],
        routes: tuple[Route, ...],
    ) -> None:
        """Take what the kernel redirects to these, which are ours now: connections, datagrams,
        queries; and have it carried by the remote.
        """
        self._router.replace([Claim(self.remote, routes)], names=self.remote)
        for sock in socks:
            original = OriginalDestinations(sock).of
            redirected = Redirected(
                original,
                self._router.connect,
                self._splices,
                self._report,
                self.arrivals,
                self._held,
                self._is_our_socket,
            )
            take, why_not = redirected.take, self.remote.why_not
            listener = Listener(sock, self._loop, self._report, take, why_not)
            self._listeners.append(listener)
            listener.start()
        self._datagrams = Datagrams(
            self._loop,
            datagram_sockets,
            self._router,
            self._rules.packets,
            any_peer=self._options.any_peer,
        )
        self._datagrams.start()
        self._names = DnsForwarder(
            self._loop, self._report, dns_sockets, self._router, self._splices
        )
        self._names.resolvers = system_resolvers()
        self._names.start()

    def answers_echoes(self, *, there_are: bool) -> bool:
        """Answer echo requests from now on, if that is wanted; ``there_are``: it is possible."""
        if not there_are and self._options.ping:
            self._report.say(EchoesSkipped())
        if not there_are or not self._options.ping:
            return False
        self._rules.packets.subscribe(ECHO_KINDS, self._echoes.hear)
        return True

    async def ask_others(self) -> None:
        """Learn whom this user's other sessions are connected to: see ``neighbours``."""
        with suppress(RuntimeError):  # no thread can be had
            self._ways_of_others = await asyncio.to_thread(ways_of_others)

    async def capture(self, plan: Plan) -> None:
        """From now on: what the plan says, as rules; raises UserError."""
        wide = [r for r in plan.routes if r.action is Action.REMOTE and not r.network.is_private]
        if self._unseen_ways and wide:
            host, way = self._options.remote.host, self._unseen_ways[0]
            self._report.say(UnseenWayFound(self.remote.name, host, way))
        self._learn(
            plan=plan,
            peers=plan.bypass,
            resolvers=plan.resolvers,
            near_resolvers=self._near_resolvers(),
        )
        await self._rules.settled()

    def listen_to_others(self, place: socket.socket | None) -> None:
        """From now on: news of the network, and other commands of this user, at ``place``."""
        self._up_at = self._loop.time()
        self._events = NetworkEvents(self._loop, self._on_network)
        self._control = ControlServer(self._loop, place, self._answer)

    def listen_no_more(self) -> None:
        """The opposite."""
        if self._events is not None:
            self._events.close()
        if self._control is not None:
            self._control.close()

    async def watch(self, stop: "asyncio.Future[str]") -> None:
        """Return when asked to stop; raise UserError when something we need has ended."""
        looking = asyncio.ensure_future(self._look())
        running = asyncio.ensure_future(self.remote.run())
        helper_gone = asyncio.ensure_future(self._rules.gone.wait())
        works: list[asyncio.Future[Any]] = [looking, running, helper_gone]
        ends: list[asyncio.Future[Any]] = [stop, self._bug, self._rules.failed, *works]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(*works)
        self.raise_bug()
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

    def raise_bug(self) -> None:
        """Raise what the loop's handler of exceptions has got, if it was anything."""
        if self._bug.done():
            raise self._bug.result()

    async def restore_rules(self) -> None:
        """Have the rules again if --fail open has removed them: ``end_local`` follows."""
        if self._facts.plan is None or self._wanted.plan is not None:
            return
        if any(True for _ in self.remote.sockets()):
            self._facts = replace(self._facts, fail_open=False)
            self._learn()
            with suppress(UserError, asyncio.TimeoutError):  # it was worth trying
                await asyncio.wait_for(self._rules.settled(), RESTORE_DEADLINE_S)

    def stay_blocked(self) -> None:
        """We end without being asked to: ``unblock`` is not to do anything."""
        self._stays_blocked = True
        self._report.say(TargetsStayBlocked())

    async def unblock(self) -> None:
        """Lift the kill switch: we were asked to stop, or have yet to be up."""
        if not self._stays_blocked:
            await self._rules.unblock()

    def end_local(self) -> None:
        """Accept no more, and reset the programs' connections. May be called twice.

        Before the rules go: it is they that give the resets their addresses. Without them a reset
        comes from our listener, which the program has never heard of, and it would wait for ever.
        """
        for listener in self._listeners:
            listener.close()
        if self._datagrams is not None:
            self._datagrams.close()
        if self._names is not None:
            self._names.close()
        self._echoes.close()
        self._held.close()
        self.remote.end_connections()
        self._splices.close()
        self._direct.close()

    async def end(self) -> None:
        """End the remote's session, then what all would share."""
        await self.remote.end()
        self._reactor.close()

    def closed(self, signal: str) -> RemoteClosed:
        """What there is to say at the end; ``signal``: that asked for it, if one did."""
        moved, lasted_s = self.remote.moved(), self._loop.time() - self._up_at
        return RemoteClosed(self.remote.name, signal, lasted_s, moved.received, moved.sent)

    # --- what happens -------------------------------------------------------------------------

    def on_down(self, _remote: Remote) -> None:
        """As the remote says."""
        if self._names is not None:
            self._names.on_down()
        self._learn()

    def on_up(self, _remote: Remote) -> None:
        """As the remote says."""
        self._follow_resolvers()  # the helper refuses a plan with none but those of before
        self._learn(peers=self.peers())
        self._retain_addresses()

    def on_freed(self) -> None:
        """As the remote says."""
        for listener in self._listeners:
            listener.resume()

    def on_failed(self, destination: Endpoint) -> None:
        """As the remote says."""
        plan = self._facts.plan
        if plan is not None and plan.connect is Connect.AUTO:
            self._held.failed(destination)

    def _on_network(self, why: str) -> None:
        self.remote.on_news(why)
        self._retain_addresses()

    def _answer(self, verb: str) -> dict[str, object]:
        """What another command of this user asks; raises KeyError."""
        name = self.remote.name
        if verb == "about":
            return about(self._report, name)
        if verb != "reconnect":
            raise KeyError(verb)
        self.remote.on_news("asked to by sshunt reconnect", asked=True)
        does = "looking at the connection" if self.remote.is_up else "connecting again"
        return {"says": says(self._report, name, does)}

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if not self._bug.done():
            text = str(context.get("message"))
            self._bug.set_result(error if isinstance(error, BaseException) else RuntimeError(text))

    async def _look(self) -> None:
        """Every second: this host's clock, addresses and resolvers; the status line."""
        line = StatusLine(self._console, self.remote.snapshot(), TICK_S)
        while True:
            await asyncio.sleep(TICK_S)
            if self._events is not None:
                self._events.check_clock()
            if self._facts.retained:
                self._retain_addresses()
            self._follow_resolvers()
            self._held.look()
            self._rules.check_guard()
            if self._console.is_terminal:
                line.show(self.remote.snapshot())

    # --- facts, and the rules that follow from them -------------------------------------------

    def _learn(self, **news: Any) -> None:
        """Let the rules follow the facts, of which these are new."""
        before = self._wanted
        self._facts = replace(self._facts, is_down=not self.remote.is_up, **news)
        self._wanted = wanted(self._facts)
        if "peers" in news:
            self._report.say(PeersBypassed(self.remote.name, self._facts.peers))
        retained = self._wanted.retained
        if retained != before.retained and self._wanted.plan is not None:
            self._report.say(AddressesRetained(retained))
        self._rules.want(self._wanted)

    def peers(self) -> tuple[Endpoint, ...]:
        """Whom ssh is connected to; if that is a program on this host, also whom that one is. And
        the same of sessions that were there before.
        """
        peers = self.remote.peers()
        beyond, self._unseen_ways = behind(peers)
        return tuple(dict.fromkeys((*peers, *beyond, *self._ways_of_others)))

    def _is_our_socket(self, program: socket.socket, destination: Endpoint) -> bool:
        if self._rules.guarded:
            return False
        try:
            source_port = program.getpeername()[1]
        except OSError:
            return False  # it has gone
        return self._is_ours(source_port, destination)

    def _is_ours(self, source_port: int, destination: Endpoint) -> bool:
        """True for a connection of our own ssh to another address of its server. Only where no
        control group keeps those from being captured; the next one there will not be.
        """
        peers = self._facts.peers
        if self._rules.guarded or self._facts.plan is None:
            return False
        known_ports = {port for _, port in peers}
        if destination[1] not in known_ports and self.remote.is_up:
            return False  # looking at processes takes its time, and further lanes go the same way
        if not is_made_by_a_child(source_port):
            return False
        if destination not in peers:
            self._learn(peers=(*peers, destination)[-MAX_BYPASS:])
            self._report.say(SshPeerSeen(self.remote.name, destination[0]))
        return True

    def _retain_addresses(self) -> None:
        """Let the addresses that open connections bear stay this host's own."""
        self._learn(retained=self._retained.needed(_other_ends(self.remote.sockets())))

    def _near_resolvers(self) -> tuple[str, ...]:
        """Those that are left alone."""
        return () if self._options.dns else near(system_resolvers())

    def _follow_resolvers(self) -> None:
        """Another network has other resolvers."""
        if self._facts.plan is None:
            return
        if not self._options.dns:
            found = self._near_resolvers()
            if found != self._facts.near_resolvers:
                self._learn(near_resolvers=found)
            return
        found, beyond = system_resolvers(), left_alone(ipv6=self._options.listen6 is not None)
        if beyond != self._uncovered:
            self._uncovered = beyond
            if beyond:
                self._report.say(ResolversSkipped(beyond))
        if found != self._facts.resolvers:
            if self._names is not None:
                self._names.resolvers = found
            self._report.say(ResolversChanged(found))
            self._learn(resolvers=found)


def _other_ends(socks: Iterable[socket.socket]) -> set[str]:
    """The addresses of the programs' ends of all connections."""
    found = set()
    for sock in socks:
        with suppress(OSError):  # it is just being closed
            found.add(str(sock.getpeername()[0]).partition("%")[0])
    return found
