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
``Probes`` says when to look next whether the server answers at all, ``Ways`` how to log in.

Not here: waiting, looking, logging in, what is said about it (keeper).
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sshunt.errors import ExitCode

#: A lane that ends earlier counts as a failed attempt.
LIVED_S = 30.0

#: Between attempts; each is shortened by up to JITTER of itself, so that a hundred clients of one
#: server do not come back in step.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
JITTER = 0.25

#: While an outage is this young, the server's address is probed this often. Most are over by then.
DENSE_S = 10.0
PROBE_EVERY_S = 1.5

#: Firewalls ban who connects too often, for a minute mostly, and each further packet in it begins
#: the minute anew (netfilter's "recent" with --update). Now and then we are silent for longer.
BAN_S = 65.0

#: TCP sends again at least every 120 s (Linux' TCP_RTO_MAX). A lane that has been silent for longer
#: although a new connection got through will never answer.
SILENT_S = 130.0

#: Answers from other machines under the server's name: a round robin of as many is passed once.
MOST_ELSEWHERE = 5

#: News of the network make probes dense again, but on a link that flaps no more often than this.
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
        """The connection is lost, or a person asks: look often."""
        self._dense_until = now + DENSE_S
        self._fresh_at = now
        self._sparse = self._pauses()

    def refresh(self, now: float) -> None:
        """The network has changed: look often, if that was not so just now."""
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


class Way(NamedTuple):
    """How to log in. ``shares``: through the user's own shared connection (ControlPath), if there
    is one. ``by_address``: to the address that ssh was connected to last, without a look-up.
    """

    shares: bool
    by_address: bool


class Ways:
    """The next way to log in.

    A shared connection of the user's saves a second login, but after a change of networks it may be
    dead, and whoever opens a channel through it then waits until its TCP gives up, a quarter of an
    hour. If the old lane has only fallen silent, it was in that connection: then the first login
    goes past it. After that, the two take turns.

    Where ssh asks a daemon for its server's name (nscd, a local resolver) whose own queries we
    answer, there is no answer while the connection is lost. So after a name that could not be
    resolved it is the last known address's turn, and then the name's again.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._way = Way(is_shared, by_address=False)
        self._tried: set[bool] = set()  # with sharing, without

    @property
    def next(self) -> Way:
        """The one to take now."""
        return self._way

    @property
    def is_another_untried(self) -> bool:
        """True if logging in past (or through) the shared connection has yet to be tried."""
        return self._is_shared and len(self._tried) < 2

    def begin(self, *, is_silent: bool) -> None:
        """The connection is lost; ``is_silent``: there is a lane that may yet answer."""
        self._way = Way(self._is_shared and not is_silent, by_address=False)
        self._tried.clear()

    def begin_anew(self) -> None:
        """All have been tried, and it is to be tried again after a long time."""
        self._tried.clear()

    def on_failure(self, exit_code: ExitCode, *, has_address: bool) -> None:
        """The login failed. ``has_address``: it is known where ssh was connected to."""
        shares, by_address = self._way
        self._tried.add(shares)
        if exit_code is ExitCode.NAME and has_address and not by_address:
            self._way = Way(shares=False, by_address=True)
        else:
            self._way = Way(self._is_shared and not shares, by_address=False)
