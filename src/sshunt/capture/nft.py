"""The nftables method: plan -> rule text. Renders; never runs a program.

All rules of a session live in one ``inet`` table, ``sshunt-<session>``, filled in one transaction
and deleted as one. So sessions coexist, other people's rules are never touched, and undoing is one
command (or none: a table with ``flags owner`` is removed by the kernel when its maker dies).
Another plan is another table, ``sshunt-<session>-2``, made before the first is deleted; the next
one has the first name again (helper.nftables).

What a new connection meets, in order (only the first packet of a connection passes nat chains)::

    output (this host's own)                       prerouting (forwarded; only if the listener
                                                    can be reached from outside; see links)
    to port 53 of a resolver (output only) . redirected to our DNS, unless made inside our cgroup
                                             or by an agent
    UDP .................................... see nft_datagrams
    not TCP ................................ left alone
    not a SYN .............................. left alone
    to an address of this host ............. left alone
    made by an agent ....................... left alone   (output only)
    made inside our own cgroup ............. left alone   (output only)
    to a real peer of our own ssh .......... left alone   (output only)
    into a region .......................... redirected to the listener
    anything else .......................... left alone

Why each of them:

* *Not a SYN.* Connection tracking picks up established connections in mid-stream
  (``nf_conntrack_tcp_loose``), so a connection that is older than our rules can look new.
  Redirecting it would break it; sshuttle users lose their existing ssh logins that way.
* *To this host.* The far side can't mean this host by that address, and the listener itself is
  here.
* *Resolvers.* Those that this host's programs ask, with --dns; this host itself may be one. Our
  ssh asks them as it would without us: it looks up its server when the connection is lost.
* *An agent.* The server may be this host itself (``-r localhost 0/0``), or have an sshunt of its
  own that tunnels the same network to this host. If what the agent connects to were captured as
  well, one connection would be made again and again until there are no descriptors left. Agents
  give their sockets a priority by which to know them (relay.sockets, DIALED_PRIORITY). Whoever sets
  it himself leaves the tunnel, as he may by other ways; forwarded packets have none.
* *Our own cgroup, our own peers.* Two independent ways not to capture ourselves. Forwarded traffic
  is never ours, so the exception for the peers does not reach it.
* *Other sshunts' queries.* To an sshunt with --dns the ssh of another one is a program like any:
  while the first is up it answers, so that a tunnel may lead through a tunnel; but while it is down
  it would keep the other from finding its server, and two of them each other for ever. So every
  session, with --dns or without, gives the queries of its own cgroup a mark, just before nat's
  chains are looked at, and takes it away behind them (nf_nat calls all nat chains from its own
  place, -100, whatever their priority). What bears it and is asked of an endpoint in the bypass set
  is left alone: the client puts the resolvers there while its connection is lost. The marking
  begins before ssh is started, and goes on where the rules are gone meanwhile: with no plan
  applied, the table has hardly anything else.
* *Priority.* Where several nat chains look at the same hook, the first that translates wins. We
  come a little before ``dstnat`` (-100), where Docker and most tools sit, since a route that was
  typed is more explicit than theirs; published container ports stay as they are because they are
  local. Two sessions with overlapping routes: the kernel calls the chain that was added last first.

A program may bind its socket to an interface (SO_BINDTODEVICE: ``curl --interface eth0``,
NetworkManager's connectivity check). What is redirected then still leaves by that interface, where
nobody answers for this host's listener, and what comes back over lo the socket would not take: such
a connection can't be captured, and nothing tells it from others before it is translated. So its
first packet is noted on its way out, and its second, a second later, is answered with a reset: an
error, where there was a program that hung for two minutes::

    postrouting: to our listener, but not over lo . noted (address and port of the program)
    output, behind nat: a SYN of one that is noted  reset

A listener on one address of this host, not loopback: the host may lose that address, and another
host get it. Only redirecting to our own host is what we are there for, so what has been translated
to that address and would leave is answered with a reset. That holds for listeners of earlier plans,
too, since what was translated to them stays so; and while no plan is applied, because others' nat
rules have the kernel go on translating::

    output, forward, behind nat: to such a listener, its address is not local .. reset

A plain table, one without owner, outlives its helper if that is killed; then whoever gets the
listener's port would get the connections. So it has a set ``alive`` of protocols whose elements the
kernel takes out after ALIVE_S, and the helper puts in again; what redirects looks there first.

Regions that hold every port go into a set of addresses; the others into a set of address . port. A
family without a listener has no sets and no rules: its connections go on as if we were not there.

Not here: choosing and applying (helper), geometry (plan), echo requests (echo_rules).
"""

import re
from collections.abc import Container, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, TypeAlias

from sshunt.capture import nft_datagrams
from sshunt.capture.echo_rules import echo_chains
from sshunt.capture.links import Links
from sshunt.capture.nft_held import (
    INJECTED_MARK,
    NOT_A_SYN,
    Holding,
    held_chains,
    injected_chains,
    known_sets,
)
from sshunt.capture.plan import DNS_PORT, Connect, Plan, Region, remote_regions
from sshunt.model import Endpoint, Route, check_endpoint

Address: TypeAlias = IPv4Address | IPv6Address

TABLE_PREFIX = "sshunt-"

#: The end of the second name of a session's table.
SECOND_SUFFIX = "-2"

#: How long a plain table captures what it should after its helper has last said that it lives. The
#: kernel's clock for it stands still while the machine sleeps, as the helper's does.
ALIVE_S = 30

#: The set of protocols that a plain table captures while its helper lives.
ALIVE_SET = "alive"

#: How often the helper says that it lives.
RENEW_EVERY_S = 5.0

#: The priority of what captures: a little before dstnat (-100); see above.
_PRIORITY = -110

# nft's quoted strings know no escapes, and a user can name his cgroups: nothing but harmless
# characters. systemd's own escapes need the backslash.
_CGROUP_PATH = re.compile(r"[A-Za-z0-9@:_.,=+~\\-]+(?:/[A-Za-z0-9@:_.,=+~\\-]+)*")

#: A priority behind nat's translation of what this host sends (NF_IP_PRI_NAT_DST is -100), before
#: filters.
_BEHIND_NAT_PRIORITY = -99

#: A priority before srcnat (100), which may give the program another address.
_NOTING_PRIORITY = 90

#: How long a connection of a socket bound to an interface is noted, and how many are. A SYN is sent
#: again after a second; the note is forgotten when the port may be another's. A set that is full
#: notes no more, and those connections hang as they would without the note.
_NOTED_S = 10
_MOST_NOTED = 4096

_NOTED = f"flags dynamic,timeout; timeout {_NOTED_S}s; size {_MOST_NOTED};"

#: How an agent's own connections are known: relay.sockets' DIALED_PRIORITY, which the helper has no
#: business to load; in two halves, as tc(8) writes priorities.
BY_AN_AGENT = "meta priority 0:3"

#: The priority just before nat's (-100). Between it and the one behind, our own queries bear
#: OURS_MARK.
_BEFORE_NAT_PRIORITY = -101

#: The mark of our own queries: a bit that neither container networks nor VPNs use. It is there for
#: the moment in which the nat chains are looked at, and nobody else sees it.
OURS_MARK = 0x02000000

_FLAGS = "\tflags "
_OWNED = f"{_FLAGS}owner;"
_BEGINS_PART = re.compile(r"\t(set|chain|ct timeout) (\S+) \{")

_ANY_LINK: Mapping[int, Links] = {4: None, 6: None}
_NO_ADDRESS: Mapping[int, str] = {}

_ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_ENDPOINT_TYPE = {family: f"{address} . inet_service" for family, address in _ADDRESS_TYPE.items()}
_PROTOCOL = {4: "ip", 6: "ip6"}


class Cgroup(NamedTuple):
    """A cgroup v2 whose sockets are never captured."""

    path: str  # relative to the root of the hierarchy, without a leading slash
    level: int  # how many directories below the root


class PacketGroups(NamedTuple):
    """The groups in which somebody reads what rules log (NFLOG); 0: nobody does."""

    syns: int
    echoes: int


#: Nobody reads anything.
NO_GROUPS = PacketGroups(0, 0)


def table_name(session: str) -> str:
    """The name of the table that holds everything of a session."""
    return TABLE_PREFIX + session


def table_names(session: str) -> tuple[str, str]:
    """That name, and the one that another plan's table has, in turn."""
    name = table_name(session)
    return name, name + SECOND_SUFFIX


def cgroup_path_is_harmless(path: str) -> bool:
    """True if ``path`` can be written into a rule."""
    return _CGROUP_PATH.fullmatch(path) is not None


def as_commands(table: str, name: str | None = None) -> str:
    """A rendered table as commands that make its sets and chains, as one transaction, where the
    table itself is there already; under another ``name`` than it was rendered with, if one is
    given.

    For a whole table libnftables first loads all sets of all tables, and 1.0.6 (Debian 12) dies of
    one that nft 1.1 has made; for a set, or a chain with its rules, it does not.
    """
    head, *lines = table.splitlines()[:-1]
    _, family, rendered_name, _ = head.split()
    place = f"{family} {name or rendered_name}"
    commands = []
    for line in lines:
        if part := _BEGINS_PART.match(line):
            commands.append(f"add {part[1]} {place} {part[2]} {{")
        elif not line.startswith(_FLAGS):
            commands.append(line)
    return "\n".join(commands) + "\n"


def render(
    plan: Plan,
    *,
    owner: bool,
    cgroup: Cgroup | None,
    served: Mapping[int, Links] = _ANY_LINK,
    earlier: Iterable[Endpoint] = (),
    packets: PacketGroups = NO_GROUPS,
    own: Mapping[int, str] = _NO_ADDRESS,
    timed: bool = True,
) -> str:
    """The table that captures what ``plan`` says; see ``as_commands``.

    ``served`` are the links from which forwarded connections of a family are captured, ``earlier``
    the listeners of plans before this one, as ``listeners_that_may_go`` names them, ``packets``
    where somebody reads what is logged, ``own`` an address of this host by which others reach it;
    ``timed``: the kernel can remember flows for as long as we say (nft_datagrams).
    With ``owner`` the kernel (5.12 and newer) removes the table when the process that made it is
    gone. Raises ValueError if the routes are too many pieces or the cgroup can't be written.
    """
    families = [family for family in (4, 6) if plan.listener(family) is not None]
    asked = [family for family in (4, 6) if plan.dns(family) is not None]
    lines = [f"table inet {table_name(plan.session)} {{"]
    lines += [_OWNED] if owner else _alive_set()
    for name, endpoints in bypass_sets(plan).items():
        lines += endpoint_set(name, int(name[-1]), endpoints)
    for family in families:
        lines += _sets(plan, family)
    holding = _holding(plan, families, packets)
    lines += known_sets(holding) if holding else []
    for name, addresses in resolver_sets(plan).items():
        lines += _set(name, _ADDRESS_TYPE[int(name[-1])], "", ", ".join(map(str, addresses)))
    if asked:
        lines += _dns_chain(plan, asked, cgroup)
    if cgroup is not None:
        lines += _mark_chains(cgroup)
    regions = partial(_region_chain, plan)
    for family in families:  # before it is gone to
        lines += regions(f"capture{family}", family, _redirection(*_arrives_at(plan, family)))
    lines += _datagram_chains(plan, cgroup, timed=timed)
    alive = [] if owner else [f"\t\tmeta l4proto != @{ALIVE_SET} return"]
    forwarded = {family: served[family] for family in families if plan.forwards(family)}
    far = held_listeners(plan, own) if holding else {}
    captured_held: list[str] = []
    if holding:
        to = {family: _redirection(*endpoint) for family, endpoint in far.items()}
        chains, goes_there = injected_chains(holding, to, regions)
        lines += chains
        captured_held = [goes_there]
    datagrams = _datagram_listeners(plan)
    own_lines = _own_lines(families, asked, cgroup, datagrams=bool(datagrams))
    lines += _output_chain([*alive, *captured_held], own_lines)
    if from_others := _forwarded_lines(forwarded, datagrams=datagrams):
        lines += _prerouting_chain([*alive, *from_others])
    if holding:
        held = {f: ls for f, ls in forwarded.items() if _held_when_forwarded(plan, f, far)}
        own_held = _own_lines(families, asked, cgroup, dns="return", to="hold")
        others_held = _forwarded_lines(held, to="hold")
        others_held = [*alive, *others_held] if others_held else []
        lines += held_chains(holding, [*alive, *own_held], others_held, regions)
    lines += _gone_chains([*listeners_that_may_go(plan), *far.values(), *earlier])
    lines += _bound_chains(plan, families)
    if plan.echoes and packets.echoes and families:
        ours = [f"\t\t{BY_AN_AGENT} return"]
        ours += [] if cgroup is None else [f"\t\t{in_cgroup(cgroup)} return"]
        lines += echo_chains(
            packets.echoes, INJECTED_MARK, families, _coming_by(forwarded), alive, ours
        )
    lines.append("}")
    return "\n".join(lines) + "\n"


def bypass_sets(plan: Plan) -> dict[str, list[tuple[Address, int]]]:
    """The names of the bypass sets of a plan's table, and what is in them."""
    parsed = {(check_endpoint(endpoint), endpoint[1]) for endpoint in plan.bypass}
    endpoints = sorted(parsed, key=lambda pair: (int(pair[0]), pair[1]))
    return {
        f"bypass{family}": [(a, port) for a, port in endpoints if a.version == family]
        for family in _with_bypass(plan)
    }


def listeners_that_may_go(plan: Plan) -> list[Endpoint]:
    """Where connections, and datagrams, are redirected to, as far as this host may lose the
    address.
    """
    arrivals = [
        _own_address(endpoint)
        for arrives in (plan.listener, plan.datagrams)
        for family in (4, 6)
        if (endpoint := arrives(family)) is not None
    ]
    return [(a, port) for a, port in arrivals if not ip_address(a).is_loopback]


def held_listeners(plan: Plan, own: Mapping[int, str]) -> dict[int, Endpoint]:
    """Where forwarded connections that were held are redirected to, by their family, if that is
    another endpoint than for this host's own: the listener on a certain address of ``own``.
    """
    found: dict[int, Endpoint] = {}
    for family, address in own.items():
        listener = plan.listener(family)
        is_everywhere = listener is not None and ip_address(listener[0]).is_unspecified
        if listener is not None and is_everywhere and plan.connect is not Connect.FAST:
            found[family] = address, listener[1]
    return found


def resolver_sets(plan: Plan) -> dict[str, list[Address]]:
    """The same for the resolver sets; there are none if DNS is not captured."""
    addresses = sorted({ip_address(text) for text in plan.resolvers}, key=int)
    return {
        f"resolvers{family}": [address for address in addresses if address.version == family]
        for family in (4, 6)
        if plan.dns(family) is not None
    }


def render_without_plan(
    session: str, cgroup: Cgroup | None, *, owner: bool, earlier: Iterable[Endpoint] = ()
) -> str:
    """The table of a session that captures nothing: it marks the queries of its cgroup, and can be
    made where rules can match one (Linux 5.13); and it resets what plans before have redirected to
    the ``earlier`` listeners. Raises ValueError as ``render`` does.
    """
    lines = [f"table inet {table_name(session)} {{", *([_OWNED] if owner else [])]
    lines += _mark_chains(cgroup) if cgroup is not None else []
    return "\n".join([*lines, *_gone_chains(earlier), "}"]) + "\n"


def region_sets(routes: Iterable[Route], family: int) -> list[str]:
    """The two sets of a family's REMOTE regions; raises ValueError if those are too many."""
    regions = remote_regions(routes, family)
    whole = [_address_range(region, family) for region in regions if region.every_port]
    partial = [
        f"{_address_range(region, family)} . {_range(region.first_port, region.last_port)}"
        for region in regions
        if not region.every_port
    ]
    interval = "flags interval; "
    return [
        *_set(f"remote{family}", _ADDRESS_TYPE[family], interval, ", ".join(whole)),
        *_set(f"remote{family}_ports", _ENDPOINT_TYPE[family], interval, ", ".join(partial)),
    ]


def endpoint_set(name: str, family: int, endpoints: Iterable[tuple[Address, int]]) -> list[str]:
    """A set of (address, port)."""
    elements = ", ".join(f"{address} . {port}" for address, port in endpoints)
    return _set(name, _ENDPOINT_TYPE[family], "", elements)


def in_cgroup(cgroup: Cgroup) -> str:
    """What matches packets of its sockets; raises ValueError if it can't be written."""
    if not cgroup_path_is_harmless(cgroup.path):
        raise ValueError("a cgroup whose name can't be written into a rule")
    return f'socket cgroupv2 level {cgroup.level} "{cgroup.path}"'


# --- parts of the table -------------------------------------------------------------------------


def _alive_set() -> list[str]:
    return [
        f"\tset {ALIVE_SET} {{",
        f"\t\ttype inet_proto; flags timeout; timeout {ALIVE_S}s;",
        "\t\telements = { tcp, udp, 1, 58 }",
        "\t}",
    ]


def _with_bypass(plan: Plan) -> list[int]:
    """The families of which something is redirected, queries or connections."""
    return [family for family in (4, 6) if plan.listener(family) or plan.dns(family)]


def _sets(plan: Plan, family: int) -> list[str]:
    return [
        *region_sets(plan.routes, family),
        *_set(f"bound{family}", _ENDPOINT_TYPE[family], _NOTED, ""),
    ]


def _set(name: str, element_type: str, flags: str, elements: str) -> list[str]:
    lines = [f"\tset {name} {{", f"\t\ttype {element_type}; {flags}".rstrip()]
    if elements:
        lines.append(f"\t\telements = {{ {elements} }}")
    return [*lines, "\t}"]


def _dns_chain(plan: Plan, families: list[int], cgroup: Cgroup | None) -> list[str]:
    lines = ["\tchain dns {"]
    if cgroup is not None:
        lines.append(f"\t\t{in_cgroup(cgroup)} return")
        lines += [
            f"\t\tmeta mark & {OURS_MARK:#010x} != 0"
            f" {_PROTOCOL[family]} daddr . {transport} dport @bypass{family} return"
            for family in families
            for transport in ("tcp", "udp")
        ]
    lines.append(f"\t\t{BY_AN_AGENT} return")
    lines.append(f"\t\tmeta l4proto tcp {NOT_A_SYN} return")
    for family in families:
        _, port = plan.dns(family) or ("", 0)
        of_family = f"meta nfproto ipv{family} meta l4proto {{ tcp, udp }}"
        lines.append(f"\t\t{of_family} redirect to :{port}")
    return [*lines, "\t}"]


def _mark_chains(cgroup: Cgroup) -> list[str]:
    """What tells our own queries from others' in the tables of all sessions; see the head."""
    ours = f"meta l4proto {{ tcp, udp }} {in_cgroup(cgroup)}"
    return [
        "\tchain mark_ours {",
        f"\t\ttype filter hook output priority {_BEFORE_NAT_PRIORITY}; policy accept;",
        f"\t\t{ours} th dport {DNS_PORT} meta mark set meta mark | {OURS_MARK:#010x}",
        "\t}",
        "\tchain unmark_ours {",
        f"\t\ttype filter hook output priority {_BEHIND_NAT_PRIORITY}; policy accept;",
        # Redirected ones have another port by now. A user's mark may have the bit: of all else
        # that ssh sends, it is left alone.
        *(
            f"\t\tmeta mark & {OURS_MARK:#010x} != 0 {ours} {asked} {DNS_PORT}"
            f" meta mark set meta mark & {OURS_MARK ^ 0xFFFFFFFF:#010x}"
            for asked in ("th dport", "ct original proto-dst")
        ),
        "\t}",
    ]


def _holding(plan: Plan, families: list[int], packets: PacketGroups) -> Holding | None:
    if not packets.syns or not families:
        return None
    group = 0 if plan.connect is Connect.FAST else packets.syns
    ports = {family: _arrives_at(plan, family)[1] for family in families}
    return Holding(group, ports, knows=plan.connect is Connect.AUTO)


def _held_when_forwarded(plan: Plan, family: int, far: Mapping[int, Endpoint]) -> bool:
    """False for a listener on all addresses of a host that has none."""
    at_once = plan.connect is Connect.FAST
    return (
        at_once
        or family in far
        or not ip_address((plan.listener(family) or ("::", 0))[0]).is_unspecified
    )


def _datagram_listeners(plan: Plan) -> dict[int, Endpoint]:
    """Where this host's own datagrams arrive, by family."""
    found = {family: plan.datagrams(family) for family in (4, 6)}
    return {family: _own_address(endpoint) for family, endpoint in found.items() if endpoint}


def _datagram_chains(plan: Plan, cgroup: Cgroup | None, *, timed: bool) -> list[str]:
    listeners = _datagram_listeners(plan)
    if not listeners:
        return []
    verdicts = {family: _redirection(*endpoint) for family, endpoint in listeners.items()}
    not_ours = [BY_AN_AGENT, *([] if cgroup is None else [in_cgroup(cgroup)])]
    return [
        *(nft_datagrams.timeouts(listeners) if timed else []),
        *nft_datagrams.untracked(),
        *nft_datagrams.chains(verdicts, not_ours, timed=timed),
        *nft_datagrams.strays(listeners, any_address=_at_any_address(plan)),
    ]


def _at_any_address(plan: Plan) -> list[int]:
    endpoints = ((family, plan.datagrams(family)) for family in (4, 6))
    return [family for family, at in endpoints if at and ip_address(at[0]).is_unspecified]


def _output_chain(first: list[str], own: list[str]) -> list[str]:
    return [
        "\tchain output {",
        f"\t\ttype nat hook output priority {_PRIORITY}; policy accept;",
        *first,
        *own,
        "\t}",
    ]


def _own_lines(
    families: list[int],
    asked: list[int],
    cgroup: Cgroup | None,
    *,
    dns: str = "goto dns",
    to: str = "capture",
    datagrams: bool = False,
) -> list[str]:
    """What is left alone of this host's own, and where the rest goes."""
    lines = [
        *(
            f"\t\t{_PROTOCOL[family]} daddr @resolvers{family}"
            f" meta l4proto {{ tcp, udp }} th dport {DNS_PORT} {dns}"
            for family in asked
        ),
        *(["\t\tmeta l4proto udp goto datagrams_output"] if datagrams else []),
        *_left_alone(),
        f"\t\t{BY_AN_AGENT} return",
    ]
    if cgroup is not None:
        lines.append(f"\t\t{in_cgroup(cgroup)} return")
    for family in families:
        protocol = _PROTOCOL[family]
        lines.append(f"\t\t{protocol} daddr . tcp dport @bypass{family} return")
        lines.append(f"\t\tmeta nfproto ipv{family} goto {to}{family}")
    return lines


def _forwarded_lines(
    forwarded: Mapping[int, Links], *, to: str = "capture", datagrams: Container[int] = ()
) -> list[str]:
    """What is left alone of what is forwarded, and where the rest goes; none if there is none."""
    coming_by = _coming_by(forwarded)
    captured = [
        f"\t\tmeta nfproto ipv{family}{links} goto {to}{family}"
        for family, links in coming_by.items()
    ]
    captured_datagrams = [
        f"\t\tmeta nfproto ipv{family} meta l4proto udp{links} goto datagrams"
        for family, links in coming_by.items()
        if family in datagrams
    ]
    return [*captured_datagrams, *_left_alone(), *captured] if captured else []


def _prerouting_chain(forwarded: list[str]) -> list[str]:
    return [
        "\tchain prerouting {",
        f"\t\ttype nat hook prerouting priority {_PRIORITY}; policy accept;",
        *forwarded,
        "\t}",
    ]


def _coming_by(forwarded: Mapping[int, Links]) -> dict[int, str]:
    """For each family of which something forwarded is captured, the match for where it comes by."""
    found = {}
    for family, links in forwarded.items():
        names = ", ".join(f'"{name}"' for name in links or ())
        if links is None or links:
            found[family] = "" if links is None else f" iifname {{ {names} }}"
    return found


def _left_alone() -> list[str]:
    return [
        "\t\tmeta l4proto != tcp return",
        f"\t\t{NOT_A_SYN} return",
        "\t\tfib daddr type local return",
    ]


def _region_chain(plan: Plan, name: str, family: int, verdict: str) -> list[str]:
    protocol = _PROTOCOL[family]
    lines = [f"\tchain {name} {{"]
    if family == 6:
        # Link-local addresses mean nothing beyond the link, and ::/0 does not mean the neighbour.
        lines.append("\t\tip6 daddr fe80::/10 return")
    # nft wants to see a transport match in each rule that maps a port.
    lines += [
        f"\t\tmeta l4proto tcp {protocol} daddr @remote{family} {verdict}",
        f"\t\t{protocol} daddr . tcp dport @remote{family}_ports {verdict}",
    ]
    return [*lines, "\t}"]


def _redirection(address: str, port: int) -> str:
    """The statement that sends a connection to a listener.

    ``redirect`` means loopback for this host's own connections and the incoming interface's first
    address for forwarded ones; a listener on any other single address needs dnat.
    """
    if address in ("127.0.0.1", "::1"):
        return f"redirect to :{port}"
    if ip_address(address).version == 4:
        return f"dnat ip to {address}:{port}"
    return f"dnat ip6 to [{address}]:{port}"


def _bound_chains(plan: Plan, families: list[int]) -> list[str]:
    """The reset of what is bound to an interface; see the head of this module."""
    if not families:
        return []
    noting, resetting = [], []
    for family in families:
        protocol, (address, port) = _PROTOCOL[family], _arrives_at(plan, family)
        source = f"{protocol} saddr . tcp sport"
        noting.append(
            f"\t\t{protocol} daddr {address} tcp dport {port} ct status dnat"
            f" add @bound{family} {{ {source} }}"
        )
        resetting.append(f"\t\t{source} @bound{family} ct status dnat reject with tcp reset")
    return [
        "\tchain bound {",
        f"\t\ttype nat hook postrouting priority {_NOTING_PRIORITY}; policy accept;",
        '\t\toifname "lo" return',
        *noting,
        *nft_datagrams.bound(_datagram_listeners(plan)),
        "\t}",
        "\tchain reset_bound {",
        f"\t\ttype filter hook output priority {_BEHIND_NAT_PRIORITY}; policy accept;",
        f"\t\t{NOT_A_SYN} return",
        *resetting,
        "\t}",
    ]


def _gone_chains(listeners: Iterable[Endpoint]) -> list[str]:
    """The reset of what would go to another host, since a listener's address is not ours now."""
    translated = {
        f"{_PROTOCOL[ip_address(address).version]} daddr {address} {protocol} dport {port}"
        " ct status dnat": refusal
        for address, port in dict.fromkeys(listeners)
        for protocol, refusal in (("tcp", "reject with tcp reset"), ("udp", "reject"))
    }
    if not translated:
        return []
    return [
        "\tchain gone {",
        f"\t\ttype filter hook output priority {_BEHIND_NAT_PRIORITY}; policy accept;",
        *(f"\t\t{each} fib daddr type != local {how}" for each, how in translated.items()),
        "\t}",
        "\tchain gone_forward {",
        f"\t\ttype filter hook forward priority {_BEHIND_NAT_PRIORITY}; policy accept;",
        *(f"\t\t{each} {how}" for each, how in translated.items()),
        "\t}",
    ]


def _arrives_at(plan: Plan, family: int) -> Endpoint:
    """Where this host's own connections are redirected to."""
    listener = plan.listener(family)
    if listener is None:
        raise ValueError(f"no IPv{family} listener")
    return _own_address(listener)


def _own_address(listener: Endpoint) -> Endpoint:
    """The same at one address, where it is at any."""
    address, port = listener
    if ip_address(address).is_unspecified:
        address = "::1" if ":" in address else "127.0.0.1"
    return str(ip_address(address)), port


# --- elements -----------------------------------------------------------------------------------


def _address_range(region: Region, family: int) -> str:
    packed_bytes = 4 if family == 4 else 16
    first, last = (
        ip_address(address.to_bytes(packed_bytes, "big"))
        for address in (region.first_address, region.last_address)
    )
    return str(first) if first == last else f"{first}-{last}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
