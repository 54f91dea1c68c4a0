"""Connections outlive the ssh connection: killed, cut, moved, lost for good.

neighbour ------------- client ===== 200 Mbit/s, 4 ms ====== server ------------- target
                        sshunt, ssh                          sshd, stub, agent   web server

The link can be cut without anybody being told (no RST, no FIN), and mended.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.link import Shape
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.interruptions import LINK, SOON, Talk, another_address, cut, sshds_of, up
from tests.e2e.transfers import Transfer, without_the_key
from tests.e2e.tunnels import SSHUNT, Remains, Tunnel, fetch, kill, running

SEED = int(os.environ.get("SSHUNT_KILL_SEED", "1"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(up=LINK, down=LINK) as lab:
        lab.web(lab.target)
        yield lab


def test_a_killed_ssh_is_a_pause_for_open_connections(lab: Lab) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        for number in range(3):
            assert talk.says(b"before %d" % number)
            kill(tunnel.pids("ssh"))
            assert talk.says(b"after %d" % number)
        assert tunnel.said.count("is lost since") == 3
        assert tunnel.said.count("1 connection kept") == 3
        assert len(tunnel.pids("agent")) == 1


def test_a_killed_sshd_is_a_pause_for_open_connections(lab: Lab) -> None:
    with up(lab), ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        kill(sshds_of(lab))
        assert talk.says(b"after")


def test_transfers_both_ways_survive_kill_after_kill_byte_for_byte(lab: Lab) -> None:
    rng = random.Random(SEED)
    print(f"to run just this one: SSHUNT_KILL_SEED={SEED}")
    with up(lab) as tunnel:
        transfers = [Transfer(lab, 60_000_000, down=down) for down in (True, True, False, False)]
        kills = 0
        while any(transfer.runs for transfer in transfers) and kills < 12:
            time.sleep(rng.uniform(0.05, 1.2))
            kill(tunnel.pids("ssh") if rng.random() < 0.7 else sshds_of(lab))
            kills += 1
        assert kills > 3
        assert [transfer.is_whole() for transfer in transfers] == [True] * 4


def test_a_silent_cut_of_the_link_is_noticed_and_connections_go_on(lab: Lab) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with cut(lab):
            sshds = len(sshds_of(lab))
            talk.near.sendall(b"in the cut")
            tunnel.wait_until(lambda: "is lost since" in tunnel.said)
            time.sleep(6)
        assert talk.far.recv(10, socket.MSG_WAITALL) == b"in the cut"
        assert talk.says(b"after")
        assert "1 connection kept" in tunnel.said
        # The sshd of the lost connection finds out when its TCP tries again.
        tunnel.wait_until(lambda: len(sshds_of(lab)) == sshds)


def test_a_client_whose_address_changes_goes_on(lab: Lab) -> None:
    lab.sshd(lab.server, port=2023, options=SOON)
    words = ("-v", "-r", "server:2023", OFFICE_V4)
    with running(lab, *words) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        sshds = len(sshds_of(lab))
        with another_address(lab):
            assert talk.says(b"from elsewhere")
            assert "an address changed" in tunnel.said
        assert talk.says(b"and back")
        # If a connection was made from there, its sshd has yet to find out that nobody is left.
        tunnel.wait_until(lambda: len(sshds_of(lab)) == sshds)


def test_new_connections_wait_while_it_is_down_and_then_work(lab: Lab) -> None:
    with up(lab) as tunnel:
        with cut(lab):
            url = f"http://{lab.target.v4}/"
            curl = lab.client.popen(["curl", "-sS", "-m", "30", url], stdout=subprocess.PIPE)
            tunnel.wait_until(lambda: "is lost since" in tunnel.said)
            time.sleep(1)
            assert curl.poll() is None
        assert b"Hello" in curl.communicate(timeout=30)[0]


def test_a_dead_agent_resets_its_connections_and_a_new_session_begins(lab: Lab) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        kill(tunnel.pids("agent"))
        with pytest.raises(ConnectionResetError):
            talk.near.recv(1)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert "lost the session" in tunnel.said


def test_without_grace_connections_end_with_ssh_and_the_tunnel_goes_on(lab: Lab) -> None:
    with up(lab, "--grace", "0") as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        kill(tunnel.pids("ssh"))
        with pytest.raises(ConnectionResetError):
            talk.near.recv(1)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_a_session_that_is_down_for_longer_than_its_grace_begins_anew(lab: Lab) -> None:
    with up(lab, "--grace", "2") as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with no_sshd(lab):
            kill(sshds_of(lab))
            tunnel.wait_until(lambda: "lost the session" in tunnel.said)
        with pytest.raises(ConnectionResetError):
            talk.near.recv(1)
        tunnel.wait_until(lambda: "connected to server again" in tunnel.said)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_it_gives_up_after_max_retries(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--max-retries", "2", "--grace", "1", OFFICE_V4])
    tunnel.wait_until_connected()
    with no_sshd(lab):
        kill(sshds_of(lab))
        assert tunnel.process.wait(20) == ExitCode.LOST
    assert "3 attempts failed" in tunnel.said
    assert remains.left() == []


@contextmanager
def no_sshd(lab: Lab) -> Iterator[None]:
    """Nobody listens on the server's port 22 meanwhile."""
    rule = "tcp dport 22 tcp flags & (syn | ack) == syn reject with tcp reset"
    lines = [
        "table inet closed {",
        "chain in {",
        "type filter hook input priority 0",
        rule,
        "}",
        "}",
    ]
    lab.server.run(["nft", "-f", "-"], stdin="\n".join([*lines, ""]))
    try:
        yield
    finally:
        lab.server.run(["nft", "delete", "table", "inet", "closed"])


@pytest.mark.parametrize(("words", "leaks"), [((), False), (("--fail", "open"), True)])
def test_fail_closed_holds_connections_and_fail_open_lets_them_out_while_it_is_down(
    lab: Lab, words: tuple[str, ...], leaks: bool
) -> None:
    def captures() -> bool:
        return "redirect" in lab.client.run(["nft", "list", "ruleset"]).stdout

    with up(lab, *words) as tunnel:
        with no_sshd(lab):
            kill(tunnel.pids("ssh"))
            tunnel.wait_until(lambda: "is lost since" in tunnel.said)
            tunnel.wait_until(lambda: captures() is not leaks)
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        tunnel.wait_until(captures)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_a_login_that_needs_a_person_is_reported_once_and_tried_rarely(lab: Lab) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with without_the_key(lab):
            kill(tunnel.pids("ssh"))
            tunnel.wait_until(lambda: "then: sshunt reconnect" in tunnel.said)
            time.sleep(3)
            assert tunnel.said.count("attempt ") == 1
        lab.client.run([*SSHUNT, "reconnect"])
        assert talk.says(b"after")
        assert tunnel.said.count("then: sshunt reconnect") == 1


def test_without_a_detached_agent_the_tunnel_works_and_says_it_ends_with_ssh(lab: Lab) -> None:
    """The user may have as many processes there as a login takes: no further one for an agent."""
    few = 'ulimit -u 3; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    lab.sshd(lab.server, port=2022, options={"ForceCommand": few})
    with ExitStack() as stack:
        tunnel = Tunnel(lab, ["-v", "-r", "ben@server:2022", OFFICE_V4])
        stack.callback(tunnel.stop)
        tunnel.wait_until_connected()
        assert tunnel.said.count("will not outlive") == 1
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        kill(tunnel.pids("ssh"))
        with pytest.raises(ConnectionResetError):
            talk.near.recv(1)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert tunnel.stop() == 0
        assert "Traceback" not in tunnel.said


def test_a_lane_among_several_that_falls_silent_is_dropped_and_the_others_go_on(lab: Lab) -> None:
    far = Shape(rate_bit_s=300e6, delay_s=0.040, queue_bytes=3_000_000)
    lab.link.change(up=far, down=far)
    try:
        with up(lab) as tunnel:
            transfer = Transfer(lab, 400_000_000, down=True)
            tunnel.wait_until(lambda: "lane 3 is up" in tunnel.said)
            os.kill(tunnel.pids("ssh")[-1], signal.SIGSTOP)
            tunnel.wait_until(lambda: "ended: no answer for" in tunnel.said)
            assert transfer.is_whole()
            assert "is lost since" not in tunnel.said
    finally:
        lab.link.change(up=LINK, down=LINK)


def test_reconnect_can_be_asked_for(lab: Lab) -> None:
    with up(lab) as tunnel:
        assert "server" in lab.client.run([*SSHUNT, "reconnect"]).stdout
        tunnel.wait_until(lambda: "asked to by sshunt reconnect" in tunnel.said)


def test_a_client_that_is_killed_leaves_its_agent_for_the_grace_time_only(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--grace", "2", OFFICE_V4])
    tunnel.wait_until_connected()
    agent = tunnel.pids("agent")
    kill([tunnel.process.pid])
    time.sleep(1.0)
    assert tunnel.pids("agent") == agent
    assert remains.left(within_s=5) == []


def test_an_idle_client_and_a_lost_one_hardly_use_the_processor(lab: Lab) -> None:
    with up(lab) as tunnel:
        pid, sshds = tunnel.process.pid, len(sshds_of(lab))
        assert cpu_share(pid, 4.0) < 0.02
        with cut(lab):
            lab.client.run([*SSHUNT, "reconnect"])
            tunnel.wait_until(lambda: "is lost since" in tunnel.said)
            assert cpu_share(pid, 6.0) < 0.05
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        tunnel.wait_until(lambda: len(sshds_of(lab)) == sshds)


def cpu_share(pid: int, seconds: float) -> float:
    """Of one processor."""

    def used_s() -> float:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used_s()
    time.sleep(seconds)
    return (used_s() - before) / seconds
