"""Whatever ends sshunt, and everybody around it in the same moment: the far side is told.

A terminal that closes, timeout(1), ``kill -- -PGID``, a service manager: they signal ssh as well as
sshunt. If ssh dies of it the goodbye is lost, and the far side keeps the session for an hour.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshunt.lab.hosts import is_alive
from sshunt.lab.world import OFFICE_V4, Lab
from tests.agent.far_side import eventually
from tests.e2e.terminals import Terminal
from tests.e2e.tunnels import SSHUNT, STOP_DEADLINE_S, Remains, Tunnel

BRING_LANE = str(Path(__file__).with_name("bring_lane.py"))


@pytest.fixture(autouse=True)
def nothing_is_left(lab: Lab) -> Iterator[None]:
    """Neither here nor over there, which is what a session that was told of the end comes to."""
    remains = Remains(lab)
    yield
    assert remains.left() == []


def up(lab: Lab, *words: str) -> Tunnel:
    tunnel = Tunnel(lab, ["-r", "server", *words, OFFICE_V4])
    tunnel.wait_until_connected()
    return tunnel


def end_all(tunnel: Tunnel, number: signal.Signals) -> None:
    """Signal sshunt, its ssh and what that has started, all at once."""
    os.killpg(tunnel.process.pid, number)
    assert tunnel.process.wait(STOP_DEADLINE_S) == 0, tunnel.said
    assert "could not be told" not in tunnel.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_for_the_whole_process_group_ends_the_session_in_order(
    lab: Lab, number: signal.Signals
) -> None:
    end_all(up(lab), number)


def test_a_signal_for_the_group_ends_a_session_with_a_jump_host_in_order(lab: Lab) -> None:
    end_all(up(lab, "-e", "ssh -J server -o HostName=localhost"), signal.SIGTERM)


def test_a_signal_for_the_group_ends_a_session_with_a_proxy_command_in_order(lab: Lab) -> None:
    proxy = f"{sys.executable} {Path(__file__).with_name('relay_stdio.py')} %h %p"
    end_all(up(lab, "-e", f'ssh -o "ProxyCommand={proxy}"'), signal.SIGHUP)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_group_ends_a_session_over_a_shared_connection_in_order(
    lab: Lab, number: signal.Signals
) -> None:
    config = lab.folder / f"sharing-{number.name}"
    path = lab.folder / f"cm-{number.name}"
    config.write_text(
        f"Host *\n    ControlMaster auto\n    ControlPath {path}\nInclude {lab.ssh_config}\n"
    )
    master = lab.client.popen(["ssh", "-F", str(config), "-N", "server"])
    eventually(path.exists, "the user's own connection")
    tunnel = up(lab, "-e", f"ssh -F {config}")
    end_all(tunnel, number)
    assert master.poll() is None
    master.terminate()
    master.wait()


def test_a_service_that_is_stopped_with_all_its_processes_ends_in_order(lab: Lab) -> None:
    tunnel = up(lab, "-e", "ssh -J server -o HostName=localhost")
    for pid in [*tunnel.pids("ssh"), tunnel.process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert tunnel.process.wait(STOP_DEADLINE_S) == 0
    assert "could not be told" not in tunnel.said


# --- at a terminal --------------------------------------------------------------------------------


def test_a_terminal_that_is_closed_ends_the_session_in_order(lab: Lab) -> None:
    terminal = Terminal(lab, *SSHUNT, "-r", "server", OFFICE_V4)
    terminal.wait_for("sshunt: connected")
    terminal.close()
    assert terminal.process.wait(STOP_DEADLINE_S) == 0


@pytest.mark.parametrize("key", [b"\x03", b"\x1c"])
def test_a_key_that_interrupts_or_quits_ends_the_session_in_order(lab: Lab, key: bytes) -> None:
    terminal = Terminal(lab, *SSHUNT, "-r", "server", OFFICE_V4)
    terminal.wait_for("sshunt: connected")
    os.write(terminal.fd, key)
    assert terminal.process.wait(STOP_DEADLINE_S) == 0
    terminal.close()


def test_ended_while_sudo_asks_it_leaves_nobody_at_the_terminal(lab: Lab) -> None:
    script = f"{' '.join(SSHUNT)} -r server {OFFICE_V4}; read line; echo read: $line"
    terminal = Terminal(lab, "runuser", "-u", "cai", "--", "sh", "-c", script)
    terminal.wait_for("password for cai: ")
    started = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in lab.client.pids()}
    (sudo,) = [pid for pid, name in started.items() if name == "sudo"]
    sshunt = int(Path(f"/proc/{sudo}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(sshunt, signal.SIGTERM)
    terminal.wait_for("stopped while starting (SIGTERM)")
    eventually(lambda: not is_alive(sshunt), "its end")
    assert terminal.has_echo()
    os.write(terminal.fd, b"for the shell\n")
    terminal.wait_for("read: for the shell")
    assert not is_alive(sudo)
    terminal.process.wait(STOP_DEADLINE_S)
    terminal.close()


def test_ended_at_a_password_prompt_it_restores_the_terminals_echo(lab: Lab) -> None:
    options = {"PasswordAuthentication": "yes", "PubkeyAuthentication": "no"}
    sshd = lab.sshd(lab.server, port=2231, options=options)
    ssh = " ".join(lab.ssh("-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=3"))
    terminal = Terminal(lab, sys.executable, BRING_LANE, "cai@server:2231", ssh)
    terminal.wait_for("password:")
    eventually(lambda: not terminal.has_echo(), "the password to be typed unseen")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for('"interrupted": true')
    assert terminal.has_echo()
    terminal.process.wait()
    terminal.close()
    sshd.stop()


# --- kill -9 --------------------------------------------------------------------------------------


def ssh_and_below(lab: Lab, root: int) -> list[int]:
    """The processes that ``root`` has started on the client, and what they have."""
    found = [root]
    for parent in found:
        found += map(int, lab.client.run(["pgrep", "-P", str(parent)], check=False).stdout.split())
    return found[1:]


@pytest.mark.parametrize("way", ["", "-J server -o HostName=localhost", "relay"])
def test_a_killed_client_leaves_no_ssh_and_no_proxy_behind(lab: Lab, way: str) -> None:
    if way == "relay":
        relay = Path(__file__).with_name("relay_stdio.py")
        way = f"-o 'ProxyCommand={sys.executable} {relay} %h %p'"
    ssh = f"{' '.join(lab.ssh())} {way}"
    command = [sys.executable, BRING_LANE, "server", ssh, "--stay"]
    program = lab.client.popen(command, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    pids = ssh_and_below(lab, program.pid)
    program.kill()
    eventually(no_one_of(pids), "the end of what the client had started")
    eventually(lambda: agents(lab) != [], "the agent, which waits for the next connection")
    for pid in agents(lab):
        os.kill(pid, signal.SIGTERM)


def no_one_of(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(map(is_alive, pids))


def agents(lab: Lab) -> list[int]:
    """What runs on the server besides its sshd."""
    found = lab.server.run(["pgrep", "-f", "sys.version_info"], check=False).stdout.split()
    return [int(pid) for pid in found if int(pid) in lab.server.pids()]
