"""What we choose for ssh where the user did not: ``ssh -G`` says what is configured.

    cipher      the fastest first, if this machine has AES instructions
    sharing     whether a first connection of ours may be one that later ones open channels through
    session     what undoes a configuration that is for other commands than ours
    unattended  what keeps a later connection from asking anybody (``ssh_unattended``)
    direct      whether ssh connects to the server by itself, from whatever address the kernel takes

In any doubt (another program than ssh, no answer, an answer that looks odd) nothing is chosen.
"""

import enum
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sshunt.config.remotes import RemoteSpec
from sshunt.errors import UserError
from sshunt.transport import ssh_unattended
from sshunt.transport.ssh_program import find_program

#: How long ``ssh -G`` may take.
ASK_DEADLINE_S = 2.0

#: Settings with which ssh does not simply connect to the server's address.
_INDIRECT = ("proxycommand", "proxyjump", "bindaddress", "bindinterface")

FAST_CIPHER = "aes128-gcm@openssh.com"


#: What a session of ours needs, and ``ssh -G`` says of it.
_SESSION = (("StdinNull", "no"), ("ForkAfterAuthentication", "no"), ("SessionType", "default"))


class Sharing(enum.Enum):
    """How a second channel over an existing connection can be had."""

    NONE = enum.auto()
    OURS = enum.auto()  # by a control socket of our own (``ssh_sharing``)
    THEIRS = enum.auto()  # by the user's ControlPath


class Choices(NamedTuple):
    """``cipher``, ``session`` and ``unattended`` are ssh options."""

    cipher: list[str]
    sharing: Sharing
    control_path: str = ""  # the user's, if sharing is THEIRS
    session: Sequence[str] = ()
    unattended: Sequence[str] = ()
    is_direct: bool = False


NOTHING = Choices([], Sharing.NONE)


class SshConfigQuery:
    """ssh, asked what is configured. Started early, it answers while the rest is being loaded.

    Whoever starts it also closes it. Never raises.
    """

    def __init__(self, spec: RemoteSpec) -> None:
        self._asked: list[subprocess.Popen[bytes]] = []
        self._has_reader = False  # which then takes care of the processes' end
        program, *arguments = spec.ssh_command
        if Path(program).name != "ssh":
            return
        port = ["-p", str(spec.port)] if spec.port is not None else []
        with suppress(UserError, OSError):  # it is said when ssh is to connect
            ssh = find_program(program)
            # With a command, as ours will have one: without, some configurations are an error.
            command = ["-o", "RemoteCommand=none", "-G", spec.destination, "true"]
            self._ask([ssh, *arguments, *port, *command])
            self._ask([ssh, "-F", "none", "-G", spec.destination])

    def result(self) -> Choices:
        """Wait for the answers, and choose; once. ``close`` cuts it short."""
        self._has_reader = True
        deadline = time.monotonic() + ASK_DEADLINE_S
        answers = [_read(process, deadline) for process in self._asked]
        if len(answers) < 2:
            return NOTHING
        configured, default = answers
        ciphers = configured.get("ciphers", "")
        if not ciphers:
            return NOTHING
        control_path = configured.get("controlpath", "")  # not printed where there is none
        sharing = Sharing.THEIRS if control_path else Sharing.OURS
        is_default = ciphers == default.get("ciphers") and FAST_CIPHER in ciphers.split(",")
        wanted = is_default and _has_aes_instructions()
        cipher = ["-o", f"Ciphers=^{FAST_CIPHER}"] if wanted else []
        is_direct = all(configured.get(word, "none") == "none" for word in _INDIRECT)
        return Choices(
            cipher,
            sharing,
            control_path,
            session=_session_options(configured),
            unattended=ssh_unattended.options(configured),
            is_direct=is_direct,
        )

    def close(self) -> None:
        """End what still runs. May be called twice, and while a thread waits in ``result``."""
        for process in self._asked:
            if self._has_reader:
                process.kill()
            else:
                with process:
                    process.kill()

    def _ask(self, argv: Sequence[str]) -> None:
        self._asked.append(
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )


def _read(process: "subprocess.Popen[bytes]", deadline: float) -> dict[str, str]:
    """What ``ssh -G`` prints, by keyword; nothing if it fails or takes too long. Reaps it."""
    with process:
        try:
            output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.0))
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            return {}
    if process.returncode:
        return {}
    lines = output.decode("utf-8", "replace").splitlines()
    return dict(line.split(" ", 1) for line in lines if re.match(r"[a-z0-9]+ \S", line))


def _session_options(configured: Mapping[str, str]) -> list[str]:
    """What lets ssh run our command and reads our pipe, whatever its configuration says. Options
    that are as we need them are not named: an ssh before 8.7 does not know them.
    """
    changed = [name for name, ours in _SESSION if configured.get(name.lower(), ours) != ours]
    return [word for name, ours in _SESSION if name in changed for word in ("-o", f"{name}={ours}")]


def _has_aes_instructions() -> bool:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return sys.platform == "darwin"  # every Mac that runs a supported Python has them
    return re.search(r"^(?:flags|Features)\s*:.*\baes\b", cpuinfo, re.MULTILINE) is not None
