"""How much may be in flight on one lane: enough to fill the link, and hardly more.

ssh, the kernel and the link together queue megabytes in front of a slow link. Whoever fills them has
the whole link, and everybody else waits behind: a keystroke beside a download takes 300 ms more.
This is a congestion control *above* ssh that keeps those queues nearly empty. It needs no help from
the kernel or from ssh: its eyes are the acknowledgements (LANE_ACK), its hand is one number,
``limit_bytes``. It does not replace TCP's congestion control, which goes on below; it gives it no
more to send than the link can carry.

Theory of operation. An acknowledgement tells when the other end processed a byte, on the other end's
clock. Less the time when we sent it, that is the *one-way delay*, but for a constant (the clocks'
difference), and that constant does not matter: the least delay seen is the empty path, and what
comes above it is queueing in front of us. What the way back does, where acknowledgements wait behind
the other direction's data or come in bursts, is not in it (LEDBAT, RFC 6817, measures the same).

    queue_s  =  least one-way delay of this round  -  least one-way delay of the path

Rounds: a round ends when everything that was in flight at its beginning is acknowledged, but not
before ROUND_S. The least delay of a round, not its mean, is the queue that *stands* (Copa, Arun and
Balakrishnan 2018): bursts come and go within a round and are nobody's fault, and noise of the
processes at both ends is never negative. Then

    limit  <-  limit x (1 - (queue_s - TARGET_S) / rtt_s)

which is FAST TCP's rule (Wei, Jin, Low, Hegde 2006) with a standing queue of TARGET_S as its goal:
it jumps to where the queue would be right, upward and downward alike, with no oscillation that
somebody could feel. ``rtt_s`` is the round's mean, the time that acknowledgements were held included,
so that bursty acknowledgements make the limit larger, not the link idle.

Where delay alone is blind, there are four further rules:

    growing     the rate still rises by GROWTH a round: limit at least twice what it can carry (slow
                start, in step with TCP's own below us, after idleness too). It ends by itself: when
                the rate does not follow any more, the rule above drains what was too much.
    hungry      no queue for some rounds though we were held back: steps double up to a quarter.
    PROBING     every PROBE_EVERY_S, less for two rounds, so that the queue we stand in does not
                become what we take for the empty path (BBR's PROBE_RTT, much gentler).
    CONTENDED   the queue does not go though we have given way for some rounds, so others make it: a
                flow of loss-based TCP beside us fills any queue. Delay can't be kept low then; what
                can be had is our share. We take the delay that the others make as given and leave
                the contest to ssh's own TCP. Probes tell when they have gone. A path that has become
                longer looks the same at first, but its delay is the same in two probes.

A round in which the application had too little to send changes nothing: neither its rate nor its
delay says anything about the limit. After idleness the limit decays as TCP's window does (RFC 2861),
since ssh's TCP has forgotten it, too.

Invariants: MIN_LIMIT_BYTES <= limit_bytes <= LANE_IN_FLIGHT_BYTES; nothing here reads a clock; an
acknowledgement costs a few comparisons; a peer that lies about its clock can only make itself slow
or full: the queue is never taken for longer than the round-trip time says.

Not here: what is sent next (scheduler), frames of control, which are not limited (session).
"""

from collections import deque
from typing import Deque, Dict, List

from sshunt.mux.limits import DATA_BYTES, LANE_IN_FLIGHT_BYTES

#: The queue that we let stand. Less, and the jitter of the processes at both ends empties it now and
#: then, and the link idles; more is felt.
TARGET_S = 0.0005

#: On a slow lane the queue is at least so much, or what TCP sends in pairs would empty it.
LEAST_QUEUE_BYTES = 4 * 1024

#: Where a lane begins, and what a long silence leaves: a few round trips of TCP's own beginning.
START_LIMIT_BYTES = 32 * 1024

#: Two of the smallest frames.
MIN_LIMIT_BYTES = 8 * 1024

#: Shortest round. On a LAN the processes' turns are longer than the path.
ROUND_S = 0.010

#: What one round does of the way to where the queue would be right. Its effect is seen a round later,
#: so all of the way at once would swing for ever (z^2 - z + GAIN: 1 is the limit of stability).
GAIN = 0.5

#: A rate that is so much above the last three rounds' is still growing.
GROWTH = 1.25

#: No round changes the limit by more: down to, up to. (Growing may double it.)
MOST_DOWN, MOST_UP = 0.5, 1.25

#: Rounds without a queue, though we were held back, before steps become larger.
HUNGRY_ROUNDS = 3

#: Rounds in which the queue stayed though we gave way, before it is called others'.
CONTENDED_ROUNDS = 3

#: A queue that is still so much of what it was a round ago does not go.
LASTING = 0.7

#: The path is looked at without our own queue so often; sooner while we are CONTENDED.
PROBE_EVERY_S = 10.0
CONTENDED_PROBE_S = 3.0
FIRST_CONTENDED_PROBE_S = 0.8

#: TCP below us delivers nothing while it sends a lost segment again, for a round trip at least. That is
#: what an acknowledgement that comes so much later than the one before it means, if data was on its
#: way all the time.
STALL_RTTS, STALL_S = 0.5, 0.02

#: How long a stall is remembered.
STALLS_S = 5.0

#: The limit in a probe that must see the path without us, in bytes that fit into the empty path.
DEEP = 0.5

#: Two probes that differ by less have seen the same path (or so much of its delay).
SAME_PATH_S, SAME_PATH = 0.002, 0.1

#: How long the largest queue that others made is remembered.
RIDE_S = 3.0

#: Idle time that halves the limit, on top of the round-trip time: TCP's least retransmission timeout.
FORGET_S = 0.2

#: A round's frames are spread over the round, at a rate this much above what the limit means: a
#: burst makes a queue for others, and acknowledgements that come in bursts would carry it on for ever.
SPREAD = 1.2

#: What was not sent in time may be made up for, so much of it at once.
BURST_S = 0.003

#: A frame is so much time of the lane's rate: what an urgent one waits for it. Below three segments
#: headers would eat a slow link.
FRAME_S = 0.0015
MIN_FRAME_BYTES = 4 * 1024
START_FRAME_BYTES = 16 * 1024

STEADY = "STEADY"
PROBING = "PROBING"
CONTENDED = "CONTENDED"

_CLOCK = 1 << 32


class Pacer:
    """The limit of one lane's bytes in flight. Times are seconds of the caller's clock; ``arrived``
    is the peer's clock in microseconds modulo 2^32.
    """

    __slots__ = (
        "_acked",
        "_base_delay_s",
        "_base_rtt_s",
        "_clock_offset",
        "_contended_floor_s",
        "_delay_s",
        "_excess_rounds",
        "_first_arrived",
        "_first_at",
        "_held_back",
        "_hungry_rounds",
        "_interval_s",
        "_least_rtt_s",
        "_probe_at",
        "_probe_rounds",
        "_rates",
        "_resume_bytes",
        "_last_ack_at",
        "_ride",
        "_rtt_count",
        "_rtt_sum_s",
        "_round_end",
        "_stalls",
        "_was_held_back",
        "frame_bytes",
        "limit_bytes",
        "next_at",
        "phase",
        "queue_s",
        "rate_bytes_s",
        "rtt_s",
    )

    def __init__(self) -> None:
        self.limit_bytes = START_LIMIT_BYTES
        self.frame_bytes = START_FRAME_BYTES
        self.next_at = 0.0  # the next frame of bulk may leave
        self.phase = STEADY
        self.rate_bytes_s = 0.0  # delivered in the last round that counted
        self.queue_s = 0.0  # what stood in it
        self.rtt_s = 0.0  # its mean, acknowledgements' holding included
        # The path.
        self._clock_offset = -1  # between the two clocks, as first seen; -1: not yet
        self._base_delay_s = float("inf")
        self._base_rtt_s = float("inf")
        self._rates: List[float] = []  # of the last rounds that counted
        # The round.
        self._round_end = -1  # position; -1: none has begun
        self._acked = 0  # at its beginning
        self._first_at = 0.0
        self._first_arrived = 0
        self._delay_s = self._least_rtt_s = float("inf")
        self._rtt_sum_s = 0.0
        self._rtt_count = 0
        self._held_back = self._was_held_back = False
        self._last_ack_at = 0.0
        self._stalls: Deque[float] = deque(maxlen=64)  # when they ended
        # The rules.
        self._hungry_rounds = 0
        self._excess_rounds = 0
        self._interval_s = 0.0  # between two bytes; 0: not known yet
        self._probe_at = -1.0
        self._probe_rounds = 0
        self._resume_bytes = 0  # the limit when the probe is over
        self._contended_floor_s = -1.0  # what the last probe found above the path; -1: nothing
        self._ride: List[float] = []  # [since, queue_s] of the largest queue lately

    # --- what the lane tells ------------------------------------------------------------------

    def note_held_back(self) -> None:
        """There was more to send than the limit let through."""
        self._held_back = True

    def note_bulk(self, size: int, now: float) -> None:
        """A frame of bulk leaves."""
        self.next_at = max(self.next_at, now - BURST_S) + size * self._interval_s

    def note_idle(self, idle_s: float) -> None:
        """Something is sent again after ``idle_s`` with nothing in flight."""
        halvings = int(idle_s / (FORGET_S + self.rtt_s))
        if halvings:
            self._round_end = -1
            self._rates = []
            limit = self.limit_bytes >> min(halvings, 32)
            self.limit_bytes = max(limit, min(self.limit_bytes, START_LIMIT_BYTES))

    def on_ack(
        self, acked: int, sent: int, sent_at: float, held_s: float, arrived: int, now: float
    ) -> None:
        """The peer had processed what we sent at ``sent_at`` when its clock said ``arrived``, and
        held the acknowledgement for ``held_s``. ``acked`` and ``sent`` are positions of the lane.
        """
        difference = (arrived - int(sent_at * 1e6)) % _CLOCK
        if self._clock_offset < 0:
            self._clock_offset = difference
        delay_us = (difference - self._clock_offset) % _CLOCK
        delay_s = (delay_us if delay_us < _CLOCK // 2 else delay_us - _CLOCK) / 1e6
        rtt_s = now - sent_at
        silence_s = now - max(self._last_ack_at, sent_at)
        self._last_ack_at = now
        if self._round_end < 0:
            self._begin_round(acked, sent, arrived, now)
        elif silence_s > STALL_S + STALL_RTTS * self._base_rtt_s and self._held_back:
            self._stalls.append(now)
        if delay_s < self._delay_s:
            self._delay_s = delay_s
        if rtt_s - held_s < self._least_rtt_s:
            self._least_rtt_s = rtt_s - held_s
        self._rtt_sum_s += rtt_s
        self._rtt_count += 1
        if acked >= self._round_end and now - self._first_at >= ROUND_S:
            self._end_round(acked, arrived, now)
            self._begin_round(acked, sent, arrived, now)

    # --- rounds -------------------------------------------------------------------------------

    def _begin_round(self, acked: int, sent: int, arrived: int, now: float) -> None:
        self._round_end = sent
        self._acked = acked
        self._first_at = now
        self._first_arrived = arrived
        self._delay_s = self._least_rtt_s = float("inf")
        self._rtt_sum_s = 0.0
        self._rtt_count = 0
        self._was_held_back = self._held_back
        self._held_back = False

    def _end_round(self, acked: int, arrived: int, now: float) -> None:
        self._base_delay_s = min(self._base_delay_s, self._delay_s)
        self._base_rtt_s = min(self._base_rtt_s, self._least_rtt_s)
        queue_s = min(self._delay_s - self._base_delay_s, self._least_rtt_s - self._base_rtt_s)
        rtt_s = self._rtt_sum_s / self._rtt_count
        last_queue_s = self.queue_s
        self.queue_s, self.rtt_s = queue_s, rtt_s
        if self._probe_at < 0:
            self._probe_at = now + PROBE_EVERY_S
        if not (self._held_back or self._was_held_back):
            return
        elapsed_s = max((arrived - self._first_arrived) % _CLOCK / 1e6, 1e-4)
        rate = (acked - self._acked) / elapsed_s
        if self.phase is PROBING:
            self._probe(now)
            return
        growing = rate > GROWTH * max(self._rates, default=0.0)
        self._rates = self._rates[-2:] + [rate]
        self.rate_bytes_s = rate
        self.frame_bytes = min(max(int(rate * FRAME_S), MIN_FRAME_BYTES), DATA_BYTES)
        if now >= self._probe_at:
            self._begin_probe(now, deep=self.phase is CONTENDED)
        else:
            self._steer(rate, growing, last_queue_s, now)

    def _steer(self, rate: float, growing: bool, last_queue_s: float, now: float) -> None:
        """The rule, and those for where it is blind."""
        queue_s, rtt_s = self.queue_s, self.rtt_s
        aim_s = self._aim_s()
        if self.phase is CONTENDED:
            aim_s = max(aim_s, self._ride_s(now))
        factor = 1.0 - GAIN * (queue_s - aim_s) / rtt_s
        if queue_s < aim_s / 2:
            self._hungry_rounds += 1
            if self._hungry_rounds > HUNGRY_ROUNDS:
                factor = 1.0 + (factor - 1.0) * 2.0 ** min(self._hungry_rounds - HUNGRY_ROUNDS, 8)
        else:
            self._hungry_rounds = 0
        limit = self.limit_bytes * min(max(factor, MOST_DOWN), MOST_UP)
        if growing:
            path_s = rtt_s if self.phase is CONTENDED else self._base_rtt_s + ROUND_S / 2
            limit = max(limit, 2.0 * min(rate * path_s, self.limit_bytes))
        self._set_limit(limit)
        if self.phase is CONTENDED:
            if queue_s <= self._aim_s():
                self._be_steady(now)
        elif not growing and queue_s > 2 * self._aim_s() + self._base_rtt_s / 8:
            if queue_s > LASTING * last_queue_s:
                self._excess_rounds += 1
            if self._excess_rounds >= CONTENDED_ROUNDS:
                self._begin_probe(now, deep=True)
        else:
            self._excess_rounds = 0

    def _aim_s(self) -> float:
        """The queue that should stand, as it is seen: a frame is processed when its last byte has
        come, so the time that it takes itself looks like queueing.
        """
        return TARGET_S + max(self.frame_bytes, LEAST_QUEUE_BYTES) / self.rate_bytes_s

    def _set_limit(self, limit: float) -> None:
        self.limit_bytes = int(min(max(limit, MIN_LIMIT_BYTES), LANE_IN_FLIGHT_BYTES))
        self._interval_s = self.rtt_s / (SPREAD * self.limit_bytes)

    # --- the path without us ------------------------------------------------------------------

    def _begin_probe(self, now: float, *, deep: bool = False) -> None:
        """Less for two rounds: the first drains our own queue, the second sees what is left.

        ``deep`` where the delay can't be explained: so little that it is not ours for certain.
        """
        self._resume_bytes = self.limit_bytes
        if self.phase is STEADY:
            path_s = self.rtt_s - self.queue_s + self._aim_s()
            self._resume_bytes = min(self.limit_bytes, int(self.rate_bytes_s * path_s))
        if deep:
            limit = DEEP * self.rate_bytes_s * self._base_rtt_s
        else:
            share = (self.rtt_s - self.queue_s - TARGET_S) / self.rtt_s
            limit = self.limit_bytes * min(max(share * 0.9, 0.25), 0.9)
        self._set_limit(min(limit, self.limit_bytes))
        # Small frames: those that fill a path look as if they waited in it.
        self.frame_bytes = max(self.frame_bytes // 8, MIN_FRAME_BYTES)
        self.phase = PROBING
        self._probe_rounds = 2
        self._probe_at = now + PROBE_EVERY_S

    def _probe(self, now: float) -> None:
        self._probe_rounds -= 1
        if self._probe_rounds:
            return
        floor_s = self.queue_s
        self._set_limit(self._resume_bytes)
        if floor_s <= self._aim_s() + self._base_rtt_s / 16:
            self._rebase(now)
        elif abs(floor_s - self._contended_floor_s) < max(SAME_PATH_S, SAME_PATH * floor_s):
            self._rebase(now)
        else:
            first = self._contended_floor_s < 0
            self._contended_floor_s = floor_s
            self._excess_rounds = 0
            self._ride = [now, floor_s]
            self._rates = []
            self.phase = CONTENDED
            self._probe_at = now + (FIRST_CONTENDED_PROBE_S if first else CONTENDED_PROBE_S)

    def _rebase(self, now: float) -> None:
        """What this round saw is the path."""
        self._base_delay_s = self._delay_s
        self._base_rtt_s = self._least_rtt_s
        self._be_steady(now)

    def _be_steady(self, now: float) -> None:
        self.phase = STEADY
        self._contended_floor_s = -1.0
        self._excess_rounds = self._hungry_rounds = 0
        self._ride = []
        self._probe_at = now + PROBE_EVERY_S

    def _ride_s(self, now: float) -> float:
        """The largest queue of the last seconds, which is the others' doing."""
        if not self._ride or self.queue_s >= self._ride[1] or now - self._ride[0] > RIDE_S:
            self._ride = [now, self.queue_s]
        return self._ride[1]

    # --- for people ---------------------------------------------------------------------------

    def stalls(self, now: float) -> int:
        """How often delivery stopped for a round trip lately: segments are being lost."""
        while self._stalls and now - self._stalls[0] > STALLS_S:
            self._stalls.popleft()
        return len(self._stalls)

    def beliefs(self, now: float) -> Dict[str, object]:
        """What the controller believes, for metrics: bytes, seconds, bytes per second."""
        return {
            "stalls": self.stalls(now),
            "phase": self.phase,
            "limit_bytes": self.limit_bytes,
            "rate_bytes_s": self.rate_bytes_s,
            "rtt_s": self.rtt_s,
            "min_rtt_s": self._base_rtt_s if self.rate_bytes_s else 0.0,
            "queue_s": self.queue_s,
            "frame_bytes": self.frame_bytes,
        }
