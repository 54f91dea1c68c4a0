"""The guard around a client: made below its own group, gone afterwards, or not there at all.

The helper is a program, because the guard's sweeper is a child of it.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.unit.helper.control_groups import sleeper, wait_until

PROGRAM = """
import os, socket, sys
from sshunt.helper import cgroups, guard, sweeper
from sshunt.helper.processes import Process, open_proc
cgroups.CGROUP_ROOT = guard.CGROUP_ROOT = sweeper.CGROUP_ROOT = sys.argv[1]
proc, sock = open_proc(), socket.socket(fileno=int(sys.argv[2]))
made = guard.make_guard(sys.argv[3], sys.argv[4], Process(proc, int(sys.argv[5])), sock, proc)
print(made.cgroup if made else made, flush=True)
sys.stdin.readline()
if made:
    made.remove()
    print("removed", flush=True)
"""


class Helper:
    """A program that makes a guard around a client, and what it says."""

    def __init__(self, root: Path, parent: Path, client: int, name: str = "guard") -> None:
        self._client, theirs = socket.socketpair()
        words = [str(root), str(theirs.fileno()), name, str(parent), str(client)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> "Helper":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.process.kill()
        self.process.communicate()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def test_a_guard_holds_the_client_below_its_own_group_until_it_is_removed(
    root: Path, place: Path, proc: int
) -> None:
    with sleeper(proc, place) as client, Helper(root, place, client.pid) as helper:
        assert helper.hear() == f"Cgroup(path='{place.name}/guard', level=2)"
        assert client.cgroup() == f"{place.name}/guard"
        helper.go_on()
        assert helper.hear() == "removed"
        assert client.cgroup() == place.name
        assert not (place / "guard").exists()


def test_what_the_client_starts_is_in_the_guard_too_and_let_out_with_it(
    root: Path, place: Path
) -> None:
    code = "import subprocess, sys; sys.stdin.readline(); subprocess.run(['sleep', '120'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as client:
        (place / "cgroup.procs").write_text(str(client.pid))
        with Helper(root, place, client.pid) as helper:
            helper.hear()
            client.communicate  # noqa: B018 (the client waits for a line)
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
            inside = place / "guard" / "cgroup.procs"
            wait_until(lambda: len(inside.read_text().split()) == 2)
            pids = [int(word) for word in inside.read_text().split()]
            helper.go_on()
            assert helper.hear() == "removed"
        for pid in pids:
            os.kill(pid, 9)


def test_a_killed_helper_leaves_no_guard(root: Path, place: Path, proc: int) -> None:
    with sleeper(proc, place) as client, Helper(root, place, client.pid) as helper:
        helper.hear()
        helper.process.kill()
        wait_until(lambda: not (place / "guard").exists())
        assert client.cgroup() == place.name


def test_a_name_that_can_not_be_written_into_a_rule_means_no_guard(
    root: Path, place: Path, proc: int
) -> None:
    with (
        sleeper(proc, place) as client,
        Helper(root, place, client.pid, 'a"name') as helper,
    ):
        assert helper.hear() == "None"
        assert client.cgroup() == place.name


def test_where_no_group_can_be_made_there_is_no_guard(root: Path, place: Path, proc: int) -> None:
    (place / "guard").mkdir()
    with sleeper(proc, place) as client, Helper(root, place, client.pid) as helper:
        assert helper.hear() == "None"
        assert client.cgroup() == place.name
    (place / "guard").rmdir()
