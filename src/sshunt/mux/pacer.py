"""How much may be in flight on one lane: enough to fill the link, and hardly more.

ssh, the kernel and the link together queue megabytes in front of a slow link. Whoever fills them
has the whole link, and everybody else waits behind: a keystroke beside a download takes 300 ms
more. This is a congestion control *above* ssh that keeps those queues nearly empty. It needs no
help from the kernel or from ssh: its eyes are the acknowledgements (LANE_ACK), its hand is one
number, ``limit_bytes``. It does not replace TCP's congestion control, which goes on below; it gives
it no more to send than the link can carry.

Theory of operation. A round ends when everything that was in flight at its beginning has been
acknowledged, but not before ROUND_S. The least one-way delay of a round, not its mean, says what
queue *stands* (``path``; Copa, Arun and Balakrishnan 2018): bursts come and go within a round and
are nobody's fault, and noise of the processes at both ends is never negative. After each round

    limit  <-  limit x (1 - GAIN x (queue_s - aim_s) / rtt_s)

which is FAST TCP's rule (Wei, Jin, Low, Hegde 2006) with a queue of ``aim_s`` as its goal. It goes
to where the queue would be right, upward and downward alike, without swinging. ``rtt_s`` is the
round's mean, the time that acknowledgements were held included, so that acknowledgements which come
in bursts make the limit larger and not the link idle. Where delay alone is blind, further rules:

    starting    no queue has been seen yet: the limit grows by START_UP each round (slow start, no
                faster than TCP's own below us; after idleness too). What a step did is seen two
                rounds later. A queue ends the start, and what is too much goes at once.
    growing     the rate still rises by GROWTH a round: the limit may rise once more by as much, and
                doubled at most. It ends by itself.
    drain       far too much of a queue: at once to what the path itself holds at this rate (then
                wait a round to see what it did).
    hungry      no queue for some rounds though we were held back: steps double, up to an eighth.
    path        what the phases of ``path`` ask: less while PROBING, more than ssh's TCP can send
                while CONTENDED.

A lane that has stood still (a laptop asleep, a stopped process, a link that was cut: nothing was
acknowledged for a second and several round trips though something was due) begins anew as after
idleness. What was in flight is not measured: it took as long as the standstill, and a round trip of
a minute would be taken for the path's.

A round in which the application had too little to send changes nothing: neither its rate nor its
delay says anything about the limit. After idleness the limit decays as TCP's window does (RFC
2861), since ssh's TCP has forgotten it, too. A round's frames are spread over the round
(``next_at``).

The theory at length, and what was tried on which link and what it gave: docs/pacing.md.

Invariants: MIN_LIMIT_BYTES <= limit_bytes <= LANE_IN_FLIGHT_BYTES; nothing here reads a clock; an
acknowledgement costs a few comparisons.

Not here: what is sent next (scheduler), frames of control, which are not limited (outgoing).
"""

from collections import deque
from typing import Deque, Dict, List, Optional

from sshunt.mux.limits import DATA_BYTES, LANE_IN_FLIGHT_BYTES
from sshunt.mux.path import CONTENDED, PROBING, STEADY, Path

#: The queue that we let stand. Less, and the jitter of the processes at both ends empties it now
#: and then, and the link idles; more is felt. On a slow lane the queue is at least
#: LEAST_QUEUE_BYTES, or what TCP sends in pairs would empty it.
TARGET_S = 0.00075
LEAST_QUEUE_BYTES = 4 * 1024

#: The rate beyond which the processors at both ends are as busy as the link. What looks like its
#: queue is then mostly the time until ssh, sshd and the peer have their turn: several milliseconds
#: where they share two cores. With as shallow a queue as on a slow link they wait for each other
#: while there is work. So the queue and the frames may last longer in proportion, at most by these
#: factors.
FAST_BYTES_S = 62.5e6  # 500 Mbit/s
FAST_QUEUE, FAST_FRAME = 8.0, 2.0

#: The limit of a new lane, and what a long silence leaves: a few round trips of TCP's own
#: beginning.
START_LIMIT_BYTES = 32 * 1024

#: The least limit: some of the smallest frames.
MIN_LIMIT_BYTES = 8 * 1024

#: The shortest round. On a LAN the processes' turns are longer than the path.
ROUND_S = 0.010

#: The shortest round trip that is believed. None between two processes is shorter; a peer that
#: acknowledges before it can have received is not to be divided by.
LEAST_RTT_S = 20e-6

#: The part of the way to the right queue that one round goes. Its effect is seen a round later, so
#: all of the way at once would swing for ever (z^2 - z + GAIN: 1 is the limit of stability).
GAIN = 0.5

#: The least and the largest factor by which a round changes the limit. (Growing may double it.)
MOST_DOWN, MOST_UP = 0.5, 1.125

#: The factor above the last three rounds' rates from which on a rate is still growing.
GROWTH = 1.25

#: The factor of one round while starting; what was delivered shows that of two rounds ago. A lane
#: that joins others at work does so because the link has room, and then TCP's own pace is right.
START_UP, JOINING_UP = 1.4, 2.0

#: The largest factor by which a lane that has less than its share of the path bears a longer queue.
#: What it sees is mostly not the link's: few frames find no moment in which every process on the
#: way is ready, and what TCP's window does not let go waits in front of it.
PATIENCE = 4.0

#: Rounds without a queue, though we were held back, before steps become larger; and before the
#: largest becomes larger still, for the link must be far away.
HUNGRY_ROUNDS = 3
STARVED_ROUNDS, MOST_UP_STARVED = 12, 1.25

#: The factor that is left of the best rate of late after another round.
BEST_FADES = 0.9

#: What makes a queue standing: it shrinks by less than 30 % in a round. The path is probed for
#: others after EXCESS_ROUNDS of it, or when the limit fell to IN_VAIN of what it was without
#: effect.
LASTING = 0.7
EXCESS_ROUNDS = 3
IN_VAIN = 0.6

#: The limit while others fill the link, as a multiple of what leaves in a round trip with their
#: queue in it as the last probe saw it. ssh's TCP then always has something to send and contends as
#: any TCP does; the rest waits before it. (With 1.4 the limit itself was what held us back when the
#: queue had grown since the probe.)
CONTEST = 2.0

#: The time that bytes spend in the pipes before and behind a lane's transport. What these hold may
#: be in flight besides what the transport lets go (an ssh channel's window).
BESIDE_WINDOW_S = 0.005

#: The limit in a deep probe, as a share of what fits into the empty path: with more, our own queue
#: would be in what is seen. In other probes only what should drain the queue, if it is ours, is
#: held back.
DEEP = 0.5

#: The idle time that halves the limit, on top of the round-trip time: TCP's least retransmission
#: timeout.
FORGET_S = 0.2

#: How long nothing is acknowledged, though something is due, on a lane that stands still: both must
#: have passed. TCP below us has then forgotten what it knew as well, after several timeouts.
STILL_RTTS, STILL_S = 4.0, 1.0

#: The pace of frames, as a multiple of what the limit means. Frames are spread over the round
#: because a burst makes a queue for others, and acknowledgements that come in bursts would carry it
#: on for ever.
SPREAD = 1.2

#: The same while the limit grows. Cubic's slow start ends (HyStart: "ack train") when
#: acknowledgements follow each other closely for half a round trip, whatever the link could carry,
#: and then grows by a few segments a round trip. So there must be a pause in the round.
GROWING_SPREAD = 3.0

#: The most that may be made up for at once when a process got its turn late. What the limit held
#: back may not: its acknowledgements come every few milliseconds, and would be answered by a burst
#: each.
BURST_S = 0.003

#: The time that one frame may occupy the link. All lanes share the link, so this is also the
#: longest that an urgent frame waits for a bulk one. On a long path it may be a share of the round
#: trip, up to LONG_FRAME_S: that is not felt, and costs less of the processors and fewer headers.
#: Frames of less than two full segments, ssh's and our own headers included, would leave a slow
#: link to headers.
FRAME_S, FRAME_RTTS, LONG_FRAME_S = 0.001, 0.03, 0.0025
MIN_FRAME_BYTES = 2800

#: A frame of three segments, the least where it takes no longer than GOOD_FRAME_S: it leaves 2 %
#: more of the link for data than one of two.
GOOD_FRAME_BYTES, GOOD_FRAME_S = 4200, 0.004

#: The frames of a lane whose rate is not known yet.
START_FRAME_BYTES = 16 * 1024

#: The size of a probe's frames, as a divisor of the usual one, and the least: so small that their
#: own time on a slow link hides nobody's queue.
PROBE_FRAME_SHARE, PROBE_FRAME_BYTES = 8, 700

#: The multiple of what a probe's small frame looks like above which a queue is doubtful: it is
#: borne only because it may be the time of our own larger frames.
DOUBT = 2.5

#: The least number of frames that fit into the limit of a lane among faster ones: it is not to live
#: from hand to mouth.
LEAST_FRAMES = 16

#: The gap that is a stall, as a share of the round trip, and at least. TCP below us delivers
#: nothing while it sends a lost segment again, for a round trip at least. The gap is how much later
#: the next byte is processed than the one before it, and than it would have been on the empty path.
STALL_RTTS, STALL_S = 0.85, 0.03

#: How long a stall is remembered, and how many of them mean loss: a single one may be anything.
STALLS_S = 5.0
LOSS_STALLS = 2

#: The round trip from which on a stall of a whole one counts twice: no process of ours sleeps for
#: that long, an empty queue loses nothing for want of room, and the bursts of TCP's start are less
#: than a round trip apart.
CERTAIN_RTT_S = 0.04

#: A stall longer than this (a multiple of the round trip, and seconds on top) is longer than TCP's
#: start and our acknowledgements explain. It counts twice whatever we were doing: in a start, a
#: lost segment is mostly noticed by its timeout, and the whole transfer is slow from then on.
CERTAIN_RTTS, CERTAIN_S = 1.1, 0.005

_CLOCK = 1 << 32


def _times(rate: float, most: float) -> float:
    """How many times as long the queue or a frame may last at this rate as on a slow link."""
    return min(max(rate / FAST_BYTES_S, 1.0), most)


class Pacer:
    """The limit of one lane's bytes in flight. Times are seconds of the caller's clock; ``arrived``
    is the peer's clock in microseconds modulo 2^32; positions are the lane's.
    """

    __slots__ = (
        "_acked",
        "_best_rate",
        "_delay_s",
        "_drained",
        "_excess_rounds",
        "_first_arrived",
        "_first_at",
        "_free_delay_s",
        "_growth",
        "_has_given_way",
        "_heard_at",
        "_held_back",
        "_hungry_rounds",
        "_interval_s",
        "_is_full",
        "_last_arrived",
        "_least_rtt_s",
        "_path",
        "_probing",
        "_queued_since_bytes",
        "_rates",
        "_resume_bytes",
        "_round_end",
        "_round_trip_s",
        "_rtt_count",
        "_rtt_sum_s",
        "_stale_end",
        "_stalls",
        "_start_up",
        "_was_held_back",
        "frame_bytes",
        "limit_bytes",
        "next_at",
        "queue_s",
        "rate_bytes_s",
        "rtt_s",
    )

    def __init__(self, path: Path) -> None:
        self._path = path
        path.lanes += 1
        self.limit_bytes = START_LIMIT_BYTES
        self.frame_bytes = START_FRAME_BYTES
        self.next_at = 0.0  # the next frame of bulk may leave
        self._is_full = False  # the limit holds back what would leave now
        self._interval_s = 0.0  # between two bytes of it; 0: not known yet
        self.rate_bytes_s = 0.0  # delivered in the last round that counted
        self.queue_s = 0.0  # what stood in the last round
        self.rtt_s = 0.0  # its mean, acknowledgements' holding included
        # The round.
        self._round_end = -1  # position; -1: none has begun
        self._acked = 0  # at its beginning
        self._first_at = 0.0
        self._first_arrived = 0
        self._delay_s = self._least_rtt_s = float("inf")
        self._free_delay_s = float("inf")  # least, but for what left together with it
        self._rtt_sum_s = 0.0
        self._rtt_count = 0
        self._round_trip_s = 0.0  # least of the last round
        self._held_back = self._was_held_back = False
        # The rules.
        self._rates: List[float] = []  # of the last rounds that counted
        self._best_rate = 0.0  # of late
        self._growth = 1.0  # of the last round's rate over those before it
        self._start_up = JOINING_UP if path.best_rate else START_UP  # 0: the start is over
        self._drained = False
        self._hungry_rounds = 0
        self._excess_rounds = 0
        self._queued_since_bytes = 0  # the limit when the queue was last as it should be
        self._probing = self._has_given_way = False
        self._resume_bytes = 0  # the limit when the probe is over
        self._last_arrived = 0
        self._heard_at = float("inf")  # the newest acknowledgement; inf: none yet
        self._stale_end = -1  # position; what is below it was in flight in a standstill
        self._stalls: Deque[float] = deque(maxlen=64)  # when they ended

    # --- what the lane tells ------------------------------------------------------------------

    def on_limited(self, now: float) -> None:
        """There is more to send than may leave now."""
        self._held_back = True
        self._is_full = now >= self.next_at

    def on_sent(self, size: int, now: float) -> None:
        """A frame of bulk leaves."""
        at = now if self._is_full else now - BURST_S
        self._is_full = False
        self.next_at = max(self.next_at, at) + size * self._interval_s

    def on_idle(self, idle_s: float) -> None:
        """Something is sent again after ``idle_s`` with nothing in flight."""
        halvings = int(idle_s / (FORGET_S + self.rtt_s))
        if halvings:
            self._round_end = -1
            self._rates = []
            self._start_up = START_UP
            limit = self.limit_bytes >> min(halvings, 32)
            self.limit_bytes = max(limit, min(self.limit_bytes, START_LIMIT_BYTES))

    def _note_standstill(self, still_s: float, sent: int, now: float) -> None:
        """Nothing was acknowledged for ``still_s`` though something was due. What was sent up to
        ``sent`` is from before.
        """
        self._stale_end = sent
        self._probing = self._has_given_way = False
        self._interval_s = 0.0
        self.next_at = now
        self.on_idle(still_s)

    def leave(self) -> None:
        """The lane is over."""
        self._path.lanes -= 1
        self._note_best(0.0)

    def on_ack(
        self,
        acked: int,
        sent: int,
        sent_at: float,
        held_s: float,
        arrived: int,
        now: float,
        ahead_bytes: int = 0,
        oldest_sent_at: Optional[float] = None,
    ) -> None:
        """The peer had processed what we sent at ``sent_at``, behind ``ahead_bytes`` of the same
        moment, when its clock said ``arrived``, and held the acknowledgement for ``held_s``. The
        oldest of what this acknowledges was sent at ``oldest_sent_at``.
        """
        path = self._path
        since = sent_at if oldest_sent_at is None else oldest_sent_at
        still_s = now - max(self._heard_at, since)
        self._heard_at = now
        if self.rtt_s and still_s > max(STILL_RTTS * self.rtt_s, STILL_S):
            self._note_standstill(still_s, sent, now)
        if acked <= self._stale_end:
            self._last_arrived = arrived
            return
        delay_s = path.one_way_s(sent_at, arrived)
        rtt_s = now - sent_at
        if self._round_end < 0:
            self._begin_round(acked, sent, arrived, now)
        else:
            silence_s = (arrived - self._last_arrived) % _CLOCK / 1e6
            if silence_s >= STALL_S:
                late_s = path.one_way_s(since, arrived) - path.delay_s
                self._note_gap(min(silence_s, late_s), now)
        self._last_arrived = arrived
        if delay_s < self._delay_s:
            self._delay_s = delay_s
        if ahead_bytes and self._growth <= GROWTH and path.best_rate:
            burst_s = min(ahead_bytes / path.best_rate, BURST_S)
            if delay_s - burst_s < self._free_delay_s:
                self._free_delay_s = delay_s - burst_s
        elif delay_s < self._free_delay_s:
            self._free_delay_s = delay_s
        least_s = max(rtt_s - held_s, LEAST_RTT_S)  # it may say that it held it for an hour
        if least_s < self._least_rtt_s:
            self._least_rtt_s = least_s
        self._rtt_sum_s += rtt_s
        self._rtt_count += 1
        if acked >= self._round_end and now - self._first_at >= ROUND_S:
            self._end_round(acked, arrived, now)
            self._begin_round(acked, sent, arrived, now)

    def _note_gap(self, gap_s: float, now: float) -> None:
        """Nothing was processed for ``gap_s``, though something should have been. Was it lost?"""
        if gap_s < STALL_S:
            return
        path = self._path
        may_overflow = self.queue_s >= self._aim_s() or path.rtt_s < CERTAIN_RTT_S
        if gap_s > CERTAIN_RTTS * path.rtt_s + CERTAIN_S and not may_overflow:
            self._stalls.extend([now] * LOSS_STALLS)
            return
        is_steady = self._held_back and self._growth <= GROWTH and len(self._rates) > 1
        if is_steady and gap_s > STALL_RTTS * self._round_trip_s:
            self._stalls.append(now)
            if gap_s > self._round_trip_s and not may_overflow:
                self._stalls.append(now)

    # --- rounds -------------------------------------------------------------------------------

    def _begin_round(self, acked: int, sent: int, arrived: int, now: float) -> None:
        self._round_end = sent
        self._acked = acked
        self._first_at = now
        self._first_arrived = arrived
        self._delay_s = self._free_delay_s = self._least_rtt_s = float("inf")
        self._rtt_sum_s = 0.0
        self._rtt_count = 0
        self._was_held_back = self._held_back
        self._held_back = False

    def _end_round(self, acked: int, arrived: int, now: float) -> None:
        path = self._path
        last_queue_s = self.queue_s
        queue_s = path.queue_above(self._delay_s, self._least_rtt_s, now)
        self.queue_s = max(queue_s - (self._delay_s - self._free_delay_s), 0.0)
        self.rtt_s = max(self._rtt_sum_s / self._rtt_count, LEAST_RTT_S)
        self._round_trip_s = self._least_rtt_s
        if not (self._held_back or self._was_held_back):
            return
        elapsed_s = max((arrived - self._first_arrived) % _CLOCK / 1e6, 1e-4)
        rate = (acked - self._acked) / elapsed_s
        if self._probing:
            if self._has_given_way:
                path.note_probed(self._delay_s, self._least_rtt_s)
            self._has_given_way = True  # all that was sent before has come
            if path.end_probe_if_over(self._own_s(self.frame_bytes), now):
                # What was right for the shorter path fits into this one; grow from there.
                fits = int(self.rate_bytes_s * path.rtt_s)
                self._resume_bytes = max(fits, self._queued_since_bytes)
                self._rates = []
                self._stalls.clear()  # that was the change
            if path.phase is not PROBING:
                self._resume()
            return
        self._growth = rate / max([*self._rates, 1.0])
        self._rates = self._rates[-2:] + [rate]
        self.rate_bytes_s = rate
        self._note_best(max(rate, self._best_rate * BEST_FADES))
        link_rate = rate + path.best_rate - self._best_rate
        frame_s = FRAME_S * _times(link_rate, FAST_FRAME)
        frame_s = max(frame_s, min(FRAME_RTTS * path.rtt_s, LONG_FRAME_S))
        of_link, of_lane = int(link_rate * frame_s), int(rate * frame_s)
        frame_bytes = max(min(of_link, self.limit_bytes // LEAST_FRAMES), of_lane)
        least_bytes = max(min(GOOD_FRAME_BYTES, int(link_rate * GOOD_FRAME_S)), MIN_FRAME_BYTES)
        self.frame_bytes = min(max(frame_bytes, least_bytes), DATA_BYTES)
        if self._growth <= GROWTH:
            small_s = DOUBT * self._own_s(self._probe_frame_bytes) + path.jitter_s
            doubtful = min(self.queue_s, self._aim_s()) > small_s
            path.probe_if_due(self.rtt_s, self.queue_s, doubtful, now)
        if path.phase is not PROBING:
            self._steer(last_queue_s, now)
        if path.phase is PROBING:  # due, another lane's doing, or just now found necessary
            self._give_way()

    def _steer(self, last_queue_s: float, now: float) -> None:
        """The rule, and those for where it is blind."""
        path, queue_s, rtt_s, rate = self._path, self.queue_s, self.rtt_s, self.rate_bytes_s
        contended, growing = path.phase is CONTENDED, self._growth > GROWTH
        aim_s = self._aim_s()
        factor = 1.0 - GAIN * (queue_s - aim_s) / rtt_s
        if queue_s >= aim_s / 2:
            self._hungry_rounds = 0
        else:
            self._hungry_rounds += 1
            doublings = min(max(self._hungry_rounds - HUNGRY_ROUNDS, 0), 8)
            factor = 1.0 + (factor - 1.0) * 2.0**doublings
        most_up = MOST_UP if self._hungry_rounds <= STARVED_ROUNDS else MOST_UP_STARVED
        limit = self.limit_bytes * min(max(factor, MOST_DOWN), most_up)
        excess = queue_s > 2 * aim_s + path.rtt_s / 8 and not growing
        if self._drained:  # what that did is seen a round later
            self._drained = False
            limit = max(limit, float(self.limit_bytes))
        elif excess:
            self._drained = True
            limit = min(limit, rate * (rtt_s - queue_s + aim_s))
        if contended:
            limit = CONTEST * self._best_rate * path.contended_rtt_s
            limit = min(max(limit, MOST_DOWN * self.limit_bytes), 2.0 * self.limit_bytes)
        path_s = rtt_s if contended else path.rtt_s + ROUND_S / 2
        if self._start_up:
            if queue_s < aim_s / 2:
                most = self._start_up * rate * path_s
                limit = max(limit, self._start_up * min(most, self.limit_bytes))
            elif queue_s > 2 * aim_s or last_queue_s >= aim_s / 2:  # one round alone may be noise
                self._start_up = 0.0
                self._drained = True
                limit = min(limit, max(self._growth, 1.0) * rate * path_s)
                self._queued_since_bytes = int(limit)  # that we had more was our own doing
        elif growing:
            gain = min(self._growth, 2.0)
            limit = max(limit, gain * min(rate * path_s, self.limit_bytes))
        if contended and queue_s <= self._own_s(self.frame_bytes) and path.end_contest(now):
            limit = min(limit, self._right_bytes())
        self._set_limit(limit)
        if contended:
            return
        if queue_s <= 1.5 * aim_s or growing:
            self._excess_rounds = 0
            self._queued_since_bytes = self.limit_bytes
        elif queue_s > LASTING * last_queue_s:
            self._excess_rounds += excess
            in_vain = self.limit_bytes < IN_VAIN * self._queued_since_bytes
            if self._excess_rounds >= EXCESS_ROUNDS or (in_vain and not excess):
                self._excess_rounds = 0
                path.probe(rtt_s, queue_s, now)

    def _aim_s(self) -> float:
        """The queue that should stand, as it is seen: a frame is processed when its last byte has
        come, so the time that it takes itself looks like queueing. It takes that at the link's
        rate: that of all lanes together, and not what it is while we give way. A lane that has less
        than its share bears more: so it comes to have it.
        """
        aim_s = self._own_s(max(self.frame_bytes, LEAST_QUEUE_BYTES))
        fair_rate = self._path.best_rate / max(self._path.lanes, 1)
        return aim_s * min(max(fair_rate / max(self._best_rate, 1.0), 1.0), PATIENCE)

    def _right_bytes(self) -> int:
        """What fills the path, and the queue that should stand. The way back may be longer than it
        was when the path was empty: it is others', or our other direction's.
        """
        return int(self._best_rate * (self.rtt_s - self.queue_s + self._aim_s()))

    def _own_s(self, frame_bytes: int) -> float:
        """What no more than such a frame of ours looks like."""
        return self._target_s() + frame_bytes / max(self._path.best_rate, 1.0)

    def _target_s(self) -> float:
        """The same without the frame."""
        return TARGET_S * _times(self._path.best_rate, FAST_QUEUE)

    def _note_best(self, rate: float) -> None:
        self._path.best_rate += rate - self._best_rate
        self._best_rate = rate

    def _set_limit(self, limit: float) -> None:
        most = self._path.lane_window_bytes + BESIDE_WINDOW_S * self.rate_bytes_s
        most = min(most, LANE_IN_FLIGHT_BYTES)
        self.limit_bytes = int(min(max(limit, MIN_LIMIT_BYTES), most))
        spread = GROWING_SPREAD if self._start_up or self._growth > GROWTH else SPREAD
        over_s = self.rtt_s - self.queue_s if self._drained else self.rtt_s
        self._interval_s = over_s / (spread * self.limit_bytes)

    # --- the path without us ------------------------------------------------------------------

    @property
    def _probe_frame_bytes(self) -> int:
        return max(self.frame_bytes // PROBE_FRAME_SHARE, PROBE_FRAME_BYTES)

    def _give_way(self) -> None:
        """Send less while the path is probed; our own queue drains meanwhile."""
        self._probing = True
        path_s = self.rtt_s - self.queue_s
        self._resume_bytes = self.limit_bytes
        limit = DEEP * self.rate_bytes_s * self._path.rtt_s
        if not self._path.is_deep:
            share = (path_s - self._target_s()) / self.rtt_s
            limit = max(limit, self.limit_bytes * min(share, 1.0) * 0.9)
        self._set_limit(min(limit, self.limit_bytes))
        self.frame_bytes = self._probe_frame_bytes

    def _resume(self) -> None:
        self._probing = self._has_given_way = False
        limit = self._resume_bytes
        if self._path.phase is CONTENDED:  # to give way was in vain
            limit = max(limit, self._queued_since_bytes)
            self._rates = []  # grow from here
        else:
            limit = min(limit, self._right_bytes())
        self._set_limit(limit)

    # --- for people ---------------------------------------------------------------------------

    @property
    def is_starting(self) -> bool:
        """True until a queue has been seen, after each beginning."""
        return bool(self._start_up)

    def stalls(self, now: float) -> int:
        """How often delivery stopped for a round trip lately: segments are being lost."""
        while self._stalls and now - self._stalls[0] > STALLS_S:
            self._stalls.popleft()
        return len(self._stalls)

    def statistics(self, now: float) -> Dict[str, object]:
        """What decides about speed and latency just now: bytes, seconds, bytes per second."""
        return {
            "phase": self._path.phase
            if self._probing or self._path.phase is not PROBING
            else STEADY,
            "limit_bytes": self.limit_bytes,
            "rate_bytes_s": self.rate_bytes_s,
            "rtt_s": self.rtt_s,
            "min_rtt_s": self._path.rtt_s if self.rtt_s else 0.0,
            "queue_s": self.queue_s,
            "frame_bytes": self.frame_bytes,
            "stalls": self.stalls(now),
            "starting": int(self.is_starting),
        }
