"""DNS by way of the far side, with real resolvers (dnsmasq) on both sides and real programs.

neighbour ------------- client ===== 200 Mbit/s, 4 ms ====== server ------------- target
resolver at home        sshunt, ssh, dig, curl               sshd, agent          resolver, web

The office's resolver knows the office's names only; the one at home has other addresses for them,
and knows the ssh server's name.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.hosts import Host
from sshunt.lab.world import ELSEWHERE_V4, OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.interruptions import NO_FIRST_ADDRESS, lost, office, wait_until_said
from tests.e2e.resolvers import laid_over, resolver
from tests.e2e.tunnels import SSHUNT, Remains, Tunnel, kill, running

#: A third resolver at home. For half a minute the kernel remembers where a port's queries to the
#: others went, in sessions that are over: a port that comes again would be refused once.
THIRD = "198.51.100.9"

OFFICES, HOMES = "10.55.0.2", "192.0.2.2"
BIG = 60  # addresses: more than 512 bytes take


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if shutil.which("dnsmasq") is None or shutil.which("dig") is None:
        pytest.skip("needs dnsmasq and dig")
    with office() as lab:
        many = [f"--host-record=big.corp.example,10.55.1.{n}" for n in range(BIG)]
        (lab.folder / "homes").mkdir()
        moving = f"--hostsdir={lab.folder}/homes"
        resolver(lab.target, f"--address=/corp.example/{OFFICES}", moving, *many)
        resolver(lab.neighbour, f"--address=/corp.example/{HOMES}", f"--address=/gate.home/{HOMES}")
        yield lab


@pytest.fixture(scope="module")
def at_home(lab: Lab) -> list[str]:
    """A command prefix: programs of the client that ask the resolver at home, over IPv4 or IPv6."""
    conf, switch = lab.folder / "home-resolv.conf", lab.folder / "home-nsswitch.conf"
    resolvers = (lab.neighbour.v4, lab.neighbour.v6, THIRD)
    conf.write_text("".join(f"nameserver {address}\n" for address in resolvers))
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    return ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]


@contextmanager
def up(lab: Lab, at_home: list[str], *words: str) -> Iterator[Tunnel]:
    words = ("--dns", "-r", "server", *words, OFFICE_V4, OFFICE_V6)
    with running(lab, *words, program=[*at_home, *SSHUNT]) as tunnel:
        assert ", and DNS" in tunnel.said
        yield tunnel


class Dug:
    """What dig says: ``addresses``, or ``status``; ``seconds`` it took."""

    def __init__(self, host: Host, resolver: str, *words: str, name: str = "git.corp.example"):
        begin = time.monotonic()
        said = host.run(["dig", f"@{resolver}", name, *words], check=False, timeout_s=30).stdout
        self.seconds = time.monotonic() - begin
        self.status = "".join(re.findall(r"status: (\w+)", said)[-1:])
        self.addresses = re.findall(r"\tA\t([0-9.]+)$", said, re.MULTILINE)


@pytest.mark.parametrize("words", [(), ("+tcp",), ("+noedns",), ("+bufsize=1232", "+dnssec")])
@pytest.mark.parametrize("version", ["v4", "v6"])
def test_names_are_looked_up_on_the_far_side_while_sshunt_runs(
    lab: Lab, at_home: list[str], version: str, words: tuple[str, ...]
) -> None:
    home = lab.neighbour.v4 if version == "v4" else lab.neighbour.v6
    assert Dug(lab.client, home, *words).addresses == [HOMES]
    with up(lab, at_home):
        assert Dug(lab.client, home, *words).addresses == [OFFICES]
        assert Dug(lab.client, home, *words, name="gate.home").status in ("REFUSED", "SERVFAIL")
    assert Dug(lab.client, home, *words).addresses == [HOMES]


def test_an_answer_that_is_too_long_for_udp_comes_by_tcp(lab: Lab, at_home: list[str]) -> None:
    with up(lab, at_home):
        home = lab.neighbour.v4
        by_udp = Dug(lab.client, home, "+noedns", "+ignore", name="big.corp.example")
        assert len(by_udp.addresses) < BIG
        assert len(Dug(lab.client, home, "+noedns", name="big.corp.example").addresses) == BIG


def test_programs_reach_the_office_by_its_names(lab: Lab, at_home: list[str]) -> None:
    with up(lab, at_home):
        fetched = lab.client.run([*at_home, "curl", "-sS", "-m", "10", "http://git.corp.example/"])
        assert "Hello" in fetched.stdout


def test_resolvers_that_this_host_does_not_ask_are_left_alone(lab: Lab, at_home: list[str]) -> None:
    other = lab.neighbour.addresses[0].replace(".2", ".3")
    lab.neighbour.run(["ip", "addr", "add", f"{other}/24", "dev", "to-client"])
    with up(lab, at_home):
        assert Dug(lab.client, other).addresses == [HOMES]


def test_a_local_resolver_is_stood_in_for_although_it_is_this_host(lab: Lab) -> None:
    conf, switch = lab.folder / "stub-resolv.conf", lab.folder / "home-nsswitch.conf"
    conf.write_text("nameserver 127.0.0.53\nnameserver ::1\n")
    stub = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]
    with up(lab, stub):
        for address in ("127.0.0.53", "::1"):
            assert Dug(lab.client, address).addresses == [OFFICES]
            assert Dug(lab.client, address, "+tcp").addresses == [OFFICES]
        assert Dug(lab.client, lab.neighbour.v4).addresses == [HOMES]


def test_other_resolvers_are_stood_in_for_as_soon_as_this_host_asks_them(
    lab: Lab, at_home: list[str]
) -> None:
    conf = lab.folder / "home-resolv.conf"
    before = conf.read_text()
    with up(lab, at_home) as tunnel:
        try:
            conf.write_text("nameserver 127.0.0.53\n")
            tunnel.wait_until(lambda: Dug(lab.client, "127.0.0.53").addresses == [OFFICES])
            assert Dug(lab.client, lab.neighbour.v4).addresses == [HOMES]
            assert Dug(lab.client, lab.neighbour.v6).addresses == [HOMES]
        finally:
            conf.write_text(before)
        tunnel.wait_until(lambda: Dug(lab.client, lab.neighbour.v6).addresses == [OFFICES])
        assert Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES]


def test_while_the_connection_is_lost_the_answer_is_servfail_at_once(
    lab: Lab, at_home: list[str]
) -> None:
    with up(lab, at_home) as tunnel:
        with lost(lab, tunnel):
            for words in ((), ("+tcp",)):
                dug = Dug(lab.client, lab.neighbour.v4, "+tries=1", *words)
                assert dug.status == "SERVFAIL"
                assert dug.seconds < 2  # dig itself waits for 5
        tunnel.wait_until(lambda: " again after " in tunnel.said)
        assert Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES]


def test_with_fail_open_names_are_looked_up_at_home_meanwhile(lab: Lab, at_home: list[str]) -> None:
    with up(lab, at_home, "--fail", "open") as tunnel:
        with lost(lab, tunnel):
            tunnel.wait_until(lambda: Dug(lab.client, lab.neighbour.v4).addresses == [HOMES])
        tunnel.wait_until(lambda: Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES])


def test_ssh_finds_its_server_by_the_resolver_at_home_also_when_it_was_lost(
    lab: Lab, at_home: list[str]
) -> None:
    ssh = f"ssh -F {lab.ssh_config} -o HostKeyAlias=server"
    words = ("--dns", "-e", ssh, "-r", "gate.home", OFFICE_V4)
    with running(lab, *words, program=[*at_home, *SSHUNT]) as tunnel:
        kill(tunnel.pids("ssh"))
        tunnel.wait_until(lambda: " again after " in tunnel.said)
        assert Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES]


@contextmanager
def at_a_local_resolver(lab: Lab, address: str) -> Iterator[list[str]]:
    """A command prefix: programs ask a resolver on the client itself, which knows the servers."""
    conf, switch = lab.folder / "two-resolv.conf", lab.folder / "home-nsswitch.conf"
    conf.write_text(f"nameserver {address}\n")
    only = [f"--listen-address={address}", "--bind-interfaces", f"--hostsdir={lab.folder}/homes"]
    local = resolver(lab.client, *only, port_at=address)
    try:
        yield ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]
    finally:
        local.kill()
        local.wait()


def move_servers(lab: Lab, one: str, two: str) -> None:
    """The servers of two sessions are there now (dnsmasq looks itself)."""
    (lab.folder / "homes" / "servers").write_text(f"{one} one.home\n{two} two.home\n")


def session_with(lab: Lab, before: list[str], name: str, *words: str) -> Tunnel:
    ssh = f"ssh -F {lab.ssh_config} -o HostKeyAlias=server"
    return Tunnel(lab, ["-e", ssh, "-r", f"{name}.home", *words], program=[*before, *SSHUNT])


#: Queries that bear the mark by which the rules know them, and the mark of a user's own rules.
WATCHED = """
table inet watched {
    chain marked { type filter hook output priority -150; th dport 53 meta mark set 0x7; }
    chain seen {
        type filter hook output priority 0
        meta mark 0x02000007 counter comment "ours"
        meta mark 0x7 counter comment "the user's"
    }
}
"""


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(("address", "network"), [("127.0.0.1", OFFICE_V6), ("::1", OFFICE_V4)])
def test_two_sessions_with_dns_do_not_keep_each_other_from_their_servers(
    lab: Lab, address: str, network: str
) -> None:
    """The servers move while both connections are lost, so only a resolver can tell."""
    move_servers(lab, lab.server.v4, lab.server.v4)
    remains = Remains(lab)
    with ExitStack() as stack:
        before = stack.enter_context(at_a_local_resolver(lab, address))
        tunnels = []
        for name in ("one", "two"):
            tunnels.append(session_with(lab, before, name, "--dns", network))
            stack.callback(tunnels[-1].stop)
            tunnels[-1].wait_until_connected()
        one, two = tunnels
        assert Dug(lab.client, address).addresses == [OFFICES]
        lab.server.run(["nft", "-f", "-"], stdin=NO_FIRST_ADDRESS)
        stack.callback(lab.server.run, ["nft", "delete", "table", "inet", "moved"])
        lab.client.run(["nft", "-f", "-"], stdin=WATCHED)
        stack.callback(lab.client.run, ["nft", "delete", "table", "inet", "watched"])
        kill([*one.pids("ssh"), *two.pids("ssh")])
        wait_until_said("is lost since", one, two)
        move_servers(lab, ELSEWHERE_V4, ELSEWHERE_V4)
        wait_until_said(" again after ", one, two)
        assert Dug(lab.client, address).addresses == [OFFICES]
        seen = lab.client.run(["nft", "list", "table", "inet", "watched"]).stdout
        assert 'packets 0 bytes 0 comment "ours"' in seen
        assert re.search(r'packets [1-9]\d* bytes \d+ comment "the user', seen)
    assert remains.left() == []


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("words", [(), ("--dns", "--fail", "open")])
def test_a_session_that_stays_lost_does_not_keep_another_from_its_server(
    lab: Lab, words: tuple[str, ...]
) -> None:
    """Also one that has no rules for names, or none just now, or only begins."""
    move_servers(lab, lab.server.v4, lab.server.v4)
    with ExitStack() as stack:
        before = stack.enter_context(at_a_local_resolver(lab, "127.0.0.1"))
        one = session_with(lab, before, "one", *words, OFFICE_V4)
        stack.callback(one.stop)
        one.wait_until_connected()
        two = session_with(lab, before, "two", "--dns", OFFICE_V6)
        stack.callback(two.stop)
        two.wait_until_connected()
        lab.server.run(["nft", "-f", "-"], stdin=NO_FIRST_ADDRESS)
        stack.callback(lab.server.run, ["nft", "delete", "table", "inet", "moved"])
        kill([*one.pids("ssh"), *two.pids("ssh")])
        wait_until_said("is lost since", one, two)
        move_servers(lab, ELSEWHERE_V4, lab.server.v4)
        wait_until_said(" again after ", one)
        assert " again after " not in two.said
        third = session_with(lab, before, "one", OFFICE_V4)
        stack.callback(third.stop)
        third.wait_until_connected()


def test_a_server_whose_name_only_a_local_daemon_tells_is_found_again_by_its_last_address(
    lab: Lab, at_home: list[str]
) -> None:
    """The daemon's own queries are captured, so that it knows nothing while sshunt is down."""
    forwarder = ["--listen-address=127.0.0.1,127.0.0.2,127.0.0.3", "--bind-interfaces"]
    daemon = resolver(lab.client, *forwarder, f"--server={lab.neighbour.v4}", port_at="127.0.0.1")
    conf, switch = lab.folder / "daemon-resolv.conf", lab.folder / "home-nsswitch.conf"
    # Programs ask the first three; all are captured.
    resolvers = ("127.0.0.1", "127.0.0.2", "127.0.0.3", lab.neighbour.v4)
    conf.write_text("".join(f"nameserver {address}\n" for address in resolvers))
    at_the_daemon = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]
    ssh = f"ssh -F {lab.ssh_config}"
    words = ("-v", "--dns", "-e", ssh, "-r", "gate.home", OFFICE_V4)
    try:
        with running(lab, *words, program=[*at_the_daemon, *SSHUNT]) as tunnel:
            kill(tunnel.pids("ssh"))
            tunnel.wait_until(lambda: " again after " in tunnel.said)
            assert "can't be resolved" in tunnel.said
            assert tunnel.said.count("trying the address that the server had last") == 1
            # And once more, from the address that was found by itself this time.
            kill(tunnel.pids("ssh"))
            tunnel.wait_until(lambda: tunnel.said.count(" again after ") == 2)
    finally:
        daemon.kill()


def test_many_look_ups_at_once_are_all_answered(lab: Lab, at_home: list[str]) -> None:
    with up(lab, at_home):
        names = "\n".join(f"n{number}.corp.example A" for number in range(100))
        batch = ["dig", f"@{THIRD}", "+short", "-f", "-"]
        found = [
            lab.client.popen(batch, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)
        ]
        said = [process.communicate(names.encode(), timeout=60)[0].split() for process in found]
        assert said == [[OFFICES.encode()] * 100] * 4


def test_without_a_cgroup_dns_is_refused_before_anything_is_changed(
    lab: Lab, at_home: list[str]
) -> None:
    weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    words = ("--dns", "-r", "server", OFFICE_V4)
    done = lab.client.run([*at_home, *weak, *SSHUNT, *words], check=False)
    assert done.returncode == ExitCode.CAPTURE
    assert "hint: leave --dns out" in done.stderr


@pytest.mark.parametrize("alone", [True, False])
def test_a_link_local_resolver_is_left_alone_and_that_is_said(lab: Lab, alone: bool) -> None:
    conf, switch = lab.folder / "link-resolv.conf", lab.folder / "link-nsswitch.conf"
    link = lab.client.run(["ip", "-6", "-o", "route", "get", lab.neighbour.v6]).stdout
    device = link.split(" dev ")[1].split()[0]
    others = [] if alone else [lab.neighbour.v4]
    conf.write_text("".join(f"nameserver {a}\n" for a in [f"fe80::1%{device}", *others]))
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    program = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh", *SSHUNT]
    words = ("--dns", "-r", "server", OFFICE_V4)
    said = f"names that programs ask of fe80::1%{device} are not looked up on the far side"
    if alone:
        done = lab.client.run([*program, *words], check=False)
        assert done.returncode == ExitCode.CAPTURE
        assert f"error: {said}" in done.stderr
        return
    with running(lab, *words, program=program) as tunnel:
        assert said in tunnel.said
        assert Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES]


def test_a_link_local_resolver_that_comes_later_is_left_alone_and_that_is_said(
    lab: Lab, at_home: list[str]
) -> None:
    conf = lab.folder / "home-resolv.conf"
    before = conf.read_text()
    with up(lab, at_home) as tunnel:
        try:
            conf.write_text("nameserver fe80::1%to-neighbour\n")
            tunnel.wait_until(lambda: "of fe80::1%to-neighbour are not looked up" in tunnel.said)
            tunnel.wait_until(lambda: Dug(lab.client, lab.neighbour.v4).addresses == [HOMES])
        finally:
            conf.write_text(before)
        tunnel.wait_until(lambda: Dug(lab.client, lab.neighbour.v4).addresses == [OFFICES])
        assert tunnel.said.count("are not looked up") == 1


@pytest.mark.parametrize("alone", [True, False])
def test_without_ipv6_resolvers_that_are_asked_over_it_are_named(lab: Lab, alone: bool) -> None:
    conf, switch = lab.folder / "six-resolv.conf", lab.folder / "home-nsswitch.conf"
    others = [] if alone else [lab.neighbour.v4]
    conf.write_text("".join(f"nameserver {a}\n" for a in [lab.neighbour.v6, *others]))
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    program = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh", *SSHUNT]
    words = ("--dns", "--disable-ipv6", "-r", "server", OFFICE_V4)
    said = f"ask of {lab.neighbour.v6} are not looked up on the far side: IPv6 is left alone"
    if alone:
        done = lab.client.run([*program, *words], check=False)
        assert done.returncode == ExitCode.CAPTURE
        assert said in done.stderr
        return
    with running(lab, *words, program=program) as tunnel:
        assert said in tunnel.said


def test_a_resolver_at_a_link_local_ipv4_address_is_stood_in_for(lab: Lab) -> None:
    conf, switch = lab.folder / "cloud-resolv.conf", lab.folder / "home-nsswitch.conf"
    conf.write_text("nameserver 169.254.169.254\n")
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    with up(lab, ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]) as tunnel:
        assert "are not looked up" not in tunnel.said
        assert Dug(lab.client, "169.254.169.254").addresses == [OFFICES]


def test_killed_it_leaves_names_as_they_were(lab: Lab, at_home: list[str]) -> None:
    tunnel = Tunnel(lab, ["--dns", "-r", "server", OFFICE_V4], program=[*at_home, *SSHUNT])
    tunnel.wait_until_connected()
    with suppress(ProcessLookupError):
        os.kill(tunnel.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Dug(lab.client, lab.neighbour.v4, "+tries=1", "+time=1").addresses != [HOMES]:
        assert time.monotonic() < deadline
