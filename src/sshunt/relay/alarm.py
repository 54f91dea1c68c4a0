"""One deadline of the event loop, kept to a fraction of a millisecond.

asyncio's timers come in whole milliseconds, rounded up. The pacer's frames are due every
millisecond or so: two that should leave apart would leave together, and be a queue in front of the
link. So a deadline that is near is kept by a timer of the kernel's (``linux.Timer``); one that is
far, and all of them where there is no such timer, by asyncio.
"""

import asyncio
import os
from contextlib import suppress
from typing import Callable, Optional

from sshunt.relay.linux import Timer, can_tee

#: What is due later may be a millisecond late.
NEAR_S = 0.02

#: A timer of no time at all would be none.
LEAST_S = 1e-6


class Alarm:
    """Calls ``callback`` once, when the soonest deadline that was set has come. Owns the timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._at: Optional[float] = None  # of ``loop.time()``
        self._far: Optional[asyncio.TimerHandle] = None
        self._near: Optional[Timer] = None
        if can_tee():
            with suppress(OSError):  # out of descriptors, most likely
                self._near = Timer()
        if self._near is not None:
            loop.add_reader(self._near.fd, self._ring)
        self._is_over = False

    def set(self, at: Optional[float]) -> None:
        """Ring at ``at``, of ``loop.time()``; None: not at all. One that rings sooner is left as it
        is: who is called too early sets it again, and that costs less than to set it each time.
        """
        if self._at is not None:
            if at is not None and self._at <= at:
                return
            self._stop()
        if at is None or self._is_over:
            return
        self._at = at
        after_s = at - self._loop.time()
        if self._near is not None and after_s < NEAR_S:
            self._near.start(max(after_s, LEAST_S))
        else:
            self._far = self._loop.call_at(at, self._ring)

    def close(self) -> None:
        """Never ring again."""
        self._is_over = True
        self._stop()
        if self._near is not None:
            self._loop.remove_reader(self._near.fd)
            os.close(self._near.fd)
            self._near = None

    def _stop(self) -> None:
        self._at = None
        if self._far is not None:
            self._far.cancel()
            self._far = None
        elif self._near is not None:
            self._near.stop()

    def _ring(self) -> None:
        if self._at is None:  # it was stopped in the round of the event loop in which it rang
            return
        self._stop()
        self._callback()
