"""How many lanes would help what is being sent: from what the pacers measure to a number. Pure.

One ssh channel has a window of 2 MiB: that is 168 Mbit/s at 100 ms, whatever the link. One TCP
connection on a path that loses segments collapses to a fraction of it. Several together don't, and
the protocol lets one stream use them all. On a link that one connection fills, more would gain
nothing.

    a direction has bulk waiting, and each of its lanes is limited by
        its channel's window    delivers WINDOW_SHARE of it or more per round trip, queue aside
        loss                    keeps stalling for a round trip, and nobody else fills the link
                                -> as many lanes as are allowed
    others fill the link        -> three: one that joins late gets a sixth of it for long
    a long path, and a start    no queue has been seen yet, and one lane may be too few soon
    that still grows            -> worth logging in for, ahead of need (``may_want_more``)

Not here: what is done about it (pool).
"""

from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import CONTENDED
from sshunt.relay.lane import CHANNEL_WINDOW_BYTES
from sshunt.remote.statistics import LaneStatistics, Statistics

#: Share of its channel's window that a lane delivers in a round trip of the empty path, from which
#: on it is limited by it, or will be soon: a login takes ten round trips.
WINDOW_SHARE = 0.4

#: Shortest path on which more lanes help. On shorter ones processors are the limit, and another
#: process would only need more of them.
LEAST_RTT_S = 0.005

#: A standing queue above this, and the path is full rather than lossy.
FREE_S, FREE_RTTS = 0.005, 0.1

#: Lanes beside somebody else's flow. Against one flow of TCP three come to between a quarter and a
#: half of the link in half a minute, to three quarters in the end. (Two: a sixth to a half.)
CONTENDED_LANES = 3

#: Round trip from which on a login takes a second, and one lane carries less than 300 Mbit/s; share
#: of the channel's window to which a start must have come, without a queue, to be worth a login
#: ahead of need (10 Mbit/s at 100 ms).
EARLY_RTT_S, EARLY_SHARE = 0.06, 0.06


def lanes_wanted(statistics: Statistics, most: int, *, channels: bool = False) -> int:
    """How many lanes what this side sends could use; 1 if its first is no limit. ``channels``: all
    would be on one connection.
    """
    if not statistics.bulk_bytes or not statistics.lanes:
        return 1
    lanes = statistics.lanes.values()
    if all(map(_is_limited_by_window, lanes)):
        return most
    if channels:
        return 1
    if all(_is_limited_by_window(lane) or _is_limited_by_loss(lane) for lane in lanes):
        return most
    if any(lane.phase == CONTENDED for lane in lanes):
        return min(CONTENDED_LANES, most)
    return 1


def may_want_more(statistics: Statistics) -> bool:
    """True if what this side sends may soon need more lanes than the one it has."""
    if not statistics.bulk_bytes or len(statistics.lanes) != 1:
        return False
    (lane,) = statistics.lanes.values()
    is_fast = lane.in_flight_bytes >= EARLY_SHARE * CHANNEL_WINDOW_BYTES
    return bool(lane.starting) and lane.min_rtt_s >= EARLY_RTT_S and is_fast


def _is_limited_by_window(lane: LaneStatistics) -> bool:
    most_in_flight = WINDOW_SHARE * CHANNEL_WINDOW_BYTES
    return lane.min_rtt_s >= LEAST_RTT_S and lane.rate_bytes_s * lane.min_rtt_s >= most_in_flight


def _is_limited_by_loss(lane: LaneStatistics) -> bool:
    # Where somebody else fills the link there is loss, too; more lanes would be an unfair answer.
    is_free = lane.phase != CONTENDED and lane.queue_s < FREE_S + FREE_RTTS * lane.min_rtt_s
    return lane.min_rtt_s >= LEAST_RTT_S and lane.stalls >= LOSS_STALLS and is_free
