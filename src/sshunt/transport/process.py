"""A channel's program as a process: its pipes, which signals it hears, how it ends.

It is ssh, mostly. What asks us to stop asks ssh in the same moment: a terminal's keys and its end,
timeout(1), a kill of the process group, a service manager. But ssh must live until the goodbye is
said. So it starts with ``_NOT_FOR_SSH`` ignored, and so do its ProxyCommands. ssh respects that
(clientloop.c) except where it only opens a channel through another ssh (mux.c), and a prompt still
returns on Ctrl-C (readpassphrase(3) catches it). Where ssh can't ask anybody anything, in a channel
and with BatchMode, it gets a session of its own (setsid(2)) and these signals blocked, too.

ssh is therefore ended by closing its pipes, or by SIGKILL. Its ProxyCommands end when their pipes
do; we kill those that don't with it. A prompt that is cut short leaves the terminal without echo,
which is given back (``host.terminal``).

An agent on this very host (``local``) is to live as one behind an sshd does: it gets a session of
its own, and every signal as it was.

Not here: what goes through the pipes (greeting, relay), what comes by stderr (stderr).
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sshunt.host.parent import tie
from sshunt.transport.stderr import StderrLines

#: The signals that ask a whole process group, a terminal's or a service's processes to end.
_NOT_FOR_SSH = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT)

#: The time from SIGTERM to SIGKILL. The first is for programs around ssh (sshpass, scripts), which
#: may want to tidy up; ssh itself is deaf to it.
KILL_DEADLINE_S = 0.2

#: The time from SIGKILL until a program is left to itself.
LEAVE_DEADLINE_S = 1.0


class Signals(Enum):
    """What a program hears of the signals that ask us to stop."""

    IGNORED = auto()  # unless it catches them: it may ask at our terminal
    BLOCKED = auto()  # it can ask nobody
    UNCHANGED = auto()  # in a session of its own, away from our terminal


@dataclass(slots=True)
class Pipes:
    """Our ends."""

    read_fd: int
    write_fd: int
    stderr: StderrLines


async def spawn(
    argv: Sequence[str],
    on_stderr: Callable[[str], None],
    env: Mapping[str, str] | None,
    *,
    signals: Signals,
) -> tuple[asyncio.subprocess.Process, Pipes]:
    """Start the program; ``env`` instead of ours. Raises OSError."""
    with ExitStack() as theirs, ExitStack() as ours:  # what fails or is cancelled closes both
        stdin_fd, write_fd = _pipe(theirs, ours)
        read_fd, stdout_fd = _pipe(ours, theirs)
        stderr_read_fd, stderr_fd = _pipe(ours, theirs)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin_fd,
            stdout=stdout_fd,
            stderr=stderr_fd,
            env=env,
            preexec_fn=_prepare_child(signals),
        )
        for fd in (read_fd, write_fd, stderr_read_fd):
            os.set_blocking(fd, False)
        ours.pop_all()
    return process, Pipes(read_fd, write_fd, StderrLines(stderr_read_fd, on_stderr))


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """The two ends of a new pipe, which these two close."""
    read_fd, write_fd = os.pipe()
    reader.callback(os.close, read_fd)
    writer.callback(os.close, write_fd)
    return read_fd, write_fd


def _prepare_child(signals: Signals) -> Callable[[], None]:
    """What to run between fork and exec. Everything that allocates or imports is done out here."""
    tied = tie()

    def prepare() -> None:
        if signals is not Signals.UNCHANGED:
            for number in _NOT_FOR_SSH:
                signal.signal(number, signal.SIG_IGN)
        if signals is not Signals.IGNORED:
            os.setsid()
        if signals is Signals.BLOCKED:
            signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_SSH)
        if not tied():
            os._exit(1)

    return prepare


async def kill(process: asyncio.subprocess.Process, ended: "asyncio.Future[Any]") -> None:
    """End the program, and what it has started. ``ended`` is done when it has.

    What we may not end (sudo may have made it another user's) and what the kernel can't (it waits
    for a disk) is left; its pipes are closed, so it ends when it looks at them.
    """
    import psutil  # rarely needed, and it takes its time

    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except (psutil.Error, OSError, RuntimeError):  # it has just ended, or can't be looked at
        started = []
    with suppress(ProcessLookupError, PermissionError):
        process.terminate()
    try:
        await asyncio.wait([ended], timeout=KILL_DEADLINE_S)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            process.kill()
        for child in started:
            with suppress(psutil.Error):
                child.kill()  # not if its pid is another process' by now
    await asyncio.wait([ended], timeout=LEAVE_DEADLINE_S)
