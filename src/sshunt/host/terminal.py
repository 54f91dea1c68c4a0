"""The terminal that ssh asks its questions at, and its echo.

ssh turns the echo off while somebody types a password (readpassphrase(3)). Killed in that moment it
can't turn it on again, and whoever types next in that terminal sees nothing of it.
"""

import os
import termios
from contextlib import suppress

_TERMINAL = "/dev/tty"

#: Indices in what tcgetattr returns.
_LOCAL_FLAGS = 3


class TerminalModes:
    """How the controlling terminal was set when this was made, if there is one."""

    def __init__(self) -> None:
        self._modes: list[object] | None = None
        with suppress(OSError, termios.error):
            fd = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._modes = termios.tcgetattr(fd)
            finally:
                os.close(fd)

    def restore(self) -> None:
        """Turn the echo on again if it was on, and if the terminal is ours to set."""
        if self._modes is None or not has_echo(self._modes):
            return
        with suppress(OSError, termios.error):
            fd = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                in_foreground = os.tcgetpgrp(fd) == os.getpgrp()  # else this would stop us
                if in_foreground and not has_echo(termios.tcgetattr(fd)):
                    termios.tcsetattr(fd, termios.TCSANOW, self._modes)  # type: ignore[arg-type]
            finally:
                os.close(fd)


def has_echo(modes: list[object]) -> bool:
    """True if what is typed is shown. ``modes``: as tcgetattr returns them."""
    flags = modes[_LOCAL_FLAGS]
    return isinstance(flags, int) and bool(flags & termios.ECHO)
