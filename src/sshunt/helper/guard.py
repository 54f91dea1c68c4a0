"""The guard: a control group around the client, whose sockets the rules skip. Root; Linux.

A cgroup below the client's own, so that its resource limits stay, into which the client is moved;
ssh and all that it starts are born in it. A socket keeps the cgroup in which it was made, therefore
the guard comes before ssh. A cgroup cannot be tied to a process, so a tiny shell, the *sweeper*,
waits for the end of a pipe whose other end only we hold. It then moves whoever is left inside back
to the parent and removes the directory. It must survive what kills us: it has its own session,
ignores signals that are sent to groups, and nothing in its arguments has our name.

**Delegated groups.** Where the client's cgroup was delegated to its user (systemd --user, a
container), helper and sweeper live in it, too, and the user may freeze or kill all that is in
there. Killed, the helper leaves nothing that the user could not have: the kernel removes an owned
table, and the empty cgroup is one of the user's own. Frozen, it keeps the rules for as long: as a
client does that lives and does not answer. Moving out would take helper and sweeper out of the
limits that were put on the session, and away from what stops it as a whole.

Not here: who the client is (client), the rule that skips the group (capture.nft), the mount
namespace in which it is found (privileges), when it is made (apply).
"""

import errno
import os
import re
import time
from collections.abc import Callable
from functools import partial

from sshunt.capture import nft
from sshunt.helper.client import ClientProcess
from sshunt.helper.marks import Marks
from sshunt.helper.nftables import SESSION_NAME
from sshunt.helper.privileges import CGROUP_ROOT

#: How long a cgroup that is being left or removed by others is waited for. An exiting process
#: leaves within a scheduling round; a second is a lot and still bearable at start.
_BUSY_S = 1.0
_BUSY_STEP_S = 0.02

# Run by /bin/sh with SWEEP (the directory, absolute) and a pipe as its standard input.
_SWEEPER = """
trap '' INT TERM HUP QUIT
cd "${SWEEP%/*}" || exit
read -r _
n=0
while [ -d "$SWEEP" ] && [ $n -lt 100 ]; do
    while read -r process; do echo "$process" >cgroup.procs; done <"$SWEEP/cgroup.procs"
    rmdir "$SWEEP" && exit
    sleep 0.05 || sleep 1
    n=$((n + 1))
done
"""


class Guard:
    """A cgroup that holds the client, and the sweeper that outlives us to remove it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        path = os.path.relpath(directory, CGROUP_ROOT)
        self.cgroup = nft.Cgroup(path, path.count("/") + 1)
        read_end, self._pipe = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        self._sweeper = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _SWEEPER],
            {"SWEEP": directory, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read_end, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
            setsid=True,
        )
        os.close(read_end)
        os.close(null)

    def remove(self) -> None:
        """Move everybody out, remove the directory, and let the sweeper see that it is gone."""
        _until_done(self._sweep)
        os.close(self._pipe)
        os.waitpid(self._sweeper, 0)

    def _sweep(self) -> bool:
        try:
            with open(os.path.join(self._directory, "cgroup.procs")) as file:
                for process in file:
                    _move(process.strip(), os.path.dirname(self._directory))
            os.rmdir(self._directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
        return True


def make_guard(name: str, parent: str, client: ClientProcess) -> Guard | None:
    """A new cgroup with the process in it, below its own; None if that can't be had.

    It can't where its own one is threaded, has too many descendants, or has a name that can't be
    written into a rule. Then there is no guard: any other place, say the root, would let a process
    out of the limits that were put on it.
    """
    directory = os.path.join(parent, name)
    if not nft.cgroup_path_is_harmless(os.path.relpath(directory, CGROUP_ROOT)):
        return None
    if not client.is_the_same or not _until_done(partial(_enter, directory, client.pid)):
        return None
    guard = Guard(directory)
    if client.is_the_same:
        return guard
    guard.remove()  # it ended meanwhile, and perhaps another with its number was moved
    return None


def _enter(directory: str, pid: int) -> bool:
    """Make the cgroup and move the process into it; False if another try may succeed."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return False  # of a helper of this session that has just died; its sweeper is at work
    try:
        _move(str(pid), directory)
    except FileNotFoundError:
        return False  # another helper took the empty directory for a left-over one
    except OSError:
        os.rmdir(directory)
        raise
    return True


def _move(process: str, directory: str) -> None:
    """Put a process into a cgroup; raises OSError, but not if the process is gone."""
    try:
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(process)
    except ProcessLookupError:
        pass


def _until_done(step: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _BUSY_S
    try:
        while not step():
            if time.monotonic() > deadline:
                return False
            time.sleep(_BUSY_STEP_S)
    except OSError:
        return False
    return True


def remove_leftover_cgroups(parent: str) -> None:
    """Remove empty cgroups of dead sessions, here and above. Those of living ones are not empty."""
    place = parent
    while place.startswith(CGROUP_ROOT):
        for name in os.listdir(place):
            if SESSION_NAME.fullmatch(name):
                try:
                    os.rmdir(os.path.join(place, name))
                except OSError:
                    pass  # busy: alive
        place = os.path.dirname(place)


def parent_cgroup(client: ClientProcess, session: str, marks: Marks) -> str | None:
    """The directory below which the client's guard belongs, or None if that is not visible.

    It is where the process is now, unless that is the guard of a helper that has just died (its
    sweeper is about to move the process out): then it is where that one began.
    """
    try:
        with open(f"/proc/{client.pid}/cgroup") as file:
            paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
    except OSError:
        return None
    if not paths:
        return None
    parts = paths[0].strip("/").split("/")
    while parts and SESSION_NAME.fullmatch(parts[-1]) and _is_dead(parts[-1], session, marks):
        parts.pop()
    directory = os.path.join(CGROUP_ROOT, *parts).rstrip("/")
    # "/.." leads out of a cgroup namespace: there is nothing that we could see.
    return directory if ".." not in parts and os.path.isdir(directory) else None


def _is_dead(table: str, session: str, marks: Marks) -> bool:
    # We are this session's helper now.
    return table == nft.table_name(session) or not marks.is_alive(table)


def levels_can_be_trusted() -> bool:
    """Whether "level N" of a rule means what we mean.

    Inside a cgroup namespace (a container), paths begin at the namespace's root; rules counted
    levels from the real root until Linux 6.11 (nft_socket: "make cgroupsv2 matching work with
    namespaces") and so would never match.
    """
    initial_namespace = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO
    if os.stat("/proc/self/ns/cgroup").st_ino == initial_namespace:
        return True
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return (int(major), int(minor)) >= (6, 11)
