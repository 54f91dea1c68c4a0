"""The client: the composition root. It starts things in order, watches them, and stops them.

    1 names of targets are resolved          cheap errors first: nothing has been touched yet
    2 listeners are bound
    3 the helper is started                  asks for a password, if it must, before anything else
    4 the helper guards us by a cgroup       ssh, started from here on, is never captured
    5 ssh connects, the agent answers        may prompt as ssh does; meanwhile ``running`` is loaded
    6 the rules are applied                  last: nothing is captured that could not be forwarded
    7 ... until a signal, or the end of the helper; a lost ssh connection is made again (upkeep) ...
    8 all of it is undone in reverse         the programs' connections first, then the rules

Each step puts its undoing on one stack; whatever ends the session, a signal while starting
included, unwinds it. Every undoing has a deadline.

Invariants: the rules exist from step 6 to step 8, also while the connection is lost (unless --fail
open says otherwise): nothing leaks out another way; the client itself needs no privilege.
"""

import asyncio
import errno
import gc
import os
import secrets
import signal
import socket
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from sshunt.capture import links, nft
from sshunt.capture.plan import Plan, redirects, remote_regions
from sshunt.config.options import DEFAULT_LISTEN6, Options
from sshunt.errors import ExitCode, UserError
from sshunt.front.arrival import Arrivals, Prober, lost
from sshunt.front.dns_sockets import DnsSockets, left_alone, open_dns_sockets, system_resolvers
from sshunt.front.listener import CannotListen, bind
from sshunt.helper.protocol import MAX_ROUTES
from sshunt.host.elevate import HelperProcess, helper_command
from sshunt.host.helper import start_helper
from sshunt.host.own import has_ipv6, own_routes
from sshunt.host.rules import Rules
from sshunt.host.wanted import Wanted
from sshunt.model import Action, Endpoint, Route
from sshunt.relay.readiness import settle
from sshunt.relay.sockets import keep_heap, raise_descriptor_limit
from sshunt.remote.logins import Login
from sshunt.route.routes import resolve
from sshunt.tell import notify, session_name
from sshunt.tell.console import Console
from sshunt.tell.printer import Printer
from sshunt.tell.report import (
    FIRST_LOGIN,
    AgentStarted,
    CapturedLost,
    ForwardedBarred,
    ForwardedCaptured,
    ForwardedSkipped,
    HelperStarted,
    Ipv6ResolversSkipped,
    Ipv6Skipped,
    OwnAddressSkipped,
    RemoteConnected,
    Report,
    ResolversSkipped,
    RulesApplied,
    SessionNamed,
    ShutdownStarted,
    StartStopped,
    UnseenWayFound,
)
from sshunt.tell.sentences import ROUTES_SHOWN, route_text, uncovered
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.ssh import SshTransport
from sshunt.transport.ssh_choices import NOTHING, Choices, SshConfigQuery

if TYPE_CHECKING:
    from sshunt.commands.running import Up

#: See agent.server: our objects come by the thousand and none of them is garbage.
GC_THRESHOLD = 100_000

_DRY_RUN_HEAD = """\
# What root would run, through sudo or doas:
#   {helper}
# The rules that it would apply. Three things are known only when it runs: the session's name and
# the listeners' ports, which are chosen anew each time (unless --listen gives them); the control
# group of sshunt and its ssh, whose connections a rule of the output chain returns untouched; and
# the address of the ssh server, which goes into the bypass sets.
"""


def run(
    options: Options,
    console: Console,
    query: SshConfigQuery,
    helper_process: HelperProcess | None = None,
) -> int:
    """Bring the tunnel up and keep it up until it is asked to stop; the exit status. Raises
    UserError.

    ``query`` and ``helper_process``, a helper, were started already; whoever did closes them.
    """
    prober = Prober()
    try:
        return asyncio.run(_run(options, console, query, helper_process, prober))
    finally:
        prober.close()


def dry_run(options: Options, console: Console) -> str:
    """The rules that ``run`` would have the helper apply, as text for nft. Changes nothing."""
    report = Report(_raise)
    Printer(console, report)
    routes = asyncio.run(_routes(options, report))
    listeners, routes = _bind(options, routes, report)
    dns_sockets = _dns_sockets(options, report)
    try:
        plan = _plan(secrets.token_hex(4), listeners, routes, (), dns_sockets)
        rules = nft.render(plan, owner=True, cgroup=None, served=_served(plan, report))
    finally:
        for sock in (*listeners, *(sock for pair in dns_sockets for sock in pair)):
            sock.close()
    return _DRY_RUN_HEAD.format(helper=" ".join(helper_command())) + rules


async def _run(
    options: Options,
    console: Console,
    query: SshConfigQuery,
    helper_process: HelperProcess | None,
    prober: Prober,
) -> int:
    loop = asyncio.get_running_loop()
    report = Report(lambda error: loop.call_exception_handler(_bug_of_a_hearer(error)))
    Printer(console, report)
    report.subscribe(notify.hear)
    stop: asyncio.Future[str] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or `&` in a script
            loop.add_signal_handler(number, settle, stop, number.name)
    async with AsyncExitStack() as undo:
        starting = asyncio.ensure_future(
            _start(options, console, report, undo, query, helper_process, prober)
        )
        either: set[asyncio.Future[Any]] = {starting, stop}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError, UserError):
                await starting
            report.say(StartStopped(stop.result()))
            return ExitCode.SIGNALLED + signal.Signals[stop.result()]
        up = starting.result()
        by_signal = ""
        try:
            await up.watch(stop)
            by_signal = stop.result()
        finally:
            console.status("")
            report.say(up.closed(by_signal))
    return ExitCode.OK


def _bug_of_a_hearer(error: Exception) -> dict[str, Any]:
    return {"message": "something that happened could not be told", "exception": error}


def _raise(error: Exception) -> None:
    raise error


# --- start ------------------------------------------------------------------------------------


async def _start(
    options: Options,
    console: Console,
    report: Report,
    undo: AsyncExitStack,
    query: SshConfigQuery,
    helper_process: HelperProcess | None,
    prober: Prober,
) -> "Up":
    session_id, place = session_name.draw()
    if place is not None:
        undo.callback(place.close)
    report.say(SessionNamed(session_id))
    routes = await _routes(options, report)
    raise_descriptor_limit()
    keep_heap()
    listeners, routes = _bind(options, routes, report)
    dns_sockets = _dns_sockets(options, report)
    for sock in (*listeners, *(sock for pair in dns_sockets for sock in pair)):
        undo.callback(sock.close)
    _plan(session_id, listeners, routes, ())  # too many routes are told before a password is asked

    helper = await start_helper(session=session_id, process=helper_process)
    rules = Rules(helper, report)
    undo.push_async_callback(rules.close)
    rules.want(Wanted())
    await rules.settled()
    report.say(HelperStarted(rules.guarded))
    if dns_sockets and not rules.guarded:
        raise UserError(
            "DNS can't be forwarded here: without a control group (cgroup v2) ssh's own queries"
            " can't be told from others, and it could not find its server again",
            "leave --dns out",
            ExitCode.CAPTURE,
        )

    undo.callback(query.close)  # what ends us while we wait for it ends it, too
    choices = await _chosen(query)
    name = options.remote.host
    transport = SshTransport(options.remote, choices)
    await transport.start(Login(report, name, FIRST_LOGIN))
    undo.push_async_callback(transport.abandon_started)
    # The rest of the program is loaded while ssh logs in.
    from sshunt.commands.running import Up
    from sshunt.tell.control import sessions
    from sshunt.tell.neighbours import ways_of_others

    # Where another session of this user's runs, lines must tell them apart.
    others = sessions()
    name += f" [{session_id}]" if others else ""
    up = Up(options, console, report, rules, transport, name)
    undo.push_async_callback(up.remote.close)
    undo.push_async_callback(up.end)
    undo.callback(up.end_local)
    await up.remote.start()
    size = len(agent_bundle().data)  # connect has made it
    report.say(AgentStarted(name, size, tuple(choices.cipher)))
    up.accept(listeners, dns_sockets, routes)

    await up.remote.check()
    if others:
        with suppress(RuntimeError):  # no thread can be had
            up.ways_of_others = await asyncio.to_thread(ways_of_others)
    plan = _plan(session_id, listeners, routes, up.peers(), dns_sockets)
    if up.unseen_ways and any(not route.network.is_private for route in _remote(routes)):
        report.say(UnseenWayFound(name, options.remote.host, up.unseen_ways[0]))
    await up.capture(plan)
    _served(plan, report)
    report.say(RulesApplied(by_kernel=rules.owner))
    undo.push_async_callback(rules.undo)
    undo.callback(up.end_local)
    gc.freeze()  # what start-up made stays: the collector need not look at it again
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    gc.enable()
    rtt_s = await up.remote.first_rtt()
    await up.remote.check()
    up.listen_to_others(place)
    undo.callback(up.listen_no_more)
    served = tuple(_remote(routes))
    report.say(RemoteConnected(name, options.remote.host, rtt_s, served, options.dns))
    undo.callback(report.say, ShutdownStarted())
    looking = asyncio.ensure_future(_look_at_arrivals(prober, up.arrivals, plan, rules, report))
    undo.callback(looking.cancel)
    return up


async def _look_at_arrivals(
    prober: Prober, arrivals: Arrivals, plan: Plan, rules: Rules, report: Report
) -> None:
    """Say so if what the rules redirect does not arrive here, or may not."""
    families = [family for family in (4, 6) if plan.listener(family) is not None]
    in_vain = await lost(prober, arrivals, plan.routes, families, report)
    prober.close()
    forwards = [family for family in (4, 6) if plan.forwards(family)]
    if not in_vain and not forwards:
        return
    with suppress(UserError):  # it is gone, and others say so
        chains = await rules.suspects()
        if in_vain:
            report.say(CapturedLost(in_vain, tuple(chains)))
        gates = tuple(chain for chain in chains if "(input: drops" in chain)
        if forwards and gates:
            _, port = plan.listener(forwards[0]) or ("", 0)
            report.say(ForwardedBarred(port, gates))


async def _routes(options: Options, report: Report) -> tuple[Route, ...]:
    loop = asyncio.get_running_loop()
    routes = await resolve(
        options.targets,
        options.excludes,
        ipv6=options.listen6 is not None,
        getaddrinfo=loop.getaddrinfo,
    )
    own = own_routes(routes)
    if own and len(own) == len(_remote(routes)):
        raise UserError(
            f"{route_text(own[0])} is this host itself, and what goes there is never captured",
            "for what listens on the server's own localhost: ssh -L 8080:localhost:80 HOST",
            ExitCode.USAGE,
        )
    for route in own[:ROUTES_SHOWN]:
        report.say(OwnAddressSkipped(route))
    return routes


def _bind(
    options: Options, routes: tuple[Route, ...], report: Report
) -> tuple[list[socket.socket], tuple[Route, ...]]:
    """The listeners, one for each family that has something to capture, and the routes that have
    one; raises UserError.

    A host without IPv6 has no ::1. What it can't have and nobody asked for by --listen is left
    alone, with a line that says so: a name's IPv6 address must not keep its IPv4 one from working.
    But only where nothing of this host gets anywhere over IPv6: it would go past the tunnel.
    """
    listeners: list[socket.socket] = []
    try:
        for family, endpoint in ((4, options.listen4), (6, options.listen6)):
            wanted = [r for r in routes if r.network.version == family]
            if endpoint is None or not any(r.action is Action.REMOTE for r in wanted):
                continue
            try:
                listeners.append(bind(endpoint))
            except CannotListen as error:
                rest = tuple(r for r in routes if r not in wanted)
                no_family = error.error_number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                optional = no_family and endpoint == DEFAULT_LISTEN6
                if optional and has_ipv6():
                    raise _no_loopback6("IPv6 targets")
                if not optional or not _remote(rest):
                    raise
                report.say(Ipv6Skipped())
                routes = rest
    except BaseException:
        for sock in listeners:
            sock.close()
        raise
    return listeners, routes


def _dns_sockets(options: Options, report: Report) -> list[DnsSockets]:
    """Where DNS queries arrive, for each family; raises UserError."""
    if not options.dns:
        return []
    beyond = left_alone(ipv6=options.listen6 is not None)
    if beyond and set(system_resolvers()) <= set(beyond):
        raise UserError(
            uncovered(beyond),
            "name another resolver in /etc/resolv.conf (a local one will do), or leave --dns out",
            ExitCode.CAPTURE,
        )
    if beyond:
        report.say(ResolversSkipped(beyond))
    dns_sockets = [open_dns_sockets(4)]
    if options.listen6 is not None:
        try:
            dns_sockets.append(open_dns_sockets(6))
        except CannotListen as error:  # a host without IPv6
            if has_ipv6() and any(":" in address for address in system_resolvers()):
                dns_sockets[0].close()
                raise _no_loopback6("queries to IPv6 resolvers")
            report.say(Ipv6ResolversSkipped(error.message))
    return dns_sockets


def _no_loopback6(what: str) -> UserError:
    return UserError(
        f"this host has IPv6, but no ::1 to accept anything at: {what} would go past the tunnel",
        "give it one: ip address add ::1/128 dev lo; or leave IPv6 alone: --disable-ipv6",
        ExitCode.LISTEN,
    )


def _plan(
    session_id: str,
    listeners: list[socket.socket],
    routes: tuple[Route, ...],
    bypass: tuple[Endpoint, ...],
    dns_sockets: Iterable[DnsSockets] = (),
) -> Plan:
    """What the helper is asked for; raises UserError if that is more than it takes."""
    queries = [pair.endpoint for pair in dns_sockets]
    plan = Plan(
        session=session_id,
        redirects=redirects([sock.getsockname()[:2] for sock in listeners], queries),
        routes=routes,
        bypass=bypass,
        resolvers=system_resolvers() if queries else (),
    )
    try:
        if len(routes) > MAX_ROUTES:
            raise ValueError(f"{len(routes)} routes, and {MAX_ROUTES} are the limit")
        for family in (4, 6):
            remote_regions(routes, family)
    except ValueError as error:
        raise UserError(str(error), "use fewer, wider networks", ExitCode.USAGE)
    return plan


def _remote(routes: tuple[Route, ...]) -> list[Route]:
    return [route for route in routes if route.action is Action.REMOTE]


def _served(plan: Plan, report: Report) -> Mapping[int, links.Links]:
    """From which links other hosts are served; says so."""
    if not (plan.forwards(4) or plan.forwards(6)):
        return {4: (), 6: ()}
    from sshunt.host.retained_addresses import (
        link_of,  # takes its time to load, and most don't need it
    )

    proc = links.open_proc()
    try:
        served = links.served(plan, proc, link_of)
    finally:
        os.close(proc)
    for family in (4, 6):
        if refusal := links.refusal(plan, family, served[family]):
            report.say(ForwardedSkipped(family, refusal))
        elif plan.forwards(family):
            report.say(ForwardedCaptured(family, tuple(served[family] or ())))
    return served


async def _chosen(query: SshConfigQuery) -> Choices:
    """In a thread: no trace of the processes is left in the loop, which may be about to end."""
    try:
        return await asyncio.to_thread(query.result)
    except RuntimeError:  # no thread can be had
        return NOTHING
