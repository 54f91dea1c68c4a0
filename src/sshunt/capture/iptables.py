"""The nat method: plan -> text for iptables-restore, of one family. Renders; never runs a program.

For hosts without nf_tables, or whose administrator wants iptables. Both variants of it (nf_tables,
legacy) take the same text. It captures TCP and DNS: REDIRECT tells nobody where a datagram was
going, and what is logged and dropped nobody answers here.

All rules of a session are in chains of its own in the table ``nat``, whose names begin with its
table's (``capture.nft``), and two rules that lead there::

    OUTPUT, PREROUTING --1st rule--> sshunt-ID, sshunt-ID-p --> sshunt-ID-t: the regions
                                              |
                                              +--> sshunt-ID-d: queries to resolvers

The order in a chain, and why, is that of ``capture.nft``. Two things can't be said here: what an
agent on this host connects to is not known by its priority, so ``-r localhost`` captures itself
where there is no control group around it; and nothing tells other sessions whose queries are ssh's.

The table has no owner: whoever made the rules, or somebody in his place, has to remove them
(``removal``); after a crash of all of them the next session does.

A text that declares a chain empties it, so another plan is another text, applied as one.

Not here: running iptables-restore (helper.restorer), when (helper.iptables).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address, summarize_address_range

from sshunt.capture.links import Links
from sshunt.capture.nft import Cgroup, cgroup_path_is_harmless, table_name
from sshunt.capture.plan import DNS_PORT, Plan, Region, remote_regions
from sshunt.model import ANY_FIRST_PORT, ANY_LAST_PORT, Endpoint

#: The most rules for a family's regions: a region that is no network takes one for each prefix, up
#: to 254 of them. 50,000 take some seconds and tens of megabytes.
MAX_TARGETS = 50_000

#: The ends of the names of a session's chains.
_CHAINS = ("", "-p", "-t", "-d")

_OUR_CHAIN = re.compile(r"(sshunt-[0-9a-f]{8,16})(?:-[ptd])?")

_SYN = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"


def render(plan: Plan, family: int, *, cgroup: Cgroup | None, served: Links, is_first: bool) -> str:
    """The rules of a family (4 or 6). ``served``: the links whose forwarded connections are
    captured. ``is_first``: there are none yet that lead to them. Raises ValueError as
    ``remote_regions`` does, for more than MAX_TARGETS, and for a cgroup that can't be written.
    """
    name = table_name(plan.session)
    lines = ["*nat", *(f":{name}{end} - [0:0]" for end in _CHAINS)]
    if is_first:
        lines += [f"-I OUTPUT 1 -j {name}", f"-I PREROUTING 1 -j {name}-p"]
    lines += [f"-A {name} {rule}" for rule in _output(plan, family, name, cgroup)]
    if plan.forwards(family):
        lines += [f"-A {name}-p {rule}" for rule in _prerouting(name, served)]
    lines += [f"-A {name}-t {rule}" for rule in _targets(plan, family)]
    lines += [f"-A {name}-d {rule}" for rule in _queries(plan, family, cgroup)]
    return "\n".join([*lines, "COMMIT"]) + "\n"


def removal(saved: str, is_theirs: Callable[[str], bool]) -> str:
    """What removes sessions' rules from a table ``nat`` that iptables-save shows; "" if it has
    none. ``is_theirs`` says of a session's table name whether it is to go.
    """
    lines = saved.splitlines()
    chains = [line[1:].split(" ", 1)[0] for line in lines if line.startswith(":")]
    going = {chain for chain in chains if (of := owner_of(chain)) and is_theirs(of)}
    if not going:
        return ""
    leading = [
        f"-D{line[2:]}"
        for line in lines
        if line.startswith("-A ")
        and line.split()[1] not in going
        and line.split()[-2:-1] == ["-j"]
        and line.split()[-1] in going
    ]
    names = sorted(going)
    commands = [*leading, *(f"-F {name}" for name in names), *(f"-X {name}" for name in names)]
    return "\n".join(["*nat", *commands, "COMMIT"]) + "\n"


def owner_of(chain: str) -> str | None:
    """The name of the session's table whose chain this is."""
    found = _OUR_CHAIN.fullmatch(chain)
    return found[1] if found else None


def numbers(text: str, session: str) -> Counter[str]:
    """How many rules each of the session's chains has, in a text of ours or in what was saved."""
    name = table_name(session)
    chains = (line.split(" ", 2)[1] for line in text.splitlines() if line.startswith("-A "))
    return Counter(chain for chain in chains if owner_of(chain) == name)


def is_whole(saved: str, session: str, rules: Counter[str]) -> bool:
    """True if all that leads to the session's rules is still in what was saved, and in each chain
    as many as there were (``numbers`` of what was rendered: it is saved in other words).
    """
    name = table_name(session)
    leads = {f"-A OUTPUT -j {name}", f"-A PREROUTING -j {name}-p"} <= set(saved.splitlines())
    return leads and numbers(saved, session) == rules


# --- rules --------------------------------------------------------------------------------------


def _output(plan: Plan, family: int, name: str, cgroup: Cgroup | None) -> Iterator[str]:
    if plan.dns(family) is not None:
        for resolver in plan.resolvers:
            if ip_address(resolver).version == family:
                for protocol in ("udp", "tcp"):
                    yield f"-d {resolver} -p {protocol} --dport {DNS_PORT} -j {name}-d"
    if plan.listener(family) is None:
        return
    yield from _left_alone()
    if cgroup is not None:
        yield f"{_in_cgroup(cgroup)} -j RETURN"
    for address, port in plan.bypass:
        if ip_address(address).version == family:
            yield f"-d {address} -p tcp --dport {port} -j RETURN"
    yield f"-j {name}-t"


def _prerouting(name: str, served: Links) -> Iterator[str]:
    yield from _left_alone()
    if served is None:
        yield f"-j {name}-t"
    for link in served or ():
        if link.endswith("+"):
            continue  # iptables takes it for every name that begins so
        yield f'-i "{link}" -j {name}-t'


def _left_alone() -> Iterator[str]:
    yield "! -p tcp -j RETURN"
    yield "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN"
    yield "-m addrtype --dst-type LOCAL -j RETURN"


def _targets(plan: Plan, family: int) -> Iterator[str]:
    listener = plan.listener(family)
    if listener is None:
        return
    verdict, rules = _verdict(listener), 0
    if family == 6:
        yield "-d fe80::/10 -j RETURN"
    for region in remote_regions(plan.routes, family):
        ports = "" if region.every_port else f" --dport {_ports(region)}"
        for network in _networks(region, family):
            rules += 1
            if rules > MAX_TARGETS:
                raise ValueError(f"the routes are more than {MAX_TARGETS} networks")
            yield f"-d {network} -p tcp{ports} {verdict}"


def _queries(plan: Plan, family: int, cgroup: Cgroup | None) -> Iterator[str]:
    dns = plan.dns(family)
    if dns is None:
        return
    if cgroup is not None:
        yield f"{_in_cgroup(cgroup)} -j RETURN"
    yield f"-p udp -j REDIRECT --to-ports {dns[1]}"
    yield f"{_SYN} -j REDIRECT --to-ports {dns[1]}"


def _verdict(listener: Endpoint) -> str:
    address, port = listener
    parsed = ip_address(address)
    if parsed.is_unspecified or address in ("127.0.0.1", "::1"):
        return f"-j REDIRECT --to-ports {port}"
    there = f"[{parsed}]:{port}" if parsed.version == 6 else f"{parsed}:{port}"
    return f"-j DNAT --to-destination {there}"


def _ports(region: Region) -> str:
    first, last = max(region.first_port, ANY_FIRST_PORT), min(region.last_port, ANY_LAST_PORT)
    return str(first) if first == last else f"{first}:{last}"


def _networks(region: Region, family: int) -> Iterator[str]:
    packed_bytes = 4 if family == 4 else 16
    first, last = (
        ip_address(address.to_bytes(packed_bytes, "big"))
        for address in (region.first_address, region.last_address)
    )
    yield from map(str, summarize_address_range(first, last))


def _in_cgroup(cgroup: Cgroup) -> str:
    if not cgroup_path_is_harmless(cgroup.path):
        raise ValueError("a cgroup whose name can't be written into a rule")
    path = cgroup.path.replace("\\", "\\\\")  # as systemd has it; inside quotes it escapes
    return f'-m cgroup --path "{path}"'
