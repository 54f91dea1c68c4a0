"""Another network namespace of this host: what is captured is there, ssh is here. Linux.

``--namespace NAME|PID``. Rules, their helper, the sockets that captured traffic arrives at and the
prober belong to that namespace; we ourselves and ssh stay where we are. A socket belongs for good
to the namespace that its maker was in, and a process to that of its parent's thread when it began:
so it is enough to be inside for a moment, while those are made (``entered``).

**Root only.** The kernel lets nobody else enter (setns(2): CAP_SYS_ADMIN over both). The helper
could, for a user who may start it; then whoever may have it capture this host's traffic without a
password could reach into every container. So it is not asked, and stays refusing who comes from
elsewhere (helper.starter).

Invariants: nothing is awaited inside, since the loop's other tasks would be inside, too; the
namespace is opened once, so that a process id that is given away means no other.

Not here: which of our parts are made inside (commands).
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sshunt.errors import ExitCode, UserError

#: Where ip-netns(8) keeps those that have names.
_NAMED = "/run/netns"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns comes with Python 3.12


def opened(word: str) -> str:
    """The path by which this process enters the namespace of that name, or of the process of that
    number, from now on until its end; raises UserError.
    """
    if _NAME.fullmatch(word) is None:
        raise _no_namespace(word, "neither a name nor a process id")
    if os.geteuid() != 0:
        raise UserError(
            "only root may capture in another network namespace",
            "sudo sshunt --namespace ...; ssh then runs as root, too",
            ExitCode.PRIVILEGE,
        )
    path = f"/proc/{word}/ns/net" if word.isdigit() else f"{_NAMED}/{word}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _no_namespace(word, str(error.strerror))
    found = f"/proc/self/fd/{descriptor}"
    with entered(found, word):
        pass
    return found


@contextmanager
def entered(path: str, name: str = "") -> Iterator[None]:
    """Let this thread be in that namespace ("": it stays in ours); raises UserError."""
    if not path:
        yield
        return
    with open("/proc/thread-self/ns/net") as ours, open(path) as theirs:
        _enter(theirs.fileno(), name)
        try:
            yield
        finally:
            _enter(ours.fileno(), "")


def _enter(descriptor: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise _no_namespace(name, os.strerror(ctypes.get_errno()))


def _no_namespace(word: str, problem: str) -> UserError:
    return UserError(
        f"can't enter the network namespace {word}: {problem}",
        "ip netns lists those that have names; lsns -t net all, with a process of each",
        ExitCode.USAGE,
    )
