"""When the next login is tried after the connection is lost. Pure: ``now`` in, decisions out.

    a login failed                     a failure
    a lane ended before LIVED_S        a failure, but for the first: links flap, people kill ssh
    a lane has lived for LIVED_S       none any more
    pause before the next login        none; after the first failure FIRST_PAUSE_S, doubled with
                                       each further one up to LONGEST_PAUSE_S, less some jitter

So a login that succeeds is not enough to begin anew: a server on which every lane ends at once
(its agent is killed, it breaks the protocol) would see hundreds of logins in ten seconds.

Not here: waiting, logging in, what is said about it (keeper).
"""

import random
from collections.abc import Callable

#: A lane that ends earlier counts as a failed attempt.
LIVED_S = 30.0

#: Between attempts; each is shortened by up to JITTER of itself, so that a hundred clients of one
#: server do not come back in step.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
JITTER = 0.25


class Attempts:
    """The failures in a row, and what follows from them."""

    def __init__(
        self, *, max_retries: int | None, chance: Callable[[], float] = random.random
    ) -> None:
        self.failures = 0
        self._max_retries = max_retries
        self._chance = chance
        self._up_at: float | None = None
        self._died_young = False  # the last lane, and that was forgiven

    @property
    def are_over(self) -> bool:
        """True if there were more failures in a row than the user wants."""
        return self._max_retries is not None and self.failures > self._max_retries

    def on_up(self, now: float) -> None:
        """A lane is up, and it is the only one."""
        self._up_at = now

    def on_down(self, heard_at: float) -> bool:
        """No lane works any more; the last sign of life is from ``heard_at``. True if that was too
        soon.
        """
        if self._up_at is None or heard_at - self._up_at >= LIVED_S:
            self.failures = 0
            self._died_young = False
            return False
        self.failures += self._died_young
        self._died_young = True
        return True

    def on_failure(self) -> None:
        """A login did not succeed."""
        self.failures += 1

    def pause_s(self) -> float:
        """How long to wait before the next login."""
        if not self.failures:
            return 0.0
        doubled = min(self.failures - 1, 10)  # by then it is the longest anyway
        pause_s = min(FIRST_PAUSE_S * 2.0**doubled, LONGEST_PAUSE_S)
        return pause_s * (1.0 - JITTER * self._chance())
