"""What becomes of each kind of frame: acknowledged, or lost with its lane."""

from sshunt.mux import frames
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import Scheduler
from sshunt.mux.sent import (
    ControlQueue,
    Recovery,
    Sent,
    SentControl,
    SentData,
    SentFin,
    SentOpen,
    SentWindow,
)
from sshunt.mux.streams import ANY_LANE, FINISHED, FINISHING, NO_LANE
from tests.unit.mux.ends import read_frames, stream_of


class Loss:
    """Where what was lost goes."""

    def __init__(self) -> None:
        self.scheduler, self.waiting = Scheduler(), ControlQueue()
        self.recovery = Recovery(self.scheduler, self.waiting, 1.0, 0.1)

    def of(self, *lost: Sent) -> list[SentControl]:
        """What waits for a lane after that."""
        for sent in lost:
            sent.on_lost(self.recovery)
        self.waiting.give_back(self.recovery.control)
        return list(self.waiting.waiting)


def test_lost_data_leaves_again_before_what_is_new() -> None:
    loss, stream = Loss(), stream_of(1, 1000)
    stream.sender.write(Payload(b"abcdef"))
    taken = stream.sender.take(3)
    assert taken is not None
    offset, payload = taken
    assert payload is not None
    assert loss.of(SentData(stream, offset, payload)) == []
    item = loss.scheduler.take(1, 100)
    assert item is not None
    _, offset, again = item
    assert again is not None
    assert (offset, bytes(again.view)) == (0, b"abc")


def test_acknowledged_data_is_released() -> None:
    payload = Payload(b"abc")
    SentData(stream_of(1, 1000), 0, payload).on_acked()
    assert len(payload) == 0


def test_a_lost_fin_leaves_again_and_an_acknowledged_one_does_not() -> None:
    loss, stream = Loss(), stream_of(1, 1000)
    stream.sender.finish()
    stream.sender.take(1)
    SentFin(stream).on_acked()
    assert stream.sender.state == FINISHED
    loss.of(SentFin(stream))
    assert stream.sender.state == FINISHING
    assert loss.scheduler.take(1, 100) == (stream, 0, None)


def test_a_stream_is_pinned_to_the_lane_of_its_open_until_that_is_acknowledged() -> None:
    loss, stream = Loss(), stream_of(1, 1000, pinned_lane=NO_LANE)
    loss.waiting.open(stream, b"an open")
    sent = loss.waiting.waiting.popleft()
    assert isinstance(sent, SentOpen)
    assert (sent.leave(7), stream.pinned_lane) == (b"an open", 7)
    assert loss.of(sent) == [sent]
    assert stream.pinned_lane == NO_LANE
    assert sent.leave(8) == b"an open"
    sent.on_acked()
    assert stream.pinned_lane == ANY_LANE


def test_a_lost_window_leaves_again_as_the_newest_limit_and_once() -> None:
    loss, stream = Loss(), stream_of(1, 1000)
    loss.waiting.tell_window(stream)
    sent = loss.waiting.waiting.popleft()
    assert read_frames(sent.leave(1))[0][:2] == (frames.WINDOW, 1)
    (again,) = loss.of(sent, sent)
    assert isinstance(again, SentWindow)
    stream.receiver.window.limit = 2000
    (frame,) = read_frames(again.leave(1))
    assert isinstance(frame[3], bytes)
    assert frames.decode_window_untrusted(frame[3]) == (2000, 2)


def test_the_limit_of_a_stream_that_has_received_all_has_lost_its_purpose() -> None:
    queue, stream = ControlQueue(), stream_of(1, 1000)
    queue.tell_window(stream)
    stream.receiver.finish(0)
    assert queue.waiting.popleft().leave(1) == b""


def test_other_control_frames_leave_again_in_their_old_order_before_newer_ones() -> None:
    loss = Loss()
    first, second = SentControl(b"first"), SentControl(b"second")
    loss.waiting.append(b"newer")
    assert [each.leave(1) for each in loss.of(first, Sent(), second)] == [
        b"first",
        b"second",
        b"newer",
    ]
