"""The layouts of control groups that users' machines have, made in a mount namespace of their own.

    unified   cgroup2 on /sys/fs/cgroup: every stock distribution since 2021
    hybrid    cgroup2 on /sys/fs/cgroup/unified, beside others: systemd's default before that
    none      nothing on /sys/fs/cgroup: no systemd, or behind ``ip netns exec``
    nested    unified, in a control group namespace below a group of its own: containers

``layout(name)`` gives a command prefix; the process that is started becomes the program.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# A mount sets the options of the whole hierarchy, the machine's.
_CGROUP2 = "mount -t cgroup2 -o $OPTIONS cgroup2"
_UNIFIED = f"{_CGROUP2} /sys/fs/cgroup"
_HYBRID = (
    "mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir /sys/fs/cgroup/unified;"
    f" {_CGROUP2} /sys/fs/cgroup/unified"
)
_MAKE = {"unified": _UNIFIED, "hybrid": _HYBRID, "none": ":", "nested": _UNIFIED}

#: How long processes that were killed may take to leave a group.
_LEAVE_DEADLINE_S = 5.0

LAYOUTS = tuple(_MAKE)


@contextmanager
def layout(name: str) -> Iterator[list[str]]:
    """What to put in front of a command so that it runs with this layout of control groups."""
    if name != "nested":
        yield _with_mounts(name)
        return
    with own_group() as group:
        yield [*inside(group), *_with_mounts(name, "--cgroup")]


@contextmanager
def own_group() -> Iterator[Path]:
    """A control group for a test."""
    group = Path(_cgroup2()[1]) / f"a-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + _LEAVE_DEADLINE_S
        while group.exists():
            try:
                group.rmdir()
            except OSError:  # somebody is just leaving it
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def inside(group: Path) -> list[str]:
    """A command prefix: the program runs in this control group."""
    return ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]


def options_of_cgroup2() -> str:
    """What the machine's hierarchy has now, as mount(8) takes it."""
    return _cgroup2()[3]


@contextmanager
def another_option(option: str) -> Iterator[None]:
    """The machine's hierarchy has it meanwhile: the last mount says what it has, wherever it is."""
    options = options_of_cgroup2()
    mount = ["unshare", "--mount", "mount", "-t", "cgroup2", "cgroup2", "/sys/fs", "-o"]
    subprocess.run([*mount, f"{options},{option}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*mount, options], check=True)


def _cgroup2() -> list[str]:
    """The fields of fstab(5) of cgroup2, where this process sees it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(mount for mount in mounts if mount[2] == "cgroup2")


def _with_mounts(name: str, *namespaces: str) -> list[str]:
    make = f"OPTIONS={options_of_cgroup2()}; umount -R /sys/fs/cgroup || :; {_MAKE[name]}"
    script = f'set -e; {make}; exec "$@"'
    unshare: Sequence[str] = ("unshare", "--mount", "--propagation", "private", *namespaces)
    return [*unshare, "sh", "-c", script, "sh"]
