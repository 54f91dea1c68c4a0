"""Ticks for what moves very fast: it is served 1,000 times a second, not whenever it is ready.

A full pipe is writable as soon as one page of it was read, and an empty one is readable as soon as
one was written. On a fast LAN that means that we and ssh take turns every few dozen KiB, and the
switch costs more than what was moved. So whatever has just moved BUSY_BYTES at once does not wait
for readiness but for the next tick: by then a pipe of 1 MiB is half full or half empty, and all of
that is one batch. When a batch moves less, readiness is waited for again.

How far apart ticks should be depends on the link and on the processors, so their interval follows
what the batches move. asyncio's own timers come in whole milliseconds, in which such a pipe may run
dry.

Where there is no such timer (not Linux), there is no tick and ``next`` says so.
"""

import asyncio
import os
from typing import Callable, List, Optional

from sshunt.relay.linux import Timer, can_tee
from sshunt.relay.readiness import note_failure

#: The shortest and the longest interval. At 10 Gbit/s half a pipe of 1 MiB passes in the shortest;
#: the longest is added to every latency while very much moves.
LEAST_TICK_S, MOST_TICK_S = 0.0004, 0.001

#: What a batch should move. At every tick the interval goes a STEP of its length towards that: in
#: the end as many batches move more as move less.
GOAL_BYTES = 640 * 1024
STEP = 1 / 16

#: The least that is worth waiting for a tick; at the longest interval this is 0.5 Gbit/s.
BUSY_BYTES = 64 * 1024

#: Runs what it is given, and then what that gave rise to.
Batch = Callable[[Callable[[], None]], None]


class Ticks:
    """Calls back at the next tick, inside a ``batch``. Owns the timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, batch: Batch) -> None:
        self._loop = loop
        self._batch = batch
        self._due: List[Callable[[], None]] = []
        self._timer: Optional[Timer] = None
        self._moved_bytes = 0  # the most of those who wait
        self._is_over = False
        self.seconds = LEAST_TICK_S

    def next(self, callback: Callable[[], None], moved_bytes: int = 0) -> bool:
        """Call ``callback`` once, at the next tick; False: there is no tick. A pipe says how much
        it has just moved (sockets hold more than pipes do, and can wait).
        """
        if not self._due and not self._start():
            return False
        self._due.append(callback)
        if moved_bytes > self._moved_bytes:
            self._moved_bytes = moved_bytes
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
                self._timer = Timer()
            except OSError:
                self._is_over = True
                return False
            self._loop.add_reader(self._timer.fd, self._batch, self._on_tick)
        self._timer.start(self.seconds)
        return True

    def _on_tick(self) -> None:
        self._follow()
        due, self._due = self._due, []
        for callback in due:
            try:
                callback()
            # The others have nothing else that would wake them.
            except Exception as error:  # noqa: BLE001
                note_failure(self._loop, error)
        if not self._due and self._timer is not None:
            self._timer.stop()

    def _follow(self) -> None:
        step = STEP if self._moved_bytes < GOAL_BYTES else -STEP
        self.seconds = min(max(self.seconds * (1 + step), LEAST_TICK_S), MOST_TICK_S)
        self._moved_bytes = 0
