"""The sweeper: a helper that is killed or frozen is cleared away after, and never by its name.

The helper is a program that makes a sweeper, says so, and waits; the test is its client.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.helper import sweeper
from sshunt.helper.processes import open_proc
from tests.unit.helper.control_groups import wait_until

PROGRAM = """
import os, socket, sys
from sshunt.helper import cgroups, sweeper
from sshunt.helper.processes import open_proc
cgroups.CGROUP_ROOT = sweeper.CGROUP_ROOT = sys.argv[1]
sweeper.PATIENCE_S = 0.2
client = socket.socket(fileno=int(sys.argv[2]))
one = sweeper.Sweeper(sys.argv[3] or None, client, open_proc())
print("ready", flush=True)
if client.recv(1) == b"e":
    one.end()
    print("ended", flush=True)
    client.recv(1)
"""


class Helper:
    """The program, what it says, and the client's end of their conversation."""

    def __init__(self, root: Path, guard: Path | None) -> None:
        self.client, theirs = socket.socketpair()
        words = [str(root), str(theirs.fileno()), str(guard or "")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        assert self.hear() == "ready"
        (self.sweeper,) = self.children()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def a_helper(root: Path, guard: Path | None = None) -> Iterator[Helper]:
    helper = Helper(root, guard)
    try:
        yield helper
    finally:
        helper.client.close()
        helper.process.kill()
        helper.process.communicate()
        wait_until(lambda: not Path(f"/proc/{helper.sweeper}").exists())


def test_what_a_killed_helper_left_is_removed_and_who_was_inside_is_moved_out(
    root: Path, place: Path
) -> None:
    guard = place / "guard"
    guard.mkdir()
    with a_helper(root, guard) as helper, subprocess.Popen(["sleep", "120"]) as inside:
        (guard / "cgroup.procs").write_text(str(inside.pid))
        helper.process.kill()
        wait_until(lambda: not guard.exists())
        assert f"0::/{place.name}\n" in Path(f"/proc/{inside.pid}/cgroup").read_text()
        inside.kill()


def test_a_frozen_helper_is_killed_when_its_client_has_gone(root: Path, place: Path) -> None:
    with a_helper(root) as helper:
        helper.process.send_signal(signal.SIGSTOP)
        helper.client.close()
        assert helper.process.wait() == -signal.SIGKILL


def test_a_frozen_helper_is_left_alone_while_its_client_is_there(root: Path, place: Path) -> None:
    with a_helper(root) as helper:
        helper.process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            helper.process.wait(1.0)
        helper.process.send_signal(signal.SIGCONT)


def test_a_helper_that_ends_in_order_takes_its_sweeper_with_it(root: Path, place: Path) -> None:
    with a_helper(root) as helper:
        helper.client.sendall(b"e")
        assert helper.hear() == "ended"
        assert helper.children() == []


def test_signals_meant_for_the_helper_s_group_do_not_reach_the_sweeper(
    root: Path, place: Path
) -> None:
    guard = place / "guard"
    guard.mkdir()
    with a_helper(root, guard) as helper:
        assert os.getsid(helper.sweeper) == helper.sweeper
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(helper.sweeper, number)
        assert guard.exists()
        helper.process.kill()
        wait_until(lambda: not guard.exists())


def test_the_sweeper_is_found_neither_by_the_helper_s_name_nor_in_its_group(
    root: Path, place: Path
) -> None:
    with a_helper(root) as helper:
        there = Path(f"/proc/{helper.sweeper}")
        assert (there / "comm").read_text() == "sweeper\n"
        assert (there / "cmdline").read_bytes().rstrip(b"\0") == b"sweeper"
        assert "0::/\n" in (there / "cgroup").read_text()


def test_the_sweeper_holds_what_it_needs_and_nothing_else(root: Path, place: Path) -> None:
    with a_helper(root) as helper:
        links = [os.readlink(path) for path in Path(f"/proc/{helper.sweeper}/fd").iterdir()]
        kinds = sorted(link.partition(":")[0] for link in links[3:])
        assert len([kind for kind in kinds if kind == "socket"]) == 2
        assert len(kinds) <= 4  # these, /proc and the helper


def test_without_a_process_for_it_there_is_an_error_and_nothing_stays(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process() -> int:
        raise OSError("no more processes")

    monkeypatch.setattr(os, "fork", no_process)
    before = len(os.listdir("/proc/self/fd"))
    proc = open_proc()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="no more processes"):
        sweeper.Sweeper(None, theirs, proc)
    os.close(proc)
    assert len(os.listdir("/proc/self/fd")) == before
