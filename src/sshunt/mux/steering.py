"""Which lane what takes. Pure: it looks at what the lanes know, and sends nothing.

    what is urgent   control, datagrams, streams that send little: the lane whose answers come
                     soonest (``is_swiftest``); a lane is stalled when its oldest frame has waited
                     longer than its round trips were, however short those were
    a few bytes      the next best lane, too, where they are of a stream that sends little: the
                     receiver takes what comes first (``second``)
    floods           datagrams of flows that send much: one lane, until it stalls
                     (``carries_floods``)
    bulk             any lane that lets it, but for the newest of several while the others lose
                     segments: it is kept free for what is urgent (``reserve_newest``)

A lane that takes no more bytes (``is_blocked``) is nobody's choice. Invariant: of the lanes that
take bytes, exactly one is the swiftest at any moment; so what is urgent never waits for a lane that
leaves it to another one.

Not here: how much a lane may carry (lanes, pacer), whose turn it is (scheduler).
"""

from typing import Dict, List, Optional

from sshunt.mux.lanes import Lane
from sshunt.mux.pacer import LOSS_STALLS

#: How long a lane that carries floods may give no answer before they leave it: round trips, and
#: what processes may need for their turn. Sooner would cost their order each time, which those who
#: control their rate take for loss.
LEAVE_RTTS, LEAVE_S = 1.5, 0.05


class Steering:
    """Chooses among ``lanes``, which are the session's."""

    __slots__ = ("_flooded", "_lanes")

    def __init__(self, lanes: Dict[int, Lane]) -> None:
        self._lanes = lanes
        self._flooded: Optional[Lane] = None  # it carries the floods

    def is_swiftest(self, lane: Lane, now: float) -> bool:
        """True if what is urgent should take this lane."""
        lanes = [each for each in self._lanes.values() if not each.is_blocked]
        return lane is min(lanes, default=lane, key=lambda each: each.expected_s(now))

    def carries_floods(self, lane: Lane, now: float) -> bool:
        """True if datagrams of flows that send much should take this lane."""
        current = self._flooded
        if (
            current is None
            or self._lanes.get(current.id) is not current
            or current.is_reserved
            or (current.unanswered_s(now) > LEAVE_RTTS * current.rtt_s + LEAVE_S)
        ):
            lanes = [each for each in self._lanes.values() if not each.is_reserved]
            current = min(lanes, default=lane, key=lambda each: each.expected_s(now))
            self._flooded = current
        return lane is current

    def second(self, lane: Lane, now: float) -> Optional[Lane]:
        """The lane that should carry what ``lane`` carries as well; None if there is none."""
        others = [each for each in self._lanes.values() if each is not lane and not each.is_blocked]
        return min(others, default=None, key=lambda each: each.expected_s(now))

    def to_fill(self, now: float, urgent: bool, sparse: bool, bulk: bool) -> List[int]:
        """The lanes that there is something for, in the order in which they should be filled: with
        what is ``urgent`` or of ``sparse`` streams, those first whose answers come soonest. What
        they have no room for, and what is to go over two, is then found by those behind them.
        """
        if len(self._lanes) < 2:
            return list(self._lanes)
        lanes = list(self._lanes.values())
        if urgent or sparse:
            lanes.sort(key=lambda each: each.expected_s(now))
        to_fill = []
        for lane in lanes:
            wanted = sparse or lane.has_own_work(now)  # the sparse may be for any of them
            if urgent and not lane.is_blocked:  # the others would be told to leave it to this one
                wanted, urgent = True, False
            if bulk and lane.takes_bulk(now):
                wanted = True
            elif bulk and not lane.is_reserved:
                lane.pacer.on_limited(now)
            if wanted:
                to_fill.append(lane.id)
        return to_fill

    def reserve_newest(self, now: float) -> None:
        """Keep the newest of several lanes free of bulk while those that carry bulk lose segments:
        what is urgent then never waits for a segment that is sent again.
        """
        if len(self._lanes) < 3:
            for lane in self._lanes.values():
                lane.is_reserved = False
            return
        newest = self._lanes[max(self._lanes)]
        others = [each for each in self._lanes.values() if each is not newest]
        stalls = sum(lane.pacer.stalls(now) for lane in others)
        # Those that have just joined can't have lost much yet.
        tried = sum(not lane.pacer.is_starting for lane in others)
        enough = LOSS_STALLS * (1 if newest.is_reserved else max(tried, 1))
        newest.is_reserved = stalls >= enough
        for lane in others:
            lane.is_reserved = False
