"""Who the client is: the process that made the socketpair, and nobody in its place. Root; Linux.

SO_PEERCRED says the process id and the user at the moment the socketpair was made, so a client can
only have itself moved. But the socket can be handed on, and process ids are used again: whoever
made it may be gone, and its number another's, root's even. So the process of that number must

* be the one that is at the other end, where the kernel can tell (SO_PEERPIDFD, Linux 6.5);
* have started before us: one that has the number by chance did so later, unless somebody waited for
  that before he started us;
* be that user's with all of its ids: not root's, nor a program of root's that the user started;
* have the same start time whenever it is looked at again.
"""

import os
import socket
import struct
from typing import NamedTuple

_SO_PEERPIDFD = 77  # asm-generic/socket.h
_CREDENTIALS = struct.Struct("3i")  # ucred: process, user, group


class ClientProcess(NamedTuple):
    """The client, while ``is_the_same`` says so."""

    pid: int
    started: int  # in clock ticks since boot

    @property
    def is_the_same(self) -> bool:
        """False once it has ended, whoever has its number now."""
        return _start_time(self.pid) == self.started


def client_of(conversation: socket.socket) -> ClientProcess | None:
    """The process that made the socketpair; None if it has gone, or can't be seen from here."""
    peer = conversation.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(peer)
    if pid == 0 or _has_gone(conversation):  # 0: of a foreign process namespace
        return None
    client = ClientProcess(pid, _start_time(pid))
    ours = _start_time(os.getpid())
    if client.started > ours or _user_ids(pid) != {uid} or not client.is_the_same:
        return None
    return client


def _has_gone(conversation: socket.socket) -> bool:
    """True if the kernel says that the peer has ended; False if not, or if it does not know."""
    try:
        descriptor = conversation.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            return any(line.split() == ["Pid:", "-1"] for line in file)
    finally:
        os.close(descriptor)


def _start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; far in the future if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # proc(5): the command is in parentheses and may hold anything; start time is field 22.
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 1 << 63


def _user_ids(pid: int) -> set[int]:
    """Real, effective, saved and file system user of a process; empty if there is none."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return {
                int(word) for line in file if line.startswith("Uid:") for word in line.split()[1:]
            }
    except OSError:
        return set()
