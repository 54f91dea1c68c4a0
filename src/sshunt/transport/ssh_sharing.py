"""A control socket of our own: further channels over a connection that is up, without a login.

    we make a directory      mode 0700: in the user's runtime directory, or in /tmp
    ssh binds the socket     in there, when it has logged in
    we open it, and remove   as soon as the lane is up: the name, and the directory
    later ssh processes      reach it as /proc/PID/fd/N, which needs no name in any directory

The path stands in ssh's argument list, which every user of this machine can read, from its start;
ssh binds it only after the login. Whoever could bind it first would be handed the descriptors of
later channels, and with them everything that goes through the tunnel. Hence a directory that nobody
else may enter, however well the name is guessed, and a look at what was bound in it.

So no file outlives the start, whoever is killed later. Are we killed before, the directory is left,
and perhaps a socket behind which nobody listens; only its user can enter it. Its lock (flock(2)) is
gone with us, and by that the next start knows it for a leftover, and removes it.

Linux only: elsewhere there is no such path.
"""

import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from itertools import islice

#: The longest path of a socket. sun_path has 108 bytes, and ssh binds under a name that is 17
#: longer (unix(7), ssh's mux.c).
_LONGEST_PATH = 80

_PREFIX = "sshunt-ssh-"
_NAME = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{16}")

#: What ssh reads in a path of its configuration in a way of its own. (It does not know quotes in
#: all versions.)
_NOT_PLAIN = re.compile(r"[\s\"'\\$]")

#: The socket's name in its directory. ssh binds another one first, NAME.XXXXXXXXXXXXXXXX.
_SOCKET = "s"

_SHARED_PLACE = "/tmp"

#: Leftovers looked at per start, and names read to find them: others may fill the place with names
#: of this form, and whoever starts is not to wait for that.
_MOST_LEFTOVERS = 64
_MOST_NAMES = 10_000

#: Attempts to make a directory of our own: who removes them all the time is not chased for ever.
_ATTEMPTS = 10


class ControlSocket:
    """The socket of one ssh connection. Owns its descriptor and, until ``hold``, its directory.

    Making one raises OSError where no directory can be made.
    """

    def __init__(self) -> None:
        self._fd = -1
        place = private_place() or _SHARED_PLACE
        remove_leftovers(place)
        self._folder, self._folder_fd = _make_folder(place)

    @property
    def options(self) -> list[str]:
        """What the ssh that makes the connection is given."""
        path = f"{self._folder}/{_SOCKET}".replace("%", "%%")
        # ControlPersist of the user's would have this ssh go into the background.
        options = ("ControlMaster=yes", f"ControlPath={path}", "ControlPersist=no")
        return [word for option in options for word in ("-o", option)]

    @property
    def channel_options(self) -> list[str] | None:
        """What an ssh that opens a channel through it is given; None if that is impossible."""
        if self._fd < 0:
            return None
        return ["-o", f"ControlPath=/proc/{os.getpid()}/fd/{self._fd}"]

    @property
    def is_bound(self) -> bool:
        """True if ssh has bound it, which it does when it has logged in."""
        if self._fd >= 0:
            return True
        with suppress(OSError):
            return self._folder_fd >= 0 and _is_our_socket(
                os.stat(_SOCKET, dir_fd=self._folder_fd, follow_symlinks=False)
            )
        return False

    def hold(self) -> None:
        """The connection is up: keep the socket, remove its name. If ssh made none, that's that."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            fd = os.open(_SOCKET, flags, dir_fd=self._folder_fd)
            if _is_our_socket(os.fstat(fd)):
                self._fd = fd
            else:
                os.close(fd)
        self._remove_folder()

    def close(self) -> None:
        """Let go of it. May be called twice."""
        self._remove_folder()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _remove_folder(self) -> None:
        if self._folder_fd >= 0:
            _remove(self._folder, self._folder_fd)
            os.close(self._folder_fd)
            self._folder_fd = -1


def private_place() -> str | None:
    """The user's runtime directory, if it is theirs alone and its path is short and plain enough.

    It may be somebody else's: sudo and su can leave the variable as it was.
    """
    place = os.environ.get("XDG_RUNTIME_DIR", "")
    length = len(os.fsencode(f"{place}/{_PREFIX}")) + 16 + len(f"/{_SOCKET}")
    if not place.startswith("/") or length > _LONGEST_PATH or _NOT_PLAIN.search(place):
        return None
    with suppress(OSError):
        if _is_private(os.lstat(place)) and os.access(place, os.W_OK | os.X_OK):
            return place
    return None


def remove_leftovers(place: str) -> None:
    """Remove the directories in ``place`` whose makers, of this user, were killed."""
    try:
        with os.scandir(place) as entries:
            ours = filter(_may_be_ours, islice(entries, _MOST_NAMES))
            names = [entry.name for entry in islice(ours, _MOST_LEFTOVERS)]
    except OSError:
        return
    for name in names:
        path = f"{place}/{name}"
        with suppress(OSError):
            fd = _open_folder(path)
            try:
                if _is_private(os.fstat(fd)):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its maker lives: OSError
                    _remove(path, fd)
            finally:
                os.close(fd)


def _may_be_ours(entry: "os.DirEntry[str]") -> bool:
    if not _NAME.fullmatch(entry.name):
        return False
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return False


def _make_folder(place: str) -> tuple[str, int]:
    """A new directory of ours, and a descriptor of it that holds its lock. Raises OSError."""
    for _ in range(_ATTEMPTS):
        path = f"{place}/{_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(path, 0o700)  # fails if there is anything of this name, be it a link
        fd = -1
        try:
            fd = _open_folder(path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            theirs, named = os.fstat(fd), os.lstat(path)
            if os.path.samestat(theirs, named) and _is_private(theirs):
                return path, fd
        except OSError:
            pass  # another start of this user's took it for a leftover before it was locked
        if fd >= 0:
            os.close(fd)
        with suppress(OSError):
            os.rmdir(path)
    raise OSError("no directory can be made that lasts")


def _open_folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _remove(path: str, fd: int) -> None:
    """Remove the directory behind ``fd``, which ``path`` names, and the sockets in it."""
    with suppress(OSError):
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)


def _is_private(status: os.stat_result) -> bool:
    is_folder, mode = stat.S_ISDIR(status.st_mode), stat.S_IMODE(status.st_mode)
    return is_folder and status.st_uid == os.geteuid() and mode & 0o077 == 0


def _is_our_socket(status: os.stat_result) -> bool:
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid()
