"""The sweeper: a child of the helper that outlives it and removes the guard. Root; Linux.

There is one wherever there are rules, with or without a guard.

A cgroup cannot be tied to a process. So a child waits for the end of a socket pair whose other end
only the helper holds; then it moves whoever is left in the guard back to the parent and removes the
directory. It must survive what kills the helper: it has a session of its own, ignores signals that
are sent to groups, and neither its arguments nor its name are ours.

**Whose cgroup it is in.** On a host with systemd the cgroup of client and helper mostly belongs to
the user: he may kill all that is in it (cgroup.kill) or freeze it (cgroup.freeze), root's processes
included. Killing is harmless, for the kernel removes the rules. A frozen helper, though, could not
remove them when the client is gone. The helper stays there nevertheless: the limits that were put
on the user's memory are to hold for it, too. But the sweeper, which needs next to nothing, moves to
the root of the hierarchy, where no user can reach it; and when the client has hung up and the
helper has not followed after PATIENCE_S, the sweeper kills it, which works on frozen processes,
too. While his client lives, a user can stop it in simpler ways, and with it what it captured.

**What it holds**: the socket, /proc, the client's socket, a descriptor of the helper. Above all not
the netlink socket of libnftables: our table lives as long as that is open anywhere. It lets go of
the client's socket as soon as the helper has ended, since the client waits for that.

Not here: making the guard (guard).
"""

import os
import select
import signal
import socket
from functools import partial

from sshunt.helper import cgroups
from sshunt.helper.privileges import (
    CGROUP_ROOT,
    DAC_OVERRIDE,
    drop_capabilities,
    take_name,
)
from sshunt.helper.processes import Process, close_others, hear_no_signals

#: The time that the helper has to end after its client has hung up. Its own deadline for a request
#: is 10 s.
PATIENCE_S = 15.0

#: The time for which removing the guard is tried: others may be about to leave it.
_SWEEP_S = 5.0

#: The word by which it says that it has nothing in common with the helper any more.
_READY = b"."

#: Its name, as ps shows it.
_NAME = b"sweeper"


class Sweeper:
    """The child, as the helper sees it."""

    def __init__(self, directory: str | None, client: socket.socket, proc: int) -> None:
        """Start it; raises OSError. It will remove ``directory``, if there is one. ``proc`` is a
        descriptor of /proc, where ours is not mounted any more.
        """
        itself = Process(proc, os.getpid())
        self._tie, theirs = socket.socketpair()
        helper: int | None = None
        try:
            arguments = itself.place_of_arguments()
            helper = itself.pidfd()
            inherited = {theirs.fileno(), proc, client.fileno(), *filter(None, [helper])}
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    _begin(inherited, arguments, proc)
                    drop_capabilities(() if directory is None else (DAC_OVERRIDE,))
                    theirs.send(_READY)
                    _wait(theirs, client, helper)
                    client.close()
                    if directory is not None:
                        cgroups.until_done(partial(cgroups.remove, directory, proc), _SWEEP_S)
                finally:
                    os._exit(0)
        except OSError:
            self._tie.close()
            raise
        finally:
            itself.close()
            theirs.close()
            if helper is not None:
                os.close(helper)
        if self._tie.recv(1) != _READY:
            self.end()
            raise OSError("the sweeper ended")
        try:
            cgroups.move(self._pid, CGROUP_ROOT)
        except OSError:
            pass  # not the real root but a container's, which is limited and so takes no process

    def end(self) -> None:
        """Let it see that we are done, and wait for it."""
        self._tie.close()
        os.waitpid(self._pid, 0)


def _begin(inherited: set[int], arguments: tuple[int, int], proc: int) -> None:
    """Become a process that has nothing in common with the helper."""
    os.setsid()
    hear_no_signals()
    take_name(_NAME, arguments)
    close_others(inherited, proc)


def _wait(tie: socket.socket, client: socket.socket, helper: int | None) -> None:
    """Return when the helper has ended; see to it that it does so after its client has hung up."""
    poll = select.poll()
    poll.register(tie, select.POLLIN)
    if helper is not None:
        poll.register(client, 0)  # POLLHUP is always told
        if tie.fileno() not in [descriptor for descriptor, _ in poll.poll()]:
            poll.unregister(client)
            if not poll.poll(PATIENCE_S * 1000):
                signal.pidfd_send_signal(helper, signal.SIGKILL)
    poll.poll()
