"""A place in the machine's own hierarchy of control groups, and processes to move about in it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.helper import cgroups, guard, sweeper
from sshunt.helper.processes import Process

DEADLINE_S = 20.0


def hierarchy() -> Path:
    """Where cgroup2 is mounted, with all of it in sight; skips the test where it is not."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        if " - cgroup2 " in line and words[3] == "/" and os.access(words[4], os.W_OK):
            return Path(words[4])
    pytest.skip("needs a control group hierarchy that may be written")


@contextmanager
def place_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A control group for a test, below what the modules take for the root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for module in (cgroups, guard, sweeper):
        monkeypatch.setattr(module, "CGROUP_ROOT", str(root))
    place = root / f"test-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        wait_until(lambda: _removed(place))


def _removed(place: Path) -> bool:
    try:
        place.rmdir()
    except OSError:
        return False
    return True


@contextmanager
def sleeper(proc: int, place: Path) -> Iterator[Process]:
    """A process in that control group, which does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]) as child:
        cgroups.move(child.pid, str(place))
        process = Process(proc, child.pid)
        try:
            yield process
        finally:
            process.close()
            child.kill()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
