"""Others who shape this host's traffic: containers, VPNs, firewalls. What all of them do, in text.

neighbour ------------- client ------------- server ------------- target
 comes in from           | |                  sshd + agent         web, echo
 outside        docker0 -+ +- br-int
                   box        shut-in

Rules and routes have the shape of those that docker, wg-quick, Tailscale, firewalld and ufw make;
none of them is needed here. Theirs must be, as text, the same before, meanwhile and after.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sshunt.lab.hosts import Host, ip
from sshunt.lab.leftovers import remove_namespace
from sshunt.lab.world import OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.tunnels import Tunnel, fetch, running
from tests.e2e.udp_services import echo, udp

PORT = 7007

DOCKER = """
table ip nat {
  chain PREROUTING {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump DOCKER
  }
  chain OUTPUT {
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER
  }
  chain POSTROUTING {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 172.18.0.0/24 oifname != "docker0" masquerade
  }
  chain DOCKER {
    iifname != "docker0" tcp dport 8080 dnat to 172.18.0.2:80
  }
}
table ip filter {
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    iifname "br-int" oifname != "br-int" drop
    oifname "br-int" iifname != "br-int" drop
    oifname "docker0" ct state established,related accept
    oifname "docker0" ip daddr 172.18.0.2 tcp dport 80 accept
    iifname "docker0" accept
  }
}
"""

FIREWALLD = """
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state established,related accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
    reject with icmpx admin-prohibited
  }
}
"""

UFW = """
table inet ufw {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    ct state invalid drop
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
  }
  chain output {
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
    ip daddr 192.0.2.2 tcp dport 22 accept
  }
}
"""

TAILSCALE = """
table ip mangle {
  chain PREROUTING {
    type filter hook prerouting priority mangle; policy accept;
    ct state established,related meta mark set ct mark and 0x00ff0000
  }
  chain OUTPUT {
    type route hook output priority mangle; policy accept;
    ct state new meta mark and 0x00ff0000 != 0x0 ct mark set meta mark and 0x00ff0000
  }
}
"""


@contextmanager
def beside(lab: Lab, rules: str) -> Iterator[None]:
    """With somebody's rules, which must be as they were all the time."""
    (lab.folder / "theirs.nft").write_text(rules)
    lab.client.run(["nft", "-f", str(lab.folder / "theirs.nft")])
    before = theirs(lab)
    try:
        yield
        assert theirs(lab) == before
    finally:
        lab.client.run(["nft", "flush", "ruleset"])


def theirs(lab: Lab) -> str:
    """Others' tables, `ip rule` and routes."""
    words = (["nft", "list", "ruleset"], ["ip", "rule"], ["ip", "route", "show", "table", "all"])
    text = "".join(lab.client.run(list(each)).stdout for each in words)
    # The kernel itself makes those when it likes.
    text = "".join(line for line in text.splitlines(True) if "proto kernel" not in line)
    return re.sub(r"^table \w+ sshunt-.*?^}\n", "", text, flags=re.MULTILINE | re.DOTALL)


@contextmanager
def tunnel(lab: Lab, *words: str) -> Iterator[Tunnel]:
    """It must leave what others have as it is."""
    before = theirs(lab)
    with running(lab, *words, "-r", "server", OFFICE_V4, OFFICE_V6) as running_one:
        assert theirs(lab) == before
        yield running_one
        assert theirs(lab) == before
    assert theirs(lab) == before


@pytest.fixture
def boxes(lab: Lab) -> Iterator[dict[str, str]]:
    """Two containers, each on a bridge of its own: their namespaces by name."""
    with ExitStack() as undo:
        made = {}
        client = lab.client.netns
        for name, bridge, net in (
            ("box", "docker0", "172.18.0"),
            ("shut-in", "br-int", "172.19.0"),
        ):
            made[name] = f"{lab.name}-{name}"
            undo.callback(remove_namespace, made[name])
            ip(f"netns add {made[name]}")
            ip(f"link add eth0 netns {made[name]} type veth peer name v-{name} netns {client}")
            ip(
                f"link add {bridge} type bridge",
                f"address add {net}.1/24 dev {bridge}",
                f"link set {bridge} up",
                f"link set v-{name} master {bridge} up",
                netns=client,
            )
            undo.callback(ip, f"link delete {bridge}", f"link delete v-{name}", netns=client)
            ip(
                "link set lo up",
                f"address add {net}.2/24 dev eth0",
                "link set eth0 up",
                f"route add default via {net}.1",
                netns=made[name],
            )
        yield made


def reaches(lab: Lab, box: str, *, seconds: int = 5) -> bool:
    command = ["ip", "netns", "exec", box, "curl", "-sS", "-m", str(seconds)]
    done = subprocess.run([*command, f"http://{lab.target.v4}/"], capture_output=True, check=False)
    return b"Hello" in done.stdout


def works_here(lab: Lab, host: Host | None = None) -> None:
    """TCP of both families, UDP, ping."""
    host = host or lab.client
    assert "Hello" in fetch(host, f"http://{lab.target.v4}/")
    assert "Hello" in fetch(host, f"http://[{lab.target.v6}]/")
    with echo(lab.target, lab.target.v4, PORT), udp(host, host.v4) as sock:
        sock.settimeout(5)
        sock.sendto(b"over there?", (lab.target.v4, PORT))
        assert sock.recv(100) == b"over there?"
    host.run(["ping", "-c", "1", "-W", "5", lab.target.v4])


def test_containers_on_a_named_bridge_are_served_and_those_shut_in_are_not(
    lab: Lab, boxes: dict[str, str]
) -> None:
    with beside(lab, DOCKER), tunnel(lab, "--from", "docker0"):
        works_here(lab)
        assert reaches(lab, boxes["box"])
        ping = ["ip", "netns", "exec", boxes["box"], "ping", "-c", "1", "-W", "5", lab.target.v4]
        subprocess.run(ping, check=True, capture_output=True)
        assert not reaches(lab, boxes["shut-in"], seconds=1)
        published_port_is_reached(lab, boxes["box"])
        if Path("/proc/sys/net/bridge").exists():  # frames of a bridge are looked at, too
            lab.client.write_sysctl("net/bridge/bridge-nf-call-iptables", "1")
            assert reaches(lab, boxes["box"])
            works_here(lab)


def published_port_is_reached(lab: Lab, box: str) -> None:
    web = ["ip", "netns", "exec", box, "python3", "-m", "http.server", "80"]
    with subprocess.Popen(
        web, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
    ) as web_:
        try:
            url = f"http://{lab.client.addresses[2]}:8080/"
            retry = ["--retry", "20", "--retry-delay", "0", "--retry-connrefused"]
            assert "<html" in fetch(lab.neighbour, url, *retry).lower()
            assert "<html" in fetch(lab.client, url).lower()
        finally:
            web_.kill()


def test_beside_the_policy_routing_of_wg_quick(lab: Lab) -> None:
    client = lab.client.netns
    ip("tuntap add dev wg0 mode tun", "link set wg0 up", netns=client)
    try:
        ip(
            "route add default dev wg0 table 51820",
            "rule add not fwmark 0xca6c lookup 51820",
            "rule add lookup main suppress_prefixlength 0",
            netns=client,
        )
        with tunnel(lab, "-l", "0.0.0.0:0,[::]:0"):
            works_here(lab)
            works_here(lab, lab.neighbour)
    finally:
        ip(
            "rule delete lookup main suppress_prefixlength 0",
            "rule delete not fwmark 0xca6c lookup 51820",
            "link delete wg0",
            netns=client,
        )


def test_beside_the_rules_of_tailscale_with_strict_sources(lab: Lab) -> None:
    client = lab.client
    ip("tuntap add dev ts0 mode tun", "link set ts0 up", netns=client.netns)
    rules = (
        "pref 5210 fwmark 0x80000/0xff0000 lookup main",
        "pref 5230 fwmark 0x80000/0xff0000 lookup default",
        "pref 5250 fwmark 0x80000/0xff0000 unreachable",
        "pref 5270 lookup 52",
    )
    try:
        ip("route add 100.64.0.0/10 dev ts0 table 52", netns=client.netns)
        ip(*(f"rule add {rule}" for rule in rules), netns=client.netns)
        for name in ("src_valid_mark", "rp_filter"):
            client.write_sysctl(f"net/ipv4/conf/all/{name}", "1")
        with beside(lab, TAILSCALE), tunnel(lab, "-l", "0.0.0.0:0,[::]:0"):
            works_here(lab)
            works_here(lab, lab.neighbour)
    finally:
        for name in ("src_valid_mark", "rp_filter"):
            client.write_sysctl(f"net/ipv4/conf/all/{name}", "0")
        ip(*(f"rule delete {rule}" for rule in rules), "link delete ts0", netns=client.netns)


def test_behind_a_firewall_like_firewalld_s(lab: Lab) -> None:
    with beside(lab, FIREWALLD), tunnel(lab, "-l", "0.0.0.0:0,[::]:0"):
        works_here(lab)
        works_here(lab, lab.neighbour)


def test_behind_a_firewall_that_drops_by_default_both_ways(lab: Lab) -> None:
    with beside(lab, UFW), tunnel(lab, "-l", "0.0.0.0:0,[::]:0") as up:
        works_here(lab)
        up.wait_until(lambda: "hosts behind this one get through only if" in up.said)


def test_several_addresses_serve_the_links_that_have_them(lab: Lab, boxes: dict[str, str]) -> None:
    listen = f"{lab.client.addresses[2]},172.18.0.1"
    with tunnel(lab, "-l", listen):
        works_here(lab)
        assert reaches(lab, boxes["box"])
        assert "Hello" in fetch(lab.neighbour, f"http://{lab.target.v4}/")
        assert not reaches(lab, boxes["shut-in"], seconds=1)
