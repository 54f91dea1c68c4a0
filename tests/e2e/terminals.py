"""Terminals for the end-to-end tests: one that a program runs at, and what a person sees of it."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

from sshunt.lab.world import Lab
from tests.agent.far_side import eventually

ROWS, COLUMNS = 12, 80


class Terminal:
    """A terminal of its own for a program on the client. ``sent`` is all that was written to it."""

    def __init__(self, lab: Lab, *command: str) -> None:
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        self.process = lab.client.popen(
            ["setsid", "--ctty", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            new_session=False,
            env={"TERM": "xterm"},
        )
        self._theirs = theirs
        self.sent = ""
        self._seen = 0

    def has_echo(self) -> bool:
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def wait_for(self, text: str) -> None:
        """Until this has been written since the last time that something was waited for."""
        deadline = time.monotonic() + 20
        while text not in self.sent[self._seen :]:
            assert time.monotonic() < deadline, self.sent
            self._read(1.0)
        self._seen = self.sent.index(text, self._seen) + len(text)

    def listen(self, seconds: float) -> str:
        """What is written to it meanwhile."""
        before, end = len(self.sent), time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.1)
        return self.sent[before:]

    def type(self, text: str) -> None:
        """Type this, as the answer to a question, and Enter."""
        eventually(lambda: not self.has_echo(), "a question")
        os.write(self.fd, text.encode() + b"\n")

    def rows(self) -> list[str]:
        """What stands on the screen, without empty lines."""
        screen = Screen(ROWS, COLUMNS)
        screen.feed(self.sent)
        return [row.rstrip() for row in screen.rows if row.strip()]

    def _read(self, seconds: float) -> None:
        if select.select([self.fd], [], [], seconds)[0]:
            self.sent += os.read(self.fd, 1000).decode(errors="replace")

    def close(self) -> None:
        """What happens when somebody closes the window."""
        os.close(self._theirs)
        os.close(self.fd)


_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|\x1b([D78])|([\r\n\x07])|([^\x1b\r\n\x07])")


class Screen:
    """As much of a VT100 as our output needs."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = [" " * columns] * rows
        self.row = self.column = 0
        self._columns = columns
        self._saved = (0, 0)

    def feed(self, text: str) -> None:
        """Show ``text``. What is none of these sequences is an error of the test."""
        end = 0
        for found in _TOKEN.finditer(text):
            assert found.start() == end, text[end : end + 20]
            end = found.end()
            number, letter, short, control, character = found.groups()
            if character:
                self._put(character)
            elif control == "\r":
                self.column = 0
            elif control == "\n" or short == "D":
                self._down()
            elif short == "7":
                self._saved = (self.row, self.column)
            elif short == "8":
                self.row, self.column = self._saved
            elif letter:
                self._obey(letter, int(number or 1))

    def _obey(self, letter: str, number: int) -> None:
        last = len(self.rows) - 1
        if letter == "A":
            self.row = max(self.row - number, 0)
        elif letter == "B":
            self.row = min(self.row + number, last)
        elif letter == "K":
            self.rows[self.row] = self.rows[self.row][: self.column].ljust(self._columns)
        else:
            assert letter == "L", letter
            for _ in range(number):
                self.rows.insert(self.row, " " * self._columns)
                self.rows.pop()

    def _put(self, character: str) -> None:
        if self.column == self._columns:
            self.column = 0
            self._down()
        row = self.rows[self.row]
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        if self.row == len(self.rows) - 1:
            self.rows = [*self.rows[1:], " " * self._columns]
        else:
            self.row += 1
