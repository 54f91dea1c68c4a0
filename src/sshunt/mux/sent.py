"""Frames that ask for an acknowledgement: what each does when that has come, or when its lane died.

    Sent             PING, DATAGRAM, second copies   lost is lost
    SentOpening      DATAGRAM that opens its flow    the flow is known / lost is lost
    SentData         DATA                            released / goes back to its sender
    SentFin          FIN                             - / leaves again
    SentControl      OPENED RESET GOODBYE ...        - / leaves again, in its old place
    SentOpen         OPEN                            any lane may carry the stream / none may
    SentWindow       WINDOW                          - / the newest limit leaves instead

Frames other than DATA and FIN wait in a queue before they leave (``ControlQueue``). A WINDOW is
encoded when it does: the newest limit, once.

Invariants: a frame is acknowledged or lost, once (lanes); control frames that were lost leave in
their old order, before newer ones.
"""

from collections import deque
from typing import Deque, List

from sshunt.mux import frames
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import Scheduler
from sshunt.mux.streams import ANY_LANE, CLOSED, NO_LANE, Stream


class Sent:
    """One such frame. Its lane notes when it left, at which position it ends, and how many bytes of
    the same burst left just before it, so that it had to wait for them.
    """

    __slots__ = ("ahead_bytes", "end", "sent_at")

    end: int
    sent_at: float
    ahead_bytes: int

    def on_acked(self) -> None:
        """The other side has processed it."""

    def on_lost(self, recovery: "Recovery") -> None:
        """Its lane died, and nobody knows whether it arrived."""


class SentOpening(Sent):
    """A datagram that says what its flow is."""

    __slots__ = ("_flow",)

    def __init__(self, flow: DatagramFlow) -> None:
        self._flow = flow

    def on_acked(self) -> None:
        """The next ones need not say it."""
        self._flow.is_known = True


class SentData(Sent):
    """DATA: the sender's copy of the payload."""

    __slots__ = ("_offset", "_payload", "_stream")

    def __init__(self, stream: Stream, offset: int, payload: Payload) -> None:
        self._stream = stream
        self._offset = offset
        self._payload = payload

    def on_acked(self) -> None:
        """Nobody needs the copy any more."""
        self._payload.release()

    def on_lost(self, recovery: "Recovery") -> None:
        """It goes before everything new of its stream."""
        self._stream.sender.give_back(self._offset, self._payload)
        recovery.resume(self._stream)


class SentFin(Sent):
    """FIN."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def on_lost(self, recovery: "Recovery") -> None:
        """The stream has to say it again."""
        self._stream.sender.give_back_fin()
        recovery.resume(self._stream)


class SentControl(Sent):
    """Any other reliable frame; ``raw`` is all of it."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def leave(self, lane_id: int) -> bytes:
        """It goes by this lane: its bytes; none if it has lost its purpose."""
        return self.raw

    def on_lost(self, recovery: "Recovery") -> None:
        """It leaves again."""
        recovery.control.append(self)


class SentOpen(SentControl):
    """OPEN: until it was acknowledged its stream is pinned to its lane."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream, raw: bytes) -> None:
        self.raw = raw
        self._stream = stream

    def leave(self, lane_id: int) -> bytes:
        """No other lane may carry the stream now."""
        self._stream.pinned_lane = lane_id
        return self.raw

    def on_acked(self) -> None:
        """Any lane may."""
        self._stream.pinned_lane = ANY_LANE

    def on_lost(self, recovery: "Recovery") -> None:
        """None may, before it has left again."""
        self._stream.pinned_lane = NO_LANE
        recovery.control.append(self)


class SentWindow(SentControl):
    """WINDOW."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        super().__init__(b"")
        self._stream = stream

    def leave(self, lane_id: int) -> bytes:
        """The limit as it is now."""
        stream = self._stream
        if stream.receiver.final is not None or stream.receiver.state is CLOSED:
            return b""
        stream.window_waits = False
        stream.window_serial += 1
        return frames.encode_window(stream.id, stream.receiver.window.limit, stream.window_serial)

    def on_lost(self, recovery: "Recovery") -> None:
        """What holds is the newest limit."""
        recovery.tell_window(self._stream)


class ControlQueue:
    """Reliable frames other than DATA and FIN that wait for a lane, in their order."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: Deque[SentControl] = deque()

    def append(self, raw: bytes) -> None:
        """``raw`` is a frame."""
        self.waiting.append(SentControl(raw))

    def open(self, stream: Stream, raw: bytes) -> None:
        """``raw`` is the stream's OPEN."""
        self.waiting.append(SentOpen(stream, raw))

    def tell_window(self, stream: Stream) -> None:
        """The peer is to hear of the stream's limit."""
        if not stream.window_waits:
            stream.window_waits = True
            self.waiting.append(SentWindow(stream))

    def give_back(self, lost: List[SentControl]) -> None:
        """These have left before, in this order, and must leave again."""
        self.waiting.extendleft(reversed(lost))


class Recovery:
    """What becomes of a dead lane's frames. ``control`` are those that leave again as they are."""

    def __init__(
        self, scheduler: Scheduler, waiting: ControlQueue, now: float, rtt_s: float
    ) -> None:
        self._scheduler = scheduler
        self._now, self._rtt_s = now, rtt_s
        self.tell_window = waiting.tell_window
        self.control: List[SentControl] = []

    def resume(self, stream: Stream) -> None:
        """It has something to send again."""
        self._scheduler.activate(stream, self._now, self._rtt_s)
