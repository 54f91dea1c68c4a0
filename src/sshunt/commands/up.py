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
open says otherwise): nothing leaks out another way. A kill switch (--fail block) is made before
them, and goes after them, but only if we were asked to stop; the client itself needs no privilege.
"""

import asyncio
import gc
import os
import secrets
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from sshunt.capture import echo_rules, iptables, nft, nft_held
from sshunt.capture.block import render_block
from sshunt.capture.links import addresses_of
from sshunt.capture.plan import DNS_PORT, Connect, Method, Plan
from sshunt.commands.captured import Captured, open_sockets, resolve_routes, served
from sshunt.config.options import Options
from sshunt.errors import ExitCode, UserError
from sshunt.front.arrival import Arrivals, Prober, lost
from sshunt.front.dns_sockets import system_resolvers
from sshunt.helper.protocol import Refusal
from sshunt.host.elevate import HelperProcess, helper_command
from sshunt.host.helper import CaptureRefused, start_helper
from sshunt.host.namespace import entered
from sshunt.host.near_resolvers import near
from sshunt.host.rules import Rules
from sshunt.host.wanted import Wanted
from sshunt.relay.readiness import settle
from sshunt.relay.sockets import GC_THRESHOLD, keep_heap, raise_descriptor_limit
from sshunt.remote.logins import Login
from sshunt.tell import notify, session_name
from sshunt.tell.console import Console
from sshunt.tell.printer import Printer
from sshunt.tell.report import (
    FIRST_LOGIN,
    AgentStarted,
    ByIptables,
    CapturedLost,
    ConnectedAtOnce,
    ForwardedBarred,
    HelperStarted,
    MethodTried,
    OthersBlock,
    RemoteConnected,
    Report,
    RulesApplied,
    SessionNamed,
    ShutdownStarted,
    StartStopped,
    TargetsBlocked,
    UdpSkipped,
)
from sshunt.transport.endings import cancelled
from sshunt.transport.ssh import SshTransport
from sshunt.transport.ssh_choices import NOTHING, Choices, SshConfigQuery

if TYPE_CHECKING:
    from sshunt.commands.running import Up

_DRY_RUN_HEAD = """\
# What root would run, through sudo or doas:
#   {helper}
# The rules that it would apply. Four things are known only when it runs: the session's name and
# the listeners' ports, which are chosen anew each time (unless --listen gives them); the control
# group of sshunt and its ssh, whose connections a rule of the output chain returns untouched; the
# address of the ssh server, which goes into the bypass sets; and which NFLOG groups are free.
"""


#: What the helper says where this host has no nf_tables, and iptables may be there.
_WITHOUT_NF_TABLES = (Refusal.NO_NFT, Refusal.NO_NF_TABLES)


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
    with entered(options.namespace):
        prober = Prober()
    try:
        return asyncio.run(_run(options, console, query, helper_process, prober))
    finally:
        prober.close()


def dry_run(options: Options, console: Console) -> str:
    """The rules that ``run`` would have the helper apply, as text for nft. Changes nothing."""
    from sshunt.host.retained_addresses import links_of_all  # takes its time to load

    report = Report(_raise)
    Printer(console, report)
    routes = asyncio.run(resolve_routes(options, report))
    with entered(options.namespace):
        captured = open_sockets(options, routes, report)
    try:
        captured.check()
        spared = () if options.dns else near(system_resolvers())
        bypass = tuple((address, DNS_PORT) for address in spared)
        connect = Connect(options.connect)
        plan = captured.plan(secrets.token_hex(4), bypass, connect=connect, echoes=options.ping)
        if options.method == Method.NAT:
            links = served(plan, report)
            texts = (
                iptables.render(plan, family, cgroup=None, served=links[family], is_first=True)
                for family in (4, 6)
                if plan.listener(family) or plan.dns(family)
            )
            return _DRY_RUN_HEAD.format(helper=" ".join(helper_command())) + "".join(texts)
        groups = nft.PacketGroups(nft_held.GROUPS.start, echo_rules.GROUPS.start)
        with entered(options.namespace):
            links = served(plan, report)
            own = addresses_of(links, links_of_all())
        rules = nft.render(plan, owner=True, cgroup=None, served=links, packets=groups, own=own)
        if plan.blocks:
            rules = render_block(plan, os.getuid(), None, persists=True) + rules
    finally:
        captured.close()
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
            await cancelled(starting)
            if not starting.cancelled() and not isinstance(starting.exception(), UserError):
                starting.result()  # raises what was a bug
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
            if options.fail_block and not by_signal:
                up.stay_blocked()
    up.raise_bug()  # of the end, for nobody else looks any more
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
    captured = await _open_sockets(options, report, undo)
    captured.check()  # too many routes are told before a password is asked
    rules, method = await _ask_helper(options, session_id, helper_process, report, undo)
    if method is Method.NAT:
        captured.leave_udp_alone()
        report.say(ByIptables())
    _check_guard(captured, rules, method)
    up = await _log_in(options, console, report, rules, query, session_id, undo)
    await _check_udp(captured, rules, report)
    up.accept(captured.listeners, captured.datagrams, captured.dns_sockets, captured.routes)
    await up.remote.check()
    plan = await _capture(options, up, captured, session_id, method, rules, report, undo)
    _freeze_memory()
    rtt_s = await up.remote.first_rtt()
    await up.remote.check()
    up.listen_to_others(place)
    undo.callback(up.listen_no_more)
    name, host = up.remote.name, options.remote.host
    report.say(RemoteConnected(name, host, rtt_s, captured.remote_routes, options.dns))
    undo.callback(report.say, ShutdownStarted())
    looking = asyncio.ensure_future(_look_at_arrivals(prober, up.arrivals, plan, rules, report))
    undo.callback(looking.cancel)
    return up


async def _open_sockets(options: Options, report: Report, undo: AsyncExitStack) -> Captured:
    routes = await resolve_routes(options, report)
    raise_descriptor_limit()
    keep_heap()
    with entered(options.namespace):
        captured = open_sockets(options, routes, report)
    undo.callback(captured.close)
    return captured


async def _ask_helper(
    options: Options,
    session_id: str,
    helper_process: HelperProcess | None,
    report: Report,
    undo: AsyncExitStack,
) -> tuple[Rules, Method]:
    """The helper, which guards us from here on; and how it captures."""
    method = Method.NFT if options.method == "auto" else Method(options.method)
    try:
        helper = await start_helper(
            session=session_id, process=helper_process, report=report, method=method
        )
    except CaptureRefused as error:
        if options.method != "auto" or error.kind not in _WITHOUT_NF_TABLES:
            raise
        report.say(MethodTried(method.value, error.message))
        method = Method.NAT
        try:
            helper = await start_helper(session=session_id, report=report, method=method)
        except CaptureRefused as other:
            if other.kind is Refusal.NO_IPTABLES:
                raise error from other  # nftables are what should be there
            raise
    rules = Rules(helper, report)
    undo.push_async_callback(rules.close)
    rules.want(Wanted())
    await rules.settled()
    report.say(HelperStarted(rules.guarded))
    rules.start_packets()  # meanwhile ssh logs in
    return rules, method


def _check_guard(captured: Captured, rules: Rules, method: Method) -> None:
    if captured.blocks and method is Method.NAT:
        raise UserError(
            "iptables' rules end with sshunt, and block nothing after it",
            "leave --fail block out, or capture with nftables: --method nft",
            ExitCode.CAPTURE,
        )
    if captured.blocks and not rules.guarded:
        raise UserError(
            "the targets can't be blocked here: without a control group (cgroup v2) ssh itself"
            " can't be told from others, and it could not find its server again",
            "leave --fail block out",
            ExitCode.CAPTURE,
        )
    if captured.dns_sockets and not rules.guarded:
        raise UserError(
            "DNS can't be forwarded here: without a control group (cgroup v2) ssh's own queries"
            " can't be told from others, and it could not find its server again",
            "leave --dns out",
            ExitCode.CAPTURE,
        )


async def _check_udp(captured: Captured, rules: Rules, report: Report) -> None:
    if captured.datagrams and not (await rules.looks_at()).datagrams:
        captured.leave_udp_alone()
        report.say(UdpSkipped())


async def _log_in(
    options: Options,
    console: Console,
    report: Report,
    rules: Rules,
    query: SshConfigQuery,
    session_id: str,
    undo: AsyncExitStack,
) -> "Up":
    """The remote, up. ssh is started first; while it logs in the rest of the program is loaded."""
    undo.callback(query.close)  # what ends us while we wait for it ends it, too
    choices = await _chosen(query)
    transport = SshTransport(options.remote, choices)
    name = options.remote.host
    await transport.start(Login(report, name, FIRST_LOGIN))
    undo.push_async_callback(transport.abandon_started)
    from sshunt.commands.running import Up
    from sshunt.tell.control import sessions
    from sshunt.transport.bundle import agent_bundle

    # Where another session of this user's runs, lines must tell them apart.
    others = sessions()
    name += f" [{session_id}]" if others else ""
    up = Up(options, console, report, rules, transport, name)
    undo.push_async_callback(up.remote.close)
    undo.push_async_callback(up.end)
    undo.callback(up.end_local)
    await up.remote.start()
    size = len(agent_bundle().data)  # start has made it
    report.say(AgentStarted(name, size, tuple(choices.cipher)))
    if others:
        await up.ask_others()
    return up


async def _capture(
    options: Options,
    up: "Up",
    captured: Captured,
    session_id: str,
    method: Method,
    rules: Rules,
    report: Report,
    undo: AsyncExitStack,
) -> Plan:
    """The rules, applied."""
    looked_at = await rules.looks_at()
    plan = captured.plan(
        session_id,
        up.peers(),
        connect=Connect(options.connect) if method is Method.NFT else Connect.FAST,
        echoes=method is Method.NFT and up.answers_echoes(there_are=looked_at.echoes),
        method=method,
    )
    if plan.blocks:
        undo.push_async_callback(up.unblock)
    await up.capture(plan)
    with entered(options.namespace):
        served(plan, report)
    report.say(RulesApplied(by_kernel=rules.owner))
    if plan.connect is not Connect.FAST and not (looked_at.syns and rules.holds):
        report.say(ConnectedAtOnce())
    if plan.blocks:
        report.say(TargetsBlocked())
    if rules.others_block:
        report.say(OthersBlock(rules.others_block))
    undo.push_async_callback(rules.undo)
    undo.callback(up.end_local)  # once more: the resets need the rules, see there
    undo.push_async_callback(up.restore_rules)
    return plan


def _freeze_memory() -> None:
    gc.freeze()  # what start-up made stays: the collector need not look at it again
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    gc.enable()


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


async def _chosen(query: SshConfigQuery) -> Choices:
    """In a thread: no trace of the processes is left in the loop, which may be about to end."""
    try:
        return await asyncio.to_thread(query.result)
    except RuntimeError:  # no thread can be had
        return NOTHING
