"""Where a stub and its agent meet: names that only the token's holder knows, three messages.

    directory  <base>/sshunt-<name>, mode 0700, ours, not a symbolic link; a socket "agent" in it
    abstract   the socket \\0sshunt-<name> (unix(7), Linux), which needs no directory
    name       32 hexadecimal digits of SHA-256(token): a listing tells nobody the token

    stub  -> agent   PROOF_MAGIC and the session token
    agent -> stub    GO (or the end: this stub is not welcome)
    stub  -> agent   the client's HELLO as it came, carrying two descriptors (SCM_RIGHTS):
                     ssh's stdin to read from, ssh's stdout to write to
    agent -> stub    text for a person (the stub copies it to stderr), or nothing
    agent -> stub    the end: the lane is over

Descriptors are sent only after GO, so none of an unproved peer's ever enters the agent.

One directory per session, because others can write in its base: what they can guess they can make
first, and then nobody else can. Nobody can guess the name of a session that has yet to begin; and
of one that is, the sticky base keeps them from removing or renaming it.

An agent listens by a directory and by an abstract name, as far as it can have them, and a stub asks
in every place before it says that there is none. A directory may be another one for the next login
(pam_namespace, PrivateTmp, a container), and a cleaner may remove it; then the agent, which looks
now and then, makes it anew. An abstract name is nobody's property: whoever comes after the agent
may take it. So the uid of the other end counts (SO_PEERCRED), and both ends look at it. And others
may call there until nobody can be called any more, or take the name and hear nobody. Hence a stub
waits there for its turn, which an agent sees to; where none comes it is another's name.

Base directories, in order: /tmp, then $XDG_RUNTIME_DIR. The second looks like the better place and
is not: logind removes it when the user's last login ends, and that is the moment for which an agent
exists. Whoever can be root here, or already is this user, is not kept out; nothing could.

Directory changes (bind, removal of what a dead agent left) happen under flock(2) on the directory
itself, so that of two stubs only one starts the agent, and nobody removes a fresh socket.

Not here: processes (stub), the event loop (attach).
"""

import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import struct
import sys
import time
from typing import Iterator, List, Optional, Tuple

from sshunt.mux.hello import HOST_BYTES, TOKEN_BYTES

PROOF_MAGIC = b"sshATT1\n"
PROOF_BYTES = len(PROOF_MAGIC) + TOKEN_BYTES
GO = b"+"

#: The longest base directory: a socket's path may have 108 bytes on Linux, 104 elsewhere, the last
#: of them 0 (unix(7), unix(4)).
MAX_BASE_BYTES = 103 - len("/sshunt-" + 32 * "0" + "/agent")

#: A stub that has not proved itself and sent its lane after this long is hung up on. Both ends are
#: on one machine; seconds are for a machine that swaps.
ATTACH_DEADLINE_S = 5.0

#: Stubs that may wait to be accepted. Lanes come one by one; sixteen at once is a reconnect storm
#: of several clients' worth.
ATTACH_BACKLOG = 16

#: How long a stub waits for its turn at an abstract name, among whoever else calls there.
TURN_DEADLINE_S = 5.0

#: The lock is held for a few system calls.
LOCK_DEADLINE_S = 2.0

#: Dead agents' directories looked at per start, and names read to find them. One is left by a
#: crash; thousands are not our doing.
SWEEP_PLACES = 64
SWEEP_NAMES = 10000

_NAME_DIGITS = 32
_PREFIX = "sshunt-"
_PLACE = re.compile(r"sshunt-[0-9a-f]{%d}\Z" % _NAME_DIGITS)
_SOCKET = "/agent"

_HAS_ABSTRACT = sys.platform == "linux"


def meeting_name(token: bytes) -> str:
    """The name under which the agent of this session can be found."""
    return hashlib.sha256(b"sshunt agent " + token).hexdigest()[:_NAME_DIGITS]


def host_id() -> bytes:
    """Tells this machine from others that answer under the same name, whatever has been copied from
    one to the other, also after a restart. Not secret.
    """
    known = socket.gethostname()
    try:
        with open("/etc/machine-id") as file:
            known += file.read(64)
    except (OSError, ValueError):
        pass  # not Linux, or a small one
    return hashlib.sha256(known.encode("utf-8", "replace")).digest()[:HOST_BYTES]


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


# --- finding an agent -----------------------------------------------------------------------------


def find(name: str) -> socket.socket:
    """A connection to the agent of this name, wherever it listens.

    Raises FileNotFoundError if there is none, ConnectionRefusedError if there is what a dead one
    left, another OSError if there may be one and it can't be reached now.
    """
    failure = OSError(errno.ENOENT, "no such agent")
    for address in _addresses(name):
        is_abstract = address[0] == "\0"
        try:
            return _call(address, TURN_DEADLINE_S if is_abstract else 0.0)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError as error:
            # Nobody has the abstract name; or a file is left of somebody who is dead.
            if not is_abstract and isinstance(failure, FileNotFoundError):
                failure = error
        except PermissionError:
            pass  # another user's: not what we are looking for
        except BlockingIOError as error:
            if not is_abstract:  # else whoever listens there takes in nobody: it is no agent
                failure = error
        except OSError as error:
            failure = error
    raise failure


def remove_dead(name: str) -> None:
    """Remove what a dead agent of this name left."""
    for base in _bases():
        _remove_dead(base + "/" + _PREFIX + name)


def _addresses(name: str) -> Iterator[str]:
    for base in _bases():
        path = base + "/" + _PREFIX + name
        try:
            _check_private(os.lstat(path))
        except OSError:
            continue
        yield path + _SOCKET
    if _HAS_ABSTRACT:
        yield "\0" + _PREFIX + name


def _call(address: str, patience_s: float = 0.0) -> socket.socket:
    """A connection to whoever of ours listens there. Where more wait already than may, it waits for
    its turn; BlockingIOError if that does not come.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if patience_s:  # the kernel lets those in that wait in it, not those that come again
            seconds = struct.pack("ll", int(patience_s), 0)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        else:
            peer.settimeout(ATTACH_DEADLINE_S)  # and by that non-blocking
        peer.connect(address)
        peer.settimeout(ATTACH_DEADLINE_S)
        if not same_user(peer):
            raise PermissionError(errno.EPERM, "the agent's socket is another user's")
    except OSError:
        peer.close()
        raise
    return peer


# --- being found ----------------------------------------------------------------------------------


class Doorstep:
    """An agent's listening sockets. Made by the stub that starts it, and inherited.

    Making one raises FileExistsError if an agent of this name lives, or is just being started;
    another OSError if there is no place for it at all.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = ""  # of the directory, if there is one
        self._identity = (0, 0)  # of the socket's file in it
        self._file: Optional[socket.socket] = None
        self._abstract = _bind_abstract(name) if _HAS_ABSTRACT else None
        try:
            self._file = self._bind_file()
        except FileExistsError:
            self.release()
            raise
        except OSError:
            if self._abstract is None:
                raise

    @property
    def sockets(self) -> List[socket.socket]:
        """Those that there are."""
        return [sock for sock in (self._file, self._abstract) if sock is not None]

    def refresh(self) -> Tuple[Optional[socket.socket], Optional[socket.socket]]:
        """To be called now and then: tell cleaners that the directory is in use, and make it anew
        where it has been removed. Returns (the socket that has lost its name, its successor).
        """
        if self._file is not None and self._has_file():
            try:
                os.utime(self._path)
            except OSError:
                pass  # it is young enough as it is
            return None, None
        try:
            fresh = self._bind_file()
        except OSError:
            return None, None
        lost, self._file = self._file, fresh
        return lost, fresh

    def release(self) -> None:
        """Close them; whoever has inherited them goes on listening. May be called twice."""
        for sock in self.sockets:
            sock.close()

    def remove(self) -> None:
        """The agent is over: close them and remove the directory."""
        self.release()
        if self._file is None or not self._has_file():
            return
        try:
            os.unlink(self._path + _SOCKET)
            os.rmdir(self._path)
        except OSError:
            pass

    def _has_file(self) -> bool:
        try:
            return _identity(os.lstat(self._path + _SOCKET)) == self._identity
        except OSError:
            return False

    def _bind_file(self) -> socket.socket:
        failure = OSError(errno.ENOENT, "no directory to meet in")
        for base in _bases():
            _sweep(base)
            try:
                return self._bind_in(base + "/" + _PREFIX + self._name)
            except FileExistsError:
                raise
            except OSError as error:
                failure = error
        raise failure

    def _bind_in(self, path: str) -> socket.socket:
        fd = open_locked(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _make_way(path + _SOCKET)
            listener.bind(path + _SOCKET)
            listener.listen(ATTACH_BACKLOG)
            self._path, self._identity = path, _identity(os.lstat(path + _SOCKET))
            return listener
        except OSError:
            listener.close()
            raise
        finally:
            os.close(fd)


def _bind_abstract(name: str) -> Optional[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + _PREFIX + name)
        listener.listen(ATTACH_BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise FileExistsError(errno.EEXIST, "there is an agent of this name")
        return None  # a policy of this machine forbids it


def _make_way(path: str) -> None:
    """Remove a dead agent's socket; raises FileExistsError if there is a living one."""
    try:
        _call(path).close()
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    raise FileExistsError(errno.EEXIST, "there is an agent of this name")


# --- directories ----------------------------------------------------------------------------------


def _bases() -> List[str]:
    bases = []
    for base in ("/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):
        is_short = len(os.fsencode(base)) <= MAX_BASE_BYTES
        if base.startswith("/") and is_short and parent_is_safe(base):
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


def open_locked(path: str) -> int:
    """The directory ``path``, made if need be, and locked until the descriptor is closed. Raises
    OSError unless it is private.
    """
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        try:
            return _lock(path)
        except (BlockingIOError, FileNotFoundError):
            # Somebody is in there for a few system calls, or has just removed it.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _lock(path: str) -> int:
    """The directory ``path``, locked. Raises BlockingIOError if it is locked, FileNotFoundError if
    it is not there (any more), another OSError unless it is private.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_private(os.fstat(fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _identity(os.lstat(path)) != _identity(os.fstat(fd)):
            raise FileNotFoundError(errno.ENOENT, "removed by an ending agent", path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sweep(base: str) -> None:
    """Remove what dead agents of ours left in ``base``."""
    looked_at = 0
    try:
        with os.scandir(base) as entries:
            for read, entry in enumerate(entries):
                if read > SWEEP_NAMES or looked_at > SWEEP_PLACES:
                    break
                # Others' don't count: they may have as many as they like of this form.
                if _PLACE.match(entry.name) and _is_ours(entry):
                    looked_at += 1
                    _remove_dead(base + "/" + entry.name)
    except OSError:
        pass  # a directory that can't be listed may still be written


def _is_ours(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False  # it has just gone


def _remove_dead(path: str) -> None:
    """Remove the directory ``path`` of ours, unless somebody lives in it."""
    try:
        fd = _lock(path)
    except OSError:
        return  # gone, another's, or an agent is just being started in it
    try:
        try:
            _call(path + _SOCKET).close()
            return
        except ConnectionRefusedError:
            os.unlink(path + _SOCKET)
        except FileNotFoundError:
            pass
        os.rmdir(path)
    except OSError:
        pass  # alive but busy; or there is something in it that is not ours to remove
    finally:
        os.close(fd)


def _check_private(found: os.stat_result) -> None:
    """Raise PermissionError unless only we can look into it, and it is a directory."""
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if found.st_uid != os.geteuid() or not private:
        raise PermissionError(errno.EPERM, "not a private directory of ours")


def _identity(found: os.stat_result) -> Tuple[int, int]:
    return found.st_dev, found.st_ino
