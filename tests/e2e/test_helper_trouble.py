"""What goes wrong around the helper: it undoes what it did, or says what it could not do and why.

client ------------------------------------- server
 capturing.py, helper, rules                  answers "direct"
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.errors import ExitCode
from sshunt.helper.protocol import EXIT_NO_SOCKET, VERSION
from sshunt.lab.world import ELSEWHERE_V4, Lab
from tests.e2e.captures import (
    Capture,
    Start,
    as_said,
    beside_what_crashes_libnftables,
    captures,
    helpers,
    soon,
    tables,
)

_HERE = Path(__file__).parent
_SOURCE = _HERE.parents[1] / "src"
_HELPER = {"HELPER": f"{sys.executable} -I -S -B {_SOURCE}/sshunt/helper/__main__.py"}
_EVERY = [["0.0.0.0/0", "remote", 0, 65535]]

#: A helper that makes plain tables and is in more of a hurry than the real one.
_HASTY = """
import socket, sys
sys.path.append(sys.argv[1])
from sshunt.helper import server
server.REQUEST_DEADLINE_S = 0.5
server.serve(socket.socket(fileno=0), owner=False)
"""


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    with captures(lab) as start:
        yield start


class Conversation:
    """With a helper that runs on the client."""

    def __init__(self, lab: Lab, *program: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(20)
        with theirs:
            self.process = lab.client.popen(program, stdin=theirs.fileno())
        self._answers = self.socket.makefile("rb")

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        line = json.dumps({"request": request, **fields}).encode() + b"\n"
        self.socket.sendall(line)
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def apply(self, session: str, routes: list[Any], **more: Any) -> dict[str, Any]:
        self.ask("hello", version=VERSION, session=session)
        plan = as_said(Plan(session, redirects([("127.0.0.1", 1)]), ()))
        plan["routes"] = routes
        return self.ask("apply", plan={**plan, **more})

    def has_ended(self) -> bool:
        return self._answers.read() == b""

    def close(self) -> None:
        self._answers.close()
        self.socket.close()


@pytest.fixture
def hasty(lab: Lab) -> Iterator[Conversation]:
    conversation = Conversation(lab, sys.executable, "-ISBc", _HASTY, str(_SOURCE))
    yield conversation
    conversation.close()
    assert conversation.process.wait(20) == 0


# --- a client that is as good as dead ------------------------------------------------------------


@pytest.mark.parametrize("rest", [b'{"request":', b'{"request":"bypass","endpoints":[]}\n{"re'])
def test_half_a_request_and_then_silence_ends_the_helper_in_order(
    lab: Lab, hasty: Conversation, rest: bytes
) -> None:
    assert hasty.apply("feedfacefeed", _EVERY)["reply"] == "applied"
    hasty.socket.sendall(rest)
    soon(lambda: "feedfacefeed" not in tables(lab))


def test_a_client_that_reads_no_replies_is_ended_in_order(lab: Lab, hasty: Conversation) -> None:
    hasty.apply("feedfacefeed", _EVERY)
    hasty.socket.settimeout(1)
    with pytest.raises((TimeoutError, ConnectionError)):
        hasty.socket.sendall(b'{"request":"guard"}\n' * 100_000)
    soon(lambda: "feedfacefeed" not in tables(lab))


# --- a plain table whose helper is killed --------------------------------------------------------


def test_a_plain_table_captures_nothing_soon_after_its_helper_was_killed(
    lab: Lab, start: Start
) -> None:
    capture = start("--plain")
    port, _, owner = capture.apply(_EVERY, listen6=None)
    assert owner is False
    with lab.client.connect("198.18.0.1", 80) as program:
        assert program.recv(100).startswith(b"captured")
    os.kill(capture.child_pid(), signal.SIGKILL)
    capture.process.kill()  # and its listener is gone
    capture.process.wait()
    with lab.client.listen("127.0.0.1", port) as mallory:
        mallory.settimeout(0.1)
        with lab.server.listen(ELSEWHERE_V4) as server:
            soon(lambda: not listed(lab, capture.session, "alive"), within_s=10)
            with lab.client.connect(ELSEWHERE_V4, server.getsockname()[1]):
                server.accept()[0].close()
        with pytest.raises(TimeoutError):
            mallory.accept()
    assert capture.session in tables(lab)
    start()
    assert capture.session not in tables(lab)


def test_a_plain_table_goes_on_capturing_while_its_helper_lives(lab: Lab, start: Start) -> None:
    capture = start("--plain")
    capture.apply(_EVERY, listen6=None)
    for _ in range(8):  # twice the time that it would live without
        time.sleep(0.5)
        with lab.client.connect("198.18.0.1", 80) as program:
            assert program.recv(100).startswith(b"captured")


def test_nobody_else_can_keep_a_dead_session_s_table_alive(lab: Lab, start: Start) -> None:
    capture = start("--plain")
    capture.apply(_EVERY, listen6=None)
    os.kill(capture.child_pid(), signal.SIGKILL)
    with lab.client.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mallory:
        mallory.bind(f"\0sshunt-{capture.session}")
        start()
    assert capture.session not in tables(lab)


def listed(lab: Lab, session: str, name: str) -> bool:
    """Whether a set of a session's has elements."""
    command = ["nft", "list", "set", "inet", f"sshunt-{session}", name]
    return "elements" in lab.client.run(command).stdout


# --- what is in the kernel, or is not ------------------------------------------------------------


def test_where_a_foreign_table_crashes_libnftables_rules_are_made_changed_and_removed(
    lab: Lab, start: Start
) -> None:
    with beside_what_crashes_libnftables(lab), lab.server.listen(ELSEWHERE_V4) as server:
        port = server.getsockname()[1]
        capture = start()
        assert capture.ask("guard") is True
        assert capture.apply(_EVERY, listen6=None)[2] is True
        assert capture.ask("connect", "198.18.0.1", 80).startswith("TimeoutError")
        with lab.client.connect(ELSEWHERE_V4, port) as program:
            assert program.recv(100).startswith(b"captured")
        assert capture.ask("bypass", [(ELSEWHERE_V4, port)]) is None
        with lab.client.connect(ELSEWHERE_V4, port):
            server.accept()[0].close()
        assert capture.ask("bypass", []) is None
        with lab.client.connect(ELSEWHERE_V4, port) as program:
            assert program.recv(100).startswith(b"captured")
        capture.ask("undo")
        capture.apply(_EVERY, listen6=None)
        assert capture.ask("close") is None
        soon(lambda: not helpers(lab.client))


def test_where_a_foreign_table_crashes_libnftables_a_plain_table_lives_on(
    lab: Lab, start: Start
) -> None:
    with beside_what_crashes_libnftables(lab):
        capture = start("--plain")
        capture.apply(_EVERY, listen6=None)
        for _ in range(8):  # twice the time that it would live without being renewed
            time.sleep(0.5)
            with lab.client.connect("198.18.0.1", 80) as program:
                assert program.recv(100).startswith(b"captured")


def test_where_a_foreign_table_crashes_libnftables_resolvers_can_change(lab: Lab) -> None:
    own = lab.client.run(["cat", "/etc/resolv.conf"]).stdout.split()[1]
    helper = str(_SOURCE / "sshunt/helper/__main__.py")
    with closing(Conversation(lab, sys.executable, "-I", "-S", "-B", helper)) as conversation:
        with beside_what_crashes_libnftables(lab):
            fields = {"redirects": [["queries", "127.0.0.1", 9]], "resolvers": [own]}
            assert conversation.apply("feedfacefeed", [], **fields)["reply"] == "applied"
            assert conversation.ask("resolvers", addresses=[])["reply"] == "done"
        assert not listed(lab, "feedfacefeed", "resolvers4")
        with beside_what_crashes_libnftables(lab):
            assert conversation.ask("resolvers", addresses=[own])["reply"] == "done"
        assert listed(lab, "feedfacefeed", "resolvers4")
    soon(lambda: not helpers(lab.client))


def test_a_kernel_without_nf_tables_is_said_so(lab: Lab) -> None:
    wrapped = str(_HERE / "without_nf_tables.py")
    helper = str(_SOURCE / "sshunt/helper/__main__.py")
    conversation = Conversation(
        lab, sys.executable, wrapped, sys.executable, "-I", "-S", "-B", helper
    )
    reply = conversation.ask("hello", version=VERSION, session="feedfacefeed")
    conversation.close()
    assert (reply["reply"], reply["kind"]) == ("refused", "no-nf-tables")
    assert "this kernel has no nf_tables" in reply["message"]


# --- whose names are answered ---------------------------------------------------------------------


def test_only_queries_to_the_configured_resolvers_can_be_captured(lab: Lab) -> None:
    own = lab.client.run(["cat", "/etc/resolv.conf"]).stdout.split()[1]
    helper = str(_SOURCE / "sshunt/helper/__main__.py")

    def begun() -> Conversation:
        return Conversation(lab, sys.executable, "-I", "-S", "-B", helper)

    def captured() -> str:
        command = ["nft", "list", "set", "inet", "sshunt-feedfacefeed", "resolvers4"]
        return lab.client.run(command).stdout

    with closing(begun()) as first:
        refused = first.apply(
            "feedfacefeed", [], redirects=[["queries", "127.0.0.1", 9]], resolvers=["8.8.8.8"]
        )
        assert (refused["reply"], refused["kind"]) == ("refused", "resolver")
    soon(lambda: not helpers(lab.client))
    with closing(begun()) as second:
        both = [own, "8.8.8.8"]
        applied = second.apply(
            "feedfacefeed", [], redirects=[["queries", "127.0.0.1", 9]], resolvers=both
        )
        assert applied["reply"] == "applied"
        assert own in captured()
        assert "8.8.8.8" not in captured()
        assert second.ask("resolvers", addresses=["8.8.8.8"])["reply"] == "done"
        assert "elements" not in captured()
        second.ask("resolvers", addresses=both)
        assert own in captured()


# --- how many -------------------------------------------------------------------------------------

#: Holds the slots of a user's other helpers.
_HOLD = """
import sys
sys.path.append(sys.argv[1])
from sshunt.helper.marks import Marks
held = [Marks().take_slot(int(sys.argv[2]), 16) for _ in range(16)]
print("held", flush=True)
sys.stdin.read()
"""


def test_a_user_who_has_sixteen_helpers_is_told_so(lab: Lab, start: Start) -> None:
    words = [sys.executable, "-ISBc", _HOLD, str(_SOURCE), str(lab.account("ben").uid)]
    others = lab.client.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert others.stdout is not None
    assert others.stdin is not None
    others.stdout.readline()
    one_more = Capture(lab.client, user="ben")
    message, hint, exit_code = one_more.answer()
    one_more.end()
    assert message == "can't capture connections: 16 helpers of this user are running"
    assert "other sshunt sessions" in hint
    assert exit_code == ExitCode.CAPTURE
    start()  # root's
    others.stdin.close()
    others.stdout.close()
    others.wait()
    start(user="ben")


def as_ben(lab: Lab, words: list[str]) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    return lab.client.popen(words, user="ben", env=_HELPER, stdin=pipe, stdout=pipe)


#: Starts helpers by sudo and says nothing to them; then says how many there were.
_SILENT = """
import os, socket, subprocess, sys
pairs = [socket.socketpair() for _ in range(24)]
for _, theirs in pairs:
    subprocess.run(["sudo", "-n", *os.environ["HELPER"].split()], stdin=theirs.fileno(), check=True)
    theirs.close()
print("started", flush=True)
sys.stdin.read()
"""


def test_helpers_that_were_never_greeted_count_like_others(lab: Lab) -> None:
    words = [sys.executable, "-c", _SILENT]
    client = as_ben(lab, words)
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == b"started\n"
    soon(lambda: len(helpers(lab.client)) <= 16 + 2)  # and those that wait to say that it's enough
    client.stdin.close()
    client.stdout.close()
    client.wait()
    soon(lambda: not helpers(lab.client))


# --- who asks -------------------------------------------------------------------------------------

#: A service of root's that says again what it is told, once.
_ECHO = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("ready", flush=True)
sock, _ = listener.accept()
sock.sendall(sock.recv(1000))
sys.stdin.read()
"""

#: Lets that service ask the helper for something.
_ASK_BY_ECHO = """
import os, select, socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.argv[2].encode())
select.select([sock], [], [])
command = ["sudo", "-n", *os.environ["HELPER"].split()]
sys.exit(subprocess.run(command, stdin=sock.fileno()).returncode)
"""


def test_a_root_service_that_echoes_its_input_is_not_taken_for_a_client(lab: Lab) -> None:
    path = str(lab.folder / "echo.sock")
    service = lab.client.popen(
        [sys.executable, "-c", _ECHO, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert service.stdout is not None
    service.stdout.readline()
    where = Path(f"/proc/{service.pid}/cgroup").read_text()
    requests = f'{{"request":"hello","version":{VERSION},"session":"feedfacefeed"}}\n'
    requests += '{"request":"guard"}\n'
    words = [sys.executable, "-c", _ASK_BY_ECHO, path, requests]
    asked = lab.client.run(words, user="ben", env=_HELPER, check=False)
    time.sleep(0.5)  # it would be moved only after sudo has ended
    assert Path(f"/proc/{service.pid}/cgroup").read_text() == where
    assert asked.returncode == EXIT_NO_SOCKET
    assert not helpers(lab.client)
    service.kill()


#: Reads what the helper is sent, after having made the socket, which is the helper's too, wait.
_THIEF = """
import fcntl, os, socket, subprocess, sys, threading
ours, theirs = socket.socketpair()
subprocess.run(["sudo", "-n", *os.environ["HELPER"].split()], stdin=theirs.fileno(), check=True)
ours.sendall(sys.argv[1].encode())
print(ours.recv(1000).decode(), end="", flush=True)
fcntl.fcntl(theirs, fcntl.F_SETFL, fcntl.fcntl(theirs, fcntl.F_GETFL) & ~os.O_NONBLOCK)
def steal():
    while True:
        try:
            theirs.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
threading.Thread(target=steal, daemon=True).start()
while sys.stdin.readline():
    ours.send(b" ")
"""


def test_a_helper_whose_client_steals_its_input_still_hears_signals_and_news(lab: Lab) -> None:
    hello = f'{{"request":"hello","version":{VERSION},"session":"feedfacefeed"}}\n'
    words = [sys.executable, "-c", _THIEF, hello]
    client = as_ben(lab, words)
    assert client.stdin is not None
    assert client.stdout is not None
    assert b"welcome" in client.stdout.readline()
    (helper,) = helpers(lab.client)
    for _ in range(200):
        client.stdin.write(b"\n")
        client.stdin.flush()
        time.sleep(0.01)
        if is_reading(helper):
            break
    os.kill(helper, signal.SIGTERM)
    soon(lambda: not helpers(lab.client))
    client.kill()


#: Starts a helper as somebody who hears no signal at all, and has it make rules.
_DEAF = """
import os, signal, socket, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
ours, theirs = socket.socketpair()
subprocess.Popen(["sudo", "-n", *os.environ["HELPER"].split()], stdin=theirs.fileno())
theirs.close()
for line in sys.argv[1:]:
    ours.sendall(line.encode())
    print(ours.recv(1000).decode(), end="", flush=True)
sys.stdin.read()
"""


def test_a_helper_hears_signals_whatever_its_starter_does_with_them(lab: Lab) -> None:
    session = "feedfacefeed"
    plan = as_said(Plan(session, redirects([("127.0.0.1", 1)]), ()))
    plan["routes"] = _EVERY
    requests: list[dict[str, Any]] = [
        {"request": "hello", "version": VERSION, "session": session},
        {"request": "apply", "plan": plan},
    ]
    lines = [json.dumps(request) + "\n" for request in requests]
    client = as_ben(lab, [sys.executable, "-c", _DEAF, *lines])
    assert client.stdout is not None
    assert b"welcome" in client.stdout.readline()
    assert b"applied" in client.stdout.readline()
    (helper,) = helpers(lab.client)
    os.kill(helper, signal.SIGTERM)
    soon(lambda: not helpers(lab.client) and session not in tables(lab))
    client.kill()


def is_reading(pid: int) -> bool:
    """True if it waits in recvfrom(2), where no other news reach it."""
    return "unix_stream" in Path(f"/proc/{pid}/wchan").read_text()


# --- memory --------------------------------------------------------------------------------------


def test_thousands_of_routes_do_not_stay_in_root_s_memory(lab: Lab, start: Start) -> None:
    capture = start()
    before = anonymous_kib(capture.helper_pid())
    routes = [[f"10.{i // 200}.{i % 200}.0/25", "remote", i + 1, 65535] for i in range(20_000)]
    capture.apply(routes, listen6=None)
    grown = anonymous_kib(capture.helper_pid()) - before
    assert grown < 16 * 1024  # 60 MiB, while rules and routes stayed


def anonymous_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
