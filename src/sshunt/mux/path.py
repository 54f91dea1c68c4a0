"""What all lanes of a session share: the path between the two hosts, and who else fills it.

    queue_s  =  least one-way delay of a lane's round  -  least one-way delay of the path

An acknowledgement tells when the other end processed a byte, on the other end's clock. Less the
time when we sent it, that is the one-way delay, but for a constant (the clocks' difference), and
that does not matter: the least delay ever seen is the empty path, what comes above it is queueing
in front of us (LEDBAT, RFC 6817, measures the same). What the way back does is not in it. All lanes
join the same two processes, so they have the clocks and the path in common: a lane that joins while
others fill the link knows at once what the empty path looks like, which is what a newcomer to
delay-based control otherwise gets wrong.

Phases, of the path and not of a lane:

    STEADY      the queue is ours: it follows what we put in flight
    PROBING     for two round trips every lane sends less, and the least delay seen is what the path
                is without us. Every PROBE_EVERY_S, or the queue we stand in would become what we
                take for the empty path (BBR's PROBE_RTT, much gentler); sooner, when the queue does
                not follow, or is longer than a small frame explains.
    CONTENDED   the queue stays though we have given way, so others make it: a flow of loss-based
                TCP beside us fills any queue. Delay can't be kept low then; what can be had is our
                share. Their delay is taken as given, and the contest left to ssh's own TCP.

A path that has become longer looks like others' queue at first. But a queue is mostly in one
direction and a longer path in both, alike: where the round-trip time has grown by twice as much as
the one-way delay, it is the path. And a queue changes while a path does not: when probes find the
same again and again, that is the path, too.

Who comes to a link that others fill has never seen it empty: the least delay is that of their
shortest queue, tens of milliseconds above the path, and at a small rate the time that our own frame
would take on a link of that rate explains the rest. FAST's rule then rests at 2 of 100 Mbit/s. So a
probe asks not only whether there is a queue, but whether it did what it should: we send less by
what would drain it if it were ours (of others' it takes our share), and in small frames. And when
the least delay falls while we contend, it was no empty path before and need not be one now: the
contest goes on, and when it is over, the path is probed until its least delay falls no more.

What was tried, and what it gave: docs/pacing.md. What is still lost: others whose queue comes and
goes within three round trips, each probe sees its shortest.

Invariants: a queue is never believed to be longer than the round-trip time says, so neither clocks
that drift or jump nor a peer that lies about its own can make it so.
"""

from sshunt.mux.limits import LANE_IN_FLIGHT_BYTES

#: The interval at which the path is probed without our own queue; shorter while it is CONTENDED.
PROBE_EVERY_S = 10.0
CONTENDED_PROBE_S = 5.0
FIRST_CONTENDED_PROBE_S = 0.6

#: The same while the path may never have been seen empty: others were there, or the least delay
#: fell in the last probe.
UNSURE_PROBE_S = 0.6

#: How long a doubtful queue stands before it is probed; doubled each time, since on a slow link it
#: is the frames' own, for ever.
DOUBT_S = 1.0

#: Delays that differ by less (in seconds, or as a share of the round trip) are the same.
JITTER_S, JITTER = 0.001, 1 / 64

#: For how long the least delay counts as just fallen.
JUST_S = 0.5

#: A queue shorter than this is noise.
EMPTY_S = 0.0002

#: How long a probe lasts: one round trip until what was in flight has gone, nearly one to measure.
PROBE_RTTS = 1.8

#: Two probes that differ by less (in seconds, or as a share) have seen the same. After SAME_PROBES
#: in a row it is the path.
SAME_S, SAME = 0.0015, 0.03
SAME_PROBES = 3

#: How many times as much the round-trip time has grown as the one-way delay if it grew alike both
#: ways: twice, give or take the reaction time of processes.
BOTH_WAYS_LEAST, BOTH_WAYS_MOST = 1.7, 2.4

STEADY = "STEADY"
PROBING = "PROBING"
CONTENDED = "CONTENDED"

_CLOCK = 1 << 32
_NEVER = float("inf")


class Path:
    """Seconds of the caller's clock; ``arrived`` is the peer's, in microseconds modulo 2^32."""

    __slots__ = (
        "_contended_floor_s",
        "_doubt_s",
        "_fell_at",
        "_floor_delay_s",
        "_floor_rtt_s",
        "_is_sure",
        "_looked_at",
        "_offset",
        "_probe_at",
        "_probe_end",
        "_probed_s",
        "_same_probes",
        "best_rate",
        "contended_rtt_s",
        "delay_s",
        "is_deep",
        "lane_window_bytes",
        "lanes",
        "phase",
        "rtt_s",
    )

    def __init__(self, lane_window_bytes: int = LANE_IN_FLIGHT_BYTES) -> None:
        self.lane_window_bytes = lane_window_bytes  # a lane can't have more in flight
        self.phase = STEADY
        self.delay_s = _NEVER  # least one-way delay, but for the constant
        self.rtt_s = _NEVER  # least round-trip time
        self.lanes = 0
        self.best_rate = 0.0  # of all lanes together, of late: bytes per second
        self._offset = -1  # between the two clocks, as first seen; -1: not yet
        self._looked_at = self._probe_at = -1.0
        self._probe_end = 0.0
        self._probed_s = 0.0  # the queue that is to go in the probe under way, if it is ours
        self.is_deep = False  # the probe under way must see the path without us for certain
        self._doubt_s = DOUBT_S
        self._fell_at = -JUST_S  # when the least delay fell
        self._is_sure = True  # the least delay is that of the empty path, as far as is known
        self._floor_delay_s = self._floor_rtt_s = _NEVER  # least in the probe under way
        self._contended_floor_s = -1.0  # what the last probe found above the path; -1: nothing
        self._same_probes = 0  # in a row that found the same above it
        self.contended_rtt_s = 0.0  # the round-trip time that it found, without our own queue

    def one_way_s(self, sent_at: float, arrived: int) -> float:
        """The one-way delay, but for a constant that is the same for all lanes and times."""
        difference = (arrived - int(sent_at * 1e6)) % _CLOCK
        if self._offset < 0:
            self._offset = difference
        delay_us = (difference - self._offset) % _CLOCK
        return (delay_us if delay_us < _CLOCK // 2 else delay_us - _CLOCK) / 1e6

    def queue_above(self, delay_s: float, rtt_s: float, now: float) -> float:
        """The queue in a round whose least delay and least round-trip time were these."""
        if delay_s < self.delay_s - self.jitter_s:
            self._fell_at = now
        self.delay_s = min(self.delay_s, delay_s)
        self.rtt_s = min(self.rtt_s, rtt_s)
        queue_s = min(delay_s - self.delay_s, rtt_s - self.rtt_s)
        if queue_s < EMPTY_S and self.phase is STEADY and self._is_sure:
            self._probe_after(PROBE_EVERY_S, now)  # the empty path has just been seen
        return queue_s

    @property
    def is_contended(self) -> bool:
        """True if others make a queue, as far as is known; in a probe: as was known before it."""
        return self._contended_floor_s >= 0

    @property
    def jitter_s(self) -> float:
        """Delays that differ by less are the same."""
        return max(JITTER_S, JITTER * self.rtt_s)

    def _has_just_fallen(self, now: float) -> bool:
        return now - self._fell_at < JUST_S

    def probe_if_due(self, rtt_s: float, queue_s: float, doubtful: bool, now: float) -> None:
        """Begin a probe if it is time for one. ``rtt_s`` is the present round-trip time,
        ``queue_s`` what a lane sees; ``doubtful``: it bears that only as its frames' own time.
        """
        if self._probe_at < 0:
            self._probe_after(PROBE_EVERY_S, now)
        if self.phase is PROBING:
            return
        if now >= self._probe_at:
            self.probe(rtt_s, queue_s, now, deep=not self._is_sure)
        elif doubtful and self.phase is STEADY and now >= self._looked_at + self._doubt_s:
            self._doubt_s = min(2 * self._doubt_s, PROBE_EVERY_S)
            self.probe(rtt_s, queue_s, now)

    def probe(self, rtt_s: float, queue_s: float, now: float, *, deep: bool = False) -> None:
        """Begin a probe: every lane is to send less from the end of its present round on."""
        self.phase = PROBING
        self.is_deep = deep
        # What we have waiting while we contend says nothing about others.
        self._probed_s = 0.0 if self.is_contended else queue_s
        self._floor_delay_s = self._floor_rtt_s = _NEVER
        self._probe_end = now + PROBE_RTTS * rtt_s

    def note_probed(self, delay_s: float, rtt_s: float) -> None:
        """The least of a round in which a lane had given way."""
        self._floor_delay_s = min(self._floor_delay_s, delay_s)
        self._floor_rtt_s = min(self._floor_rtt_s, rtt_s)

    def end_probe_if_over(self, aim_s: float, now: float) -> bool:
        """Judge the probe if it has lasted long enough; ``aim_s`` is the queue of a lane's own that
        may be in it. True if the path has turned out to be longer than it was.
        """
        if self.phase is not PROBING or now < self._probe_end or self._floor_delay_s == _NEVER:
            return False
        delay_s = self._floor_delay_s - self.delay_s
        rtt_s = self._floor_rtt_s - self.rtt_s
        floor_s = min(delay_s, rtt_s)
        first = not self.is_contended
        if not first and abs(floor_s - self._contended_floor_s) < max(SAME_S, SAME * floor_s):
            self._same_probes += 1
        else:
            self._same_probes = 0
        both_ways = BOTH_WAYS_LEAST * delay_s < rtt_s < BOTH_WAYS_MOST * delay_s
        has_stayed = (
            self._probed_s > aim_s + 2 * self.jitter_s and floor_s > (self._probed_s + aim_s) / 2
        )
        is_empty = (
            floor_s <= aim_s + self.rtt_s / 16
            and not has_stayed
            and not (self.is_contended and self._has_just_fallen(now))
        )
        if is_empty or both_ways or self._same_probes >= SAME_PROBES:
            self.delay_s = self._floor_delay_s
            self.rtt_s = self._floor_rtt_s
            self._be_steady(now)
            return not is_empty
        self._is_sure = False
        self._contended_floor_s = floor_s
        self.contended_rtt_s = self._floor_rtt_s
        self.phase = CONTENDED
        self._doubt_s = DOUBT_S
        is_early = first or self._has_just_fallen(now)
        self._probe_after(FIRST_CONTENDED_PROBE_S if is_early else CONTENDED_PROBE_S, now)
        return False

    def end_contest(self, now: float) -> bool:
        """A lane has seen no queue while we contend; False if that shows nothing."""
        if self._has_just_fallen(now):
            return False
        self._be_steady(now)
        return True

    def _be_steady(self, now: float) -> None:
        """The queue is gone, or ours again."""
        if self._has_just_fallen(now):
            self._is_sure = False
        elif self.is_deep and not self.is_contended:
            self._is_sure = True
        self.phase = STEADY
        self._contended_floor_s = -1.0
        self._same_probes = 0
        self._probe_after(PROBE_EVERY_S if self._is_sure else UNSURE_PROBE_S, now)

    def _probe_after(self, after_s: float, now: float) -> None:
        """The path has just been seen: probe again ``after_s`` from now."""
        self._looked_at = now
        self._probe_at = now + after_s
