"""Processes that are told apart for certain, and who asked the helper."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sshunt.helper.processes import Process, requester
from sshunt.helper.starter import maker_of

_HAND_ON = """
import array, os, socket, sys
pair = socket.socketpair()
over = socket.socket(fileno=int(sys.argv[1]))
ends = array.array("i", [sock.fileno() for sock in pair])
over.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
over.recv(1)
"""


@contextmanager
def made_by_another() -> Iterator[tuple[socket.socket, "subprocess.Popen[bytes]", socket.socket]]:
    """An end of a socketpair that a process has made, the process, and what ends it."""
    over, theirs = socket.socketpair()
    with over:
        number = str(theirs.fileno())
        command = [sys.executable, "-c", _HAND_ON, number]
        with theirs:
            maker = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        _, descriptors, _, _ = socket.recv_fds(over, 1, 2)
        ends = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        try:
            yield ends[1], maker, over
        finally:
            for end in ends:
                end.close()
            over.close()
            maker.wait()


def test_a_socketpair_names_who_has_made_it_also_when_another_has_it() -> None:
    with made_by_another() as (end, maker, _):
        assert maker_of(end) == (maker.pid, os.getuid())


def test_a_process_is_there_until_it_is_reaped_and_then_answers_nothing(proc: int) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process(proc, child.pid)
        try:
            assert process.user_ids() == {os.getuid()}
            assert process.is_there()
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert process.is_there()  # its number is nobody else's before it is reaped
            child.wait()
            assert not process.is_there()
            for question in (process.started, process.user_ids, process.cgroup):
                with pytest.raises((FileNotFoundError, ProcessLookupError)):
                    question()
        finally:
            process.close()


def test_there_is_no_process_of_a_number_that_nobody_has(proc: int) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        Process(proc, child.pid)


def test_the_maker_of_the_socketpair_is_the_requester(proc: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = requester(theirs, proc)
        assert process is not None
        assert process.pid == os.getpid()
        process.close()


def test_a_socketpair_whose_maker_is_gone_has_no_requester(proc: int) -> None:
    with made_by_another() as (end, maker, over):
        over.close()
        maker.wait()
        assert requester(end, proc) is None


@pytest.mark.parametrize("line_end", ["\r", "\v", "\x1c", "\u2028"])
def test_a_user_s_names_can_t_pass_for_lines_of_the_kernel_s(proc: int, line_end: str) -> None:
    root = next((mount for mount in cgroup2_mounts() if os.access(mount, os.W_OK)), None)
    if root is None:
        pytest.skip("needs root and control groups")
    outer = Path(root, f"sshunt-test{line_end}0::")
    inner = outer / "elsewhere"
    inner.mkdir(parents=True)
    code = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); print(flush=True)"
    words = [sys.executable, "-c", code + "; sys.stdin.read()", f"x{line_end}Uid: 1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (inner / "cgroup.procs").write_text(str(child.pid))
        process = Process(proc, child.pid)
        try:
            assert process.cgroup() == os.path.relpath(inner, root)
            assert process.user_ids() == {os.getuid()}
        finally:
            process.close()
            child.kill()
            child.wait()
    deadline = time.monotonic() + 5
    for directory in (inner, outer):
        while directory.exists():
            assert time.monotonic() < deadline
            with suppress(OSError):  # whoever ends leaves a moment later
                directory.rmdir()


def cgroup2_mounts() -> list[str]:
    mounts = [line.split(" ") for line in Path("/proc/mounts").read_text().split("\n") if line]
    return [mount[1] for mount in mounts if mount[2] == "cgroup2"]
