"""What we choose for ssh where the user did not: ``ssh -G`` says what is configured.

    cipher    the fastest first, if this machine has AES instructions
    sharing   whether a first connection of ours may be one that later ones open channels through

In any doubt (another program than ssh, no answer, an answer that looks odd) nothing is chosen.
"""

import asyncio
import enum
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sshunt.errors import UserError
from sshunt.transport.ssh import Remote, find_program

#: How long ``ssh -G`` may take.
ASK_DEADLINE_S = 2.0

FAST_CIPHER = "aes128-gcm@openssh.com"


class Sharing(enum.Enum):
    """How a second channel over an existing connection can be had."""

    NONE = enum.auto()
    OURS = enum.auto()  # by a control socket of our own (``sharing``)
    THEIRS = enum.auto()  # by the user's ControlPath


class Choices(NamedTuple):
    """``cipher``: ssh options."""

    cipher: list[str]
    sharing: Sharing


async def choose(remote: Remote) -> Choices:
    """Ask ssh, and choose. Never raises."""
    nothing = Choices([], Sharing.NONE)
    program, *arguments = remote.ssh_command
    if Path(program).name != "ssh":
        return nothing
    try:
        ssh = find_program(program)
    except UserError:
        return nothing
    port = ["-p", str(remote.port)] if remote.port is not None else []
    configured, default = await asyncio.gather(
        _ask([ssh, *arguments, *port, "-G", remote.destination]),
        _ask([ssh, "-F", "none", "-G", remote.destination]),
    )
    ciphers = configured.get("ciphers", "")
    if not ciphers:
        return nothing
    # ssh prints no controlpath where there is none.
    sharing = Sharing.THEIRS if "controlpath" in configured else Sharing.OURS
    is_default = ciphers == default.get("ciphers") and FAST_CIPHER in ciphers.split(",")
    wanted = is_default and _has_aes_instructions()
    return Choices(["-o", f"Ciphers=^{FAST_CIPHER}"] if wanted else [], sharing)


async def _ask(argv: Sequence[str]) -> dict[str, str]:
    """What ``ssh -G`` prints, by keyword. In a thread: no trace of it is left in the event loop,
    which may be about to end.
    """
    try:
        answer = await asyncio.to_thread(
            subprocess.run,
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ASK_DEADLINE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, RuntimeError):  # RuntimeError: no thread
        return {}
    lines = answer.stdout.decode("utf-8", "replace").splitlines()
    return dict(line.split(" ", 1) for line in lines if re.match(r"[a-z0-9]+ \S", line))


def _has_aes_instructions() -> bool:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.system() == "Darwin"  # every Mac that runs a supported Python has them
    return re.search(r"^(?:flags|Features)\s*:.*\baes\b", cpuinfo, re.MULTILINE) is not None
