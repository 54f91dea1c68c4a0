"""What the pacers at both ends believe, as values and as lines for -v.

The sender of a direction decides how much is in flight, so for downloads it is the agent that
believes something, and it is asked (DATAGRAM of kind BELIEFS). What it answers is shown, and
decides whether further lanes are opened (``pool``); it is decoded as strictly as anything from
there.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.path import CONTENDED, PROBING, STEADY

#: More lanes than a client opens are not looked at.
MAX_LANES = 64

#: A lane that delivers less is not worth a line.
BUSY_BYTES_S = 10_000.0


@dataclass(frozen=True, slots=True)
class LaneBeliefs:
    """One lane's pacer: see ``mux.pacer``. Seconds, bytes, bytes per second."""

    phase: str
    limit_bytes: float
    in_flight_bytes: float
    rate_bytes_s: float
    rtt_s: float
    min_rtt_s: float
    queue_s: float
    frame_bytes: float
    stalls: float
    starting: float  # 1: no queue has been seen yet, 0


@dataclass(frozen=True, slots=True)
class Beliefs:
    """One side of the session: its lanes by number, what waits for them, by class, and what it has
    sent and received so far without copying it.
    """

    lanes: dict[int, LaneBeliefs]
    control_frames: float
    datagram_bytes: float
    sparse_bytes: float
    bulk_bytes: float
    teed_bytes: float = 0.0
    spliced_bytes: float = 0.0


def parse_beliefs_untrusted(data: bytes) -> Beliefs:
    """The far side's answer; raises RemoteProtocolError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("beliefs that are no JSON")
    return beliefs_untrusted(found)


def beliefs_untrusted(found: Any) -> Beliefs:
    """The same, decoded already: what ``Tunnel.beliefs`` returns."""
    if not isinstance(found, dict) or not isinstance(found.get("lanes"), dict):
        raise RemoteProtocolError("beliefs without lanes")
    lanes: dict[int, LaneBeliefs] = {}
    for number, lane in list(found["lanes"].items())[:MAX_LANES]:
        if not (isinstance(number, str) and number.isascii() and number.isdigit()):
            raise RemoteProtocolError("beliefs of no lane")
        if not isinstance(lane, dict) or lane.get("phase") not in (STEADY, PROBING, CONTENDED):
            raise RemoteProtocolError("beliefs in no phase")
        numbers = {
            field.name: _number(lane.get(field.name))
            for field in fields(LaneBeliefs)
            if field.name != "phase"
        }
        lanes[int(number[:6])] = LaneBeliefs(phase=lane["phase"], **numbers)
    rest = [field for field in fields(Beliefs) if field.name != "lanes"]
    return Beliefs(lanes, **{f.name: _number(found.get(f.name, f.default)) for f in rest})


def _number(value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RemoteProtocolError("beliefs without a number")
    return number


def lines(direction: str, beliefs: Beliefs) -> Iterator[str]:
    """A line for each lane with traffic."""
    for number, lane in beliefs.lanes.items():
        if lane.rate_bytes_s < BUSY_BYTES_S or not lane.in_flight_bytes:
            continue
        yield (
            f"lane {number} {direction}: {lane.phase.lower()}, "
            f"{lane.rate_bytes_s * 8 / 1e6:.1f} Mbit/s, "
            f"RTT {lane.rtt_s * 1e3:.1f} ms (least {lane.min_rtt_s * 1e3:.1f}), "
            f"queue {lane.queue_s * 1e3:.1f} ms, "
            f"in flight {lane.in_flight_bytes / 1024:.0f} of {lane.limit_bytes / 1024:.0f} KiB; "
            f"waiting: {beliefs.control_frames:.0f} control frames, "
            f"{beliefs.sparse_bytes:.0f} sparse, {beliefs.bulk_bytes:.0f} bulk bytes; "
            f"zero-copy: {beliefs.teed_bytes / 1e6:.1f} MB sent, "
            f"{beliefs.spliced_bytes / 1e6:.1f} MB received"
        )
