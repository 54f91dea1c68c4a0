"""The lab that every end-to-end test stands on keeps its own promises."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sshunt.lab.hosts import Host, is_alive
from sshunt.lab.leftovers import left_by
from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import ELSEWHERE_V4, ELSEWHERE_V6, OFFICE_V4, Lab
from tests.e2e.tunnels import Tunnel

OWNER = """\
import time
from sshunt.lab.world import Lab
with Lab() as lab:
    print(lab.name, flush=True)
    time.sleep(60)
"""


def can_talk(one: Host, other: Host, address: str) -> bool:
    with other.listen(address) as listener:
        port = listener.getsockname()[1]
        with one.connect(address, port) as ours, listener.accept()[0] as theirs:
            ours.sendall(b"hello")
            return theirs.recv(5) == b"hello"


def traces_of(name: str) -> list[Path]:
    return [*Path("/run/netns").glob(f"{name}*"), *Path("/tmp").glob(f"{name}*")]


def test_every_host_talks_to_the_next_one_over_ipv4_and_ipv6(lab: Lab) -> None:
    for one, other in (
        (lab.neighbour, lab.client),
        (lab.client, lab.server),
        (lab.server, lab.target),
    ):
        assert can_talk(one, other, other.v4)
        assert can_talk(one, other, other.v6)


def test_the_office_can_not_be_reached_without_a_tunnel(lab: Lab) -> None:
    for host in (lab.client, lab.neighbour):
        for address in (lab.target.v4, lab.target.v6):
            with pytest.raises(OSError, match=r"timed out|unreachable"):
                host.connect(address, 80, timeout_s=0.3)


def test_the_rest_of_the_internet_is_reached_directly(lab: Lab) -> None:
    assert can_talk(lab.client, lab.server, ELSEWHERE_V4)
    assert can_talk(lab.client, lab.server, ELSEWHERE_V6)


def test_a_plain_ssh_logs_in_as_an_ordinary_user(lab: Lab) -> None:
    for name in ("server", "server6"):
        assert lab.client.run(["ssh", name, "id -un"]).stdout == "ada\n"


def test_every_login_shell_of_the_machine_has_an_account(lab: Lab) -> None:
    for name in lab.accounts:
        if name.startswith("sh-"):
            assert lab.client.run(["ssh", f"{name}@server", "id -un"]).stdout == f"{name}\n"


def test_ordinary_users_have_the_sudo_rights_that_they_should(lab: Lab) -> None:
    def id_by_sudo(user: str, password: str) -> str:
        sudo = ["sudo", "-S", "-k", "id", "-u"]
        return lab.client.run(sudo, user=user, stdin=f"{password}\n", check=False).stdout

    assert id_by_sudo("ben", "") == "0\n"
    assert id_by_sudo("cai", "sesame") == "0\n"
    assert id_by_sudo("cai", "wrong") == ""
    assert id_by_sudo("dan", "sesame") == ""


def test_a_forwarded_port_of_ssh_carries_a_download_unchanged(lab: Lab) -> None:
    size = 3_000_000
    forward = ["ssh", "-N", "-L", f"8080:{lab.target.v4}:80", "server"]
    ssh = lab.client.popen(forward)
    lab.client.wait_for_port("127.0.0.1", 8080)
    fetch = f"curl -sS http://127.0.0.1:8080/bytes/{size} | sha256sum"
    assert lab.client.run(["sh", "-c", fetch]).stdout.split()[0] == payload_sha256(size)
    ssh.kill()


def test_the_machine_outside_knows_nobody_of_the_lab(lab: Lab) -> None:
    assert "ada" not in Path("/etc/passwd").read_text()
    assert lab.client.run(["getent", "passwd", "ada"]).stdout.startswith("ada:")


def test_two_labs_stand_side_by_side(lab: Lab) -> None:
    with Lab(sshd=False) as other:
        with other.server.listen("192.0.2.2", 22):  # the port that our sshd has in its own lab
            assert lab.client.run(["ssh", "server", "echo still here"]).stdout == "still here\n"


def test_closing_ends_even_a_process_that_detached_itself_on_the_far_side() -> None:
    with Lab() as lab:
        lab.client.run(["ssh", "server", "setsid sleep 1000 >/dev/null 2>&1 </dev/null &"])
        sleepers = lab.server.run(["pgrep", "-u", "ada", "sleep"]).stdout.split()
        assert sleepers
    assert not any(is_alive(int(pid)) for pid in sleepers)
    assert traces_of(lab.name) == []


@pytest.mark.parametrize("login", ["ada", "root"])
def test_closing_removes_what_a_living_agent_has_in_tmp(login: str) -> None:
    with Lab() as lab:
        tunnel = Tunnel(lab, ["-r", f"{login}@server", OFFICE_V4])
        tunnel.wait_until_connected()
        table = lab.server.run(["cat", "/proc/net/unix"]).stdout
        listening = [Path(path) for path in re.findall(r" (/tmp/sshunt-\S+)$", table, re.MULTILINE)]
        assert {path.stat().st_uid for path in listening} == {lab.account(login).uid}
    assert [path for path in listening if path.exists()] == []
    assert left_by({lab.account("ada").uid}) == []


def test_sigterm_takes_the_lab_down() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().decode().strip()
        assert traces_of(name)
        owner.terminate()
        assert owner.wait(10) == 128 + signal.SIGTERM
    assert traces_of(name) == []


def test_the_next_lab_removes_what_a_killed_one_left() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().decode().strip()
        os.kill(owner.pid, signal.SIGKILL)
    assert traces_of(name)
    with Lab(sshd=False):
        assert traces_of(name) == []


def test_a_lab_stands_within_seconds() -> None:
    # Not a speed test: a name service or a login that waits for a time-out would show here.
    start = time.monotonic()
    with Lab() as lab:
        lab.client.run(["ssh", "server", "true"])
    assert time.monotonic() - start < 10
