"""The command itself: what it inherits, how it is stopped, what it says of it."""

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import SSHUNT, START_DEADLINE_S, STOP_DEADLINE_S, fetch


@pytest.mark.parametrize("user", ["root", "ben"])
def test_it_works_with_nothing_to_say_anything_to(lab: Lab, user: str) -> None:
    # A service manager, or `2>&-`: a socket must not take the place of stderr, at any of the ends.
    words = [*SSHUNT, "-r", "server", OFFICE_V4]
    closed = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *words]
    tunnel = lab.client.popen(closed, user=user)
    deadline = time.monotonic() + START_DEADLINE_S
    while (fetched := fetch_or_not(lab)) is None and time.monotonic() < deadline:
        assert tunnel.poll() is None, f"it ended with {tunnel.poll()}"
        time.sleep(0.1)
    tunnel.terminate()
    assert fetched is not None
    assert tunnel.wait(STOP_DEADLINE_S) == 0


def fetch_or_not(lab: Lab) -> str | None:
    page = f"http://{lab.target.v4}/"
    done = lab.client.run(["curl", "-sS", "-m", "1", page], check=False)
    return done.stdout if done.returncode == 0 else None


def test_a_login_whose_start_file_closes_stderr_does_no_harm(lab: Lab, start: Start) -> None:
    bashrc = lab.account("ada").home / ".bashrc"
    bashrc.write_text("exec 2>&-\n")
    try:
        start("-r", "server", OFFICE_V4)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    finally:
        bashrc.unlink()


BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "program",
    [
        [str(BIN / "sshunt")],
        [str(BIN / "python"), "-m", "sshunt"],
        [f"{BIN}/python3", "-m", "sshunt"],
    ],
    ids=["the installed command", "python", "python3"],
)
@pytest.mark.parametrize("tool", ["sudo", "doas"])
def test_a_rule_with_what_a_dry_run_prints_is_all_that_a_start_without_password_needs(
    lab: Lab, start: Start, program: Sequence[str], tool: str
) -> None:
    printed = lab.client.run([*program, "--dry-run", "-r", "server", OFFICE_V4], user="dan").stdout
    command = printed.splitlines()[1].removeprefix("#").strip()
    if tool == "sudo":
        rule, place = f"dan ALL=(root) NOPASSWD: {command}\n", "/etc/sudoers"
    else:
        python, _, args = command.partition(" ")
        rule, place = f"permit nopass dan as root cmd {python} args {args}\n", "/etc/doas.conf"
    path = lab.folder / f"rule-{time.monotonic_ns()}"
    path.write_text(rule)
    path.chmod(0o400)
    hide = "mount --bind /dev/null /usr/bin/sudo; " if tool == "doas" else ""
    account = lab.account("dan")
    become = f"setpriv --reuid={account.uid} --regid={account.uid} --init-groups"
    script = f'{hide}mount --bind {path} {place}; exec {become} env HOME={account.home} "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    start("-r", "server", OFFICE_V4, before=before, program=program)
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_a_service_manager_is_told_when_it_is_up_and_when_it_stops(lab: Lab, start: Start) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(START_DEADLINE_S)
        manager.bind(str(lab.folder / "notify"))
        tunnel = start("-r", "server", OFFICE_V4, env={"NOTIFY_SOCKET": str(lab.folder / "notify")})
        told = manager.recv(1000).decode().splitlines()
        assert told[0] == "READY=1"
        assert told[1].startswith("STATUS=connected to server")
        assert tunnel.stop() == 0
        assert manager.recv(1000) == b"STOPPING=1"
