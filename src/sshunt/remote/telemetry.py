"""What the pacers at both ends believe, as values.

The sender of a direction decides how much is in flight, so for downloads it is the agent that
believes something, and it is asked (a flow of STATISTICS). What it answers is shown, and
decides whether further lanes are opened (``pool``); it is decoded as strictly as anything from
there.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from sshunt.mux import frames
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.path import CONTENDED, PROBING, STEADY
from sshunt.relay.tunnel import Tunnel
from sshunt.tell.report import LaneMeasured

#: More lanes than a client opens are not looked at.
MAX_LANES = 64

#: Questions that may be under way: with seven a second, a path of nine seconds has as many. What
#: was not asked for is no answer.
MOST_QUESTIONS = 64

#: A lane that delivers less is not worth a word.
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


def measured(remote: str, direction: str, beliefs: Beliefs) -> Iterator[LaneMeasured]:
    """What there is to tell: each lane with traffic."""
    for number, lane in beliefs.lanes.items():
        if lane.rate_bytes_s < BUSY_BYTES_S or not lane.in_flight_bytes:
            continue
        yield LaneMeasured(
            remote,
            number,
            direction,
            phase=lane.phase,
            rate_bytes_s=lane.rate_bytes_s,
            rtt_s=lane.rtt_s,
            min_rtt_s=lane.min_rtt_s,
            queue_s=lane.queue_s,
            in_flight_bytes=lane.in_flight_bytes,
            limit_bytes=lane.limit_bytes,
            control_frames=beliefs.control_frames,
            sparse_bytes=beliefs.sparse_bytes,
            bulk_bytes=beliefs.bulk_bytes,
            teed_bytes=beliefs.teed_bytes,
            spliced_bytes=beliefs.spliced_bytes,
        )


class Questions:
    """Asks the far side for its statistics. ``hear`` gets what it answers, undecoded."""

    def __init__(self, tunnel: Tunnel, hear: Callable[[bytes], None]) -> None:
        self._tunnel = tunnel
        self._hear = hear
        self._asked: deque[DatagramFlow] = deque()  # and not answered, oldest first

    def ask(self) -> None:
        """Ask once more; a question that is too old will not be answered any more."""
        if len(self._asked) >= MOST_QUESTIONS:
            self._tunnel.give_up(self._asked.popleft())
        flow = self._tunnel.ask(frames.STATISTICS, b"", self)
        if flow is not None:
            self._asked.append(flow)

    def on_datagram(self, event: DatagramReceived) -> None:
        """The far side has answered."""
        self._forget(event.flow)
        self._hear(event.data)

    def on_flow_failed(self, event: FlowFailed) -> None:
        """The far side could not take the question; its end follows."""

    def on_flow_ended(self, event: FlowEnded) -> None:
        """The far side will not answer."""
        self._forget(event.flow)

    def _forget(self, flow: DatagramFlow) -> None:
        if flow in self._asked:
            self._asked.remove(flow)
