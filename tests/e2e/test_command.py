"""The command itself: what it inherits, how it is stopped, what it says of it."""

import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.errors import ExitCode
from sshunt.host.elevate import LAUNCHER
from sshunt.lab.world import OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import OFFICE, SSHUNT, START_DEADLINE_S, STOP_DEADLINE_S, fetch, kill


@pytest.mark.parametrize("user", ["root", "ben"])
def test_it_works_with_closed_standard_descriptors(lab: Lab, user: str) -> None:
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
def test_a_sudo_rule_with_the_printed_command_suffices_for_a_passwordless_start(
    lab: Lab, start: Start, program: Sequence[str], tool: str
) -> None:
    printed = lab.client.run([*program, "--dry-run", "-r", "server", OFFICE_V4], user="dan").stdout
    command = printed.splitlines()[1].removeprefix("#").strip()
    if tool == "sudo":
        rule, place = f"dan ALL=(root) NOPASSWD: {command}\n", "/etc/sudoers"
    else:
        python, _, args = command.partition(" ")
        rule, place = f"permit nopass dan as root cmd {python} args {args}\n", "/etc/doas.conf"
    asked = [*program, "sudoers", "--user", "dan", *(["--doas"] if tool == "doas" else [])]
    told = lab.client.run(asked, user="dan", check=False)
    assert told.stdout == (rule if told.returncode == 0 else "")  # where it is not root's alone
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


def test_a_helper_that_root_installed_for_all_needs_no_password_by_the_printed_line(
    lab: Lab, start: Start
) -> None:
    layer = lab.folder / "local"
    layer.mkdir()
    account, line = lab.account("dan"), lab.folder / "line-for-dan"
    become = f"setpriv --reuid={account.uid} --regid={account.uid} --init-groups"
    script = f"""
mount -t tmpfs tmpfs {layer} && mkdir {layer}/upper {layer}/work
layers=lowerdir=/usr/local,upperdir={layer}/upper,workdir={layer}/work
mount -t overlay overlay -o $layers /usr/local || exit 77
{BIN}/sshunt install-helper && {become} {BIN}/sshunt sudoers --user dan >{line} || exit 78
chmod 400 {line} && mount --bind {line} /etc/sudoers
exec {become} env HOME={account.home} "$@"
"""
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    tried = lab.client.run([*before, "true"], check=False)
    if tried.returncode == 77:
        pytest.skip("no overlay to lay over /usr/local")
    assert "is installed" in tried.stderr
    start("-r", "server", OFFICE_V4, before=before)
    assert line.read_text() == f'dan ALL=(root) NOPASSWD: {LAUNCHER} ""\n'
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


# --- what it says at the start ------------------------------------------------------------------


def fails(lab: Lab, code: ExitCode, *words: str) -> str:
    done = lab.client.run([*SSHUNT, "-r", "server", *words], check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("own", ["localhost", "127.0.0.1:8080", "192.0.2.1", "2001:db8:1::1"])
def test_a_target_that_is_this_host_itself_is_told_and_alone_is_an_error(
    lab: Lab, start: Start, own: str
) -> None:
    assert "this host itself" in fails(lab, ExitCode.USAGE, own)
    tunnel = start("-r", "server", own, OFFICE_V4)
    assert "this host itself: what goes there is never captured" in tunnel.said


@contextmanager
def without_loopback6(lab: Lab) -> Iterator[None]:
    lab.client.run(["ip", "-6", "address", "flush", "dev", "lo"])
    try:
        yield
    finally:
        lab.client.run(["ip", "-6", "address", "add", "::1/128", "dev", "lo"])


def test_with_ipv6_and_without_its_loopback_nothing_goes_past_the_tunnel(
    lab: Lab, start: Start
) -> None:
    with without_loopback6(lab):
        for targets in (OFFICE, ("0/0", "::/0"), ("target",)):  # a name with both kinds of address
            said = fails(lab, ExitCode.LISTEN, *targets)
            assert "no ::1" in said
            assert "past the tunnel" in said
        tunnel = start("-r", "server", *OFFICE, "--disable-ipv6")
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert "has no IPv6" not in tunnel.said


def test_without_ipv6_loopback_queries_to_ipv6_resolvers_do_not_go_past_the_tunnel(
    lab: Lab,
) -> None:
    resolv_conf = lab.folder / "resolv.conf"
    resolv_conf.write_text("nameserver fd00:55::2\n")
    lay_over = f'mount --bind {resolv_conf} /etc/resolv.conf; exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", lay_over, "sh"]
    with without_loopback6(lab):
        words = [*before, *SSHUNT, "--dns", "-r", "server", OFFICE_V4]
        done = lab.client.run(words, check=False)
    assert done.returncode == ExitCode.LISTEN, done.stderr
    assert "queries to IPv6 resolvers would go past the tunnel" in done.stderr


# --- several at once, and the end ---------------------------------------------------------------


def test_two_sessions_to_one_server_can_be_told_apart(lab: Lab, start: Start) -> None:
    one = start("-r", "server", OFFICE_V4)
    other = start("-r", "server", OFFICE_V6)
    found = re.search(r"connected to server \[([0-9a-f]{8})\]", other.said)
    assert found
    assert re.search(r"connected to server(?! \[)", one.said)

    said = lab.client.run([*SSHUNT, "reconnect"]).stdout
    for tunnel, targets in ((one, OFFICE_V4), (other, OFFICE_V6)):
        assert re.search(
            rf"^session [0-9a-f]{{8}} \(process {tunnel.process.pid}\): server, {targets}: looking",
            said,
            re.MULTILINE,
        )
    assert f"session {found[1]} (process {other.process.pid})" in said
    assert lab.client.run([*SSHUNT, "reconnect", "server"]).stdout.count("looking") == 2
    only = lab.client.run([*SSHUNT, "reconnect", found[1]]).stdout
    assert only.count("looking") == 1
    done = lab.client.run([*SSHUNT, "reconnect", "elsewhere"], check=False)
    assert done.returncode == ExitCode.USAGE


def test_the_last_line_tells_how_it_ended_how_long_it_was_up_and_what_went_through(
    lab: Lab, start: Start
) -> None:
    tunnel = start("-r", "server", OFFICE_V4)
    fetch(lab.client, f"http://{lab.target.v4}/bytes/3000000", "-o", "/dev/null")
    assert tunnel.stop() == 0
    last = tunnel.said.splitlines()[-1]
    assert re.fullmatch(
        r"sshunt: stopped \(SIGTERM\) after \d+\.\d s with server: 3\.\d MB down, [\d.]+ k?B up",
        last,
    )


def test_bytes_of_ended_lanes_are_counted_and_no_waiting_connections_are_mentioned(
    lab: Lab, start: Start
) -> None:
    tunnel = start("-v", "-r", "server", OFFICE_V4)
    fetch(lab.client, f"http://{lab.target.v4}/bytes/3000000", "-o", "/dev/null")
    assert re.search(r"asked root: hello \(\d+ ms\)", tunnel.said)  # a line for each request
    assert re.search(r"asked root: apply 1 routes, listeners .* port \d+ \(\d+ ms\)", tunnel.said)
    tunnel.wait_until(lambda: tunnel.pids("ssh") != [])
    kill(tunnel.pids("ssh"))
    tunnel.wait_until(lambda: "connected to server again" in tunnel.said)
    assert tunnel.stop() == 0
    assert re.search(r"stopped \(SIGTERM\) after .*: 3\.\d MB down", tunnel.said)
    assert "0 connections" not in tunnel.said
    assert not re.search(r"lane \d+ ended: *$", tunnel.said, re.MULTILINE)
