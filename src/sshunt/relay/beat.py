"""A beat for what moves very fast: served 2,500 times a second instead of whenever it is ready.

A full pipe is writable as soon as one page of it was read, and an empty one is readable as soon as
one was written. On a fast LAN that means that we and ssh take turns every few dozen KiB, and the
switch costs more than what was moved. So whatever has just moved BUSY_BYTES at once does not wait
for readiness but for the next beat: by then a pipe of 1 MiB is half full or half empty, and all of
that is one turn. When a turn moves less, readiness is waited for again.

asyncio's own timers come in whole milliseconds, in which such a pipe runs dry.

Where there is no such timer (not Linux), there is no beat and ``next`` says so.
"""

import asyncio
import os
from typing import Callable, List, Optional

from sshunt.relay.linux import Timer, can_tee

#: Half of what a pipe of 1 MiB holds passes in this time at 10 Gbit/s.
BEAT_S = 0.0004

#: A turn that moved less was not worth waiting for: this is 1.3 Gbit/s.
BUSY_BYTES = 64 * 1024


class Beat:
    """Calls back at the next beat. Owns the timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: List[Callable[[], None]] = []
        self._timer: Optional[Timer] = None
        self._is_over = False

    def next(self, callback: Callable[[], None]) -> bool:
        """Call ``callback`` once, BEAT_S from now at the latest. False: there is no beat."""
        if not self._due and not self._start():
            return False
        self._due.append(callback)
        return True

    def close(self) -> None:
        """Call nobody any more."""
        self._is_over = True
        self._due = []
        if self._timer is not None:
            self._loop.remove_reader(self._timer.fd)
            os.close(self._timer.fd)
            self._timer = None

    def _start(self) -> bool:
        if self._timer is None:
            if self._is_over or not can_tee():
                return False
            try:
                self._timer = Timer(BEAT_S)
            except OSError:
                self._is_over = True
                return False
            self._loop.add_reader(self._timer.fd, self._on_beat)
        self._timer.start()
        return True

    def _on_beat(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            callback()
        if not self._due and self._timer is not None:
            self._timer.stop()
