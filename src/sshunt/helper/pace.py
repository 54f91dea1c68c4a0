"""How fast a client's requests are carried out: a number and an amount of work, pure.

A client that asks more often than any of ours is made to wait, and is not refused: what it has sent
stays in the socket's buffer, and its own writes wait. So somebody who has taken a client over gets
no more of root's time, and of the kernel's, than a fixed share, whatever he asks for.

    number   so many at once, then so many a second
    work     the time that requests took: so much at once, then a share of the time

Each is a bucket that leaks (GCRA): the moment at which it will be empty again is all that is kept.
"""

#: Requests that are carried out at once, and how many a second after that. A client asks a dozen
#: times at its start and a few times when the network changes.
BURST, PER_SECOND = 1000, 100.0

#: The work that is done at once, and its share of the time after that. 20,000 routes take a second.
BURST_S, SHARE = 20.0, 0.25


class Pace:
    """Of one conversation. ``now`` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._number_empty_at = 0.0
        self._work_empty_at = 0.0

    def wait_s(self, now: float) -> float:
        """The time until the next request may be carried out; 0: at once."""
        number = self._number_empty_at - now - (BURST - 1) / PER_SECOND
        work = self._work_empty_at - now - BURST_S / SHARE
        return max(0.0, number, work)

    def spent(self, now: float, took_s: float) -> None:
        """A request was carried out by now, and took so long."""
        self._number_empty_at = max(self._number_empty_at, now) + 1 / PER_SECOND
        self._work_empty_at = max(self._work_empty_at, now) + took_s / SHARE
