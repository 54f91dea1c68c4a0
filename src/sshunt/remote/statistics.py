"""What the pacers of one end measure, as values: decoded as strictly as anything from the far side.

The sender of a direction decides how much is in flight, so for downloads it is the agent that has
measured something.

Not here: how it is asked (telemetry), what follows from it (demand).
"""

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import MAX_LANES
from sshunt.mux.path import CONTENDED, PROBING, STEADY


@dataclass(frozen=True, slots=True)
class LaneStatistics:
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
class Statistics:
    """One side of the session: its lanes by number, what waits for them, by class, and what it has
    sent and received so far without copying it.
    """

    lanes: dict[int, LaneStatistics]
    control_frames: float
    datagram_bytes: float
    sparse_bytes: float
    bulk_bytes: float
    teed_bytes: float = 0.0
    spliced_bytes: float = 0.0


def parse_statistics_untrusted(data: bytes) -> Statistics:
    """The far side's answer; raises RemoteProtocolError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("statistics that are no JSON")
    return statistics_untrusted(found)


def statistics_untrusted(found: Any) -> Statistics:
    """The same, decoded already: what ``Tunnel.statistics`` returns."""
    if not isinstance(found, dict) or not isinstance(found.get("lanes"), dict):
        raise RemoteProtocolError("statistics without lanes")
    lanes: dict[int, LaneStatistics] = {}
    for number, lane in list(found["lanes"].items())[:MAX_LANES]:
        if not (isinstance(number, str) and number.isascii() and number.isdigit()):
            raise RemoteProtocolError("statistics of no lane")
        if not isinstance(lane, dict) or lane.get("phase") not in (STEADY, PROBING, CONTENDED):
            raise RemoteProtocolError("statistics in no phase")
        numbers = {
            field.name: _number(lane.get(field.name))
            for field in fields(LaneStatistics)
            if field.name != "phase"
        }
        lanes[int(number[:6])] = LaneStatistics(phase=lane["phase"], **numbers)
    rest = [field for field in fields(Statistics) if field.name != "lanes"]
    return Statistics(lanes, **{f.name: _number(found.get(f.name, f.default)) for f in rest})


def _number(value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RemoteProtocolError("statistics without a number")
    return number
