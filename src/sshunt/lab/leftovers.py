"""What labs leave behind that were killed with -9, and who may be cleaned up after.

Everything of a lab has a name, "sshunt-lab-<owner's pid>-<owner's start time>-<number>", which
tells whether its owner still lives. But /tmp is everybody's: such a name there may be anybody's
invention, and it is root who cleans up. So a folder is a lab's only if it is ours and its name is
well formed, and of what agents left in /tmp only that is removed which belongs to one of the lab's
accounts, and only where this machine knows nobody of that number.

Not here: what a living lab does when it is closed (world).
"""

import os
import pwd
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from sshunt.errors import ExitCode, UserError
from sshunt.lab.accounts import uids_of
from sshunt.lab.hosts import ip, processes_in

PREFIX = "sshunt-lab-"

#: The beginning of every name that agents make where they meet their lanes (agent.rendezvous).
_AGENTS = "/tmp/sshunt-"

_NAME = re.compile(r"sshunt-lab-([1-9][0-9]{0,9})-([0-9]{1,20})-([0-9]{1,10})")
_NAMESPACE = re.compile(rf"({_NAME.pattern})-[a-z]+")


def lab_name(number: int) -> str:
    """The name of this process' lab of that number; raises UserError."""
    if not Path("/proc/self/stat").exists():
        raise UserError(
            "there is no /proc here", "mount it: mount -t proc proc /proc", ExitCode.CAPTURE
        )
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}-{number}"


def number_of(name: str) -> int:
    """Tell labs at work apart: pid of the owner, plus the number of his lab."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no lab's name")
    return int(found[1]) + int(found[3])


def remove_leftovers() -> None:
    """Remove what is left of labs whose owner is gone."""
    for path in Path("/run/netns").glob(f"{PREFIX}*"):
        found = _NAMESPACE.fullmatch(path.name)
        if found is not None and not _owner_lives(found[1]):
            for pid in processes_in(path):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            remove_namespace(path.name)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _NAME.fullmatch(path.name) and _is_our_folder(path) and not _owner_lives(path.name):
            remove_files(path.name)


def remove_files(name: str) -> None:
    """Remove the lab's folder, and what agents that were killed with the lab left in /tmp."""
    for path in left_by(uids_of(number_of(name))):
        with suppress(FileNotFoundError):  # another lab removes the same leftovers
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    shutil.rmtree(Path(tempfile.gettempdir(), name), ignore_errors=True)


def remove_namespace(netns: str) -> None:
    """Remove the namespace, if it is there."""
    if Path("/run/netns", netns).exists():
        with suppress(RuntimeError):  # another lab removed the same leftover a moment earlier
            ip(f"netns delete {netns}")


def left_by(uids: Collection[int]) -> list[Path]:
    """What agents of these users, who are a lab's and not this machine's, have in /tmp."""
    found = []
    for path in Path("/tmp").glob(f"{Path(_AGENTS).name}*"):
        with suppress(FileNotFoundError):
            uid = path.lstat().st_uid
            if uid in uids and not _is_known(uid):
                found.append(path)
    return found


def is_agents(path: str) -> bool:
    """True for the name of a socket at which an agent listens."""
    return path.startswith(_AGENTS)


def _is_our_folder(path: Path) -> bool:
    with suppress(FileNotFoundError):
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return False


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _owner_lives(name: str) -> bool:
    found = _NAME.fullmatch(name)
    try:
        return found is not None and _start_time(int(found[1])) == found[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


def _start_time(pid: int) -> str:
    """Return field 22 of /proc/PID/stat, which tells two processes with the same pid apart."""
    # The name in field 2 may have blanks and parentheses; fields are counted from its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
