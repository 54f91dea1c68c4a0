"""A helper that the service manager starts for whoever may connect, without any sudo.

client ------------------------------------- server
 the socket, capturing.py, helper, rules      answers "direct"

Not systemd here, but a program of root's that does what it does with Accept=yes and
StandardInput=socket; the unit files themselves are tried in tests/vm.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.errors import ExitCode
from sshunt.helper.protocol import MAX_HELPERS
from sshunt.helper.service import ACCEPTED_WORD, SERVICE_SOCKET
from sshunt.lab.world import ELSEWHERE_V4, Lab
from tests.e2e.captures import Capture, Start, captures, cgroups, helpers, soon, tables

_HELPER = Path(__file__).parents[2] / "src/sshunt/helper/__main__.py"

#: The time in which two dozen helpers begin on a machine that has much else to do.
_STARTED_S = 30.0

_EVERY = [["0.0.0.0/0", "remote", 0, 65535]]

#: As systemd does it: each connection becomes the standard input of a process of its own.
_ACTIVATE = """
import os, signal, socket, sys
path, group = sys.argv[1:3]
command = sys.argv[3].split()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chown(path, 0, int(group))
os.chmod(path, 0o660)
listener.listen(64)
print("listening", flush=True)
while True:
    accepted, _ = listener.accept()
    if os.fork() == 0:
        os.dup2(accepted.fileno(), 0)
        os.execv(command[0], command)
    accepted.close()
"""


@contextmanager
def service(lab: Lab, *helper: str) -> Iterator[None]:
    """The socket, for dan, who may not use sudo."""
    group = str(lab.account("dan").uid)
    words = [sys.executable, "-c", _ACTIVATE, SERVICE_SOCKET, group, " ".join(helper)]
    process = lab.client.popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.kill()
        process.wait()
        lab.client.run(["rm", SERVICE_SOCKET])


@pytest.fixture
def with_service(lab: Lab) -> Iterator[None]:
    with service(lab, sys.executable, "-I", "-S", "-B", str(_HELPER), ACCEPTED_WORD):
        yield
        soon(lambda: not helpers(lab.client), within_s=_STARTED_S)


@pytest.fixture
def start(lab: Lab, with_service: None) -> Iterator[Start]:
    with captures(lab) as start:
        yield start


def test_a_member_without_any_right_to_sudo_captures_and_leaves_nothing(
    lab: Lab, start: Start
) -> None:
    capture = start(user="dan", env={"PROGRAMS": "/nonexistent"})
    assert capture.ask("guard") is True
    assert capture.apply(_EVERY)[2] is True
    with lab.client.connect(ELSEWHERE_V4, 80) as program:
        assert program.recv(100).startswith(b"captured")
    assert capture.ask("connect", ELSEWHERE_V4, 80).startswith("ConnectionRefused")  # past it
    capture.end()
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def test_who_is_no_member_uses_sudo_as_if_there_were_no_service(lab: Lab, start: Start) -> None:
    capture = start(user="ben")
    (helper,) = helpers(lab.client)
    assert ACCEPTED_WORD not in Path(f"/proc/{helper}/cmdline").read_text().split("\0")
    capture.end()


@pytest.mark.usefixtures("with_service")
def test_whoever_is_in_another_network_namespace_changes_nothing_here(lab: Lab) -> None:
    capture = Capture(lab.server, user="dan", env={"PROGRAMS": "/nonexistent"})
    message, hint, exit_code = capture.answer()
    capture.end()
    assert "another network namespace" in message
    assert "root" in hint
    assert exit_code == ExitCode.CAPTURE


#: Connects so many times, says nothing, and waits until that many of them have been hung up on.
_SILENT = """
import select, socket, sys
path, begun, refused = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = [socket.socket(socket.AF_UNIX) for _ in range(begun)]
poll = select.poll()
for sock in socks:
    sock.connect(path)
    poll.register(sock, 0)
while len(poll.poll(30000)) < refused:
    pass
print("hung up", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("with_service")
def test_a_member_has_no_more_helpers_than_by_sudo(lab: Lab) -> None:
    pipe = subprocess.PIPE
    most = MAX_HELPERS + 2  # and two that wait to say that it's enough
    words = [sys.executable, "-c", _SILENT, SERVICE_SOCKET, str(most + 6), "6"]
    client = lab.client.popen(words, user="dan", stdin=pipe, stdout=pipe)
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == b"hung up\n"
    soon(lambda: len(helpers(lab.client)) == most, within_s=_STARTED_S)
    client.stdin.close()
    client.stdout.close()
    client.wait()


@pytest.mark.usefixtures("with_service")
def test_a_uid_that_is_no_user_s_gets_no_helper_though_it_has_the_group(lab: Lab) -> None:
    group = str(lab.account("dan").uid)
    ask = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    words = [sys.executable, "-c", f"{ask}; s.settimeout(20); print(s.recv(1))", SERVICE_SOCKET]
    who = ["setpriv", "--reuid=54321", f"--regid={group}", "--clear-groups"]
    assert lab.client.run([*who, *words]).stdout == "b''\n"


def test_a_service_that_does_not_work_is_told_as_such(lab: Lab) -> None:
    with service(lab, "/bin/false"):
        capture = Capture(lab.client, user="dan", env={"PROGRAMS": "/nonexistent"})
        message, hint, exit_code = capture.answer()
        capture.end()
    assert message == "the service sshunt-helper did not answer"
    assert "journalctl" in hint
    assert exit_code == ExitCode.PRIVILEGE


def test_a_socket_that_is_not_root_s_is_not_connected_to(lab: Lab) -> None:
    with service(lab, "/bin/false"):
        lab.client.run(["chown", "fil", SERVICE_SOCKET])
        capture = Capture(lab.client, user="dan", env={"PROGRAMS": "/nonexistent"})
        message, _, _ = capture.answer()
        capture.end()
    assert "neither sudo nor doas" in message
