"""The guard: a control group around the client, whose sockets the rules skip. Root; Linux.

A cgroup below the client's own, so that its resource limits stay, into which the client is moved;
ssh and all that it starts are born in it. A socket keeps the cgroup in which it was made, therefore
the guard comes before ssh, and stays until the end of the session: also where the rules are removed
meanwhile (``--fail open``), for they come again.

**The client** is the process that made the socketpair, told apart for certain (``processes``), so a
client can only have itself moved. Between our last look at it and the kernel's reading of its
number it may end and its number be given away: that is seen afterwards, and then there is no guard.

**What the client's user can do to it.** Where the client's cgroup was delegated to its user, the
guard's directory is in his but its files are root's: he can move nobody into it. He can freeze it,
kill it and take processes out, which is his to do with his own; the kernel tells a rule's cgroup by
its number, so one that he makes in place of an empty one does not count.

Not here: the rule that skips the group (capture.nft), the mount namespace in which it is found
(privileges), who removes it when we are killed (sweeper), when it is made (apply).
"""

import os
import socket
from functools import partial

from sshunt.capture import nft
from sshunt.helper import cgroups
from sshunt.helper.privileges import CGROUP_ROOT
from sshunt.helper.processes import Process
from sshunt.helper.sweeper import Sweeper


class Guard:
    """A cgroup that holds the client, and the sweeper that outlives us to remove it."""

    def __init__(self, directory: str, sock: socket.socket, proc: int) -> None:
        """Around a cgroup that was made; raises OSError. ``proc`` is a descriptor of /proc."""
        self._directory = directory
        self._proc = proc
        self._number = os.stat(directory).st_ino
        self._sweeper = Sweeper(directory, sock, proc)
        path = os.path.relpath(directory, CGROUP_ROOT)
        self.cgroup = nft.Cgroup(path, path.count("/") + 1)

    def holds(self, client: Process) -> bool:
        """True if the client is inside, or is so again: somebody may have moved it out. False if
        the group is gone, or another one bears its name.
        """
        inside = os.path.relpath(self._directory, CGROUP_ROOT)
        try:
            if os.stat(self._directory).st_ino != self._number:
                return False
            if client.cgroup() != inside:
                cgroups.move(client.pid, self._directory)
            return client.cgroup() == inside
        except OSError:
            return False

    def remove(self) -> None:
        """Move everybody out, remove the directory, and let the sweeper see that it is gone."""
        cgroups.until_done(partial(cgroups.remove, self._directory, self._proc))
        self._sweeper.end()


def make_guard(
    name: str, parent: str, client: Process, sock: socket.socket, proc: int
) -> Guard | None:
    """A new cgroup with the client in it, below its own; None if that can't be had.

    ``sock`` is our end of the conversation with it.

    It can't where its own one is threaded, has too many descendants, or has a name that can't be
    written into a rule. Then there is no guard: any other place, say the root, would let a process
    out of the limits that were put on it.
    """
    directory = os.path.join(parent, name)
    if not nft.cgroup_path_is_harmless(os.path.relpath(directory, CGROUP_ROOT)):
        return None
    if not cgroups.make_with(directory, client):
        return None
    try:
        if client.is_there():
            return Guard(directory, sock, proc)
    except OSError:
        pass  # no process or descriptor to be had for the sweeper
    cgroups.until_done(partial(cgroups.remove, directory, proc))
    return None
