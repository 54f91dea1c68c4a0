"""One lane: an ordered, reliable byte pipe (one ssh channel), and what is unacknowledged on it.

A lane loses nothing while it lives; what it can do is die, and then nobody knows how much of what
was written arrived. So each side tells how many bytes of the lane it has *processed* (LANE_ACK),
and the sender remembers for every frame that matters the lane position where it ended. An
acknowledgement releases those up to its position; that frees the sender's copy of the data,
measures the round-trip time and feeds the pacer. When the lane dies, what is left goes back to the
session.

    RELIABLE     all others: DATA WINDOW OPEN RESET ...       goes back when the lane dies
    UNRELIABLE   PING DATAGRAM                               asks for an ack, is not sent again
    SILENT       LANE_ACK                                    asks for nothing: acks are never acked

The position counts every byte behind HELLO, of whatever frame. Invariants: acked <= sent; entries
are in order of their end; a frame is released exactly once (acked or given back).

Not here: what goes on the lane (outgoing), how much of it (pacer), liveness and reconnecting
(remote.keeper).
"""

from collections import deque
from typing import Deque, List, NamedTuple, Optional, Tuple

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.frames import FrameReader
from sshunt.mux.limits import (
    ACK_DELAY_S,
    ACK_EVERY_BYTES,
    LANE_IN_FLIGHT_BYTES,
    LANE_IN_FLIGHT_FRAMES,
    MAX_DUPLICATES,
    SPARSE_RESERVE_BYTES,
)
from sshunt.mux.pacer import Pacer
from sshunt.mux.path import Path
from sshunt.mux.payload import Payload
from sshunt.mux.sent import Sent
from sshunt.mux.streams import Stream

#: The longest pause between two frames of a burst.
BURST_S = 0.0003

#: Weight of a new round-trip sample in the smoothed one (RFC 6298).
RTT_WEIGHT = 1 / 8


class Duplicate(NamedTuple):
    """A frame that another lane carries, too: DATA, or without stream and payload a DATAGRAM."""

    stream: Optional[Stream]
    head: bytes
    payload: Optional[Payload] = None


class Lane:
    """The state of one lane, both directions. ``now`` is in seconds of any monotonic clock, the
    same for all lanes; ``path`` is what it shares with the session's other lanes.
    """

    __slots__ = (
        "_acked_at",
        "_burst_at",
        "_burst_bytes",
        "_eliciting_end",
        "_last_at",
        "_newest_at",
        "_unacked_bytes",
        "ack_due",
        "acked",
        "id",
        "in_flight_bytes",
        "is_blocked",
        "is_reserved",
        "last_heard_at",
        "outstanding",
        "pacer",
        "ping_wanted",
        "reader",
        "received",
        "rtt_s",
        "sent",
        "duplicates",
    )

    def __init__(self, lane_id: int, now: float, path: Optional[Path] = None) -> None:
        self.id = lane_id
        self.reader = FrameReader()
        # Sending.
        self.sent = 0  # position: bytes handed out for this lane
        self.acked = 0  # position that the peer has processed
        self.in_flight_bytes = 0  # that may still be under way; a trailing ack of ours is not
        self.outstanding: Deque[Sent] = deque()
        self._eliciting_end = 0  # end of the last frame that asked for an ack
        self._acked_at = now
        self._burst_at = now  # when its newest frame left
        self._burst_bytes = 0
        self._last_at = now  # when something that asked for an ack was sent or acknowledged
        self.pacer = Pacer(path or Path())
        self.ping_wanted = False
        self.duplicates: Deque[Duplicate] = deque(maxlen=MAX_DUPLICATES)  # to send, once
        self.is_reserved = False  # for what is urgent: no bulk for now
        self.is_blocked = False  # it takes nothing now: see Session.set_writable
        self.rtt_s = 0.0  # smoothed; 0 until measured
        # Receiving.
        self.received = 0  # position: bytes processed
        self.last_heard_at = now
        self._unacked_bytes = 0  # of frames that ask for an ack
        #: When an acknowledgement must have left; None if nothing waits for one.
        self.ack_due: Optional[float] = None
        self._newest_at = now  # when the newest of them came

    # --- sending ------------------------------------------------------------------------------

    @property
    def room_bytes(self) -> int:
        """How much may be added, control frames included, before the peer must acknowledge."""
        if len(self.outstanding) >= LANE_IN_FLIGHT_FRAMES:
            return 0
        return LANE_IN_FLIGHT_BYTES - self.in_flight_bytes

    @property
    def sparse_room_bytes(self) -> int:
        """How much may be added of streams that send little; negative if more is there already."""
        return self.pacer.limit_bytes + SPARSE_RESERVE_BYTES - self.in_flight_bytes

    def expected_s(self, now: float) -> float:
        """How long an answer to what is sent now will take, as far as can be known."""
        waited_s = now - self.outstanding[0].sent_at if self.outstanding else 0.0
        return max(self.rtt_s, waited_s)

    def unanswered_s(self, now: float) -> float:
        """For how long an acknowledgement has been due and none has come; 0 if none is."""
        if not self.outstanding:
            return 0.0
        return now - max(self.outstanding[0].sent_at, self._acked_at)

    def takes_bulk(self, now: float) -> bool:
        """True if a frame of bulk may leave now; ``pacer.next_at`` says when if only time is short.

        An empty lane always takes one, or a limit below a frame would stop it for ever.
        """
        if self.is_reserved:
            return False
        pacer = self.pacer
        in_flight = self.in_flight_bytes
        if in_flight and in_flight + pacer.frame_bytes > pacer.limit_bytes:
            return False
        return now >= pacer.next_at

    def has_own_work(self, now: float) -> bool:
        """True if something has to leave by this lane now, whatever the others do."""
        if self.ping_wanted or self.duplicates:
            return True
        return self.ack_due is not None and self.ack_due <= now

    def note_silent(self, size: int) -> None:
        """An acknowledgement of ours of ``size`` bytes goes out."""
        self.sent += size
        if self.in_flight_bytes:
            self.in_flight_bytes += size

    def note_sent(self, size: int, now: float, sent: Sent) -> None:
        """A frame of ``size`` bytes that asks for an acknowledgement goes out."""
        if not self.outstanding:
            self.pacer.on_idle(now - self._last_at)
        self._last_at = now
        if now - self._burst_at > BURST_S:
            self._burst_bytes = 0
        sent.ahead_bytes = self._burst_bytes
        self._burst_at = sent.sent_at = now
        self._burst_bytes += size
        self.sent = self._eliciting_end = sent.end = self.sent + size
        self.in_flight_bytes = self.sent - self.acked
        self.outstanding.append(sent)

    def acknowledge(self, position: int, held_s: float, arrived_us: int, now: float) -> List[Sent]:
        """The peer has processed everything up to ``position``, the newest of it when its own clock
        said ``arrived_us``; the frames that this releases.
        """
        if position > self.sent:
            raise RemoteProtocolError("ack of %d, sent %d" % (position, self.sent))
        released: List[Sent] = []
        outstanding = self.outstanding
        while outstanding and outstanding[0].end <= position:
            released.append(outstanding.popleft())
        self.acked = max(self.acked, position)
        self.in_flight_bytes = self.sent - self.acked if self.acked < self._eliciting_end else 0
        if released:
            newest = released[-1]
            sent_at = newest.sent_at
            self._last_at = self._acked_at = now
            # A peer that exaggerates ``held`` can't make time negative.
            sample_s = max(now - sent_at - held_s, 1e-6)
            before_s = self.rtt_s or sample_s
            self.rtt_s = before_s + (sample_s - before_s) * RTT_WEIGHT
            self.pacer.on_ack(
                self.acked,
                self.sent,
                sent_at,
                held_s,
                arrived_us,
                now,
                newest.ahead_bytes,
                released[0].sent_at,
            )
        return released

    # --- receiving ----------------------------------------------------------------------------

    def note_processed(
        self,
        size: int,
        eliciting_bytes: int,
        urgent: bool,
        now: float,
        delay_s: float = ACK_DELAY_S,
    ) -> None:
        """``size`` bytes were processed, ``eliciting_bytes`` of them in frames that ask for an ack.

        ``urgent``: one of those asks for nothing but the time, so the ack is due at once; else it
        may be held for ``delay_s``.
        """
        self.received += size
        self.last_heard_at = now
        if not eliciting_bytes:
            return
        self._unacked_bytes += eliciting_bytes
        self._newest_at = now
        if urgent or self._unacked_bytes >= ACK_EVERY_BYTES:
            self.ack_due = now
        elif self.ack_due is None:
            self.ack_due = now + delay_s

    def take_ack(self, now: float) -> Tuple[int, float, float]:
        """(position, seconds held, when the newest came) of the ack that now goes out."""
        self._unacked_bytes = 0
        self.ack_due = None
        return self.received, now - self._newest_at, self._newest_at
