"""Through a real sshd: every login shell, every way in which a login may be strange or fail.

    client ---- ssh ----> server (sshd, the accounts' login shells, their start-up files)

What runs on the client is ``bring_lane.py``, which does what the client does to get a lane.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.accounts import LOGIN_SHELLS, PASSWORD
from sshunt.lab.hosts import is_alive
from sshunt.lab.leftovers import left_by
from sshunt.lab.world import Lab
from sshunt.mux.hello import FEATURE_DETACHED
from tests.agent.far_side import eventually, python2

PROGRAM = str(Path(__file__).with_name("bring_lane.py"))

#: What each shell reads before it runs a command. dash reads nothing then.
START_UP_FILES = {
    "bash": ".bashrc",
    "zsh": ".zshenv",
    "fish": ".config/fish/config.fish",
    "tcsh": ".tcshrc",
    "csh": ".cshrc",
}


@pytest.fixture(autouse=True)
def nothing_stays_behind(lab: Lab) -> Iterator[None]:
    """After each test the server has its sshd left and no more, and the agents' place is gone."""
    before = set(lab.server.pids())
    yield
    eventually(lambda: set(lab.server.pids()) <= before, "the far side's processes end")
    assert left_by({account.uid for account in lab.accounts.values()} - {0}) == []


def bring(lab: Lab, destination: str, *options: str, ssh: tuple[str, ...] = ()) -> dict[str, Any]:
    """What came of it, with what was shown on stderr as ["shown"]."""
    command = " ".join(lab.ssh(*ssh))
    done = lab.client.run([sys.executable, PROGRAM, destination, command, *options], check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return {**json.loads(done.stdout), "shown": done.stderr}


def refused(
    lab: Lab, destination: str, *options: str, ssh: tuple[str, ...] = ()
) -> tuple[ExitCode, str]:
    """The kind of failure and its line, when there must be one."""
    result = bring(lab, destination, *options, ssh=ssh)
    assert result["hint"]
    assert "\n" not in result["error"]
    return ExitCode(result["exit_code"]), result["error"]


def start_up(lab: Lab, user: str, file: str, text: str) -> Path:
    """Write one of the account's start-up files."""
    account = lab.account(user)
    path = account.home / file
    for folder in path.relative_to(account.home).parents:
        account.home.joinpath(folder).mkdir(exist_ok=True)
        os.chown(account.home / folder, account.uid, account.uid)
    path.write_text(text)
    path.chmod(0o644)
    return path


@pytest.fixture
def bashrc(lab: Lab) -> Iterator[Path]:
    """ada's start-up file, which bash reads for ssh commands too."""
    path = lab.account("ada").home / ".bashrc"
    yield path
    path.unlink()


# --- logins that work ---------------------------------------------------------------------------


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_the_agent_starts_under_every_login_shell(lab: Lab, shell: str) -> None:
    if f"sh-{shell}" not in lab.accounts:
        pytest.skip(f"no {shell} on this machine")
    result = bring(lab, f"sh-{shell}@server")
    assert result["features"] & FEATURE_DETACHED
    assert result["exit_status"] == 0
    assert result["shown"] == ""


@pytest.mark.parametrize("shell", START_UP_FILES)
def test_what_start_up_files_print_is_passed_over(lab: Lab, shell: str) -> None:
    user = f"sh-{shell}"
    if user not in lab.accounts:
        pytest.skip(f"no {shell} on this machine")
    noise = 'echo "Welcome! Today is a fine day."\n' * 200
    path = start_up(lab, user, START_UP_FILES[shell], noise)
    try:
        said = lab.client.run([*lab.ssh(), f"{user}@server", "true"]).stdout
        assert said.count("fine day") == 200  # it does print
        assert bring(lab, f"{user}@server")["exit_status"] == 0
    finally:
        path.unlink()


def test_the_servers_banner_is_shown_and_does_no_harm(lab: Lab) -> None:
    banner = lab.folder / "banner"
    banner.write_text("Authorized use only.\n")
    sshd = lab.sshd(lab.server, port=2201, options={"Banner": str(banner)})
    result = bring(lab, "server:2201")
    assert result["exit_status"] == 0
    assert result["shown"] == "ssh: Authorized use only.\n"
    sshd.stop()


def test_ipv6_in_brackets_and_without(lab: Lab) -> None:
    for destination in (f"ada@[{lab.server.v6}]:22", f"ada@{lab.server.v6}"):
        assert bring(lab, destination)["exit_status"] == 0


def test_a_configuration_made_for_people_does_not_disturb(lab: Lab) -> None:
    config = lab.folder / "interactive"
    config.write_text(
        "Host *\n"
        "  RequestTTY force\n"
        "  RemoteCommand tmux attach\n"
        "  LocalForward 127.0.0.1:8080 target:80\n"
        "  DynamicForward 1080\n"
        "  ForwardAgent yes\n"
        "  ForwardX11 yes\n"
        "  ControlMaster auto\n"
        f"  ControlPath {lab.folder}/control-%C\n"
        "  ControlPersist 60\n"
        "  EscapeChar ^Q\n"
        "  ServerAliveInterval 15\n"
        "  PermitLocalCommand yes\n"
        "  LocalCommand cat > /dev/null\n"
        f"Include {lab.ssh_config}\n"
    )
    result = bring(lab, "server", ssh=("-F", str(config)))
    assert result["exit_status"] == 0
    assert not list(lab.folder.glob("control-*"))


@pytest.mark.parametrize(
    "line", ["StdinNull yes", "ForkAfterAuthentication yes", "SessionType none"]
)
def test_a_configuration_made_for_forwarding_only_does_not_disturb(lab: Lab, line: str) -> None:
    config = lab.folder / "forwarding"
    config.write_text(f"Host *\n  IgnoreUnknown {line.split()[0]}\n  {line}\n")
    with config.open("a") as file:
        file.write(f"Include {lab.ssh_config}\n")
    result = bring(lab, "server", ssh=("-F", str(config)))
    assert result.get("exit_status") == 0, result


def test_jump_hosts_of_the_ssh_configuration_work(lab: Lab) -> None:
    assert bring(lab, "localhost", ssh=("-J", "server"))["exit_status"] == 0


def test_the_session_survives_the_death_of_its_ssh(lab: Lab) -> None:
    result = bring(lab, "server", "--resume")
    assert result["exit_status"] == 0, result


#: Binds the path that the ssh which started us has in its arguments, and holds it for a while.
BINDS_FIRST = """\
import os, re, socket, sys, time
pid, found = os.getpid(), None
while not found:
    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    found = re.search(rb"ControlPath=([^\\0]+)", open(f"/proc/{pid}/cmdline", "rb").read())
sock = socket.socket(socket.AF_UNIX)
try:
    sock.bind(os.fsdecode(found[1]))
except OSError as error:
    sys.exit(error.strerror)
sock.listen()
if os.fork():
    sys.exit("bound it first")
time.sleep(10)
"""


def test_nobody_else_can_bind_the_socket_that_further_channels_go_through(lab: Lab) -> None:
    program, log, config = (lab.folder / f"binds-first{end}" for end in (".py", ".log", ""))
    program.write_text(BINDS_FIRST)
    log.touch()
    become = "setpriv --reuid=dan --regid=dan --init-groups"
    config.write_text(
        # It is run when ssh reads its configuration, long before ssh binds the path itself. The
        # first two that are run belong to "ssh -G", which has no such path.
        f'Match exec "grep -q ControlPath /proc/$PPID/cmdline && {become} {sys.executable}'
        f' {program} 2>> {log} < /dev/null > /dev/null"\n'
        f"    Compression no\n"
        f"Include {lab.ssh_config}\n"
    )
    for path in (lab.folder, program):
        path.chmod(0o755)
    result = bring(lab, "server", "--share", ssh=("-F", str(config)))
    assert log.read_text() == "Permission denied\n"
    assert result["socket_of"] == os.geteuid()
    assert result["master"] == 0
    assert result["exit_status"] == 0


def test_an_interrupt_from_the_terminal_does_not_end_ssh(lab: Lab) -> None:
    assert bring(lab, "server", "--interrupt-ssh")["survived"] is True


def test_the_named_python_is_the_one_that_runs(lab: Lab) -> None:
    assert bring(lab, "server", "--python", "/usr/bin/python3")["exit_status"] == 0
    failed = bring(lab, "server", "--python", "python9")
    assert failed["exit_code"] == ExitCode.NO_PYTHON
    assert "python9" in failed["error"]


# --- logins that do not -------------------------------------------------------------------------


def test_an_unknown_name_a_wrong_port_and_a_silent_address(lab: Lab) -> None:
    kind, said = refused(lab, "nosuch.example")
    assert (kind, "nosuch.example" in said) == (ExitCode.NAME, True)
    kind, said = refused(lab, "server:2299")
    assert (kind, "server port 2299" in said) == (ExitCode.CONNECT, True)
    kind, said = refused(lab, "ada@10.55.0.2", ssh=("-o", "ConnectTimeout=1"))
    assert (kind, "can't be reached" in said) == (ExitCode.CONNECT, True)


def test_a_server_that_is_no_ssh_server(lab: Lab) -> None:
    with lab.server.listen(lab.server.v4) as listener:
        program = start(lab, f"server:{listener.getsockname()[1]}")
        with listener.accept()[0] as caller:
            caller.sendall(b"220 mail.example ESMTP\r\n" * 2000)
    result = json.loads(program.communicate(timeout=20)[0])
    assert result["exit_code"] == ExitCode.CONNECT
    assert "did not greet" in result["error"]


def test_a_refused_login(lab: Lab) -> None:
    kind, said = refused(
        lab,
        "server",
        ssh=(
            "-o",
            "IdentityFile=/nowhere",
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ),
    )
    assert kind == ExitCode.AUTH
    assert "Permission denied" in said


def test_an_unknown_and_a_changed_host_key(lab: Lab) -> None:
    kind, said = refused(lab, "server", ssh=("-o", "UserKnownHostsFile=/dev/null"))
    assert (kind, "not known" in said) == (ExitCode.HOST_KEY, True)
    sshd = lab.sshd(lab.server, port=2202, new_host_key=True)
    kind, said = refused(lab, "server:2202")
    assert (kind, "has changed" in said) == (ExitCode.HOST_KEY, True)
    sshd.stop()


def test_options_that_ssh_does_not_know(lab: Lab) -> None:
    kind, said = refused(lab, "server", ssh=("-o", "NoSuchOption=yes"))
    assert kind == ExitCode.USAGE
    assert "nosuchoption" in said.lower()


def test_no_python_on_the_far_side(lab: Lab, bashrc: Path) -> None:
    bashrc.write_text("PATH=/nowhere\n")
    kind, said = refused(lab, "server", "--only-on-path")
    assert kind == ExitCode.NO_PYTHON
    assert "found no Python" in said


def test_only_a_python_2_on_the_far_side(lab: Lab, bashrc: Path, tmp_path: Path) -> None:
    old = python2()
    if old is None:
        pytest.skip("no Python 2.7 on this machine")
    # It may lie in somebody's home, which ada can't enter: root's account can.
    root = lab.account("root").home / ".bashrc"
    tmp_path.joinpath("python").symlink_to(old)
    root.write_text(f"PATH={tmp_path}\n")
    bashrc.touch()
    kind, said = refused(lab, "root@server", "--only-on-path")
    root.unlink()
    assert kind == ExitCode.NO_PYTHON
    assert "Python 2.7" in said


def test_noise_without_end(lab: Lab, bashrc: Path) -> None:
    bashrc.write_text("while :; do echo noise noise noise; done\n")
    kind, said = refused(lab, "server")
    assert kind == ExitCode.REMOTE
    assert "noise noise" in said


def test_a_shell_that_prints_and_exits(lab: Lab, bashrc: Path) -> None:
    bashrc.write_text("echo This account is closed.; exit 3\n")
    kind, said = refused(lab, "server")
    assert kind == ExitCode.REMOTE
    assert "This account is closed." in said
    assert "status 3" in said


def test_a_start_up_file_that_reads_the_upload_is_reported(lab: Lab, bashrc: Path) -> None:
    bashrc.write_text("head -c 100 > /dev/null\n")
    kind, said = refused(lab, "server")
    assert kind == ExitCode.REMOTE
    assert "standard input" in said


def test_a_restricted_shell(lab: Lab, bashrc: Path) -> None:
    bashrc.write_text("set -r\n")
    kind, said = refused(lab, "server")
    assert kind == ExitCode.REMOTE
    assert "restricted" in said


def test_a_server_that_forces_another_command(lab: Lab) -> None:
    options = {"ForceCommand": "/bin/echo only git here"}
    sshd = lab.sshd(lab.server, port=2203, options=options)
    kind, said = refused(lab, "server:2203")
    assert kind == ExitCode.REMOTE
    assert "only git here" in said
    sshd.stop()


# --- sudden ends ----------------------------------------------------------------------------------


def start(lab: Lab, destination: str = "server") -> "subprocess.Popen[bytes]":
    command = [sys.executable, PROGRAM, destination, " ".join(lab.ssh())]
    return lab.client.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ssh_of(lab: Lab, program: "subprocess.Popen[bytes]") -> int:
    """The pid of the ssh that ``program`` has started to hold a lane."""
    found: list[int] = []

    def look() -> bool:
        for pid in lab.client.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent == str(program.pid) and b"-T" in words and words[0].endswith(b"ssh"):
                found.append(pid)
        return bool(found)

    eventually(look, "ssh is started")
    return found[0]


@pytest.fixture
def sleepers(lab: Lab, bashrc: Path) -> Iterator[Callable[[], list[int]]]:
    """A login whose start-up file hangs; what hangs there, once authentication is over."""
    bashrc.write_text("sleep 60\n")

    def look() -> list[int]:
        return [pid for pid in lab.server.pids() if runs(pid, "sleep")]

    yield look
    for pid in look():
        os.kill(pid, signal.SIGKILL)


def test_ssh_killed_while_starting(lab: Lab, sleepers: Callable[[], list[int]]) -> None:
    program = start(lab)
    ssh = ssh_of(lab, program)
    eventually(lambda: sleepers() != [], "the login")
    os.kill(ssh, signal.SIGKILL)
    out, _ = program.communicate(timeout=20)
    result = json.loads(out)
    assert result["exit_code"] == ExitCode.CONNECT
    assert "SIGKILL" in result["error"]


def test_a_killed_client_takes_its_ssh_along(lab: Lab, sleepers: Callable[[], list[int]]) -> None:
    program = start(lab)
    ssh = ssh_of(lab, program)
    eventually(lambda: sleepers() != [], "the login")
    program.kill()
    eventually(lambda: not is_alive(ssh), "the end of ssh")


def test_a_login_shell_that_hangs_is_told_from_a_login_that_does(
    lab: Lab, sleepers: Callable[[], list[int]]
) -> None:
    result = bring(lab, "server", "--share", "--hasty")
    assert sleepers() != []
    assert "logged in, but" in result["shown"]
    assert "logged in, but" in result["error"]
    assert result["exit_code"] == ExitCode.REMOTE
    with lab.server.listen(lab.server.v4) as silent:
        destination = f"server:{silent.getsockname()[1]}"
        result = bring(lab, destination, "--share", "--hasty", "--deadline", "2")
    assert "logged in" not in result["shown"]
    assert "did not answer within 2 s" in result["error"]


# --- at a terminal --------------------------------------------------------------------------------


@pytest.fixture
def asking_server(lab: Lab) -> Iterator[int]:
    """The port of an sshd that wants a password."""
    options = {"PasswordAuthentication": "yes", "PubkeyAuthentication": "no"}
    sshd = lab.sshd(lab.server, port=2204, options=options)
    yield sshd.port
    sshd.stop()


def at_a_terminal(lab: Lab, port: int) -> "subprocess.Popen[bytes]":
    command = " ".join(lab.ssh("-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=3"))
    line = f"{sys.executable} {PROGRAM} cai@server:{port} '{command}'"
    return lab.client.popen(
        ["script", "-qec", line, "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def type_at_prompt(terminal: "subprocess.Popen[bytes]", text: bytes) -> bytes:
    """Type ``text`` when ssh asks; everything the screen showed after that."""
    assert terminal.stdout is not None
    assert terminal.stdin is not None
    screen = b""
    while b"password:" not in screen:
        more = os.read(terminal.stdout.fileno(), 1000)
        assert more, screen
        screen += more
    time.sleep(0.2)  # typing before the prompt has read the terminal's modes would be flushed
    terminal.stdin.write(text)
    terminal.stdin.flush()
    return terminal.communicate(timeout=30)[0]


def test_a_password_is_asked_for_at_the_terminal(lab: Lab, asking_server: int) -> None:
    screen = type_at_prompt(at_a_terminal(lab, asking_server), PASSWORD.encode() + b"\n")
    assert b'"exit_status": 0' in screen


def test_ctrl_c_at_the_password_prompt_ends_the_start(lab: Lab, asking_server: int) -> None:
    screen = type_at_prompt(at_a_terminal(lab, asking_server), b"\x03")
    assert b'"interrupted": true' in screen
    eventually(lambda: not any(runs(pid, "ssh") for pid in lab.client.pids()), "the end of ssh")


def runs(pid: int, program: str) -> bool:
    """True if the process is ``program``."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == program + "\n"
    except OSError:
        return False
