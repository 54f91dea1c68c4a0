"""Asks the pacers of both ends what they measure, while there is traffic.

    our own side            is asked directly: what it sends is "up"
    the far side's agent    by a flow of STATISTICS: what it sends is "down"

Whatever either says goes to the pool, which may open further lanes for it, and now and then to the
Report.

Not here: what the figures mean (statistics, demand), the line that a person reads of them (tell).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from sshunt.mux import frames
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.relay.tunnel import Tunnel
from sshunt.remote.pool import Pool
from sshunt.remote.statistics import (
    Statistics,
    parse_statistics_untrusted,
    statistics_untrusted,
)
from sshunt.tell.report import LaneMeasured, Report, StatisticsRefused

#: The interval at which the pacers are asked, if at least this much was moved in it.
ASK_EVERY_S = 0.15
ASK_FROM_BYTES = 7_500

#: Questions that may be under way: with seven a second, a path of nine seconds has as many. What
#: was not asked for is no answer.
MOST_QUESTIONS = 64

#: The interval at which the figures of a direction are reported.
REPORT_EVERY_S = 0.5

#: A lane that delivers less is not worth a word.
BUSY_BYTES_S = 10_000.0


class Telemetry:
    """Asks both ends until stopped, and passes on what they say. ``remote``: the far side's name
    for people.
    """

    def __init__(self, remote: str, pool: Pool, report: Report) -> None:
        self._remote = remote
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._report = report
        self._questions = Questions(self._on_answer)
        self._next_report_at: dict[str, float] = {}  # by direction

    async def run(self) -> None:
        """Ask now and then, while there is traffic. Does not end by itself."""
        before = self._pool.moved()
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            after = self._pool.moved()
            moved = after.sent - before.sent + after.received - before.received
            before = after
            self._pool.close_idle()
            if moved >= ASK_FROM_BYTES:
                self._on_statistics("up", statistics_untrusted(self._pool.tunnel.statistics()))
                self._questions.ask(self._pool.tunnel)

    def _on_answer(self, answer: bytes) -> None:
        try:
            statistics = parse_statistics_untrusted(answer)
        except RemoteProtocolError as error:
            self._report.say(StatisticsRefused(self._remote, str(error)))
            return
        self._on_statistics("down", statistics)

    def _on_statistics(self, direction: str, statistics: Statistics) -> None:
        self._pool.look(statistics)
        now = self._loop.time()
        if now >= self._next_report_at.get(direction, now):
            self._next_report_at[direction] = now + REPORT_EVERY_S
            for event in measured(self._remote, direction, statistics):
                self._report.say(event)


class Questions:
    """Asks the far side for its statistics. ``hear`` gets what it answers, undecoded."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._asked: deque[DatagramFlow] = deque()  # and not answered, oldest first

    def ask(self, tunnel: Tunnel) -> None:
        """Ask once more, the far side at the end of ``tunnel``; a question that is too old will not
        be answered any more, and one of an earlier session is over already.
        """
        if len(self._asked) >= MOST_QUESTIONS:
            tunnel.give_up(self._asked.popleft())
        flow = tunnel.ask(frames.STATISTICS, b"", self)
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


def measured(remote: str, direction: str, statistics: Statistics) -> Iterator[LaneMeasured]:
    """What there is to tell: each lane with traffic."""
    for number, lane in statistics.lanes.items():
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
            control_frames=statistics.control_frames,
            sparse_bytes=statistics.sparse_bytes,
            bulk_bytes=statistics.bulk_bytes,
            teed_bytes=statistics.teed_bytes,
            spliced_bytes=statistics.spliced_bytes,
        )
