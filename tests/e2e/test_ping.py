"""ping, traceroute and mtr through a real tunnel say what is true over there.

neighbour ------ client =====ssh===== server ------ target -------- beyond
 hop 1 of its     asks for itself      hop 1          hop 2          10.77.0.2, fd00:77::2
 own way          and its neighbour    198.18.0.1 is here            unreachable: 10.77.9.0/24
"""

import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from sshunt.lab.hosts import Host, ip
from sshunt.lab.leftovers import remove_namespace
from sshunt.lab.world import ELSEWHERE_V4, OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import Tunnel, fetch, kill, running

BEYOND, BEYOND6 = "10.77.0.2", "fd00:77::2"
ROUTES = (OFFICE_V4, OFFICE_V6, "10.77.0.0/16", "fd00:77::/64")

_SERVER = ["route add 10.77.0.0/16 via 10.55.0.2", "route add fd00:77::/64 via fd00:55::2"]
_TARGET = [
    "address add 10.77.0.1/24 dev to-beyond",
    "address add fd00:77::1/64 dev to-beyond nodad",
    "link set to-beyond up",
    "route add unreachable 10.77.9.0/24",
    "route add blackhole 10.77.8.0/24",
]
_BEYOND = [
    f"address add {BEYOND}/24 dev to-target",
    f"address add {BEYOND6}/64 dev to-target nodad",
    "link set to-target up",
    "route add default via 10.77.0.1",
    "route add default via fd00:77::1",
]


@pytest.fixture(scope="module")
def network(lab: Lab) -> Iterator[None]:
    """A host behind the target, which passes on to it."""
    beyond = f"{lab.name}-beyond"
    ip(f"netns add {beyond}")
    try:
        ip(
            f"link add to-beyond netns {lab.target.netns} type veth"
            f" peer name to-target netns {beyond}"
        )
        ip(*_TARGET, netns=lab.target.netns)
        ip(*_BEYOND, netns=beyond)
        ip(*_SERVER, netns=lab.server.netns)
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            lab.target.write_sysctl(name, "1")
        # As many errors as are asked for; the kernel's own limit is one a second.
        for host in (lab.client, lab.target):
            host.write_sysctl("net/ipv4/icmp_ratelimit", "0")
            host.write_sysctl("net/ipv6/icmp/ratelimit", "0")
        lab.server.write_sysctl("net/ipv4/ping_group_range", "0 2147483647")
        yield
    finally:
        remove_namespace(beyond)
        lab.server.write_sysctl("net/ipv4/ping_group_range", "1 0")
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            lab.target.write_sysctl(name, "0")
        ip(*(line.replace("add", "delete") for line in _SERVER), netns=lab.server.netns)
        ip(*(line.replace("add", "delete") for line in _TARGET[3:]), netns=lab.target.netns)


def ping(host: Host, *words: str) -> str:
    """All that it prints."""
    done = host.run(["ping", "-n", *words], check=False)
    return done.stdout + done.stderr


def until_error(host: Host, address: str) -> str:
    """The same, until a router has said what is the matter: that tells one in a second, at most."""
    for _ in range(10):
        said = ping(host, "-c", "1", "-W", "0.3", address)
        if "From" in said:
            return said
    return said


def hops(program: str) -> list[str]:
    """The addresses that traceroute or mtr lists, in order."""
    return re.findall(r"^ *\d+[. |-]+([\da-f.:]*[.:][\da-f]+) ", program, re.MULTILINE)


# --- tunnels that end, before the one that stays ------------------------------------------------


def test_where_no_socket_may_ask_ping_does_and_a_person_hears_of_it_once(
    lab: Lab, network: None, start: Start
) -> None:
    lab.server.write_sysctl("net/ipv4/ping_group_range", "1 0")
    try:
        tunnel = start("-r", "ben@server", *ROUTES)
        for address in (lab.target.v4, BEYOND6, lab.target.v4):
            said = ping(lab.client, "-c", "2", "-i", "0.1", "-s", "300", address)
            assert "2 packets transmitted, 2 received, 0% packet loss" in said
        traced = lab.client.run(["traceroute", "-I", "-n", "-N", "4", "-q", "1", BEYOND]).stdout
        assert hops(traced)[-2:] == ["10.55.0.2", BEYOND]
        assert tunnel.said.count("its ping program does") == 1
    finally:
        lab.server.write_sysctl("net/ipv4/ping_group_range", "0 2147483647")


def test_with_no_ping_they_are_left_alone(lab: Lab, network: None, start: Start) -> None:
    start("-r", "ben@server", "--no-ping", *ROUTES)
    assert "echo-request" not in lab.client.run(["nft", "list", "ruleset"]).stdout
    assert "0 received" in ping(lab.client, "-c", "1", "-W", "0.2", lab.target.v4)


def test_a_ping_that_runs_on_when_all_is_killed_goes_its_own_way(
    lab: Lab, network: None, start: Start
) -> None:
    tunnel = start("-r", "ben@server", "--grace", "0", f"{ELSEWHERE_V4}/32")
    program = lab.client.popen(
        ["ping", "-n", "-D", "-i", "0.05", "-w", "2", ELSEWHERE_V4], stdout=subprocess.PIPE
    )
    time.sleep(0.5)
    kill([*tunnel.pids("helper"), tunnel.process.pid])
    killed_at = time.time()
    said = program.communicate(timeout=10)[0].decode()
    times = [float(at) for at in re.findall(r"^\[([\d.]+)\] 64 bytes", said, re.MULTILINE)]
    assert times[0] < killed_at - 0.2
    assert len([at for at in times if at > killed_at + 1.0]) > 5, said


# --- one tunnel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tunnel(lab: Lab, network: None) -> Iterator[Tunnel]:
    words = ("-r", "ben@server", "-l", "0.0.0.0:0,[::]:0")
    with running(lab, *words, *ROUTES, f"{ELSEWHERE_V4}/32") as tunnel:
        yield tunnel


def test_ping_counts_what_came_back(lab: Lab, tunnel: Tunnel) -> None:
    for host in (lab.client, lab.neighbour):
        for address in (lab.target.v4, lab.target.v6, BEYOND, BEYOND6):
            said = ping(host, "-c", "3", "-i", "0.05", address)
            assert "3 packets transmitted, 3 received, 0% packet loss" in said, tunnel.said
            assert re.search(rf"64 bytes from {address}: icmp_seq=3 ttl=6[0-3] time=", said)


def test_large_requests_come_back_whole(lab: Lab, tunnel: Tunnel) -> None:
    for host in (lab.client, lab.neighbour):
        for address in (lab.target.v4, BEYOND6):
            for size in ("0", "1472", "8000", "8192"):
                said = ping(host, "-c", "1", "-s", size, address)
                assert f"{int(size) + 8} bytes from {address}" in said
                assert "truncated" not in said
                assert "wrong" not in said


def test_who_is_silent_over_there_is_silent_here(lab: Lab, tunnel: Tunnel) -> None:
    for host in (lab.client, lab.neighbour):
        said = ping(host, "-c", "2", "-i", "0.1", "-W", "0.3", "10.77.8.1")
        assert "2 packets transmitted, 0 received, 100% packet loss" in said
        assert "From" not in said


def test_who_is_unreachable_over_there_is_so_here_by_the_word_of_whoever_says_so(
    lab: Lab, tunnel: Tunnel
) -> None:
    for host in (lab.client, lab.neighbour):
        said = until_error(host, "10.77.9.1")
        assert re.search("From 10.55.0.2 icmp_seq=[1-9] Destination Host Unreachable", said)


def test_a_flood_is_bounded(lab: Lab, tunnel: Tunnel) -> None:
    said = ping(lab.client, "-f", "-q", "-w", "1", lab.target.v4)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found is not None
    assert 50 < int(found.group(2)) <= 300
    assert "Operation not permitted" not in said


@pytest.mark.parametrize(
    ("address", "server", "target"),
    [(BEYOND, "10.55.0.1", "10.55.0.2"), (BEYOND6, "fd00:55::1", "fd00:55::2")],
)
def test_traceroute_and_mtr_list_the_hosts_on_the_way_over_there(
    lab: Lab, tunnel: Tunnel, address: str, server: str, target: str
) -> None:
    way = [server, target, address]
    own = [lab.client.addresses[3 if ":" in address else 2]]
    for host, before in ((lab.client, []), (lab.neighbour, own)):
        traced = host.run(["traceroute", "-I", "-n", "-w", "2", "-q", "2", address]).stdout
        assert hops(traced) == [*before, *way], traced
        reported = host.run(
            ["mtr", "-r", "-n", "-c", "2", "-i", "0.2", "-G", "0.2", address]
        ).stdout
        assert hops(reported) == [*before, *way], reported
        assert len(re.findall(r" 0\.0% ", reported)) == len([*before, *way]), reported


#: As firewalld and ufw have it: what is not known is dropped, after what is invalid.
_FIREWALL = """
table inet foreign {
    chain input {
        type filter hook input priority 10; policy drop;
        ct state established,related accept
        iifname "lo" accept
        ct state invalid drop
        tcp dport 22 accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
    chain output {
        type filter hook output priority 10; policy accept;
        ct state invalid drop
    }
    chain forward {
        type filter hook forward priority 10; policy drop;
    }
}
"""

#: What VPNs set (wg-quick, Tailscale), and many hosts have.
_STRICT = ("net/ipv4/conf/all/src_valid_mark", "net/ipv4/conf/all/rp_filter")


def test_a_firewall_that_drops_by_default_and_strict_filters_of_sources_let_ping_pass(
    lab: Lab, tunnel: Tunnel
) -> None:
    lab.client.run(["nft", "-f", "-"], stdin=_FIREWALL)
    for name in _STRICT:
        lab.client.write_sysctl(name, "1")
    try:
        for host in (lab.client, lab.neighbour):
            for address in (lab.target.v4, BEYOND6):
                assert "2 received" in ping(host, "-c", "2", "-i", "0.05", address)
            assert "Destination Host Unreachable" in until_error(host, "10.77.9.1")
    finally:
        lab.client.run(["nft", "delete", "table", "inet", "foreign"])
        for name in _STRICT:
            lab.client.write_sysctl(name, "0")


def test_ping_beside_tcp_of_either_family_and_origin(lab: Lab, tunnel: Tunnel) -> None:
    for host in (lab.client, lab.neighbour):
        for address in (lab.target.v4, lab.target.v6):
            program = host.popen(
                ["ping", "-n", "-c", "8", "-i", "0.05", address], stdout=subprocess.PIPE
            )
            name = f"[{address}]" if ":" in address else address
            for _ in range(3):
                assert "Hello" in fetch(host, f"http://{name}/")
            assert b"8 received, 0% packet loss" in program.communicate(timeout=10)[0]


def test_while_the_connection_is_lost_there_is_silence_and_then_it_goes_on(
    lab: Lab, tunnel: Tunnel
) -> None:
    program = lab.client.popen(
        ["ping", "-n", "-i", "0.1", "-w", "8", "-c", "25", lab.target.v4],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    time.sleep(0.5)
    kill(tunnel.pids("ssh"))
    said = program.communicate(timeout=15)[0].decode()
    assert "25 received" in said
    for word in ("not permitted", "From", "DUP"):
        assert word not in said
