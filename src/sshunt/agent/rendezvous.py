"""Where a stub and its agent meet: a private directory, a socket's name, three messages.

    directory  <base>/sshunt-<uid>, mode 0700, ours, not a symbolic link
    socket     32 hexadecimal digits of SHA-256(token): a listing tells nobody the token

    stub  -> agent   PROOF_MAGIC and the session token
    agent -> stub    GO (or the end: this stub is not welcome)
    stub  -> agent   the client's HELLO as it came, carrying two descriptors (SCM_RIGHTS):
                     ssh's stdin to read from, ssh's stdout to write to
    agent -> stub    text for a person (the stub copies it to stderr), or nothing
    agent -> stub    the end: the lane is over

Descriptors are sent only after GO, so none of an unproved peer's ever enters the agent.

Base directories, in order: /tmp, then $XDG_RUNTIME_DIR. The second looks like the better place and
is not: logind removes it when the user's last login ends, and that is the moment for which an agent
exists. Whoever can be root here, or already is this user, is not kept out; nothing could.

Directory changes (bind, removal of sockets and of the directory) happen under flock(2) on the
directory itself, so that of two stubs only one starts the agent, and nobody removes a fresh socket.

Not here: processes (stub), the event loop (attach).
"""

import errno
import fcntl
import hashlib
import os
import socket
import stat
import struct
import time
from typing import List, Optional, Tuple

from sshunt.mux.hello import TOKEN_BYTES

PROOF_MAGIC = b"sshATT1\n"
PROOF_BYTES = len(PROOF_MAGIC) + TOKEN_BYTES
GO = b"+"

#: A stub that has not proved itself and sent its lane after this long is hung up on. Both ends are
#: on one machine; seconds are for a machine that swaps.
ATTACH_DEADLINE_S = 5.0

#: Lanes come one by one; sixteen at once is a reconnect storm of several clients' worth.
ATTACH_BACKLOG = 16

#: The lock is held for a few system calls.
LOCK_DEADLINE_S = 2.0

#: Dead agents' sockets looked at per start. One is left by a crash; thousands are not our doing.
SWEEP_SOCKETS = 64

_NAME_DIGITS = 32


def socket_name(token: bytes) -> str:
    """The file name under which the agent of this session listens."""
    return hashlib.sha256(b"sshunt agent " + token).hexdigest()[:_NAME_DIGITS]


def peer_uid(peer: socket.socket) -> Optional[int]:
    """The user at the other end, where the kernel tells it (unix(7), SO_PEERCRED), else None."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None  # the directory's mode alone keeps others out
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack(
        "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(uid)


def same_user(peer: socket.socket) -> bool:
    """True if the other end is this very user, or if the kernel does not say who it is."""
    uid = peer_uid(peer)
    return uid is None or uid == os.geteuid()


class Rendezvous:
    """The private directory, open and locked. ``release`` it before anything that may wait."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Remove the directory if it is empty, and unlock: a child would keep the lock alive."""
        if self._fd < 0:
            return
        try:
            os.rmdir(self.path)
        except OSError:
            pass  # agents live there
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1

    def connect(self, name: str) -> socket.socket:
        """A connection to the agent listening as ``name``. Does not wait for it: with a timeout set
        the descriptor is non-blocking, and then a full backlog is an error at once (EAGAIN).

        Raises FileNotFoundError if there is none, ConnectionRefusedError if it is dead,
        PermissionError if it is another user's, another OSError if it can't be reached now.
        """
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(ATTACH_DEADLINE_S)
        try:
            peer.connect(self._join(name))
            if not same_user(peer):
                raise PermissionError(errno.EPERM, "the agent's socket is another user's")
        except OSError:
            peer.close()
            raise
        return peer

    def listen(self, name: str) -> socket.socket:
        """The listening socket of a new agent; dead agents' sockets beside it are removed."""
        self._sweep()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._join(name))
            listener.listen(ATTACH_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def remove_dead(self, name: str) -> None:
        """Remove the socket ``name`` unless an agent lives behind it."""
        try:
            self.connect(name).close()
        except ConnectionRefusedError:
            os.unlink(self._join(name))
        except OSError:
            pass  # gone already, alive but busy, or not ours: not our concern

    def _sweep(self) -> None:
        for name in os.listdir(self.path)[:SWEEP_SOCKETS]:
            if stat.S_ISSOCK(os.lstat(self._join(name)).st_mode):
                self.remove_dead(name)

    def _join(self, name: str) -> str:
        return self.path + "/" + name


def meet() -> Rendezvous:
    """The first usable private directory, made if need be, and locked. Raises OSError if none."""
    failure = OSError(errno.ENOENT, "no directory to meet in")
    for base in _bases():
        try:
            return open_locked("%s/sshunt-%d" % (base, os.geteuid()))
        except OSError as error:
            failure = error
    raise failure


def _bases() -> List[str]:
    bases = []
    for base in ("/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):
        if base.startswith("/") and parent_is_safe(base):
            bases.append(base.rstrip("/") or "/")
    return bases


def parent_is_safe(base: str) -> bool:
    """True if nobody but its owner, root or us, can rename what we make in there."""
    try:
        found = os.stat(base)
    except OSError:
        return False
    trusted = found.st_uid in (0, os.geteuid())
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return trusted and (not others_write or bool(found.st_mode & stat.S_ISVTX))


def open_locked(path: str) -> Rendezvous:
    """The directory ``path``, made if need be, and locked. Raises OSError unless it is private."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_private(os.fstat(fd))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(os.lstat(path)) == _identity(os.fstat(fd)):
                return Rendezvous(path, fd)
            raise FileNotFoundError(errno.ENOENT, "removed by an ending agent", path)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)  # somebody is in there for a few system calls, or has just removed it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except OSError:
            os.close(fd)
            raise


def _check_private(found: os.stat_result) -> None:
    """Raise PermissionError unless only we can look into it, and it is a directory."""
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(errno.EPERM, "not a private directory of ours")


def _identity(found: os.stat_result) -> Tuple[int, int]:
    return found.st_dev, found.st_ino
