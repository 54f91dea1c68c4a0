"""What a person sees: lines on stderr, and on a terminal one status line below them.

A line begins with the program's name, as other daemons' lines do. Errors are two lines: what
happened, what to do. The status line is redrawn in place and never ends up in a file.

Nobody who reads this output, or has stopped to, may hold up the tunnel: what can't be written at
once is dropped and counted, and the count is written when there is room again. (Not by making
stderr non-blocking: that would hold for everybody who shares it.) Nothing is buffered here, so
nothing fails when the process ends.

ssh and sudo ask their questions at the same terminal, past us. While ssh may do so there is no
status line (``giving_way``), for a line redrawn every second would wipe the question out. Other
lines are written above a question that is open: "Permission denied, please try again" comes to us
by ssh's stderr, and ssh asks the next time before we can have read it. That a question is open is
seen by the echo, which readpassphrase(3) and sudo turn off before they ask. (Not done: ssh's stderr
on the terminal itself, for then nobody could say what its failure means; a terminal of our own for
ssh, which we would copy to the real one, for then passwords would pass through us.)
"""

import os
import select
import shutil
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from sshunt.errors import UserError
from sshunt.terminal import has_echo

_CLEAR_LINE = "\r\x1b[K"

#: What it takes to write above the cursor's line: make room below it, where the screen may have to
#: scroll, and insert lines (VT100 and VT102, which all terminals follow).
_DOWN, _UP, _SAVE, _RESTORE = "\x1bD", "\x1b[A", "\x1b7", "\x1b8"
_INSERT, _DOWN_BY = "\x1b[{0}L", "\x1b[{0}B"

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
        self._gives_way = 0  # to how many that may ask
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
        if text and self._gives_way:
            return
        shown = text[: shutil.get_terminal_size().columns - 1]
        if self._emit(_CLEAR_LINE + shown):
            self._status = shown

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Meanwhile somebody else may ask questions at this terminal: no status line."""
        self.status("")
        self._gives_way += 1
        try:
            yield
        finally:
            self._gives_way -= 1

    def _write(self, text: str) -> None:
        if self._dropped_lines:
            text = f"sshunt: ({self._dropped_lines} lines were not shown)\n{text}"
        if self._is_asked():
            text = _above(text, shutil.get_terminal_size().columns)
        elif self._status:
            text = f"{_CLEAR_LINE}{text}{self._status}"
        if self._emit(text):
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

    def _is_asked(self) -> bool:
        """True if a question is open at the terminal, and it can be written above it."""
        if not self.is_terminal or os.environ.get("TERM", "dumb") == "dumb":
            return False
        try:
            modes = termios.tcgetattr(self._fd)
        except termios.error:
            return False
        return not has_echo(modes) and self._in_foreground()

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


def _above(text: str, columns: int) -> str:
    """What writes the lines of ``text`` above the cursor's, and leaves the cursor where it is."""
    written = []
    for line in text.splitlines():
        rows = max(-(-len(line) // columns), 1)
        room = _DOWN * rows + _UP * rows + _SAVE + "\r" + _INSERT.format(rows)
        written.append(room + line + _RESTORE + _DOWN_BY.format(rows))
    return "".join(written)


def _descriptor(stream: TextIO | None) -> int:
    """The descriptor behind ``stream``, or -1 if stderr was closed when we were started."""
    try:
        return -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        return -1
