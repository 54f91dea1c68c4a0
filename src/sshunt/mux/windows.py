"""Credit-based flow control of one direction of one stream, and what a session may promise at all.

A receiver grants credit as an absolute limit; a sender never sends beyond the limit it was granted.
Credit returns when bytes have been *written to their destination*, never when they arrive: that
alone bounds memory and lets one slow reader stall only itself.

Growth: when half a window has been consumed in less than two round trips, the window is what limits
the stream, and it doubles. (The rule is that of QUIC implementations such as quic-go; TCP's dynamic
right-sizing asks the same question.) When half a window takes longer than SLOW_S, what was consumed
meanwhile returns all the same, or the far host would see a window that is shut for minutes and give
up.

What the session promises: every stream has LEAST_WINDOW_BYTES, without asking. Larger windows are
steps of a ladder, each twice as large as the one below and with half as many places:

    window       256 KiB   512 KiB   1 MiB   2 MiB   4 MiB   8 MiB   16 MiB
    places         64        32       16       8       4       2        1        at it or above it

So one stream reaches 16 MiB, the eighth still 2 MiB, and the 64th 256 KiB. Whoever stops reading
keeps what it holds, but is one of so many: there is no sum that the first few can use up. Half of
the places (but the last of a step) are for streams that have read PROVEN_BYTES: the kernel's
buffers in front of a program that never reads swallow less. So thousands of stopped readers can't
take all of them. All promises together are at most MOST_PROMISED_BYTES and LEAST_WINDOW_BYTES for
each stream.

Where there is no place, those that have not used half of their window for IDLE_S are asked: their
limit is *lowered* (WINDOW frames have serial numbers for this sake) to what they hold and as much
again. So thousands of idle connections keep nobody from speed. What was under way when the limit
fell is taken in all the same (``admit``), and counts.

Rejected: credit for the session as a whole (HTTP/2, QUIC's MAX_DATA): the first stopped readers
would hold all of it and stall everybody else. Less credit for slow readers than they consume, so
that their windows shrink: then the far host reads in steps that are too rare or too small for a
kernel with a large buffer to open its window.

Invariants: consumed <= received <= highest limit granted; limit - consumed <= window whenever a
limit is granted; a sender without credit will be granted more when its reader reads; the places
taken of a step are those of the windows at it or above it.

Not here: who sends next (scheduler), how much a lane may have in flight (lanes).
"""

from collections import OrderedDict
from typing import List

from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.limits import INITIAL_WINDOW_BYTES, LEAST_WINDOW_BYTES, MAX_WINDOW_BYTES, MIB

#: The longest that half a window takes unless its reader is slow. The far host's kernel gives up a
#: socket that nobody owns any more when its window has been shut for a minute and a half (tcp(7),
#: tcp_orphan_retries); every sixteenth of its buffer that is read opens it.
SLOW_S = 10.0

#: The part of a window (one of this many) below which more credit is not worth a frame: the chat of
#: an idle connection.
SLOW_PARTS = 64

#: How long not even half of a window was used when it is more than its stream needs.
IDLE_S = 1.0

#: How many holders of idle windows are looked at when a place is wanted.
LOOKS = 16

#: What a reader has consumed that has proved itself: more than a socket of Linux buffers for a
#: program that does not read (tcp(7), tcp_wmem: 4 MiB).
PROVEN_BYTES = 4 * MIB

#: How many times the places are borne of a peer that goes on using what was called back.
MOST_FORCED = 4

#: The steps' sizes.
SIZES = [LEAST_WINDOW_BYTES]
while SIZES[-1] < MAX_WINDOW_BYTES:
    SIZES.append(2 * SIZES[-1])

#: How many windows may be of a size or above.
PLACES = [MAX_WINDOW_BYTES // size for size in SIZES]

#: What all windows are together, LEAST_WINDOW_BYTES of each not counted, when all places are taken.
MOST_PROMISED_BYTES = sum(
    PLACES[step] * (SIZES[step] - SIZES[step - 1]) for step in range(1, len(SIZES))
)


def step_for(size: int) -> int:
    """The lowest step that holds ``size`` bytes; the highest if none does."""
    step = 0
    while SIZES[step] < size and step < len(SIZES) - 1:
        step += 1
    return step


class SessionCredit:
    """The ladder of one session: which of its receive windows have which size."""

    __slots__ = ("_holders", "is_short", "places", "taken")

    def __init__(self) -> None:
        self.places = PLACES
        self.taken = [0] * len(SIZES)  # windows at each step or above; not counted at the lowest
        self.is_short = False  # somebody was refused a place
        #: Windows above the lowest step by the number of their stream, the longest unused first.
        self._holders: "OrderedDict[int, ReceiveWindow]" = OrderedDict()

    @property
    def promised_bytes(self) -> int:
        """What all windows are together, LEAST_WINDOW_BYTES of each not counted."""
        return sum(SIZES[window.step] - SIZES[0] for window in self._holders.values())

    def climb(self, window: "ReceiveWindow", size: int) -> None:
        """Raise ``window`` to ``size``, or as far as there are places."""
        step, wanted = window.step, step_for(size)
        while step < wanted:
            places = self.places[step + 1]
            if window.consumed < PROVEN_BYTES:
                places = max(places // 2, 1)
            if self.taken[step + 1] >= places:
                self.is_short = True
                break
            step += 1
        self.move(window, step)

    def move(self, window: "ReceiveWindow", step: int) -> None:
        """Put ``window`` at ``step``, whether there is a place or not; it was used just now."""
        before, window.step = window.step, step
        for each in range(before + 1, step + 1):
            self.taken[each] += 1
        for each in range(step + 1, before + 1):
            self.taken[each] -= 1
        if step:
            self._holders[window.number] = window
            self._holders.move_to_end(window.number)
        else:
            self._holders.pop(window.number, None)

    def idle(self, now: float) -> List[int]:
        """Numbers of streams whose windows have not been used for IDLE_S; not more than LOOKS."""
        found: List[int] = []
        for number, window in self._holders.items():
            if len(found) == LOOKS or now - window.granted_at < IDLE_S:
                break
            found.append(number)
        return found


class ReceiveWindow:
    """The receiver's side of stream ``number``: counts what was consumed and says when to grant
    more. It begins with ``size`` bytes if there is a place for it.

    ``limit`` is what the peer may send up to, absolute; ``top`` the highest that it ever was.
    """

    __slots__ = (
        "_credit",
        "consumed",
        "granted_at",
        "limit",
        "number",
        "step",
        "top",
    )

    def __init__(
        self,
        credit: SessionCredit,
        number: int,
        now: float = 0.0,
        size: int = LEAST_WINDOW_BYTES,
    ) -> None:
        self._credit = credit
        self.number = number
        self.step = 0
        self.consumed = 0
        self.granted_at = now
        if size > LEAST_WINDOW_BYTES:
            credit.climb(self, size)
        self.limit = self.top = SIZES[self.step]

    @property
    def window_bytes(self) -> int:
        """How far ahead of what was consumed the limit is set."""
        return SIZES[self.step]

    def consume(self, size: int, now: float, rtt_s: float) -> bool:
        """Note that ``size`` bytes were written to their destination; True if that raised
        ``limit``, so that the peer must be told.
        """
        if not self.consumed:
            self.granted_at = now  # the first data: the clock of the first half window starts
        self.consumed += size
        if self.consumed > self.top:
            raise LocalProtocolError("more consumed than was ever granted")
        took_s = now - self.granted_at
        size = SIZES[self.step]
        moved = self.consumed + size - self.limit  # since credit was last granted
        if moved < size // 2:
            if took_s < SLOW_S or moved < size // SLOW_PARTS:
                return False
        elif took_s < 2 * rtt_s:
            self._credit.climb(self, max(2 * size, INITIAL_WINDOW_BYTES))
        self._credit.move(self, self.step)
        self.granted_at = now
        self.limit = self.consumed + SIZES[self.step]
        if self.limit > self.top:
            self.top = self.limit
        return True

    def recall(self, arrived: int, now: float) -> bool:
        """Leave an idle window only what it holds, which is all up to ``arrived``, and as much
        again; True if that lowered ``limit``, so that the peer must be told.
        """
        self.granted_at = now
        self._credit.move(self, min(step_for(2 * (arrived - self.consumed)), self.step))
        limit = self.consumed + SIZES[self.step]
        if limit >= self.limit:
            return False
        self.limit = limit
        return True

    def keep(self, now: float) -> None:
        """It may not be called back yet: ask the others first."""
        self.granted_at = now
        self._credit.move(self, self.step)

    def shrink_to(self, final: int, now: float) -> None:
        """Nothing comes behind ``final``: leave it what may still come."""
        self.granted_at = now
        self._credit.move(self, min(step_for(final - self.consumed), self.step))

    def admit(self, end: int) -> bool:
        """Take in bytes beyond ``limit``: True if they were on their way when it was lowered."""
        if end > self.top:
            return False
        step = step_for(end - self.consumed)
        if step > self.step:
            self._credit.move(self, step)
            if self._credit.taken[step] > MOST_FORCED * PLACES[step]:
                return False
        self.limit = end
        return True

    def close(self) -> None:
        """Give its place back. May be called twice."""
        self._credit.move(self, 0)
