"""Whatever a user gets wrong or meets: a line of what, a line of what to do, its exit code.

Each test runs the real command line in the lab and then asks whether anything was left behind.
"""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.accounts import PASSWORD
from sshunt.lab.world import ELSEWHERE_V4, OFFICE_V4, Lab
from tests.e2e.tunnels import SSHUNT, STOP_DEADLINE_S, Remains, Tunnel, fetch

#: No failure may take longer than this, except where a name or an ssh server has its own time-out.
FAILURE_DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def nothing_is_left(lab: Lab) -> Iterator[None]:
    remains = Remains(lab)
    yield
    assert remains.left() == []


def fails(
    lab: Lab,
    code: ExitCode,
    *words: str,
    user: str = "root",
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    program: Sequence[str] = SSHUNT,
) -> str:
    """Run sshunt, assert that it fails as a program should, and return its two lines."""
    done = lab.client.run(
        [*before, *program, *words],
        user=user,
        env=env,
        check=False,
        timeout_s=FAILURE_DEADLINE_S,
    )
    assert done.returncode == code, done.stderr
    return two_lines(done.stderr)


def two_lines(said: str) -> str:
    """The error and the hint, which must be the last that was said."""
    assert "Traceback" not in said
    what, hint = said.rstrip("\n").splitlines()[-2:]
    assert re.fullmatch(r"sshunt: error: \S.+", what), said
    assert re.fullmatch(r"sshunt: hint: \S.+", hint), said
    assert said.count("sshunt: error:") == 1
    return f"{what}\n{hint}"


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["10.0.0.0/33", "1.2.3.4:90-80", "1.2.3.4:70000", "1.2.3", "fd00::/129", "10.0.0.0/8:", ""],
)
def test_a_target_that_does_not_parse(lab: Lab, target: str) -> None:
    assert target in fails(lab, ExitCode.USAGE, "-r", "server", target)


def test_an_exclusion_that_does_not_parse(lab: Lab) -> None:
    assert "10.0.0.0/33" in fails(lab, ExitCode.USAGE, "-r", "server", "0/0", "-x", "10.0.0.0/33")


def test_a_target_with_an_unknown_name(lab: Lab) -> None:
    assert "no-such-name" in fails(lab, ExitCode.NAME, "-r", "server", "no-such-name")


def test_a_file_of_targets_that_is_not_there(lab: Lab) -> None:
    assert "/no/such/file" in fails(lab, ExitCode.USAGE, "-r", "server", "-s", "/no/such/file")


@pytest.mark.parametrize("words", [["-r", "server"], ["10.0.0.0/8"], ["--no-such-option"], []])
def test_a_command_line_with_something_missing_or_unknown(lab: Lab, words: list[str]) -> None:
    fails(lab, ExitCode.USAGE, *words)


@pytest.mark.parametrize("listen", ["12.0.0.1:x", "127.0.0.1:99999", "no-such-name"])
def test_a_listening_address_that_does_not_parse(lab: Lab, listen: str) -> None:
    fails(lab, ExitCode.USAGE, "-r", "server", "-l", listen, OFFICE_V4)


def test_help_and_version_succeed(lab: Lab) -> None:
    assert "-r" in lab.client.run([*SSHUNT, "--help"]).stdout
    assert re.match(r"sshunt \d", lab.client.run([*SSHUNT, "--version"]).stdout)


# --- here --------------------------------------------------------------------------------------


def test_a_port_that_is_in_use(lab: Lab) -> None:
    with lab.client.listen("127.0.0.1") as taken:
        port = str(taken.getsockname()[1])
        assert port in fails(lab, ExitCode.LISTEN, "-r", "server", "-l", f"{port}", OFFICE_V4)


def test_an_address_that_is_not_of_this_host(lab: Lab) -> None:
    fails(lab, ExitCode.LISTEN, "-r", "server", "-l", f"{ELSEWHERE_V4}:0", OFFICE_V4)


def test_no_libnftables(lab: Lab) -> None:
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    libraries = [Path(line.split()[-1]) for line in found.splitlines() if "libnftables.so" in line]
    assert libraries
    hide = "; ".join(f"mount --bind /dev/null {path.resolve()}" for path in libraries)
    without = ["unshare", "--mount", "sh", "-c", f'{hide}; exec "$@"', "sh"]
    words = ("--method", "nft", "-r", "server", OFFICE_V4)
    assert "apt install nftables" in fails(lab, ExitCode.CAPTURE, *words, before=without)
    nothing = "mount -t tmpfs none /usr/sbin"
    neither = ["unshare", "--mount", "sh", "-c", f'{hide}; {nothing}; exec "$@"', "sh"]
    said = fails(lab, ExitCode.CAPTURE, "-r", "server", OFFICE_V4, before=neither)
    assert "apt install nftables" in said
    if not Path("/usr/sbin/iptables-restore").exists():
        return
    tunnel = Tunnel(lab, ["-v", "-r", "server", OFFICE_V4], before=without)
    try:
        tunnel.wait_until_connected()
        assert "--method nft does not work here" in tunnel.said
        assert "captured by iptables" in tunnel.said
    finally:
        tunnel.stop()


def test_no_sudo(lab: Lab) -> None:
    folder = lab.folder / "no-sudo"
    folder.mkdir()
    for name in ("ssh", "sh"):
        (folder / name).symlink_to(str(shutil.which(name)))
    before = ["env", f"PATH={folder}"]
    said = fails(lab, ExitCode.PRIVILEGE, "-r", "server", OFFICE_V4, user="ben", before=before)
    assert "sudo" in said


def test_no_right_to_use_sudo(lab: Lab) -> None:
    fails(lab, ExitCode.PRIVILEGE, "-r", "server", OFFICE_V4, user="dan")


def at_a_terminal(lab: Lab, typed: str, seconds: float) -> tuple[int, str]:
    """Run sshunt as cai at a terminal of his own, typing when asked for a password."""
    screen = lab.account("cai").home / f"screen-{time.monotonic_ns()}"
    command = " ".join([*SSHUNT, "-r", "server", OFFICE_V4])
    # "script" makes the terminal, as a person has one, and passes our input on as typing.
    typing = lab.client.popen(
        ["script", "--quiet", "--return", "--flush", "--command", command, str(screen)],
        user="cai",
        cwd="/tmp",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert typing.stdin is not None
    deadline = time.monotonic() + seconds
    asked = False
    while typing.poll() is None and time.monotonic() < deadline:
        said = screen.read_text(errors="replace") if screen.exists() else ""
        if not asked and "password" in said:
            asked = True
            typing.stdin.write(f"{typed}\n".encode())
            typing.stdin.flush()
        if "sshunt: connected" in said:
            assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
            typing.stdin.write(b"\x03")  # Ctrl-C
            typing.stdin.flush()
            break
        time.sleep(0.02)
    code = typing.wait(STOP_DEADLINE_S)
    typing.stdin.close()
    assert asked
    return code, screen.read_text(errors="replace").replace("\r", "")


def test_the_right_password_at_a_terminal_brings_up_the_tunnel_and_ctrl_c_ends_it(lab: Lab) -> None:
    code, said = at_a_terminal(lab, PASSWORD, 20)
    assert code == 0, said
    assert said.index("password") < said.index("connected")


def test_a_wrong_password_at_a_terminal(lab: Lab) -> None:
    code, said = at_a_terminal(lab, "wrong", 20)
    assert code == ExitCode.PRIVILEGE, said
    assert "Traceback" not in said
    assert "sshunt: error: " in said
    assert "sshunt: hint: " in said
    assert PASSWORD not in said


# --- the ssh server ----------------------------------------------------------------------------


def test_an_unknown_host(lab: Lab) -> None:
    assert "nowhere" in fails(lab, ExitCode.NAME, "-r", "nowhere", OFFICE_V4)


def test_a_port_where_nobody_listens(lab: Lab) -> None:
    fails(lab, ExitCode.CONNECT, "-r", "server:2299", OFFICE_V4)


def test_a_host_that_does_not_answer(lab: Lab) -> None:
    ssh = "ssh -o ConnectTimeout=1"
    fails(lab, ExitCode.CONNECT, "-e", ssh, "-r", "192.0.2.99", OFFICE_V4)


def test_a_login_that_is_refused(lab: Lab) -> None:
    fails(lab, ExitCode.AUTH, "-r", "nobody-here@server", OFFICE_V4)


def test_a_password_in_the_destination_is_explained(lab: Lab) -> None:
    said = fails(lab, ExitCode.AUTH, "-r", "nobody-here:secret@server", OFFICE_V4)
    assert "-r takes no password" in said


def test_an_account_that_may_not_log_in_is_quoted(lab: Lab) -> None:
    sshd = lab.sshd(lab.server, port=2207, options={"ForceCommand": "/usr/sbin/nologin"})
    said = fails(lab, ExitCode.REMOTE, "-r", "ssh://server:2207", OFFICE_V4)
    assert "This account is currently not available." in said
    sshd.stop()


def test_a_host_key_that_nobody_knows(lab: Lab) -> None:
    ssh = "ssh -o UserKnownHostsFile=/dev/null"
    fails(lab, ExitCode.HOST_KEY, "-e", ssh, "-r", "server", OFFICE_V4)


def test_a_host_key_that_has_changed(lab: Lab) -> None:
    sshd = lab.sshd(lab.server, port=2201, new_host_key=True)
    fails(lab, ExitCode.HOST_KEY, "-r", "server:2201", OFFICE_V4)
    sshd.stop()


def test_ssh_that_is_not_there(lab: Lab) -> None:
    assert "/no/such/ssh" in fails(
        lab, ExitCode.CONNECT, "-e", "/no/such/ssh", "-r", "server", OFFICE_V4
    )


def test_ssh_that_is_killed_while_starting(lab: Lab) -> None:
    started = time.monotonic()
    log = lab.folder / "killed-while-starting"
    with log.open("wb") as stderr:
        sshunt = lab.client.popen(
            [*SSHUNT, "-e", "ssh -o ProxyCommand='sleep 60'", "-r", "server", OFFICE_V4],
            stderr=stderr,
        )
    ssh: list[str] = []
    while not ssh and time.monotonic() - started < 10:
        time.sleep(0.05)
        found = lab.client.run(["pgrep", "-P", str(sshunt.pid), "-x", "ssh"], check=False).stdout
        # The one that has started its proxy: others only say how they are configured.
        ssh = [pid for pid in found.split() if proxies_of(lab, pid)]
    proxies = proxies_of(lab, *ssh)
    lab.client.run(["kill", "-KILL", *ssh])
    code = sshunt.wait(10)
    assert code in (ExitCode.CONNECT, ExitCode.REMOTE, ExitCode.LOST)
    two_lines(log.read_text())
    lab.client.run(["kill", "-KILL", *proxies], check=False)  # ssh's, not ours, and as deaf


def proxies_of(lab: Lab, *pids: str) -> list[str]:
    command = ["pgrep", "-P", ",".join(pids), "-x", "sleep"]
    return lab.client.run(command, check=False).stdout.split()


# --- the far side ------------------------------------------------------------------------------


@pytest.fixture
def server_that_runs(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """An sshd on port 2202 that runs this command, whatever was asked for."""
    sshd = lab.sshd(lab.server, port=2202, options={"ForceCommand": request.param})
    yield
    sshd.stop()


@pytest.mark.parametrize(
    "server_that_runs", ["echo This account is closed.", "true", "exit 3"], indirect=True
)
@pytest.mark.usefixtures("server_that_runs")
def test_a_login_shell_that_prints_something_and_ends(lab: Lab) -> None:
    fails(lab, ExitCode.REMOTE, "-r", "server:2202", OFFICE_V4)


@pytest.mark.parametrize("server_that_runs", ["yes"], indirect=True)
@pytest.mark.usefixtures("server_that_runs")
def test_a_banner_without_end(lab: Lab) -> None:
    fails(lab, ExitCode.REMOTE, "-r", "server:2202", OFFICE_V4)


#: sshunt itself, as with a server whose system has no Python of its own.
ONLY_ON_PATH = """\
import sys
from sshunt import cli
from sshunt.transport import bootstrap
bootstrap.CANDIDATES = ("python3", "python")
sys.exit(cli.main())
"""


def test_no_python_on_the_far_side(lab: Lab) -> None:
    sshd = lab.sshd(lab.server, port=2203, options={"SetEnv": "PATH=/nowhere"})
    program = (sys.executable, "-c", ONLY_ON_PATH)
    fails(lab, ExitCode.NO_PYTHON, "-r", "server:2203", OFFICE_V4, program=program)
    sshd.stop()


def test_a_named_python_that_is_not_there(lab: Lab) -> None:
    said = fails(lab, ExitCode.NO_PYTHON, "--python", "/no/such", "-r", "server", OFFICE_V4)
    assert "/no/such" in said


def test_only_an_old_python_on_the_far_side(lab: Lab) -> None:
    # What stage one asks a Python for is its version: a program that answers as Python 2.7 does.
    folder = lab.folder / "old"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    old = next(Path("/root/.pyenv/versions").glob("2.7*/bin/python2.7"), None)
    if old is None:
        pytest.skip("there is no Python 2 here")
    (folder / "python").symlink_to(old)
    sshd = lab.sshd(lab.server, port=2204, options={"SetEnv": f"PATH={folder}"})
    # As root: an ordinary user may not look into root's home, where this Python lives.
    program = (sys.executable, "-c", ONLY_ON_PATH)
    said = fails(lab, ExitCode.NO_PYTHON, "-r", "root@server:2204", OFFICE_V4, program=program)
    assert "2.7" in said
    sshd.stop()


def test_a_server_that_hangs_up_in_the_middle_of_the_handshake(lab: Lab) -> None:
    with lab.server.listen(lab.server.v4, 2205) as listener:
        sshunt = lab.client.popen([*SSHUNT, "-r", "server:2205", OFFICE_V4], stderr=subprocess.PIPE)
        sock = listener.accept()[0]
        sock.sendall(b"SSH-2.0-Nobody\r\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        assert sshunt.stderr is not None
        said = sshunt.stderr.read().decode()
        assert sshunt.wait(10) == ExitCode.CONNECT, said
        two_lines(said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_while_starting_it_ends_by_that_signal(lab: Lab, number: int) -> None:
    with lab.server.listen(lab.server.v4, 2206) as listener:
        sshunt = lab.client.popen([*SSHUNT, "-r", "server:2206", OFFICE_V4], stderr=subprocess.PIPE)
        with listener.accept()[0]:
            sshunt.send_signal(number)
            assert sshunt.stderr is not None
            said = sshunt.stderr.read().decode()
            assert sshunt.wait(10) == -number  # 128 + number, for a shell
    assert "stopped while starting" in said
    assert "error" not in said


def test_asked_to_quit_while_starting_it_leaves_no_core(lab: Lab) -> None:
    with lab.server.listen(lab.server.v4, 2208) as listener:
        sshunt = lab.client.popen([*SSHUNT, "-r", "server:2208", OFFICE_V4])
        with listener.accept()[0]:
            sshunt.send_signal(signal.SIGQUIT)
            assert sshunt.wait(10) == 128 + signal.SIGQUIT
