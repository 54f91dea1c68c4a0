"""What a person sees: lines on stderr, and on a terminal one status line below them.

A line begins with the program's name, as other daemons' lines do. Errors are two lines: what
happened, what to do. The status line is redrawn in place and never ends up in a file.

Nobody who reads this output, or has stopped to, may hold up the tunnel: what can't be written at
once is dropped and counted, and the count is written when there is room again. (Not by making
stderr non-blocking: that would hold for everybody who shares it.) Nothing is buffered here, so
nothing fails when the process ends.
"""

import os
import select
import shutil
import sys
import termios
import time
from typing import TextIO

from sshunt.errors import UserError

_CLEAR_LINE = "\r\x1b[K"

#: Longest piece that is written at once. A pipe that poll(2) calls writable takes so much without
#: blocking (PIPE_BUF); no line of ours is longer.
_PIECE_BYTES = 4096


class Console:
    """Writes to ``stream``, stderr by default; ``verbosity`` is how often -v was given."""

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self.verbosity = verbosity
        self._stream = sys.stderr if stream is None else stream
        self._fd = _descriptor(self._stream)
        self._status = ""
        self._dropped_lines = 0
        self.is_terminal = self._fd >= 0 and os.isatty(self._fd)

    def line(self, text: str) -> None:
        """One line that everybody should see."""
        self._write(f"sshunt: {text}\n")

    def detail(self, level: int, text: str) -> None:
        """One line for who asked for it: ``level`` 1 is -v."""
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
        """Redraw the status line, on a terminal that we are in the foreground of."""
        if not self.is_terminal or text == self._status or not self._in_foreground():
            return
        shown = text[: shutil.get_terminal_size().columns - 1]
        if self._emit(_CLEAR_LINE + shown):
            self._status = shown

    def _write(self, text: str) -> None:
        if self._dropped_lines:
            text = f"sshunt: ({self._dropped_lines} lines were not shown)\n{text}"
        if self._emit(f"{_CLEAR_LINE}{text}{self._status}" if self._status else text):
            self._dropped_lines = 0
        else:
            self._dropped_lines += 1

    def _emit(self, text: str) -> bool:
        """Write ``text`` if that is possible at once; False if it was not."""
        if self._fd < 0:
            return True
        data = text.encode("utf-8", "replace")
        try:
            while data:
                if not self._is_writable():
                    return False
                data = data[os.write(self._fd, data[:_PIECE_BYTES]) :]
        except OSError:
            return False  # the reader is gone, the disk is full, the terminal is closed
        return True

    def _is_writable(self) -> bool:
        if not select.select([], [self._fd], [], 0)[1]:
            return False
        return not self.is_terminal or self._in_foreground() or not self._stops_background()

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: it stops nobody

    def _stops_background(self) -> bool:
        """True after ``stty tostop``: the terminal stops whoever writes from the background."""
        try:
            flags: int = termios.tcgetattr(self._fd)[3]
        except termios.error:
            return False
        return bool(flags & termios.TOSTOP)


def counted(count: int, noun: str) -> str:
    """``count`` and what is counted: "1 connection", "2 connections"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _descriptor(stream: TextIO | None) -> int:
    """The descriptor behind ``stream``, or -1 if stderr was closed when we were started."""
    try:
        return -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        return -1
