"""The streams of a session: which there are, by whom they were opened, and what they may receive.

    ours     the client's have odd numbers, the agent's even ones, ascending without a gap
    theirs   come in any order, for lanes overtake each other (seen)
    over     both halves are, and all that was received was consumed: the stream is forgotten, its
             number never used again

A stream's window is promised by the session (windows): where places for larger ones are short,
those who don't use theirs are asked to give it back.

Invariants: either side has at most as many streams open as the other allows; a frame of a stream
that never was is an error of the peer, one of a stream that is over is not.

Not here: what streams send and receive (streams), what their events are (session).
"""

from typing import Dict, Optional

from sshunt.mux import frames
from sshunt.mux.early import PieceCount
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.frames import Destination
from sshunt.mux.hello import CLIENT
from sshunt.mux.limits import (
    CONTROL_QUEUE_FRAMES,
    INITIAL_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
)
from sshunt.mux.seen import SeenStreams
from sshunt.mux.sent import ControlQueue
from sshunt.mux.streams import ANY_LANE, FINISHED, NO_LANE, QueueTotal, Receiver, Sender, Stream
from sshunt.mux.windows import ReceiveWindow, SessionCredit


class StreamTable:
    """``role`` is hello.CLIENT or hello.AGENT; ``window_bytes`` and ``max_streams`` are what the
    peer allows. What is to be told about streams waits in ``control``.
    """

    def __init__(
        self, role: int, window_bytes: int, max_streams: int, control: ControlQueue
    ) -> None:
        self.streams: Dict[int, Stream] = {}
        self.peer_window_bytes = min(window_bytes, MAX_WINDOW_BYTES)
        self.peer_max_streams = min(max_streams, MAX_STREAMS)
        self.credit = SessionCredit()
        self.early = PieceCount()
        self.queued = QueueTotal()
        self.now = 0.0  # of the session's last call that knew it
        self.control = control
        self._next_id = 1 if role == CLIENT else 2
        self._peer_parity = 0 if role == CLIENT else 1
        self._seen = SeenStreams(2 - self._peer_parity)
        self._peer_streams = 0

    # --- opening ------------------------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """False while as many streams are open, or wait for a lane, as the peer allows."""
        return (
            len(self.streams) < self.peer_max_streams
            and len(self.control.waiting) < MAX_STREAMS
            and self._next_id < frames.MAX_STREAM
        )

    def open(self, destination: Destination) -> Stream:
        """A new stream of ours; its OPEN waits for a lane."""
        if not self.can_open:
            raise LocalProtocolError("too many streams")
        number = self._next_id
        window = ReceiveWindow(self.credit, number, self.now, INITIAL_WINDOW_BYTES)
        try:
            raw = frames.encode_open(number, destination, window.limit)
        except LocalProtocolError:
            window.close()
            raise
        self._next_id += 2
        stream = self._new_stream(self.peer_window_bytes, window, NO_LANE)
        self.control.open(stream, raw)
        return stream

    def open_theirs(self, number: int, window_bytes: int) -> Optional[Stream]:
        """The peer has opened one, and gives it so much credit; None if it was opened before, or
        there are too many (which the peer is told). Raises RemoteProtocolError.
        """
        if number % 2 != self._peer_parity or not number:
            raise RemoteProtocolError("OPEN of our own stream %d" % number)
        if number in self._seen:
            return None  # came before, over a lane that died
        if len(self.control.waiting) > CONTROL_QUEUE_FRAMES:
            raise RemoteProtocolError("the peer opens streams and does not read the answers")
        self._seen.add(number)
        if self._peer_streams >= MAX_STREAMS:
            self.control.append(frames.encode_reset(number, frames.RESET_NO_RESOURCES))
            return None
        self._peer_streams += 1
        window = ReceiveWindow(self.credit, number, self.now)
        return self._new_stream(min(window_bytes, MAX_WINDOW_BYTES), window, ANY_LANE)

    def _new_stream(self, credit: int, window: ReceiveWindow, pinned_lane: int) -> Stream:
        """One that may send ``credit`` bytes, and receive what ``window`` says."""
        stream = Stream(Sender(credit, self.queued), Receiver(window, self.early), pinned_lane)
        self.streams[stream.id] = stream
        if self.credit.is_short:
            self.make_places()
        return stream

    def make_places(self) -> None:
        """Call back the larger windows of streams that don't use them."""
        self.credit.is_short = False
        now = self.now
        for number in self.credit.idle(now):
            stream = self.streams[number]
            receiver, window = stream.receiver, stream.receiver.window
            if receiver.final is not None:
                window.shrink_to(receiver.final, now)
            elif stream.pinned_lane != ANY_LANE:
                window.keep(now)  # a WINDOW by another lane would overtake the OPEN
            elif window.recall(receiver.arrived, now):
                self.control.tell_window(stream)

    # --- finding and forgetting ---------------------------------------------------------------

    def find(self, number: int) -> Optional[Stream]:
        """The stream, None if it is over; raises RemoteProtocolError if it never was."""
        stream = self.live(number)
        if stream is None:
            self.check_known(number)
        return stream

    def live(self, number: int) -> Optional[Stream]:
        """The stream; None if there is none, or both sides have said all: then it is here for the
        sake of its reader alone.
        """
        stream = self.streams.get(number)
        if stream is None or stream.receiver.state is stream.sender.state is FINISHED:
            return None
        return stream

    def check_known(self, number: int) -> None:
        """Raise RemoteProtocolError if there never was a stream of this number."""
        if number % 2 == self._peer_parity:
            known = number > 0 and number in self._seen
        else:
            known = 0 < number < self._next_id
        if not known:
            raise RemoteProtocolError("frame of unknown stream %d" % number)

    def check_ours(self, number: int) -> None:
        """Raise RemoteProtocolError if the peer opens streams of this number."""
        if number % 2 == self._peer_parity:
            raise RemoteProtocolError("OPENED of its own stream %d" % number)

    def note_reset(self, number: int) -> None:
        """The peer has reset a stream that is not there; raises RemoteProtocolError."""
        if number % 2 == self._peer_parity and number and number not in self._seen:
            self._seen.add(number)  # overtook its OPEN, which must find it closed
        else:
            self.check_known(number)

    def forget_if_over(self, stream: Stream) -> None:
        """Forget it if neither side has anything more to say and all that came was consumed."""
        if stream.is_over:
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """It is over."""
        if self.streams.pop(stream.id, None) is None:
            return
        stream.receiver.window.close()
        if stream.id % 2 == self._peer_parity:
            self._peer_streams -= 1
