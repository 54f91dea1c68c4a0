"""A host of the lab: what runs in it, what it hears, and what is seen of it from outside."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from sshunt.lab.hosts import (
    Host,
    ProgramFailedError,
    family_of,
    ip,
    is_alive,
    processes_in,
    python,
)
from sshunt.lab.world import Lab
from tests.agent.far_side import eventually


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.target


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_a_program_s_output_and_input_are_text(host: Host) -> None:
    assert host.run(["cat"], stdin="grüße\n").stdout == "grüße\n"


def test_a_program_that_fails_says_why(host: Host) -> None:
    with pytest.raises(ProgramFailedError, match="exit code 3: because") as caught:
        host.run(["sh", "-c", "echo because >&2; exit 3"])
    assert caught.value.done.returncode == 3
    assert host.run(["false"], check=False).returncode == 1


def test_a_program_has_the_environment_of_its_user_and_what_is_added(host: Host, lab: Lab) -> None:
    said = host.run(["env"], user="ada", env={"MORE": "1"}).stdout.splitlines()
    assert "MORE=1" in said
    assert f"HOME={lab.account('ada').home}" in said
    assert host.run(["id", "-u"], user="ada").stdout == f"{lab.account('ada').uid}\n"
    assert host.run(["pwd"], cwd="/proc").stdout == "/proc\n"


def test_a_program_s_limit_of_descriptors_can_be_set(host: Host) -> None:
    command = host.command(["sh", "-c", "ulimit -n"], nofile=77)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "77\n"


def test_a_host_knows_its_processes_and_reaps_them(lab: Lab) -> None:
    host = lab.neighbour
    process = host.popen(["sleep", "1000"])
    eventually(lambda: process.pid in host.pids(), "its arrival there")
    process.kill()
    host.reap()
    assert process.pid not in host.pids()
    assert not is_alive(process.pid)


def test_a_socket_belongs_to_its_host_and_the_thread_to_where_it_was(host: Host) -> None:
    before = here()
    with host.listen("127.0.0.1") as listener:
        assert here() == before
        address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        with host.connect(*address) as near, listener.accept()[0] as far:
            near.sendall(b"x")
            assert far.recv(1) == b"x"


def test_a_host_is_left_again_when_something_fails_in_it(host: Host) -> None:
    before = here()
    inside = []

    def fail() -> None:
        with host.entered():
            inside.append(here())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert here() == before
    assert inside != [before]


def test_what_can_not_be_had_leaves_no_socket_behind(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="refused"):
        host.connect("127.0.0.1", 1)
    with pytest.raises(OSError, match="assign"):
        host.listen("192.0.2.99")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_is_waited_for_but_not_for_ever(host: Host) -> None:
    with host.listen("::1") as listener:
        host.wait_for_port("::1", listener.getsockname()[1])
    with pytest.raises(TimeoutError, match="nobody listens"):
        host.wait_for_port("127.0.0.1", 1, timeout_s=0.1)


def test_a_sysctl_is_the_host_s_own(host: Host) -> None:
    name = "net/ipv4/ip_default_ttl"
    outside = Path("/proc/sys", name).read_text()
    host.write_sysctl(name, "77")
    assert host.run(["cat", f"/proc/sys/{name}"]).stdout == "77\n"
    assert Path("/proc/sys", name).read_text() == outside
    host.write_sysctl(name, outside)


# --- without a host -------------------------------------------------------------------------------


def test_the_family_of_an_address_is_seen_from_its_text() -> None:
    assert family_of("192.0.2.1") == socket.AF_INET
    assert family_of("2001:db8::1") == socket.AF_INET6


def test_a_process_that_only_waits_to_be_reaped_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert is_alive(process.pid)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid)
    assert not is_alive(process.pid)


def test_a_namespace_that_is_not_there_has_no_processes() -> None:
    assert processes_in(Path("/run/netns/never-made")) == []


def test_what_ip_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(RuntimeError, match="ip: "):
        ip("link set never-made up", netns=None)


def test_a_module_is_run_without_the_current_directory_s_say(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('planted')\n")
    done = subprocess.run(
        python("sshunt", "--version"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
