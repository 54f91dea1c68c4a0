"""The restorer: a child of the helper that runs iptables-save and iptables-restore. Root; Linux.

The helper's own root has no programs in it (privileges), and iptables' rules have no owner: they
stay when the helper is killed. So a child stays behind where the programs are. It is forked before
that, runs fixed programs and nothing else, with an empty environment, and gets text
that the helper has rendered itself: nothing of it was said by the client but addresses and ports
that were decoded. It has two capabilities, and outlives the helper: when that has ended, however it
did, the restorer removes the session's rules and ends. While somebody else holds iptables' lock it
tries that for some minutes, whether anybody waits for it or not. It ignores what is sent to groups
of processes, and lives in the root of the control groups, where no user can freeze it.

**Which variant**: what the host calls iptables, if that works here, since a host's rules are best
all in one; else the legacy one, else that for nf_tables. A kernel without nf_tables may well have a
distribution that means these by the plain name.

    ask     u8 family, u32 length, text    no text: what is in the table ``nat``?
    answer  u8 succeeded, u32 length, text, or what the program complained of

Not here: the text (capture.iptables), when there are rules (iptables).
"""

import os
import socket
import struct
import subprocess
import time
from contextlib import suppress

from sshunt.capture.iptables import removal
from sshunt.capture.nft import table_name
from sshunt.helper import cgroups
from sshunt.helper.privileges import (
    CGROUP_ROOT,
    NET_ADMIN,
    NET_RAW,
    drop_capabilities,
    take_name,
)
from sshunt.helper.processes import Process, close_others, hear_no_signals
from sshunt.helper.protocol import KernelError, Refusal
from sshunt.helper.traces import Traces

#: Where a distribution has them.
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin")
_PROGRAMS = {4: "iptables", 6: "ip6tables"}

#: What follows the family's name in that of a variant, in the order in which they are tried.
_VARIANTS = ("", "-legacy", "-nft")

#: The longest that a program may take, its wait for others' lock included. 10,000 rules take half a
#: second.
_PROGRAM_DEADLINE_S = 20.0
_LOCK_S = "10"

#: How long it tries to remove the session's rules at the end, and the pause between two tries.
_REMOVAL_DEADLINE_S = 300.0
_REMOVAL_PAUSE_S = 0.5

#: The longest that an answer is waited for.
_DEADLINE_S = 2 * _PROGRAM_DEADLINE_S

#: Its name, as ps shows it.
_NAME = b"restorer"

_ASK = struct.Struct("!BI")
_ANSWER = struct.Struct("!?I")

_MOST_BYTES = 64 * 1024 * 1024


class Restorer:
    """The child, as the helper sees it."""

    def __init__(self, session: str, proc: int) -> None:
        """Start it; raises KernelError. It will remove what is left of ``session``."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_DEADLINE_S)
        itself = Process(proc, os.getpid())
        try:
            arguments = itself.place_of_arguments()
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    take_name(_NAME, arguments)
                    _begin(theirs, proc)
                    _live(theirs, session)
                finally:
                    os._exit(0)
        except OSError as error:
            self._socket.close()
            raise KernelError(Refusal.KERNEL, f"no process for iptables: {error}")
        finally:
            itself.close()
            theirs.close()

    def leave_cgroup(self) -> None:
        """Let it live where no user can freeze it; to be called where control groups are."""
        with suppress(OSError):
            cgroups.move(self._pid, CGROUP_ROOT)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._socket.fileno()

    def saved(self, family: int) -> str:
        """What the table ``nat`` of a family (4 or 6) has; raises KernelError."""
        return self._ask(family, "")

    def restore(self, family: int, text: str) -> None:
        """Have a text applied, all of it or nothing; raises KernelError."""
        self._ask(family, text)

    def end(self) -> None:
        """Let it remove what there is, and wait for it."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _ask(self, family: int, text: str) -> str:
        data = text.encode()
        try:
            self._socket.sendall(_ASK.pack(family, len(data)) + data)
            succeeded, length = _ANSWER.unpack(_exactly(self._socket, _ANSWER.size))
            answer = _exactly(self._socket, length).decode(errors="replace")
        except (OSError, EOFError) as error:
            raise KernelError(Refusal.IPTABLES, f"iptables does not answer: {error}")
        if not succeeded:
            raise KernelError(Refusal.IPTABLES if text else Refusal.NO_IPTABLES, answer.strip())
        return answer


# --- the child ----------------------------------------------------------------------------------


def _begin(sock: socket.socket, proc: int) -> None:
    os.setsid()
    hear_no_signals()
    close_others({sock.fileno()}, proc)
    drop_capabilities((NET_ADMIN, NET_RAW))


def _live(sock: socket.socket, session: str) -> None:
    traces = Traces()
    variant = next((each for each in _VARIANTS if _run(each, 4, "")[0]), "")
    with suppress(OSError, EOFError):
        while True:
            family, length = _ASK.unpack(_exactly(sock, _ASK.size))
            text = _exactly(sock, length).decode()
            succeeded, said = _run(variant, family, text)
            data = said.encode()
            sock.sendall(_ANSWER.pack(succeeded, len(data)) + data)
    deadline = time.monotonic() + _REMOVAL_DEADLINE_S
    while not _remove(variant, session) and time.monotonic() < deadline:
        time.sleep(_REMOVAL_PAUSE_S)
    traces.remove()


def _remove(variant: str, session: str) -> bool:
    """Whether no rule of the session's is left in any family that shows what it has."""
    ours, is_done = table_name(session), True
    for family in _PROGRAMS:
        succeeded, saved = _run(variant, family, "")
        text = removal(saved, lambda name: name == ours) if succeeded else ""
        if text:
            is_done = _run(variant, family, text)[0] and is_done
    return is_done


def _run(variant: str, family: int, text: str) -> tuple[bool, str]:
    """Whether the program did it, and what it said: the table, or its complaint."""
    words = ["-w", _LOCK_S, "--noflush"] if text else ["-t", "nat"]
    name = f"{_PROGRAMS[family]}{variant}-{'restore' if text else 'save'}"
    path = next((p for p in (f"{at}/{name}" for at in _FOLDERS) if os.path.exists(p)), None)
    if path is None:
        return False, f"there is no {name}"
    try:
        done = subprocess.run(
            [path, *words],
            input=text.encode(),
            capture_output=True,
            env={},
            cwd="/",
            timeout=_PROGRAM_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    said = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, said.decode(errors="replace").strip() + "\n"


def _exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; raises EOFError where there are no more, and OSError."""
    if size > _MOST_BYTES:
        raise EOFError
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
