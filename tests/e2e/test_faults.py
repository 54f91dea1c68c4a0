"""Whatever is killed, and whatever runs out: nothing is left behind and the network is as before.

neighbour ------------- client ------------- server ------------- target
                        sshunt, helper, ssh  sshd, stub, agent
"""

import itertools
import os
import signal
import socket
import time
from contextlib import ExitStack

import psutil
import pytest

from bench import processes
from sshunt.errors import ExitCode
from sshunt.lab.world import OFFICE_V4, Lab
from sshunt.relay.sockets import RESERVED_DESCRIPTORS
from tests.e2e.conftest import Start
from tests.e2e.interruptions import Talk
from tests.e2e.tunnels import OFFICE, SSHUNT, Remains, Tunnel, cgroups_of, fetch, kill

VICTIMS = ("client", "helper", "ssh", "agent")

COMBINATIONS = [
    victims for count in (1, 2, 4) for victims in itertools.combinations(VICTIMS, count)
]


def network_is_as_before(lab: Lab) -> None:
    """The office is out of reach again, and what was in reach still is."""
    with pytest.raises(OSError, match="timed out"):
        lab.client.connect(lab.target.v4, 80, timeout_s=0.2)
    assert lab.client.run(["ssh", "server", "echo hello"]).stdout == "hello\n"


# --- kill -9 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", COMBINATIONS, ids="+".join)
def test_kill_9_leaves_nothing_behind(lab: Lab, victims: tuple[str, ...]) -> None:
    remains = Remains(lab)
    # An agent that is killed in its grace time has nobody left who could remove its socket: that
    # is done when the next one starts.
    grace = "0" if "agent" in victims and len(victims) > 1 else "1"
    tunnel = Tunnel(lab, ["-r", "server", "--grace", grace, *OFFICE])
    tunnel.wait_until_connected()
    cgroups = cgroups_of(tunnel)
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    pids = [pid for role in victims for pid in tunnel.pids(role)]
    assert len(pids) >= len(victims)
    kill(pids)
    if not {"client", "helper"} & set(victims):  # these two are all that it can't do without
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert tunnel.stop() == 0
    assert remains.left() == []
    assert not [path for path in cgroups if path.exists()]
    network_is_as_before(lab)
    if "helper" in victims and "client" not in victims:
        assert tunnel.process.wait(5) == ExitCode.LOST
        assert "sshunt: error: " in tunnel.said
    assert "Traceback" not in tunnel.said
    tunnel.stop()


@pytest.mark.parametrize(
    ("whom", "number"),
    [("packets", signal.SIGKILL), ("helper", signal.SIGKILL), ("helper", signal.SIGTERM)],
)
def test_a_helper_s_process_that_ends_takes_the_rules_with_it(
    lab: Lab, whom: str, number: int
) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--grace", "1", *OFFICE])
    tunnel.wait_until_connected()
    helpers = set(tunnel.pids("helper"))
    packets = {pid for pid in helpers if psutil.Process(pid).ppid() in helpers}
    assert len(packets) == 1
    for pid in packets if whom == "packets" else helpers - packets:
        os.kill(pid, number)
    assert tunnel.process.wait(5) == ExitCode.LOST
    assert remains.left() == []
    network_is_as_before(lab)


def test_kill_9_of_an_ordinary_users_tunnel_leaves_nothing_behind(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--grace", "1", *OFFICE], user="ben")
    tunnel.wait_until_connected()
    tunnel.process.kill()
    assert remains.left() == []
    network_is_as_before(lab)
    tunnel.stop()


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_being_stopped_while_starting_leaves_nothing_behind(
    lab: Lab, number: int, delay_s: float
) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--grace", "1", *OFFICE])
    time.sleep(delay_s)
    tunnel.stop(number)
    assert remains.left() == []
    assert "Traceback" not in tunnel.said


def test_it_starts_again_after_everything_was_killed(lab: Lab, start: Start) -> None:
    for _ in range(2):
        tunnel = start("-r", "server", "--grace", "0", *OFFICE)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        kill([pid for role in VICTIMS for pid in tunnel.pids(role)])


@pytest.mark.parametrize("how", ["ssh is killed, without grace", "it is asked to stop"])
def test_open_connections_are_reset_when_the_session_ends(lab: Lab, start: Start, how: str) -> None:
    tunnel = start("-r", "server", "--grace", "0" if "grace" in how else "60", *OFFICE)
    with lab.target.listen(lab.target.v4) as listener:
        port = listener.getsockname()[1]
        with lab.client.connect(lab.target.v4, port, timeout_s=5) as ours:
            theirs = listener.accept()[0]
            with theirs:
                theirs.settimeout(5)
                if "ssh is killed" in how:
                    kill(tunnel.pids("ssh"))
                else:
                    tunnel.process.terminate()
                for sock in (ours, theirs):
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)


def test_connections_that_end_badly_in_the_middle_of_data_do_not_end_the_tunnel(
    lab: Lab, start: Start
) -> None:
    start("-r", "server", *OFFICE)
    for _ in range(20):
        with lab.client.connect(lab.target.v4, 80) as sock:
            sock.sendall(b"GET /bytes/50000000 HTTP/1.0\r\n\r\n")
            assert sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


# --- things that run out -----------------------------------------------------------------------

#: A limit of descriptors that is soon reached.
LITTLE = 128


def open_many(lab: Lab, port: int, count: int, stack: ExitStack) -> list[socket.socket]:
    """Connections of the client host, some of which may be reset a moment later."""
    socks = [stack.enter_context(lab.client.make_socket()) for _ in range(count)]
    for sock in socks:
        sock.connect((lab.target.v4, port))  # blocking: with a timeout it would report the reset
    return socks


def test_out_of_descriptors_accepting_pauses_and_goes_on(lab: Lab, start: Start) -> None:
    tunnel = start("-r", "server", OFFICE_V4, nofile=64)
    with ExitStack() as stack:
        listener = stack.enter_context(lab.target.listen(lab.target.v4))
        # The kernel completes them all; the client has descriptors for some of them only.
        open_many(lab, listener.getsockname()[1], 120, stack)
        time.sleep(0.3)
        pids = processes.roles(lab)
        busy_before = sum(processes.cpu_seconds(pids).values())
        time.sleep(1.0)
        busy = sum(processes.cpu_seconds(pids).values()) - busy_before
        assert busy < 0.5, "waiting for a descriptor must not spin"
        assert tunnel.process.poll() is None
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    # Accepting pauses twice a second; a person reads of it every ten.
    assert 1 <= tunnel.said.count("; new ones wait until one of the open ones ends\n") <= 2


def test_out_of_descriptors_on_the_far_side_refuses_and_goes_on(lab: Lab) -> None:
    sshd = lab.sshd(lab.server, port=2222, nofile=64)
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server:2222", OFFICE_V4])
    tunnel.wait_until_connected()
    with ExitStack() as stack:
        listener = stack.enter_context(lab.target.listen(lab.target.v4))
        socks = open_many(lab, listener.getsockname()[1], 120, stack)
        assert 0 < sum(was_reset(sock) for sock in socks) < len(socks)
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert tunnel.stop() == 0
    assert remains.left() == []
    sshd.stop()


@pytest.mark.parametrize("limited", ["client", "agent"])
def test_full_to_its_limit_of_descriptors_a_lost_connection_is_made_again(
    lab: Lab, limited: str
) -> None:
    nofile = LITTLE if limited == "client" else None
    sshd = lab.sshd(lab.server, port=2222, nofile=LITTLE if limited == "agent" else None)
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-v", "-r", "server:2222", OFFICE_V4], nofile=nofile)
    tunnel.wait_until_connected()
    with ExitStack() as stack:
        talks = [Talk(lab, stack) for _ in range(5)]
        listener = stack.enter_context(lab.target.listen(lab.target.v4))
        open_many(lab, listener.getsockname()[1], 2 * LITTLE, stack)
        pid = tunnel.process.pid if limited == "client" else tunnel.pids("agent")[0]
        tunnel.wait_until(lambda: descriptors(pid) >= LITTLE - RESERVED_DESCRIPTORS)
        # Killed, it is away at both ends; stopped, the far side has another lane beside it.
        for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
            for ssh in tunnel.pids("ssh"):
                os.kill(ssh, number)
            lab.client.run([*SSHUNT, "reconnect"])
            assert [talk.says(b"still there?") for talk in talks] == [True] * len(talks)
            assert descriptors(pid) <= LITTLE - RESERVED_DESCRIPTORS // 2
    assert tunnel.said.count("again after") == 3
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert "attempt 1 failed" not in tunnel.said
    assert tunnel.stop() == 0
    assert remains.left() == []
    sshd.stop()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def was_reset(sock: socket.socket) -> bool:
    sock.settimeout(0.05)
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("it was closed in good order")
