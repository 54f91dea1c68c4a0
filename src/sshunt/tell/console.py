"""What a person sees: lines on stderr, and on a terminal one status line below them.

A line begins with the program's name, as other daemons' lines do. Errors are two lines: what
happened, what to do. The status line is redrawn in place and never ends up in a file. What is typed
meanwhile stands behind it until it is redrawn, as with any program that leaves the echo on.

Nobody who reads this output, or has stopped to, may hold up the tunnel: what can't be written at
once is dropped and counted, and the count is written when there is room again. (Not by making
stderr non-blocking: that would hold for everybody who shares it.) Nothing is buffered here, so
nothing fails when the process ends.

ssh and sudo ask their questions at the same terminal, past us. While ssh may do so there is no
status line (``give_way``), for a line redrawn every second would wipe the question out. Other
lines are written above a question that is open: "Permission denied, please try again" comes to us
by ssh's stderr, and ssh asks the next time before we can have read it. That a question is open is
seen by the echo, which readpassphrase(3) and sudo turn off before they ask. (Not done: ssh's stderr
on the terminal itself, for then nobody could say what its failure means; a terminal of our own for
ssh, which we would copy to the real one, for then passwords would pass through us.)
"""

import os
import select
import sys
import termios
import time
from typing import TextIO

from sshunt.errors import UserError
from sshunt.host.terminal import has_echo

_CLEAR_LINE, _CLEAR_BELOW = "\r\x1b[K", "\r\x1b[J"

#: The width of a terminal that does not say how wide it is.
_COLUMNS = 80

#: Sequences to write above the cursor's line: make room below it, where the screen may have to
#: scroll, and insert lines (VT100 and VT102, which all terminals follow).
_DOWN, _UP, _SAVE, _RESTORE = "\x1bD", "\x1b[A", "\x1b7", "\x1b8"
_INSERT, _DOWN_BY = "\x1b[{0}L", "\x1b[{0}B"

#: Longest piece that is written at once: what a pipe that poll(2) calls writable takes without
#: blocking (PIPE_BUF). No line of ours is longer.
_PIECE_BYTES = 4096


class Console:
    """Writes to ``stream``, stderr by default; ``verbosity`` is how often -v was given."""

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self.verbosity = verbosity
        self._stream = sys.stderr if stream is None else stream
        self._fd = _descriptor(self._stream)
        self._status = ""
        self._columns = 0  # when the status line was drawn
        self._dropped_lines = 0
        self._gives_way = 0  # to how many that may ask
        self.is_terminal = self._fd >= 0 and os.isatty(self._fd)
        # Emacs' shell, say: no sequences, and no line that is redrawn by them.
        self._can_draw = self.is_terminal and os.environ.get("TERM", "dumb") not in ("", "dumb")

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
        if not self._can_draw or (text and self._gives_way):
            return
        columns = self._width()
        shown = text[: columns - 1]
        if shown == self._status and (columns == self._columns or not shown):
            return
        if self._in_foreground() and self._emit(self._cleared(columns) + shown):
            self._status, self._columns = shown, columns

    def give_way(self) -> None:
        """Somebody else may ask questions at this terminal: no status line until ``take_back``."""
        self.status("")
        self._gives_way += 1

    def take_back(self) -> None:
        """He asks no more."""
        self._gives_way -= 1

    def _write(self, text: str) -> None:
        if self._dropped_lines:
            text = f"sshunt: ({self._dropped_lines} lines were not shown)\n{text}"
        if self._is_asked():
            text = _above(text, self._width())
        elif self._status:
            text = f"{self._cleared(self._width())}{text}{self._status}"
        if self._emit(text):
            self._dropped_lines = 0
        else:
            self._dropped_lines += 1

    def _cleared(self, columns: int) -> str:
        """What wipes the status line out. In a window that is narrower now most terminals have
        wrapped it, and the cursor stands in the last of its rows.
        """
        rows = -(-len(self._status) // columns)
        if rows <= 1 or not _wraps_again():
            return _CLEAR_LINE
        return _UP * (rows - 1) + _CLEAR_BELOW

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or _COLUMNS
        except OSError:
            return _COLUMNS

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
        if not self._can_draw:
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


def _wraps_again() -> bool:
    """False in terminals that cut lines off when they get narrower, and are known by a variable."""
    env = os.environ
    cuts = "XTERM_VERSION" in env or "STY" in env or env.get("TERM") == "linux"
    return "TMUX" in env or not cuts


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
