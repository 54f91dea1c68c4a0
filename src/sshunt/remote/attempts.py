"""When and how the next login is tried after the connection is lost. Pure: ``now`` is passed in.

``Attempts`` counts failures and says how long to pause:

    a login failed                     a failure
    a lane ended before LIVED_S        a failure, but for the first: links flap, people kill ssh
    a lane has lived for LIVED_S       none any more
    pause before the next login        none; after the first failure FIRST_PAUSE_S, doubled with
                                       each further one up to LONGEST_PAUSE_S, less some jitter

So a login that succeeds is not enough to begin anew: a server on which every lane ends at once
(its agent is killed, it breaks the protocol) would see hundreds of logins in ten seconds.

``Rumours`` judges what is heard of the session's end,
``Probes`` says when to probe next whether the server answers at all.

Not here: waiting, probing, logging in, what is said about it (keeper), by which way a transport
logs in next (transport).
"""

import itertools
import random
from collections.abc import Callable, Iterator

#: Age below which a lane's end counts as a failed attempt.
LIVED_S = 30.0

#: Pauses between attempts: the first, and the longest. Each is shortened by up to JITTER of itself,
#: so that a hundred clients of one server do not come back in step.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
JITTER = 0.25

#: Age of an outage up to which the server's address is probed densely, and the interval of those
#: probes. Most outages are over by then.
DENSE_S = 10.0
PROBE_EVERY_S = 1.5

#: Pause that outlasts a ban. Firewalls ban who connects too often, for a minute mostly, and each
#: further packet in it begins the minute anew (netfilter's "recent" with --update).
BAN_S = 65.0

#: Silence after which a lane will never answer, if a new connection got through meanwhile: TCP
#: sends again at least every 120 s (Linux' TCP_RTO_MAX).
SILENT_S = 130.0

#: Answers from other machines under the server's name until they are believed: a round robin of as
#: many is passed once.
MOST_ELSEWHERE = 5

#: Least time between two reasons to probe densely: on a flapping link there are news all the time.
FRESH_EVERY_S = 60.0


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


class Probes:
    """When a bare TCP connection is tried next, and when ssh itself, though nothing has answered:
    the server may have another address by now.

        every PROBE_EVERY_S for DENSE_S
        then after 3, 6, 12 (ssh), 24, BAN_S (ssh), and again and again 30, 30, BAN_S (ssh)
    """

    def __init__(self) -> None:
        self._dense_until = float("-inf")
        self._fresh_at = float("-inf")
        self._sparse = self._pauses()

    def begin(self, now: float) -> None:
        """The connection is lost, or a person asks: probe often."""
        self._dense_until = now + DENSE_S
        self._fresh_at = now
        self._sparse = self._pauses()

    def refresh(self, now: float) -> None:
        """The network has changed: probe often, if that was not so just now."""
        if now - self._fresh_at >= FRESH_EVERY_S:
            self.begin(now)

    def next(self, now: float) -> tuple[float, bool]:
        """The pause before the next probe in seconds; True if it is ssh's turn then."""
        if now < self._dense_until:
            return PROBE_EVERY_S, False
        return next(self._sparse)

    @staticmethod
    def _pauses() -> Iterator[tuple[float, bool]]:
        young = [(PROBE_EVERY_S * factor, factor == 8) for factor in (2, 4, 8, 16)]
        long, ban = (LONGEST_PAUSE_S, False), (BAN_S, True)
        return itertools.chain(young, [ban], itertools.cycle([long, long, ban]))


class Rumours:
    """Whether to believe the far side that the session is gone: see docs/protocol.md, Gone."""

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._from_elsewhere = 0

    def begin(self) -> None:
        """The connection is lost, and nothing has been heard yet."""
        self._first_at = None
        self._from_elsewhere = 0

    def is_believed(self, now: float, *, may_yet_answer: bool, is_elsewhere: bool) -> bool:
        """``may_yet_answer``: there is a lane that has only fallen silent. ``is_elsewhere``: it is
        another machine that says so, not the one that the agent is on.
        """
        if self._first_at is None:
            self._first_at = now
        self._from_elsewhere += is_elsewhere
        if may_yet_answer:
            return now - self._first_at >= SILENT_S
        return not is_elsewhere or self._from_elsewhere >= MOST_ELSEWHERE
