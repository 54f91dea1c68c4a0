"""A control socket of our own: further channels over a connection that is up, without a login.

    ssh binds the socket     a name nobody can guess, mode 0600, in the user's directory or /tmp
    we open it and unlink it as soon as the lane is up
    later ssh processes      reach it as /proc/PID/fd/N, which needs no name in any directory

So no file outlives the start, whoever is killed later; and if we are killed before, ssh, which the
kernel then ends, removes its socket itself. Linux only: elsewhere there is no such path.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

#: sun_path has 108 bytes, and ssh binds under a name that is 17 longer (unix(7), ssh's mux.c).
_LONGEST_PATH = 80


class ControlSocket:
    """The socket of one ssh connection. Owns its descriptor and, until ``hold``, its name."""

    def __init__(self) -> None:
        name = f"sshunt-{secrets.token_hex(12)}"
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = runtime.startswith("/") and os.access(runtime, os.W_OK | os.X_OK)
        self._path = f"{runtime}/{name}" if usable else f"/tmp/{name}"
        if len(os.fsencode(self._path)) > _LONGEST_PATH:
            self._path = f"/tmp/{name}"
        self._fd = -1

    @property
    def options(self) -> list[str]:
        """What the ssh that makes the connection is given."""
        path = self._path.replace("%", "%%")
        return ["-o", "ControlMaster=yes", "-o", f"ControlPath={path}"]

    @property
    def channel_options(self) -> list[str] | None:
        """What an ssh that opens a channel through it is given; None if that is impossible."""
        if self._fd < 0:
            return None
        return ["-o", f"ControlPath=/proc/{os.getpid()}/fd/{self._fd}"]

    def hold(self) -> None:
        """The connection is up: keep the socket, remove its name. If ssh made none, that's that."""
        with suppress(OSError):
            self._fd = os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._unlink()

    def close(self) -> None:
        """Let go of it. May be called twice."""
        self._unlink()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _unlink(self) -> None:
        with suppress(OSError):
            Path(self._path).unlink()
