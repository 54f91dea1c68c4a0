"""Credit-based flow control of one direction of one stream.

A receiver grants credit as an absolute limit; a sender never sends beyond the limit it was granted.
Credit returns when bytes have been *written to their destination*, never when they arrive: that
alone bounds memory and lets one slow reader stall only itself.

Growth: every stream begins with the same small window, which both sides know from HELLO. When half
a window has been consumed in less than two round trips, the window is what limits the stream, and
it doubles, up to a limit of its own and as long as the session's budget for growth lasts. (The rule
is that of QUIC implementations such as quic-go; TCP's dynamic right-sizing asks the same question.)

Invariants: consumed <= received <= limit; limit - consumed <= window whenever a limit is granted; a
limit never falls; the growth of all windows together <= the budget.

Not here: who sends next (scheduler), how much a lane may have in flight (lanes).
"""

from typing import Optional

from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.limits import MAX_WINDOW_BYTES, SESSION_GROWTH_BYTES


class GrowthBudget:
    """What all receive windows of a session may have grown by, together."""

    __slots__ = ("left_bytes",)

    def __init__(self, total_bytes: int = SESSION_GROWTH_BYTES) -> None:
        self.left_bytes = total_bytes

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes of growth; False if they are not there."""
        if size > self.left_bytes:
            return False
        self.left_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        """Return growth that is no longer used."""
        self.left_bytes += size


class ReceiveWindow:
    """The receiver's side: counts what was consumed and says when to grant more.

    ``limit`` is what was granted so far, absolute; ``window_bytes`` how far ahead of what was
    consumed it is set; ``grown_bytes`` what was taken from the budget.
    """

    __slots__ = ("_granted_at", "consumed", "grown_bytes", "limit", "window_bytes")

    def __init__(self, initial_bytes: int) -> None:
        self.window_bytes = initial_bytes
        self.limit = initial_bytes
        self.consumed = 0
        self.grown_bytes = 0
        self._granted_at: Optional[float] = None

    def consume(self, size: int, now: float, rtt_s: float, budget: GrowthBudget) -> Optional[int]:
        """Note that ``size`` bytes were written to their destination.

        Returns the new limit when it is time to grant one, else None.
        """
        self.consumed += size
        if self.consumed > self.limit:
            raise LocalProtocolError("more consumed than was ever granted")
        if self._granted_at is None:
            self._granted_at = now  # the first data: the clock of the first half window starts
        if self.limit - self.consumed > self.window_bytes // 2:
            return None
        if now - self._granted_at < 2 * rtt_s:
            self._grow(budget)
        self._granted_at = now
        self.limit = self.consumed + self.window_bytes
        return self.limit

    def close(self, budget: GrowthBudget) -> None:
        """Give the growth back to the session."""
        budget.give_back(self.grown_bytes)
        self.grown_bytes = 0

    def _grow(self, budget: GrowthBudget) -> None:
        growth = min(self.window_bytes, MAX_WINDOW_BYTES - self.window_bytes)
        if growth > 0 and budget.take(growth):
            self.window_bytes += growth
            self.grown_bytes += growth
