"""How the helper begins: what it takes for its client, and what it keeps of who started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sshunt
from sshunt.helper.protocol import (
    EXIT_NO_SOCKET,
    VERSION,
    Hello,
    Welcome,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from tests.unit.helper.conversation import DEADLINE_S, SESSION

HELPER = Path(sshunt.__path__[0]) / "helper" / "__main__.py"
COMMAND = [sys.executable, "-I", "-S", "-B", str(HELPER)]


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE])
def test_without_a_socketpair_s_end_it_ends_at_once_and_says_so_by_its_status(stdin: int) -> None:
    done = subprocess.Popen(COMMAND, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = done.communicate(timeout=DEADLINE_S)
    assert (done.returncode, said) == (EXIT_NO_SOCKET, b"")


@contextmanager
def begun(host: Host, *before: str) -> Iterator[tuple[socket.socket, Path]]:
    """The client's end, once it has been greeted, and the helper's place below /proc."""
    others = set(host.pids())
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with ours:
        with theirs:
            starter = host.popen([*before, *COMMAND], stdin=theirs.fileno())
        assert starter.wait(DEADLINE_S) == 0  # at once: sudo is not to stay
        ours.sendall(encode_request(Hello(VERSION, SESSION)))
        with ours.makefile("rb") as lines:
            assert decode_reply(lines.readline()) == Welcome(VERSION)
        (pid,) = set(host.pids()) - others
        yield ours, Path(f"/proc/{pid}")
    deadline = time.monotonic() + DEADLINE_S
    while set(host.pids()) - others:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_lives_on_in_a_session_of_its_own_when_its_starter_has_ended(host: Host) -> None:
    with begun(host) as (_, helper):
        assert os.getsid(int(helper.name)) == int(helper.name)
        assert int(helper.name) != os.getpid()


def test_nothing_of_its_starter_s_files_and_places_stays(host: Host) -> None:
    open_file = ["sh", "-c", 'exec "$@" 7</etc/passwd', "sh"]
    with begun(host, *open_file) as (_, helper):
        links = [os.readlink(path) for path in (helper / "fd").iterdir()]
        assert [link for link in links if "passwd" in link] == []
        assert os.readlink(helper / "cwd") == "/"
        for descriptor in ("0", "1", "2"):
            assert os.readlink(helper / "fd" / descriptor).endswith("/dev/null")
        assert "Umask:\t0077\n" in (helper / "status").read_text()


def test_signals_meant_for_the_client_s_terminal_do_not_end_it(host: Host) -> None:
    with begun(host) as (client, helper):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(int(helper.name), number)
        client.sendall(b"?\n")
        assert client.recv(1000)


def test_its_starter_s_blocked_signals_are_not_blocked_in_it(host: Host) -> None:
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});"
    program = [sys.executable, "-c", block + " os.execv(sys.argv[1], sys.argv[1:])"]
    with begun(host, *program) as (client, helper):
        os.kill(int(helper.name), signal.SIGTERM)
        assert client.recv(1) == b""
