"""The ways to use it: which targets, which users, which hosts, several at once.

neighbour ------------- client ------------- server ------------- target
(uses the client        sshunt               sshd + agent         web server
 as its router)
"""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.lab.world import ELSEWHERE_V4, ELSEWHERE_V6, OFFICE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import OFFICE, SSHUNT, fetch, kill


def page(lab: Lab) -> str:
    return fetch(lab.client, f"http://{lab.target.v4}/")


def out_of_reach(lab: Lab, address: str, port: int) -> bool:
    try:
        lab.client.connect(address, port, timeout_s=0.3).close()
    except OSError:
        return True
    return False


@pytest.fixture
def sshd_here(lab: Lab) -> None:
    lab.sshd(lab.client)


@pytest.mark.usefixtures("sshd_here")
def test_a_server_that_is_this_host_itself_is_no_loop(lab: Lab, start: Start) -> None:
    # Captured again, what the agent connects to would come back to the agent, and again.
    start("-r", "192.0.2.1", "203.0.113.0/24", "2001:db8:3::/64")
    for address in (ELSEWHERE_V4, ELSEWHERE_V6):
        with lab.server.listen(address) as listener:
            listener.settimeout(10)
            with lab.client.connect(address, listener.getsockname()[1]) as program:
                accepted, _ = listener.accept()
                with accepted:
                    accepted.sendall(b"here")
                    assert program.recv(100) == b"here"
            listener.settimeout(0.5)
            with pytest.raises(TimeoutError):
                listener.accept()


# --- targets -----------------------------------------------------------------------------------


def test_a_target_with_a_port_routes_that_port_only(lab: Lab, start: Start) -> None:
    start("-r", "server", f"{lab.target.v4}:80")
    assert "Hello" in page(lab)
    assert out_of_reach(lab, lab.target.v4, 81)


def test_a_range_of_ports_is_routed_from_its_first_to_its_last(lab: Lab, start: Start) -> None:
    start("-r", "server", f"{OFFICE_V4}:8000-8001")
    for port in (8000, 8001):
        with lab.target.listen(lab.target.v4, port) as listener:
            with lab.client.connect(lab.target.v4, port):
                listener.accept()[0].close()
    assert out_of_reach(lab, lab.target.v4, 7999)
    assert out_of_reach(lab, lab.target.v4, 8002)


def test_a_name_routes_all_its_addresses(lab: Lab, start: Start) -> None:
    start("-r", "server", "target")
    assert "Hello" in page(lab)
    assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/")


def test_an_excluded_address_is_left_alone(lab: Lab, start: Start) -> None:
    start("-r", "server", OFFICE_V4, "-x", f"{lab.target.v4}")
    assert out_of_reach(lab, lab.target.v4, 80)
    # ... and only that one: the server's own address in the office is reached by the agent.
    with lab.server.listen("10.55.0.1") as listener:
        with lab.client.connect("10.55.0.1", listener.getsockname()[1]):
            sock, peer = listener.accept()
            assert peer[0] == "10.55.0.1"
            sock.close()


def test_the_most_specific_of_target_and_exclusion_wins(lab: Lab, start: Start) -> None:
    start("-r", "server", "10.0.0.0/8", f"{lab.target.v4}/32", "-x", OFFICE_V4)
    assert "Hello" in page(lab)


def test_targets_and_exclusions_come_from_files_too(lab: Lab, start: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(f"# the office\n{OFFICE_V4}\n\n")
    (tmp_path / "out").write_text(f"{lab.target.v4}:81\n")
    start("-r", "server", "-s", str(tmp_path / "in"), "-X", str(tmp_path / "out"))
    assert "Hello" in page(lab)
    assert out_of_reach(lab, lab.target.v4, 81)


def test_disable_ipv6_leaves_ipv6_alone(lab: Lab, start: Start) -> None:
    start("-r", "server", "--disable-ipv6", *OFFICE)
    assert "Hello" in page(lab)
    assert out_of_reach(lab, lab.target.v6, 80)


def test_dry_run_prints_the_rules_and_changes_nothing(lab: Lab) -> None:
    done = lab.client.run([*SSHUNT, "--dry-run", "-r", "server", OFFICE_V4])
    assert "10.55.0.0" in done.stdout
    assert "redirect" in done.stdout
    assert lab.client.run(["nft", "list", "ruleset"]).stdout == ""


# --- ssh ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", ["server", "ada@server", "ada@192.0.2.2:22", "root@server6"])
def test_the_remote_host_is_written_as_for_ssh(lab: Lab, start: Start, remote: str) -> None:
    start("-r", remote, OFFICE_V4)
    assert "Hello" in page(lab)


def test_ssh_options_are_passed_on(lab: Lab, start: Start) -> None:
    start("-e", f"ssh -F {lab.ssh_config} -o Compression=yes", "-r", "server", OFFICE_V4)
    assert "Hello" in page(lab)


def test_the_python_of_the_far_side_may_be_named(lab: Lab, start: Start) -> None:
    start("--python", "/usr/bin/python3", "-r", "server", OFFICE_V4)
    assert "Hello" in page(lab)


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh"])
def test_any_login_shell_will_do(lab: Lab, start: Start, shell: str) -> None:
    if f"sh-{shell}" not in lab.accounts:
        pytest.skip(f"{shell} is not installed")
    start("-r", f"sh-{shell}@server", OFFICE_V4)
    assert "Hello" in page(lab)


def test_a_login_that_prints_something_first_does_no_harm(lab: Lab, start: Start) -> None:
    noisy = "echo Welcome; seq 5000; echo; printf 'no end of line '; eval \"$SSH_ORIGINAL_COMMAND\""
    sshd = lab.sshd(lab.server, port=2210, options={"ForceCommand": noisy})
    start("-r", "server:2210", OFFICE_V4)
    assert "Hello" in page(lab)
    sshd.stop()


def test_everything_may_be_routed_with_the_ssh_server_among_it(lab: Lab, start: Start) -> None:
    start("-r", "server", "0/0", "::/0")
    assert "Hello" in page(lab)
    # Other ports of the ssh server are routed: it sees itself as the peer.
    with lab.server.listen(lab.server.v4) as listener:
        with lab.client.connect(lab.server.v4, listener.getsockname()[1]):
            sock, peer = listener.accept()
            assert peer[0] == lab.server.v4
            sock.close()


def test_everything_may_be_routed_when_ssh_goes_through_a_proxy_command(
    lab: Lab, start: Start
) -> None:
    start("-e", "ssh -o ProxyCommand='socat - TCP:%h:%p'", "-r", "server", "0/0")
    assert "Hello" in page(lab)


def test_everything_may_be_routed_when_ssh_jumps_over_another_host(lab: Lab, start: Start) -> None:
    start("-e", "ssh -J server", "-r", "10.55.0.1", "0/0", "::/0")
    assert "Hello" in page(lab)


@contextmanager
def relay_on_the_client(lab: Lab) -> Iterator[str]:
    """A program of root's on the client that leads to the ssh server; where ssh finds it."""
    words = ["TCP-LISTEN:9022,bind=127.0.0.1,fork,reuseaddr", f"TCP:{lab.server.v4}:22"]
    relay = lab.client.popen(["socat", *words])
    try:
        lab.client.wait_for_port("127.0.0.1", 9022)
        yield "127.0.0.1:9022"
    finally:
        relay.kill()
        relay.wait()


def test_everything_may_be_routed_when_a_program_of_this_host_leads_to_the_server(
    lab: Lab, start: Start
) -> None:
    with relay_on_the_client(lab) as place:
        tunnel = start("-r", f"root@{place}", "0/0")
        kill(tunnel.pids("ssh"))
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        assert "Hello" in page(lab)
        assert "another user's program" not in tunnel.said
        tunnel.stop()


def test_another_users_program_on_the_way_to_the_server_is_named(lab: Lab, start: Start) -> None:
    with relay_on_the_client(lab) as place:
        private = start("-r", f"ada@{place}", OFFICE_V4, user="ben")
        assert "another user's program" not in private.said
        private.stop()
        tunnel = start("-r", f"ada@{place}", "0/0", "-x", lab.server.v4, user="ben")
        assert "another user's program on this host (127.0.0.1 port 9022)" in tunnel.said
        assert "leave its server out with -x" in tunnel.said
        tunnel.stop()


# --- hosts behind this one ---------------------------------------------------------------------


def test_a_host_behind_this_router_is_forwarded_with_an_open_listener(
    lab: Lab, start: Start
) -> None:
    start("-r", "server", "-l", "0.0.0.0:0,[::]:0", *OFFICE)
    assert "Hello" in fetch(lab.neighbour, f"http://{lab.target.v4}/")
    assert "Hello" in fetch(lab.neighbour, f"http://[{lab.target.v6}]/")
    assert "Hello" in page(lab)


def test_a_host_behind_this_router_is_not_forwarded_by_default(lab: Lab, start: Start) -> None:
    start("-r", "server", *OFFICE)
    with pytest.raises(OSError, match=r"timed out|refused|reset|unreachable"):
        lab.neighbour.connect(lab.target.v4, 80, timeout_s=0.5)
    assert "Hello" in page(lab)


def test_a_host_that_is_no_router_serves_itself_alone_and_says_so(lab: Lab, start: Start) -> None:
    lab.client.write_sysctl("net/ipv4/ip_forward", "0")
    try:
        tunnel = start("-v", "-r", "server", "-l", "0.0.0.0:0,[::]:0", *OFFICE)
        assert "does not forward IPv4, so only its own connections are captured" in tunnel.said
        assert "net.ipv4.ip_forward=1" in tunnel.said
        assert "other hosts' IPv6 connections are captured from any link" in tunnel.said
        assert "Hello" in page(lab)
        assert "Hello" in fetch(lab.neighbour, f"http://[{lab.target.v6}]/")
        with pytest.raises(OSError, match=r"timed out|refused|reset|unreachable"):
            lab.neighbour.connect(lab.target.v4, 80, timeout_s=0.5)
    finally:
        lab.client.write_sysctl("net/ipv4/ip_forward", "1")


# --- several -----------------------------------------------------------------------------------


def test_two_instances_side_by_side_serve_different_networks(lab: Lab, start: Start) -> None:
    one = start("-r", "server", OFFICE_V4)
    start("-r", "root@server", f"{lab.target.v6}/128")
    assert "Hello" in page(lab)
    assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/")
    assert one.stop() == 0
    assert out_of_reach(lab, lab.target.v4, 80)
    assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_good_order(lab: Lab, start: Start, number: int) -> None:
    tunnel = start("-r", "server", OFFICE_V4)
    assert tunnel.stop(number) == 0


def test_it_can_be_stopped_and_started_again_and_again(lab: Lab, start: Start) -> None:
    for _ in range(3):
        tunnel = start("-r", "server", OFFICE_V4)
        assert "Hello" in page(lab)
        assert tunnel.stop() == 0


# --- ordinary users ----------------------------------------------------------------------------


def test_an_ordinary_user_with_sudo_brings_up_the_tunnel(lab: Lab, start: Start) -> None:
    tunnel = start("-r", "server", *OFFICE, user="ben")
    assert "Hello" in page(lab)
    assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/", user="ben")
    with lab.target.make_socket(kind=socket.SOCK_DGRAM) as service:
        service.bind((lab.target.v4, 0))
        service.settimeout(5)
        with lab.client.make_socket(kind=socket.SOCK_DGRAM) as program:
            program.settimeout(5)
            program.sendto(b"datagram", service.getsockname())
            data, who = service.recvfrom(100)
            service.sendto(data, who)
            assert program.recvfrom(100) == (b"datagram", service.getsockname())
    assert lab.client.run(["ping", "-c1", "-W5", lab.target.v4]).returncode == 0
    # What talks to the network is not root; what is root is the helper alone.
    uid = str(lab.account("ben").uid)
    for pid in (tunnel.process.pid, *tunnel.pids("ssh")):
        status = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("Uid:"))
        assert set(line.split()[1:]) == {uid}
    assert tunnel.stop() == 0


def test_the_far_side_is_an_ordinary_user(lab: Lab, start: Start) -> None:
    tunnel = start("-r", "server", OFFICE_V4)
    uid = str(lab.account("ada").uid)
    assert tunnel.pids("agent")
    for pid in tunnel.pids("agent"):
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{uid}\t{uid}" in status


def test_elsewhere_stays_direct_with_an_exclusion_in_everything(lab: Lab, start: Start) -> None:
    start("-r", "server", "0/0", "-x", ELSEWHERE_V4)
    with lab.server.listen(ELSEWHERE_V4) as listener:
        with lab.client.connect(ELSEWHERE_V4, listener.getsockname()[1]):
            sock, peer = listener.accept()
            assert peer[0] == lab.client.v4
            sock.close()
