"""Processes, told apart for certain: a process id alone may mean another one a moment later. Root.

A process is held by its directory below /proc. The kernel ties an open directory to the process
itself and not to its number: once the process is gone, nothing is found in it any more, whoever has
the number then. (A pidfd does the same from Linux 5.3 on, but tells neither user nor cgroup.)

**The requester.** SO_PEERCRED of the socketpair names the process that made it and its user then.
That process may have ended since, and its number may mean somebody else's, one of root's for
example. So the process of that number must have started before us, with all of its user ids those
of the requester; and where the kernel has SO_PEERPIDFD (Linux 6.5), the descriptor must say that
the requester still lives. What is left before 6.5 is another process of the same user, who might
have asked with that one himself.

Invariants: no answer is about another process than the one that was found.

Not here: what is done with a process (cgroups).
"""

import errno
import os
import select
import signal
import socket
from contextlib import suppress

from sshunt.helper.starter import maker_of

_SO_PEERPIDFD = 77  # asm-generic/socket.h; Python 3.10 has no name for it


class Process:
    """One process, as long as this object lives; close it. Raises OSError if there is none."""

    def __init__(self, proc: int, pid: int) -> None:
        """``proc`` is a descriptor of /proc."""
        self.pid = pid
        self._directory = os.open(str(pid), os.O_PATH | os.O_DIRECTORY, dir_fd=proc)

    def close(self) -> None:
        """Hold it no more."""
        os.close(self._directory)

    def is_there(self) -> bool:
        """True while the number means this process: also when it only waits to be reaped."""
        try:
            self._read("stat")
        except OSError:
            return False
        return True

    def started(self) -> int:
        """When, in clock ticks since boot; raises OSError."""
        return int(self._fields()[19])

    def user_ids(self) -> set[int]:
        """Real, effective, saved and that of the file system; raises OSError."""
        lines = self._read("status")
        return {int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}

    def cgroup(self) -> str | None:
        """Its cgroup v2 as a path below our root, or None if it has none; raises OSError."""
        for line in self._read("cgroup"):
            if line.startswith("0::"):
                return line[3:].strip("/")
        return None

    def pidfd(self) -> int | None:
        """A descriptor that becomes readable when it ends, or None where the kernel has none."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:  # Linux before 5.3; gone
            return None
        if self.is_there():
            return descriptor
        os.close(descriptor)
        return None

    def place_of_arguments(self) -> tuple[int, int]:
        """The addresses in its memory where its arguments begin and end; raises OSError."""
        begin, end = self._fields()[45:47]
        return int(begin), int(end)

    def _fields(self) -> list[str]:
        """Those of its ``stat``, from the third on: the second may hold anything (proc(5))."""
        return "\n".join(self._read("stat")).rpartition(")")[2].split()

    def _read(self, name: str) -> list[str]:
        """Its lines as the kernel ends them.

        Names that users give, to cgroups and programs, may hold all that ends lines in Python else.
        """
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self._directory)
        with open(descriptor, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape").split("\n")


def open_proc() -> int:
    """A descriptor of /proc, by which processes are found when there is no /proc any more."""
    return os.open("/proc", os.O_PATH | os.O_DIRECTORY)


def hear_no_signals() -> None:
    """Of those that mean the helper, or are sent to groups of processes: a child's first act."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


def close_others(kept: set[int], proc: int) -> None:
    """Close all descriptors of ours but the first three and those ``kept``, as a child does that
    has something else to do. ``proc`` is one of /proc.
    """
    listing = os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    for name in os.listdir(listing):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the one that listdir itself had open
                os.close(int(name))


def requester(client: socket.socket, proc: int) -> Process | None:
    """The process that made the socketpair; None if it is gone or not visible from here."""
    pid, uid = maker_of(client)
    if pid <= 0:
        return None
    try:
        process = Process(proc, pid)
    except OSError:
        return None
    try:
        ours = Process(proc, os.getpid())
        try:
            is_older = process.started() <= ours.started()
        finally:
            ours.close()
        if is_older and process.user_ids() == {uid} and _requester_lives(client):
            return process
    except OSError:
        pass
    process.close()
    return None


def _requester_lives(client: socket.socket) -> bool:
    """False if the kernel says that the requester has ended; True also where it can't say."""
    try:
        descriptor = client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # Too old a kernel (ENOPROTOOPT) or a process that is gone and reaped (ESRCH, ENODATA).
        return error.errno == errno.ENOPROTOOPT
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(descriptor)
