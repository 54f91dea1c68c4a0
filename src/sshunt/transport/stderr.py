"""What a channel's program, ssh mostly, says while it lives, line by line.

A person must see it as it comes: banners, warnings about keys, what ProxyCommands have to say. Part
of it comes from the other side, even before anybody is logged in. So it is made printable (it can't
control the terminal), each line says whose it is (it can't pass for one of ours, or sudo's), and it
is rationed: who prints without end neither fills the log nor keeps the event loop to himself. Not
reading is no way out, because ssh counts stderr against the same window as the lane. Lines that a
failure's own message will repeat are held back until it is clear whether there is a failure.

Not here: what the lines mean (ssh_diagnosis), prompts (ssh writes those to the terminal itself).
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable

from sshunt.mux.text import printable

#: What is kept for the diagnosis; ssh's longest message, a changed host key, has 14.
STDERR_LINES = 30

#: What a line begins with when it is shown. (ssh begins some of its own with it, too.)
SPEAKER = "ssh: "

#: Lines held back for a diagnosis. More than are kept for it would not be repeated by it.
WITHHELD_LINES = STDERR_LINES

#: The longest line; longer ones are cut, for a server may send what it likes.
STDERR_LINE_CHARACTERS = 1000

#: Lines shown in each period, and its length; ``ssh -vvv`` prints some hundred lines at a login.
SHOWN_LINES = 500
PERIOD_S = 5.0

#: One read, and how many of them are taken at the end, when the rest of the story is wanted.
READ_BYTES = 16 * 1024
LAST_READS = 16


class StderrLines:
    """Shows lines as they come and keeps the last ones; owns the descriptor until ``close``."""

    def __init__(self, fd: int, show: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._fd = fd
        self._show = show
        self._partial = b""
        self._withheld: list[str] | None = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)
        self._period_end = self._loop.time() + PERIOD_S
        self._shown = 0  # lines in this period
        self._unshown = 0  # lines that came after the ration was used up

    def drain(self) -> None:
        """Take what is there, within a limit."""
        for _ in range(LAST_READS):
            if not self._read():
                break

    def show_withheld(self) -> None:
        """The lane is up after all: show what was kept for a diagnosis, and all that follows. A
        login script's chatter does not say why the lane ends one day, so it is forgotten.
        """
        for line in self._withheld or ():
            self._show_line(line)
        self._withheld = None
        self.lines.clear()

    def close(self) -> None:
        """Take what is there, and no more."""
        self.drain()
        self._stop()

    def _read(self) -> bool:
        """Take one read's worth; False if there is no more, for now or for ever."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        *complete, self._partial = (self._partial + data).split(b"\n")
        if not data or len(self._partial) > STDERR_LINE_CHARACTERS:
            complete, self._partial = [*complete, self._partial], b""
        for line in complete:
            self._take(line)
        if not data:
            self._stop()
        return bool(data)

    def _take(self, raw: bytes) -> None:
        if not raw.strip():
            return
        now = self._loop.time()
        if now >= self._period_end:
            if self._unshown:
                self._show_line(f"({self._unshown} more lines of ssh were not shown)")
            self._period_end, self._shown, self._unshown = now + PERIOD_S, 0, 0
        line = _printable(raw)
        self.lines.append(line)
        if self._shown >= SHOWN_LINES:
            self._unshown += 1
            return
        self._shown += 1
        from sshunt.transport.ssh_diagnosis import is_diagnosed  # takes its time; no line, no need

        withheld = self._withheld
        has_room = withheld is not None and len(withheld) < WITHHELD_LINES
        if withheld is not None and has_room and is_diagnosed(line):
            withheld.append(line)
        else:
            self._show_line(line)

    def _show_line(self, line: str) -> None:
        self._show(line if line.startswith(SPEAKER) else SPEAKER + line)

    def _stop(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _printable(raw: bytes) -> str:
    text = raw[:STDERR_LINE_CHARACTERS].decode("utf-8", "replace").rstrip()
    return "\t".join(map(printable, text.split("\t")))  # ssh's own lines may have tabs
