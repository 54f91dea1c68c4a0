"""Who is alive: files below /run/sshunt that living helpers hold locked. Root.

A plain table, which the kernel does not remove by itself, needs an answer to "is its maker alive?"
that neither a dead maker nor another user can fake. A lock (flock(2)) goes with the process that
holds it, and below a directory that only root may enter nobody else can hold one. (An abstract unix
socket, which needs no file, is free for all: a local user could take the name of a dead session,
and keep its table from being removed.)

A session's file is named after the network namespace it is in, as its table is. A slot is one of
those that a user has for helpers at the same time. A file whose helper was killed stays until the
next start; without a lock it means nothing.

Not here: what a mark means for a table or a control group (nftables, guard).
"""

import fcntl
import os
import re
import time

from sshunt.helper.protocol import KernelError, Refusal

PLACE = "/run/sshunt"

#: The age up to which a file may be between being made and being locked.
_YOUNG_S = 60.0

_FILE = re.compile(r"[0-9]+-sshunt-[0-9a-f]{8,16}")


class Mark:
    """A locked file. It is unlocked by ``close``, or by our end."""

    def __init__(self, directory: int, name: str, descriptor: int) -> None:
        self._directory, self._name, self._descriptor = directory, name, descriptor

    @property
    def number(self) -> int:
        """Of a slot: which it is."""
        return int(self._name.rpartition("-")[2])

    def close(self) -> None:
        """Remove and unlock it."""
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            pass  # somebody has tidied up
        os.close(self._descriptor)


class Marks:
    """The directory, which stays open: later it may be out of our sight (privileges)."""

    def __init__(self) -> None:
        """Make it if it is missing; raises KernelError."""
        try:
            try:
                os.mkdir(PLACE, 0o700)
            except FileExistsError:
                pass
            self._directory = os.open(PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise KernelError(Refusal.NO_PLACE, f"{PLACE}: {error.strerror}")
        status = os.fstat(self._directory)
        if status.st_uid != 0 or status.st_mode & 0o077:
            raise KernelError(Refusal.NO_PLACE, f"{PLACE} is not root's alone")
        self._here = f"{os.stat('/proc/self/ns/net').st_ino}-"

    def take(self, table: str) -> Mark | None:
        """The mark of this table's maker; None if somebody alive holds it."""
        return self._lock(self._here + table, os.O_CREAT)

    def take_for(self, table: str) -> Mark:
        """The same; raises KernelError if somebody has it."""
        mark = self.take(table)
        if mark is None:
            raise KernelError(Refusal.WRONG_ORDER, "another helper serves this session")
        return mark

    def take_from_the_dead(self, table: str) -> Mark | None:
        """The same, but None also if there was no such maker here: one that can't see this
        directory (in a container with the host's network) is none of ours to call dead.
        """
        return self._lock(self._here + table)

    def take_slot(self, uid: int, slots: int) -> Mark | None:
        """One of the user's slots; None if all are held."""
        for number in range(slots):
            mark = self._lock(f"user-{uid}-{number}", os.O_CREAT)
            if mark is not None:
                return mark
        return None

    def is_alive(self, table: str) -> bool:
        """True if a helper of a session with this table's name lives, in whatever namespace."""
        names = [name for name in os.listdir(self._directory) if name.endswith("-" + table)]
        return any(self._is_held(name) for name in names)

    def sweep(self) -> None:
        """Remove what killed helpers have left in this network namespace."""
        for name in os.listdir(self._directory):
            if not (name.startswith(self._here) and _FILE.fullmatch(name)):
                continue
            try:
                made = os.stat(name, dir_fd=self._directory).st_mtime
            except FileNotFoundError:
                continue
            mark = self._lock(name) if time.time() - made > _YOUNG_S else None
            if mark is not None:
                mark.close()

    def _is_held(self, name: str) -> bool:
        try:
            descriptor = self._open(name)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _lock(self, name: str, create: int = 0) -> Mark | None:
        """The file, locked; None if it is locked already, or missing and not to be made."""
        while True:
            try:
                descriptor = self._open(name, create)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if os.fstat(descriptor).st_nlink:
                return Mark(self._directory, name, descriptor)
            os.close(descriptor)  # whoever held it has just removed it

    def _open(self, name: str, create: int = 0) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | create
        return os.open(name, flags, 0o600, dir_fd=self._directory)
