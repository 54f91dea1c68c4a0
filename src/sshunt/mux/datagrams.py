"""All flows of a session: their numbers, what waits of them for a lane, what arrives of them. Pure.

    open     a number of our own: the client's are odd, the agent's even, none is in use twice
    send     queue a datagram; what is too much, or waits too long, is dropped
    fail     tell the other side that a datagram of its did not arrive; the flow goes on
    end      the flow is over; the other side is told

Whose turn it is (the scheme is fq_codel's, RFC 8290, with the scheduler's two classes): a *sparse*
flow, one that sent little in the last round trip, goes before *bulk*, and before all data; bulk
shares the lane with the streams' (outgoing), each flow for FLOW_QUANTUM_BYTES at a time. So a flood
waits for itself and hardly anybody for the flood. What has waited for too long is dropped where it
would leave (but errors and ends are never too old: sockets wait for them over there); where all of
it is too much, the flows lose their oldest in turn.

A flow of one of the QUESTIONS (DNS, statistics) is over with its answer, without a word: for whom
has asked when it has come, for whom has answered when it was sent.

Invariants: a flow's number is its alone until it is over at this end; queued bytes, ENTRY_BYTES for
each datagram included, are at most DATAGRAM_QUEUE_BYTES in all; either side has at most MAX_FLOWS
open. What a peer says of flows that are unknown here costs an answer at most, in the same queue.

Not here: which lane (steering), what flows are for and when one has been idle for too long: that is
for whoever serves them to say (``idle_s``).
"""

from collections import deque
from typing import Deque, Dict, List, Optional, Tuple

from sshunt.mux import datagram_frames as frames
from sshunt.mux.datagram_frames import Datagram, FlowTarget
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.events import DatagramReceived, Event, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow, Waiting
from sshunt.mux.hello import CLIENT
from sshunt.mux.limits import (
    DATAGRAM_AGE_S,
    DATAGRAM_BYTES,
    DATAGRAM_QUEUE_BYTES,
    DUPLICATE_BYTES,
    ENTRY_BYTES,
    FLOW_AGE_RTTS,
    FLOW_AGE_S,
    FLOW_QUANTUM_BYTES,
    FLOW_QUEUE_BYTES,
    MAX_FLOWS,
)
from sshunt.mux.scheduler import MIN_ROUND_S, SPARSE_BYTES
from sshunt.mux.sent import Sent, SentOpening

MAX_NUMBER = (1 << 32) - 1

#: What answers to unknown flows wait in: no flow has this number.
_NO_FLOW = 0


class Datagrams:
    """The flows of one side of a session. ``role`` is hello.CLIENT or hello.AGENT."""

    def __init__(self, role: int) -> None:
        self.flows: Dict[int, DatagramFlow] = {}
        self.dropped = 0
        self.queued_bytes = 0  # ENTRY_BYTES for each included
        self.waiting = 0  # datagrams, and what is said of flows
        self._first = self.next_number = 1 if role == CLIENT else 2
        self._ours = self._theirs = 0  # flows that each side has opened
        #: Flows with something to send: those that send little, and the others. Attributes, and not
        #: behind properties: they are looked at whenever something may leave.
        self.sparse: Deque[DatagramFlow] = deque()
        self.bulk: Deque[DatagramFlow] = deque()
        self._round_s = MIN_ROUND_S
        self._age_s = FLOW_AGE_S
        self._answers = DatagramFlow(_NO_FLOW, FlowTarget(0, "", 0), False, 0.0)

    # --- what the owner wants -----------------------------------------------------------------

    def note_rtt(self, rtt_s: float) -> None:
        """The path's round-trip time is this."""
        self._round_s = max(rtt_s, MIN_ROUND_S)
        self._age_s = max(FLOW_AGE_S, FLOW_AGE_RTTS * rtt_s)

    @property
    def can_open(self) -> bool:
        """False while as many flows of ours are open as may be."""
        return self._ours < MAX_FLOWS

    def open(self, target: FlowTarget, now: float) -> DatagramFlow:
        """A new flow to ``target``; the other side hears of it with the first datagram. Raises
        LocalProtocolError if there are too many, or for a host that can't be sent.
        """
        if not self.can_open:
            raise LocalProtocolError("too many flows")
        frames.encode_opening_head(self.next_number, target, 0)
        while self.next_number in self.flows:  # all numbers were used before, and this one still is
            self.next_number = self._following(self.next_number)
        flow = DatagramFlow(self.next_number, target, True, now)
        self.next_number = self._following(self.next_number)
        self.flows[flow.number] = flow
        self._ours += 1
        return flow

    def _following(self, number: int) -> int:
        return number + 2 if number + 2 <= MAX_NUMBER else self._first

    def send(self, flow: DatagramFlow, data: bytes, now: float, segment_bytes: int = 0) -> None:
        """Send one datagram, or several of ``segment_bytes`` each (the last may be shorter). What
        is sent on a flow that is over is dropped.
        """
        if len(data) > DATAGRAM_BYTES:
            raise LocalProtocolError("datagram of %d bytes" % len(data))
        if not self._is_open(flow):
            self.dropped += 1
            return
        flow.sent_at = now
        self._queue(flow, Waiting(now, data, segment_bytes), now)
        if flow.target.network in frames.QUESTIONS and not flow.is_ours:
            self._forget(flow)

    def fail(self, flow: DatagramFlow, code: int, now: float, value: int = 0) -> None:
        """A datagram of the flow did not arrive; ``code`` is one of frames.FLOW_*."""
        if self._is_open(flow):
            raw = frames.encode_flow_error(flow.number, code, value)
            self._queue(flow, Waiting(now, b"", raw=raw), now)

    def end(self, flow: DatagramFlow, now: float, code: int = frames.FLOW_DONE) -> None:
        """Nothing more will be sent or taken. May be called twice."""
        if self._is_open(flow):
            self._forget(flow)
            raw = frames.encode_flow_end(flow.number, code)
            self._queue(flow, Waiting(now, b"", raw=raw), now)

    def end_idle(self, now: float) -> List[DatagramFlow]:
        """End the flows that have been idle for longer than their ``idle_s``; which those were."""
        idle = [
            flow
            for flow in self.flows.values()
            if flow.idle_s and now - max(flow.sent_at, flow.heard_at) > flow.idle_s
        ]
        for flow in idle:
            self.end(flow, now)
        return idle

    def _is_open(self, flow: DatagramFlow) -> bool:
        """False for one that is over, as all those of a session before this one are."""
        return self.flows.get(flow.number) is flow

    def _forget(self, flow: DatagramFlow) -> None:
        """It is over here; what it has queued still leaves."""
        del self.flows[flow.number]
        if flow.is_ours:
            self._ours -= 1
        else:
            self._theirs -= 1

    # --- what leaves --------------------------------------------------------------------------

    @property
    def payload_bytes(self) -> int:
        """What waits for a lane, without what it costs besides."""
        return self.queued_bytes - ENTRY_BYTES * self.waiting

    def _queue(self, flow: DatagramFlow, waiting: Waiting, now: float) -> None:
        flow.add(waiting)
        size = len(waiting.data) + len(waiting.raw) + ENTRY_BYTES
        self.waiting += 1
        self.queued_bytes += size
        while flow.queued_bytes > FLOW_QUEUE_BYTES and len(flow.queue) > 1:
            self._drop_from(flow)
        if not flow.is_queued:
            flow.is_queued = True
            flow.credit_bytes = FLOW_QUANTUM_BYTES
            if now - flow.recent_at > self._round_s:
                flow.recent_at = now
                flow.recent_bytes = 0
            is_sparse = flow.recent_bytes + size <= SPARSE_BYTES
            (self.sparse if is_sparse else self.bulk).append(flow)
        while self.queued_bytes > DATAGRAM_QUEUE_BYTES:
            self._drop_one()

    def _drop_one(self) -> None:
        """Drop the oldest of the flow at the head of those that send much."""
        flows = self.bulk or self.sparse
        flow = flows.popleft()
        if flow.queue:
            self._drop_from(flow)
        if flow.queue:
            flows.append(flow)
        else:
            flow.is_queued = False

    def _drop_from(self, flow: DatagramFlow) -> None:
        self._take_from(flow, DATAGRAM_BYTES)
        self.dropped += 1

    def _take_from(self, flow: DatagramFlow, largest: int) -> Waiting:
        count, size_bytes = len(flow.queue), flow.queued_bytes
        waiting = flow.take(largest)
        self.waiting += len(flow.queue) - count  # 0 where a batch was divided
        self.queued_bytes += flow.queued_bytes - size_bytes
        return waiting

    def take(
        self,
        now: float,
        *,
        bulk: bool = True,
        largest: int = DATAGRAM_BYTES,
        numbered: bool = False,
    ) -> Optional[Tuple[Sent, bytes, bytes]]:
        """The next that leaves: (what to remember, what stands before the data, the data); None if
        none does. Without ``bulk`` only flows that send little are asked; batches of more than
        ``largest`` bytes are divided. ``numbered``: there is another lane for a copy; what should
        take that, too, has a serial then (``has_serial``).
        """
        while True:
            flows = self.sparse or (self.bulk if bulk else None)
            if not flows:
                return None
            flow = flows[0]
            age_s = DATAGRAM_AGE_S if flow.target.network in frames.QUESTIONS else self._age_s
            while flow.queue and now - flow.queue[0].queued_at > age_s and not flow.queue[0].raw:
                self._drop_from(flow)
            if not flow.queue:
                flows.popleft()
                flow.is_queued = False
            elif flow.credit_bytes <= 0:
                flow.credit_bytes += FLOW_QUANTUM_BYTES
                flows.popleft()
                (self.bulk if flow.recent_bytes > SPARSE_BYTES else flows).append(flow)
            else:
                return self._leave(flows, flow, largest, numbered and flows is self.sparse)

    def _leave(
        self, flows: Deque[DatagramFlow], flow: DatagramFlow, largest: int, numbered: bool
    ) -> Tuple[Sent, bytes, bytes]:
        """``flow`` has its turn in ``flows``."""
        waiting = self._take_from(flow, largest)
        size = len(waiting.data) + len(waiting.raw) + ENTRY_BYTES
        flow.credit_bytes -= size
        flow.recent_bytes += size
        if not flow.queue:
            flows.popleft()
            flow.is_queued = False
        opens = not flow.is_known and not waiting.raw
        # A copy that opens its flow, and comes when that is over, would be another flow.
        has_copy = numbered and flow.is_known and len(waiting.data) <= DUPLICATE_BYTES
        if flow.target.network in frames.QUESTIONS:
            has_copy = False
        head = flow.encode_head(waiting, numbered=has_copy)
        return SentOpening(flow) if opens else Sent(), head, waiting.data

    # --- what arrives -------------------------------------------------------------------------

    def receive(self, number: int, body: bytes, now: float) -> List[Event]:
        """A DATAGRAM of flow ``number``; raises RemoteProtocolError."""
        flow = self.flows.get(number)
        if flow is not None and flow.is_known and body[0] == frames.PLAIN:  # nearly always
            may_go_on = not flow.is_ours or flow.target.network not in frames.QUESTIONS
            if may_go_on and len(body) <= DATAGRAM_BYTES:
                flow.heard_at = now
                return [DatagramReceived(flow, body[1:])]
        found = frames.decode_datagram_untrusted(body)
        if not number:
            raise RemoteProtocolError("datagram of no flow")
        if found.kind in (frames.PLAIN, frames.BATCH):
            return self._on_datagram(number, flow, found, now)
        if found.kind == frames.OPENING:
            return self._on_opening(number, flow, found, now)
        if flow is None:
            return []
        if found.kind == frames.ERROR:
            return self._on_error(flow, found)
        if found.kind == frames.END:
            self._forget(flow)
            return [FlowEnded(flow, found.code)]
        return []

    def _is_ours(self, number: int) -> bool:
        return number % 2 == self._first % 2

    def _on_datagram(
        self, number: int, flow: Optional[DatagramFlow], found: Datagram, now: float
    ) -> List[Event]:
        if flow is None:
            if self._is_ours(number):
                raw = frames.encode_flow_end(number)
            else:
                raw = frames.encode_flow_error(number, frames.FLOW_UNKNOWN)
            self._queue(self._answers, Waiting(now, b"", raw=raw), now)
            return []
        if found.serial is not None and not flow.is_new(found.serial):
            return []
        flow.is_known = True
        flow.heard_at = now
        if flow.is_ours and flow.target.network in frames.QUESTIONS:
            self._forget(flow)
        return [DatagramReceived(flow, found.payload, found.segment_bytes)]

    def _on_opening(
        self, number: int, flow: Optional[DatagramFlow], found: Datagram, now: float
    ) -> List[Event]:
        if found.target is None or self._is_ours(number):
            raise RemoteProtocolError("opening of our own flow %d" % number)
        events: List[Event] = []
        if flow is not None and flow.target != found.target:
            # The number is used again, and the word of the end was lost.
            self._forget(flow)
            events.append(FlowEnded(flow, frames.FLOW_DONE))
            flow = None
        if flow is None:
            if self._theirs >= MAX_FLOWS:
                raw = frames.encode_flow_end(number, frames.FLOW_NO_RESOURCES)
                self._queue(self._answers, Waiting(now, b"", raw=raw), now)
                return events
            flow = DatagramFlow(number, found.target, False, now)
            self.flows[number] = flow
            self._theirs += 1
        return events + self._on_datagram(number, flow, found, now)

    def _on_error(self, flow: DatagramFlow, found: Datagram) -> List[Event]:
        if found.code == frames.FLOW_UNKNOWN:
            flow.is_known = not flow.is_ours
            return []
        return [FlowFailed(flow, found.code, found.value)]
