"""The table of what passes: by each method, from each place, beside each kind of firewall.

    sessions   a method and a firewall: one tunnel, whose cells are looked at together
    rows       what is sent (TCP, UDP, DNS, ping), by which family
    columns    where it comes from: this host, one that it forwards for, a container on a bridge

``look`` fills the cells of one session with what was seen. ``NOT_OFFERED`` has those that are not
meant to pass, with the reason. docs/what-passes.md shows all of it; the test holds it to that.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from tests.e2e.what_arrives import UDP_ECHO_PORT

PAGE = Path(__file__).parents[2] / "docs" / "what-passes.md"

METHODS = ("nft", "nat")
TRAFFIC = ("TCP IPv4", "TCP IPv6", "UDP IPv4", "UDP IPv6", "DNS", "ping IPv4", "ping IPv6")
ORIGINS = ("this host", "forwarded", "container")
FIREWALLS = ("plain", "default-drop INPUT", "src_valid_mark=1, rp_filter=1")

#: What only the office's resolver knows.
NAME = "files.corp.example"

_PROGRAM = str(Path(__file__).with_name("what_arrives.py"))
_ECHO = str(Path(__file__).with_name("udp_echo.py"))

#: As firewalld has it: what is established, what was redirected, loopback; the rest is dropped.
_DROP_INPUT = """\
table inet strict {
    chain input {
        type filter hook input priority 10; policy drop;
        ct state established,related accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
}
"""

_BRIDGE = """\
ip link add dock0 type bridge
ip address add 172.30.0.1/24 dev dock0
ip address add fd00:30::1/64 dev dock0 nodad
ip link set dock0 up
ip link add dock1 type veth peer name eth0 netns {pid}
ip link set dock1 master dock0 up
"""

_INSIDE = """\
ip link set lo up
ip link set eth0 up
ip address add 172.30.0.2/24 dev eth0
ip address add fd00:30::2/64 dev eth0 nodad
ip route add default via 172.30.0.1
ip route add default via fd00:30::1
"""

_MASQUERADE = """\
table inet docker {
    chain post {
        type nat hook postrouting priority srcnat;
        ip saddr 172.30.0.0/24 oifname != "dock0" masquerade
        ip6 saddr fd00:30::/64 oifname != "dock0" masquerade
    }
}
"""

_VALID_MARK = {
    "net/ipv4/conf/all/src_valid_mark": "1",
    "net/ipv4/conf/all/rp_filter": "1",
}


class Cell(NamedTuple):
    """One place of the table."""

    method: str
    firewall: str
    traffic: str
    origin: str


def not_offered(cell: Cell) -> str:
    """Why a cell is not meant to pass; "" if it is."""
    kind = cell.traffic.split()[0]
    if kind == "DNS" and cell.origin != "this host":
        return "a host behind this one asks its own resolver, which is its own affair"
    if kind == "UDP" and cell.method == "nat":
        return "iptables' REDIRECT tells nobody where a datagram was going; nft captures it"
    if kind == "ping" and cell.method == "nat":
        return "the rules that hand over echo requests are nft's"
    return ""


def cells(method: str, firewall: str) -> Iterator[Cell]:
    """Those of one session."""
    for traffic in TRAFFIC:
        for origin in ORIGINS:
            yield Cell(method, firewall, traffic, origin)


def serve_echo(lab: Lab) -> None:
    """The office's echo service for datagrams."""
    server = lab.target.popen([sys.executable, _ECHO, str(UDP_ECHO_PORT)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"


@contextmanager
def container(host: Host) -> Iterator[list[str]]:
    """A network namespace on a bridge of ``host``, whose packets are masqueraded, as docker's are;
    what stands before a command that is to run in there.
    """
    program = ["unshare", "--net", "sh", "-c", "echo there; exec sleep infinity"]
    holder = host.popen(program, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"there\n"
        enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        host.run(["sh", "-ec", _BRIDGE.format(pid=holder.pid)])
        host.run([*enter, "sh", "-ec", _INSIDE])
        host.run(["nft", "-f", "-"], stdin=_MASQUERADE)
        yield enter
        host.run(["ip", "link", "delete", "dock0"])
        host.run(["nft", "delete", "table", "inet", "docker"])
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def firewall(host: Host, name: str) -> Iterator[None]:
    """While ``host`` has one of FIREWALLS."""
    if name == "plain":
        yield
    elif name == "default-drop INPUT":
        host.run(["nft", "-f", "-"], stdin=_DROP_INPUT)
        yield
        host.run(["nft", "delete", "table", "inet", "strict"])
    else:
        with host.entered():
            before = {switch: Path("/proc/sys", switch).read_text() for switch in _VALID_MARK}
        for switch, value in _VALID_MARK.items():
            host.write_sysctl(switch, value)
        yield
        for switch, value in before.items():
            host.write_sysctl(switch, value)


def look(lab: Lab, inside: list[str], at_home: list[str]) -> dict[str, dict[str, str]]:
    """What arrives now, by origin and traffic. ``inside``: before programs of the container;
    ``at_home``: before those that ask names.
    """
    program = [sys.executable, _PROGRAM, lab.target.v4, lab.target.v6, NAME]
    origins = {
        "this host": (lab.client, [*at_home, *program]),
        "forwarded": (lab.neighbour, program),
        "container": (lab.client, [*inside, *program]),
    }
    started = {
        origin: host.popen(words, stdout=subprocess.PIPE)
        for origin, (host, words) in origins.items()
    }
    return {origin: json.loads(process.communicate()[0]) for origin, process in started.items()}


def page(seen: Mapping[Cell, str]) -> str:
    """The table as docs/what-passes.md has it."""
    reasons: list[str] = []
    lines = []
    for firewall_ in FIREWALLS:
        lines += [f"### {firewall_}", "", f"| method | what | {' | '.join(ORIGINS)} |"]
        lines.append("| --- | --- |" + " --- |" * len(ORIGINS))
        for method in METHODS:
            for traffic in TRAFFIC:
                row = []
                for origin in ORIGINS:
                    cell = Cell(method, firewall_, traffic, origin)
                    reason = not_offered(cell)
                    if reason and reason not in reasons:
                        reasons.append(reason)
                    row.append(
                        f"not offered ({reasons.index(reason) + 1})" if reason else seen[cell]
                    )
                lines.append(f"| {method} | {traffic} | {' | '.join(row)} |")
        lines.append("")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, *notes, ""])
