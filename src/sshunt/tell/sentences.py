"""What a person reads about each event, and who does: a table of pure functions.

    level   ALWAYS   a line that everybody should see
            DETAIL   for who asked by -v;  FINE  by -vv
            RAW      somebody else's line, as it is

An event without a line in the table is not told. Sentences say who (the remote's name), what, and
what follows from it; they are part of what people and their scripts rely on, so a test holds each
one to the letter (tests/golden/sentences.txt).

Not here: errors that end us, which are made where they happen (errors); when an event is said.
"""

import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, NamedTuple

from sshunt.model import Route
from sshunt.tell import report
from sshunt.tell.figures import counted, duration, size
from sshunt.tell.report import FIRST_LOGIN, FURTHER_LOGIN

RAW, ALWAYS, DETAIL, FINE = -1, 0, 1, 2

#: Routes named in the line that says we are connected; the rest are counted.
ROUTES_SHOWN = 4


class Sentence(NamedTuple):
    """One line, and for whom."""

    level: int
    text: str


def sentence(event: report.Event) -> Sentence | None:
    """What there is to read about ``event``; None: nothing."""
    level, text = _TOLD.get(type(event), (None, None))
    if level is None or text is None:
        return None
    return Sentence(level(event) if callable(level) else level, text(event))


# --- parts of sentences ---------------------------------------------------------------------------


def route_text(route: Route) -> str:
    """A route as it can be typed: "10.0.0.0/8", "10.0.0.0/8:80-90", "[fd00::/8]:80"."""
    if route.every_port:
        return str(route.network)
    ports = f"{route.first_port}-{route.last_port}"
    if route.first_port == route.last_port:
        ports = str(route.first_port)
    network = f"[{route.network}]" if route.network.version == 6 else str(route.network)
    return f"{network}:{ports}"


def targets_text(routes: tuple[Route, ...], *, has_dns: bool) -> str:
    """What the far side serves, in short."""
    shown = ", ".join(route_text(route) for route in routes[:ROUTES_SHOWN])
    more = f" and {len(routes) - ROUTES_SHOWN} more" if len(routes) > ROUTES_SHOWN else ""
    return f"{shown}{more}{', and DNS' if has_dns else ''}"


def uncovered(resolvers: Iterable[str]) -> str:
    """What there is to say about resolvers that nobody stands in for."""
    scoped = [each for each in resolvers if _has_scope(each)]
    others = [each for each in resolvers if each not in scoped]
    kinds = ((scoped, "a link-local address can't be stood in for"), (others, "IPv6 is left alone"))
    return "; ".join(
        f"names that programs ask of {', '.join(theirs)} are not looked up on the far side: {why}"
        for theirs, why in kinds
        if theirs
    )


def _has_scope(text: str) -> bool:
    address = ip_address(text)
    return address.version == 6 and address.is_link_local


# --- the start and the end ------------------------------------------------------------------------


def _session_named(event: report.SessionNamed) -> str:
    return f"session {event.session}"


def _own_address_skipped(event: report.OwnAddressSkipped) -> str:
    return f"{route_text(event.route)} is this host itself: what goes there is never captured"


def _ipv6_skipped(_event: report.Ipv6Skipped) -> str:
    return "this host has no IPv6: IPv6 targets are left alone"


def _by_iptables(_event: report.ByIptables) -> str:
    return (
        "captured by iptables: TCP, whose connect() succeeds at once, and DNS with --dns; UDP and"
        " ping go the way they would without sshunt (nftables captures them)"
    )


def _method_tried(event: report.MethodTried) -> str:
    return f"--method {event.method} does not work here: {event.why}"


def _udp_skipped(_event: report.UdpSkipped) -> str:
    return (
        "UDP is left alone: this kernel does not tell where redirected datagrams were meant"
        " (nf_conntrack_netlink is missing)"
    )


def _ipv6_resolvers_skipped(event: report.Ipv6ResolversSkipped) -> str:
    return f"DNS over IPv6 is left alone: {event.why}"


def _helper_started(event: report.HelperStarted) -> str:
    how = "a cgroup" if event.guarded else "the addresses of its peers"
    return f"the helper is up; own traffic is told by {how}"


def _helper_asked(event: report.HelperAsked) -> str:
    outcome = f", refused: {event.refusal}" if event.refusal else ""
    return f"asked root: {event.what}{outcome} ({event.took_s * 1000:.0f} ms)"


def connected(event: report.RemoteConnected) -> str:
    """The line that says so, which a service manager is told, too."""
    rtt = f" (RTT {event.rtt_s * 1000:.1f} ms)" if event.rtt_s else ""
    targets = targets_text(event.routes, has_dns=event.has_dns)
    return f"connected to {event.remote}{rtt}: {targets}"


def _start_stopped(event: report.StartStopped) -> str:
    return f"stopped while starting ({event.signal})"


def _remote_closed(event: report.RemoteClosed) -> str:
    how = f"stopped ({event.signal})" if event.signal else "ended"
    return (
        f"{how} after {duration(event.lasted_s)} with {event.remote}:"
        f" {size(event.received_bytes)} down, {size(event.sent_bytes)} up"
    )


def _far_side_not_told(event: report.FarSideNotTold) -> str:
    return (
        f"{'the connection is lost' if event.is_lost else 'nothing answers'}, so the far side could"
        " not be told: it keeps the session for the grace time of"
        f" {event.grace_s} s"
    )


# --- logins ---------------------------------------------------------------------------------------


def _ssh_said(event: report.SshSaid) -> str:
    return event.line


def _level_of_ssh(event: report.SshSaid) -> int:
    # The banner and the greetings have been shown by the first connection.
    return {FIRST_LOGIN: RAW, FURTHER_LOGIN: FINE}.get(event.login, DETAIL)


def _far_side_silent(event: report.FarSideSilent) -> str:
    return event.why


def _level_of_silence(event: report.FarSideSilent) -> int:
    return {FIRST_LOGIN: ALWAYS, FURTHER_LOGIN: FINE}.get(event.login, DETAIL)


def _agent_started(event: report.AgentStarted) -> str:
    options = " ".join(event.ssh_options) or "none of ours"
    return f"the agent is up: a program of {event.program_bytes} bytes; ssh options: {options}"


def _agent_not_detached(_event: report.AgentNotDetached) -> str:
    return (
        "the far side has no place for the session's agent: connections will not outlive"
        " the ssh connection"
    )


# --- a remote: lost and found ---------------------------------------------------------------------


def _remote_checked(event: report.RemoteChecked) -> str:
    return f"looking at the connection: {event.why}"


def _remote_lost(event: report.RemoteLost) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(event.since))
    wait = "wait" if event.connections != 1 else "waits"
    kept = event.connections and event.are_kept
    fate = f"{counted(event.connections, 'connection')} {wait}, " if kept else ""
    return (
        f"the connection to {event.remote} is lost since {since}"
        f"{f' ({event.why})' if event.why else ''}: {fate}connecting again"
    )


def _remote_reconnected(event: report.RemoteReconnected) -> str:
    kept = f": {counted(event.kept, 'connection')} kept" if event.kept else ""
    return f"connected to {event.remote} again after {event.after_s:.1f} s{kept}"


def _session_lost(event: report.SessionLost) -> str:
    return (
        f"{event.remote} has lost the session ({event.why}):"
        f" {counted(event.reset, 'connection')} reset, beginning a new one"
    )


def _another_machine_answered(event: report.AnotherMachineAnswered) -> str:
    return f"another machine answers as {event.remote} than the one that holds the session"


def _attempt_failed(event: report.AttemptFailed) -> str:
    return f"attempt {event.failures} failed: {event.why}"


def _person_needed(event: report.PersonNeeded) -> str:
    return f"{event.why}; {event.hint}; then: sshunt reconnect"


def _known_address_tried(event: report.KnownAddressTried) -> str:
    return f"trying the address that the server had last, {event.address}"


# --- a remote: its lanes and streams --------------------------------------------------------------


def _lane_opened(event: report.LaneOpened) -> str:
    return f"lane {event.lane} is up: one was the limit"


def _lane_closed(event: report.LaneClosed) -> str:
    return f"lane {event.lane} ended: {event.why}"


def _lane_failed(event: report.LaneFailed) -> str:
    return f"no further ssh connection: {event.why}"


def _early_lanes_closed(_event: report.EarlyLanesClosed) -> str:
    return "one ssh connection is enough: closing those that wait"


def _channels_chosen(_event: report.ChannelsChosen) -> str:
    return "a second login would ask you: more channels over the one connection instead"


def _lanes_limited(_event: report.LanesLimited) -> str:
    return (
        "one ssh connection limits the speed here, and a second one can't log in"
        " without asking you: staying with one ssh connection"
    )


def _lane_measured(event: report.LaneMeasured) -> str:
    return (
        f"lane {event.lane} {event.direction}: {event.phase.lower()}, "
        f"{event.rate_bytes_s * 8 / 1e6:.1f} Mbit/s, "
        f"RTT {event.rtt_s * 1e3:.1f} ms (least {event.min_rtt_s * 1e3:.1f}), "
        f"queue {event.queue_s * 1e3:.1f} ms, "
        f"in flight {event.in_flight_bytes / 1024:.0f} of {event.limit_bytes / 1024:.0f} KiB; "
        f"waiting: {event.control_frames:.0f} control frames, "
        f"{event.sparse_bytes:.0f} sparse, {event.bulk_bytes:.0f} bulk bytes; "
        f"zero-copy: {event.teed_bytes / 1e6:.1f} MB sent, "
        f"{event.spliced_bytes / 1e6:.1f} MB received"
    )


def _statistics_refused(event: report.StatisticsRefused) -> str:
    return f"the agent's answer is of no use: {event.why}"


def _stream_opened(event: report.StreamOpened) -> str:
    return f"stream {event.stream}: to {event.host} port {event.port}"


def _stream_reset(event: report.StreamReset) -> str:
    return f"stream {event.stream}: {event.why}"


# --- fronts ---------------------------------------------------------------------------------------


def _front_paused(event: report.FrontPaused) -> str:
    return f"{event.why}; new ones wait until one of the open ones ends"


def _caller_refused(event: report.CallerRefused) -> str:
    return f"refused a local connection: {event.why}"


def _arrival_checked(event: report.ArrivalChecked) -> str:
    return f"looked whether what is captured arrives: IPv{event.family} {event.fate.lower()}"


def _arrival_not_routed(event: report.ArrivalNotRouted) -> str:
    return f"this host has no IPv{event.family} route to {event.address}"


def _captured_lost(event: report.CapturedLost) -> str:
    lost = " and ".join(f"IPv{family}" for family in event.families)
    chains = "; ".join(event.chains) or "nothing in nftables; look at iptables-legacy -S"
    return (
        f"connections to the {lost} targets are captured and do not arrive:"
        " a firewall of this host stops them, or does not let them be tracked:"
        f" {chains}"
    )


def _connected_at_once(_event: report.ConnectedAtOnce) -> str:
    return (
        "this kernel can't log packets (NFLOG), so programs are told that they are connected before"
        " the far side is, as with --connect fast"
    )


def _forwarded_barred(event: report.ForwardedBarred) -> str:
    return (
        f"hosts behind this one get through only if it lets them in to TCP port {event.port}:"
        f" {'; '.join(event.chains)}"
    )


# --- this host ------------------------------------------------------------------------------------


def _rules_applied(event: report.RulesApplied) -> str:
    owner = "kernel" if event.by_kernel else "helper"
    return f"the rules are in place; the {owner} removes them"


def _links_missing(event: report.LinksMissing) -> str:
    return f"named by --from, and not there yet: {', '.join(event.links)}"


_LOST = {
    "rules": "somebody has removed or altered sshunt's rules",
    "guard": "somebody has taken sshunt out of its control group",
    "device": "somebody has removed sshunt's device for addresses that this host had",
}


def _part_lost(event: report.PartLost) -> str:
    return f"{_LOST[event.part]}: putting it right"


def _targets_blocked(_event: report.TargetsBlocked) -> str:
    return "nothing reaches the targets another way, and so it stays if sshunt is killed"


def _targets_stay_blocked(_event: report.TargetsStayBlocked) -> str:
    return "the targets stay blocked until sshunt is started again (to lift that: sshunt cleanup)"


def _others_block(event: report.OthersBlock) -> str:
    sessions = counted(event.sessions, "dead session")
    return f"the targets of {sessions} are still blocked (to lift that: sshunt cleanup)"


def _rules_refused(event: report.RulesRefused) -> str:
    return event.why


def _forwarded_captured(event: report.ForwardedCaptured) -> str:
    names = ", ".join(event.links or ("any link",))
    return f"other hosts' IPv{event.family} connections are captured from {names}"


def _forwarded_skipped(event: report.ForwardedSkipped) -> str:
    return event.why


def _unseen_way_found(event: report.UnseenWayFound) -> str:
    address, port = event.way
    return (
        f"ssh reaches {event.host} through another user's program on this host ({address} port"
        f" {port}); its own connections are captured, too, and once lost they may never come back:"
        " leave its server out with -x SERVER"
    )


def _ssh_peer_seen(event: report.SshPeerSeen) -> str:
    return f"ssh goes to {event.address} now, which is left alone"


def _addresses_retained(event: report.AddressesRetained) -> str:
    return f"kept of this host's former addresses: {event.addresses or 'none'}"


def _resolvers_changed(event: report.ResolversChanged) -> str:
    others = ", ".join(event.addresses) or "none that can be stood in for"
    return f"this host asks other resolvers now: {others}"


def _resolvers_skipped(event: report.ResolversSkipped) -> str:
    return uncovered(event.addresses)


# --- ping -----------------------------------------------------------------------------------------


def _echoes_skipped(_event: report.EchoesSkipped) -> str:
    return "this kernel can't hand over packets (NFLOG): ping and traceroute are left alone"


def _echoes_by_ping(_event: report.EchoesByPing) -> str:
    return (
        "ping: the far side may not ask hosts itself (net.ipv4.ping_group_range there); its ping"
        " program does, for a few requests at a time"
    )


def _echoes_not_permitted(_event: report.EchoesNotPermitted) -> str:
    return (
        "ping: nothing is answered, for the far side may not ask hosts (net.ipv4.ping_group_range"
        " there), and has no ping program that could"
    )


#: A level, or what finds it out, and the sentence.
_Told = tuple[int | Callable[[Any], int], Callable[[Any], str]]

_TOLD: dict[type, _Told] = {
    report.SessionNamed: (DETAIL, _session_named),
    report.OwnAddressSkipped: (ALWAYS, _own_address_skipped),
    report.Ipv6Skipped: (ALWAYS, _ipv6_skipped),
    report.UdpSkipped: (ALWAYS, _udp_skipped),
    report.ByIptables: (ALWAYS, _by_iptables),
    report.MethodTried: (DETAIL, _method_tried),
    report.Ipv6ResolversSkipped: (DETAIL, _ipv6_resolvers_skipped),
    report.HelperStarted: (DETAIL, _helper_started),
    report.HelperAsked: (DETAIL, _helper_asked),
    report.RemoteConnected: (ALWAYS, connected),
    report.StartStopped: (ALWAYS, _start_stopped),
    report.RemoteClosed: (ALWAYS, _remote_closed),
    report.FarSideNotTold: (ALWAYS, _far_side_not_told),
    report.SshSaid: (_level_of_ssh, _ssh_said),
    report.FarSideSilent: (_level_of_silence, _far_side_silent),
    report.AgentStarted: (DETAIL, _agent_started),
    report.AgentNotDetached: (ALWAYS, _agent_not_detached),
    report.RemoteChecked: (DETAIL, _remote_checked),
    report.RemoteLost: (ALWAYS, _remote_lost),
    report.RemoteReconnected: (ALWAYS, _remote_reconnected),
    report.SessionLost: (ALWAYS, _session_lost),
    report.AnotherMachineAnswered: (ALWAYS, _another_machine_answered),
    report.AttemptFailed: (DETAIL, _attempt_failed),
    report.PersonNeeded: (ALWAYS, _person_needed),
    report.KnownAddressTried: (DETAIL, _known_address_tried),
    report.LaneOpened: (DETAIL, _lane_opened),
    report.LaneClosed: (DETAIL, _lane_closed),
    report.LaneFailed: (DETAIL, _lane_failed),
    report.EarlyLanesClosed: (DETAIL, _early_lanes_closed),
    report.ChannelsChosen: (DETAIL, _channels_chosen),
    report.LanesLimited: (ALWAYS, _lanes_limited),
    report.LaneMeasured: (DETAIL, _lane_measured),
    report.StatisticsRefused: (DETAIL, _statistics_refused),
    report.StreamOpened: (DETAIL, _stream_opened),
    report.StreamReset: (DETAIL, _stream_reset),
    report.FrontPaused: (ALWAYS, _front_paused),
    report.CallerRefused: (DETAIL, _caller_refused),
    report.ArrivalChecked: (DETAIL, _arrival_checked),
    report.ArrivalNotRouted: (DETAIL, _arrival_not_routed),
    report.CapturedLost: (ALWAYS, _captured_lost),
    report.ConnectedAtOnce: (ALWAYS, _connected_at_once),
    report.ForwardedBarred: (ALWAYS, _forwarded_barred),
    report.RulesApplied: (DETAIL, _rules_applied),
    report.LinksMissing: (ALWAYS, _links_missing),
    report.PartLost: (ALWAYS, _part_lost),
    report.TargetsBlocked: (DETAIL, _targets_blocked),
    report.TargetsStayBlocked: (ALWAYS, _targets_stay_blocked),
    report.OthersBlock: (ALWAYS, _others_block),
    report.RulesRefused: (DETAIL, _rules_refused),
    report.ForwardedCaptured: (DETAIL, _forwarded_captured),
    report.ForwardedSkipped: (ALWAYS, _forwarded_skipped),
    report.UnseenWayFound: (ALWAYS, _unseen_way_found),
    report.SshPeerSeen: (DETAIL, _ssh_peer_seen),
    report.AddressesRetained: (DETAIL, _addresses_retained),
    report.ResolversChanged: (DETAIL, _resolvers_changed),
    report.ResolversSkipped: (ALWAYS, _resolvers_skipped),
    report.EchoesSkipped: (DETAIL, _echoes_skipped),
    report.EchoesByPing: (ALWAYS, _echoes_by_ping),
    report.EchoesNotPermitted: (ALWAYS, _echoes_not_permitted),
}
