"""A terminal with a person at it: what a program asks is answered, what it says is kept."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

#: Control sequences of a terminal: ECMA-48, 5.4.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class SilentError(Exception):
    """What was waited for did not come."""


class Terminal:
    """A program on a terminal of its own, with whoever answers its questions.

    ``answers`` maps what a program may ask (a pattern of the last line) to what is typed then.
    """

    def __init__(self, argv: Sequence[str], *, answers: Mapping[str, str]) -> None:
        self._answers = answers
        self._answered = 0  # up to there
        self._said = ""
        self._ours, theirs = os.openpty()
        try:
            # setsid makes the terminal the controlling one, which is what sudo asks on.
            self._process = subprocess.Popen(
                ["setsid", "--ctty", "--wait", *argv], stdin=theirs, stdout=theirs, stderr=theirs
            )
        finally:
            os.close(theirs)

    @property
    def said(self) -> str:
        """All that was printed up to now, without colours and the like."""
        return _ESCAPES.sub("", self._said).replace("\r", "")

    def wait_for(self, pattern: str, *, within_s: float) -> None:
        """Return when the pattern has been printed; raises ``SilentError``."""
        deadline = time.monotonic() + within_s
        while not re.search(pattern, self.said, re.MULTILINE):
            if time.monotonic() > deadline:
                raise SilentError(f"no {pattern!r} within {within_s:.0f} s: {self.said[-300:]!r}")
            if not self._read() and self._process.poll() is not None:
                status = self._process.returncode
                raise SilentError(f"it ended with status {status}: {self.said.strip()[-300:]!r}")

    def wait(self, *, within_s: float) -> int:
        """Return the exit status when the program has ended; raises ``SilentError``."""
        deadline = time.monotonic() + within_s
        while self._process.poll() is None:
            self._read()
            if time.monotonic() > deadline:
                raise SilentError(f"not at its end after {within_s:.0f} s: {self.said[-300:]!r}")
        while self._read():
            pass
        return self._process.returncode

    def press(self, keys: str) -> None:
        """Type something that was not asked for."""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """End the program if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        readable, _, _ = select.select([self._ours], [], [], 0.1)
        if not readable:
            return False
        try:
            new = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody has the other end any more
            time.sleep(0.05)
            return False
        self._said += new.decode(errors="replace")
        asked = self.said[self._answered :]
        for pattern, answer in self._answers.items():
            if re.search(pattern, asked):
                self._answered = len(self.said)
                os.write(self._ours, answer.encode())
        return True
