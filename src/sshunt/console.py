"""What a person sees: lines on stderr, and on a terminal one status line below them.

A line begins with the program's name, as other daemons' lines do. Errors are two lines: what
happened, what to do. The status line is redrawn in place and never ends up in a file.
"""

import shutil
import sys
import time
from typing import TextIO

from sshunt.errors import UserError

_CLEAR_LINE = "\r\x1b[K"


class Console:
    """Writes to ``stream``; ``verbosity`` is how often -v was given."""

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self.verbosity = verbosity
        self._stream = sys.stderr if stream is None else stream
        self._status = ""
        self.is_terminal = self._stream.isatty()

    def line(self, text: str) -> None:
        """One line that everybody should see."""
        self._write(f"sshunt: {text}\n")

    def detail(self, level: int, text: str) -> None:
        """One line for who asked for it: ``level`` 1 is -v, 2 is -vv."""
        if self.verbosity >= level:
            now = time.time()
            stamp = time.strftime("%H:%M:%S", time.localtime(now))
            self._write(f"sshunt: {stamp}.{int(now % 1 * 1000):03d} {text}\n")

    def raw(self, text: str) -> None:
        """A line of somebody else (ssh's stderr), as it is."""
        self._write(text if text.endswith("\n") else text + "\n")

    def error(self, error: UserError) -> None:
        """What happened and what to do."""
        self._write(f"sshunt: error: {error.message}\nsshunt: hint: {error.hint}\n")

    def status(self, text: str) -> None:
        """Redraw the status line; does nothing where there is no terminal."""
        if not self.is_terminal or text == self._status:
            return
        self._status = text[: shutil.get_terminal_size().columns - 1]
        self._emit(_CLEAR_LINE + self._status)

    def _write(self, text: str) -> None:
        self._emit(f"{_CLEAR_LINE}{text}{self._status}" if self._status else text)

    def _emit(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the reader is gone, the disk is full, the terminal closed: the tunnel goes on
