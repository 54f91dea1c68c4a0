"""Control groups as the helper uses them: moving processes, emptying and removing. Root; Linux.

A directory below CGROUP_ROOT is a cgroup, and writing a process id into its ``cgroup.procs`` moves
the process. The kernel takes a number there and nothing else, so a process is held (``processes``)
while it is moved: afterwards it must still be there, for then the number meant it all the time.

Not here: what a cgroup is good for (guard).
"""

import errno
import os
import re
import time
from collections.abc import Callable
from functools import partial

from sshunt.capture import nft
from sshunt.helper.marks import Marks
from sshunt.helper.nftables import SESSION_NAME
from sshunt.helper.privileges import CGROUP_ROOT
from sshunt.helper.processes import Process

#: The longest wait for a cgroup that others are leaving or removing, and the pause between two
#: looks. An exiting process leaves within a scheduling round; a second is a lot and still bearable
#: at start.
_BUSY_S = 1.0
_BUSY_STEP_S = 0.02


def make_with(directory: str, process: Process) -> bool:
    """Make a cgroup and move the process into it; False if that can't be had."""
    return until_done(partial(_enter, directory, process))


def _enter(directory: str, process: Process) -> bool:
    """Make the cgroup and move the process into it; False if another try may succeed."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return False  # of a helper of this session that has just died; its sweeper is at work
    try:
        move(process.pid, directory)
    except FileNotFoundError:
        return False  # another helper took the empty directory for a left-over one
    except OSError:
        os.rmdir(directory)
        raise
    return True


def move(pid: int, directory: str) -> None:
    """Put a process into a cgroup; raises OSError, but not if the process is gone."""
    try:
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(str(pid))
    except ProcessLookupError:
        pass


def remove(directory: str, proc: int) -> bool:
    """Move whoever is inside to the parent and remove it; False if that needs another try.

    Raises OSError if no other try would succeed. ``proc`` is a descriptor of /proc.
    """
    try:
        with open(os.path.join(directory, "cgroup.procs")) as file:
            for line in file:
                _move_out(int(line), directory, proc)
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


def _move_out(pid: int, directory: str, proc: int) -> None:
    """Move a process that is really inside; a number that means another one by now is left alone.

    0, a process of a foreign process namespace, can't be moved by us.
    """
    try:
        process = Process(proc, pid)
    except OSError:
        return
    try:
        if process.cgroup() == os.path.relpath(directory, CGROUP_ROOT):
            move(pid, os.path.dirname(directory))
    except OSError:
        pass  # the process ended, or the parent takes none: rmdir will tell
    finally:
        process.close()


def until_done(step: Callable[[], bool], within_s: float = _BUSY_S) -> bool:
    """Take a step again and again until it says True; False if that takes too long, or fails."""
    deadline = time.monotonic() + within_s
    try:
        while not step():
            if time.monotonic() > deadline:
                return False
            time.sleep(_BUSY_STEP_S)
    except OSError:
        return False
    return True


def parent_of(process: Process, session: str, marks: Marks) -> str | None:
    """The directory below which a process' guard belongs, or None if there is no such.

    It is where the process is now, unless that is the guard of a helper that has just died (its
    sweeper is about to move the process out): then it is where that one began.
    """
    try:
        path = process.cgroup()
    except OSError:
        return None
    if path is None:
        return None
    parts = path.split("/")
    while parts and SESSION_NAME.fullmatch(parts[-1]) and _is_dead(parts[-1], session, marks):
        parts.pop()
    directory = os.path.join(CGROUP_ROOT, *parts).rstrip("/")
    # "/.." leads out of a cgroup namespace: there is nothing that we could see.
    return directory if ".." not in parts and os.path.isdir(directory) else None


def _is_dead(table: str, session: str, marks: Marks) -> bool:
    # We are this session's helper now.
    return table == nft.table_name(session) or not marks.is_alive(table)


def remove_leftovers(parent: str) -> list[str]:
    """Remove empty cgroups of dead sessions, here and above, and name those. Those of living ones
    are not empty.
    """
    removed = []
    place = parent
    while place.startswith(CGROUP_ROOT):
        for name in os.listdir(place):
            if SESSION_NAME.fullmatch(name):
                try:
                    os.rmdir(os.path.join(place, name))
                except OSError:
                    continue  # busy: alive
                removed.append(f"cgroup {os.path.join(place, name)}")
        place = os.path.dirname(place)
    return removed


def levels_can_be_trusted() -> bool:
    """Whether "level N" of a rule means what we mean. Needs /proc.

    Inside a cgroup namespace (a container), paths begin at the namespace's root; rules counted
    levels from the real root until Linux 6.11 (nft_socket: "make cgroupsv2 matching work with
    namespaces") and so would never match.
    """
    initial_namespace = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO
    if os.stat("/proc/self/ns/cgroup").st_ino == initial_namespace:
        return True
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return (int(major), int(minor)) >= (6, 11)
