"""Starting the privileged helper: directly when we are root, otherwise by what may do so.

    the service     where root has set it up (``sshunt install-helper --socket``): it starts a
                    helper for whoever may connect to its socket, and asks for no password. It is
                    taken only if the socket is root's, and root listens there
    sudo, sudo-rs   the prompt is given by SUDO_PROMPT, which sudo takes as it does -p; sudo-rs
                    before 0.2.5 ends with a usage error at -p, and asks in its own words
    doas            has words of its own
    run0            of systemd 257 or later, whose --pipe hands our socket on as it is. The first
                    process starts the helper then, in a service that ends with what was started:
                    the helper leaves that for our control group (helper.starter)

The first of them that there is. Where root has installed a helper for all (LAUNCHER), and it is
root's alone, that one is started instead of ours: a rule may allow it without a password.

sudo and the others ask for the password on the terminal themselves; we never see it. A socketpair
is made here, one end becomes the helper's standard input (sudo and doas close everything above
stderr). What was started exits as soon as the helper stands on its own feet, so sudo is only there
for a moment.

A started helper has done nothing yet: it waits for a greeting (``helper``), and ends when the
socket closes. So it may be started early, while the rest of the client is still being loaded.

An unprivileged process can't signal what sudo started. It need not: closing the socket ends it.
sudo itself, while it asks, would go on asking at the terminal, whoever has that by then; its real
user is still ours, and so it can be ended.
"""

import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import sshunt.helper
from sshunt.errors import ExitCode, UserError
from sshunt.helper.service import SERVICE_SOCKET
from sshunt.host.trust import problems

#: The service's name, as systemctl and journalctl know it.
SERVICE = "sshunt-helper"

#: The helper that root has installed for all (commands.install_helper).
LAUNCHER = "/usr/local/libexec/sshunt/helper"

#: Times that sudo is asked to end, for it overlooks what comes just before it reads; and the time
#: that it has after each to leave the terminal as it was.
END_ATTEMPTS, END_EVERY_S = 10, 0.1

#: The deadline for the service manager to take a connection, which may be busy with others.
_CONNECT_DEADLINE_S = 5.0

_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid

_HELPER = Path(sshunt.helper.__path__[0]) / "__main__.py"

#: What may start it, in the order in which they are looked for, and what stands between each and
#: the helper.
_TOOLS: dict[str, list[str]] = {
    "sudo": [],
    "doas": [],
    "run0": ["--pipe", "--background="],
}

#: There only where systemd is the first process (sd_booted(3)), which run0 asks.
_SYSTEMD = "/run/systemd/system"

_PROMPT = "[sshunt] sudo password for %p: "


class HelperProcess:
    """A helper that is being started; raises UserError if that is impossible.

    ``tool`` is what starts it: SERVICE, "sudo", "doas", "run0", or None when we are root.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = _connected() if os.geteuid() != 0 else None
        self.tool: str | None = SERVICE
        if self._socket is None:
            self._socket = self._start()

    def _start(self) -> socket.socket:
        command, self.tool = _command()
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=_environment(command[0]) if self.tool == "sudo" else None,
            )
        except OSError as error:
            ours.close()
            raise UserError(
                f"can't start {command[0]}: {error.strerror}",
                "is this Python still installed?",
                ExitCode.PRIVILEGE,
            )
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    @property
    def asks(self) -> bool:
        """True if it may ask for a password."""
        return self.tool not in (None, SERVICE)

    def take(self) -> socket.socket:
        """Our end of the conversation, once; it belongs to the caller from now on."""
        taken, self._socket = self._socket, None
        if taken is None:
            raise ValueError("the socket was taken before")
        return taken

    def poll(self) -> int | None:
        """The exit status of what was started, None while it runs: the helper lives longer."""
        return 0 if self._process is None else self._process.poll()

    def end(self) -> None:
        """Ask no more, if that is what it does. Hang up before."""
        if self._process is None or self.tool is None:
            return
        for _ in range(END_ATTEMPTS):
            with suppress(PermissionError):  # it is root by now, and asks nothing
                self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_EVERY_S)
                return

    def close(self) -> None:
        """Hang up, unless somebody has taken the socket: the helper then ends."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if self._process is not None:
                self._process.wait()


def _environment(sudo: str) -> dict[str, str]:
    """Ours, with a prompt. sudo-rs, seen by where its packages put it, shows it in brackets of its
    own ("[sudo: sshunt] Password:") and does not know who %p is.
    """
    place = os.path.realpath(sudo)
    is_rs = "sudo-rs" in place or place.startswith("/usr/lib/cargo/")
    return {**os.environ, "SUDO_PROMPT": "sshunt" if is_rs else _PROMPT}


def is_free() -> bool:
    """True if starting a helper asks nobody for anything."""
    return os.geteuid() == 0 or (_is_root_s(SERVICE_SOCKET) and os.access(SERVICE_SOCKET, os.W_OK))


def helper_command() -> list[str]:
    """What runs as root: what a rule of sudo or doas has to allow, word for word."""
    if os.geteuid() != 0 and os.path.exists(LAUNCHER) and not problems([LAUNCHER]):
        return [LAUNCHER]
    return own_command()


def own_command() -> list[str]:
    """The helper of this very installation."""
    return [sys.executable, "-I", "-S", "-B", str(_HELPER)]


def _is_root_s(path: str) -> bool:
    """True for a socket that root has made."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == 0


def _connected() -> socket.socket | None:
    """A connection to a helper that the service manager starts; None if there is none for us."""
    if not _is_root_s(SERVICE_SOCKET):
        return None
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_CONNECT_DEADLINE_S)
        sock.connect(SERVICE_SOCKET)
        # Of who listens, since this is the end that has connected: unix(7).
        _, uid, _ = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
    except OSError:
        sock.close()
        return None  # it is for others, or nobody listens any more
    if uid != 0:
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def _command() -> tuple[list[str], str | None]:
    """The helper's command line, and the tool in front of it if one is needed."""
    command = helper_command()
    if os.geteuid() == 0:
        return command, None
    for tool, options in _TOOLS.items():
        program = shutil.which(tool)
        if program is not None and (tool != "run0" or os.path.isdir(_SYSTEMD)):
            return [program, *options, "--", *command], tool
    raise UserError(
        "redirecting connections needs root, and neither sudo nor doas is installed",
        "install sudo, or run sshunt as root",
        ExitCode.PRIVILEGE,
    )
