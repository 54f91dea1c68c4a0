"""What leaves by a lane, in which order, and what is to be looked at afterwards."""

import pytest

from sshunt.mux import frames, lanes
from sshunt.mux.datagram_frames import FlowTarget, has_serial
from sshunt.mux.datagrams import Datagrams
from sshunt.mux.hello import CLIENT
from sshunt.mux.lanes import Lane
from sshunt.mux.limits import (
    DATAGRAM_RESERVE_BYTES,
    DUPLICATE_BYTES,
    FLOW_AGE_S,
    LANE_IN_FLIGHT_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    SPARSE_RESERVE_BYTES,
)
from sshunt.mux.limits import TRANSMIT_BUFFERS as BUFFERS
from sshunt.mux.limits import TRANSMIT_BYTES as BYTES
from sshunt.mux.outgoing import Outgoing
from sshunt.mux.payload import Payload
from sshunt.mux.scheduler import SPARSE_BYTES
from sshunt.mux.sent import ControlQueue, Sent
from sshunt.mux.streams import ANY_LANE, Stream
from sshunt.mux.table import StreamTable
from tests.unit.mux.ends import VOICE, WEB, join, kinds

NOW = 100.0


class Side:
    """One side's streams and lanes, without a session."""

    def __init__(self, lanes: int = 1) -> None:
        self.control, self.datagrams = ControlQueue(), Datagrams(CLIENT)
        self.table = StreamTable(CLIENT, LEAST_WINDOW_BYTES, MAX_STREAMS, self.control)
        self.lanes = {number: Lane(number, NOW) for number in range(1, lanes + 1)}
        self.outgoing = Outgoing(self.lanes, self.control, self.datagrams)

    def stream(self) -> Stream:
        """One whose OPEN was acknowledged."""
        stream = self.table.open(WEB)
        self.control.waiting.pop().leave(1)
        stream.pinned_lane = ANY_LANE
        return stream

    def write(self, stream: Stream, data: bytes) -> None:
        stream.sender.write(Payload(data))
        self.outgoing.scheduler.activate(stream, NOW, 0.1)

    def kinds(self, lane: int = 1) -> list[int]:
        return kinds(join(self.outgoing.transmit(self.lanes[lane], NOW, BYTES)))


def test_a_datagram_without_a_byte_is_a_head_alone() -> None:
    side = Side()
    side.datagrams.send(side.datagrams.open(VOICE, NOW), b"", NOW)
    (head,) = side.outgoing.transmit(side.lanes[1], NOW, BYTES)
    assert kinds(join([head])) == [frames.DATAGRAM]
    assert side.lanes[1].in_flight_bytes == len(join([head]))


def test_the_order_is_acknowledgement_control_datagrams_data_ping() -> None:
    side = Side()
    side.write(side.stream(), b"data")
    side.control.append(frames.encode_lane_gone(7))
    side.datagrams.send(side.datagrams.open(VOICE, NOW), b"hi", NOW)
    side.lanes[1].ping_wanted = True
    side.lanes[1].note_processed(10, 10, False, NOW)
    assert side.outgoing.has_work(NOW)
    assert side.kinds() == [
        frames.LANE_ACK,
        frames.LANE_GONE,
        frames.DATAGRAM,
        frames.DATA,
        frames.PING,
    ]
    assert not side.outgoing.has_work(NOW)
    assert side.kinds() == []


def test_what_is_urgent_leaves_by_the_swiftest_lane_alone() -> None:
    side = Side(lanes=2)
    side.lanes[1].rtt_s, side.lanes[2].rtt_s = 0.2, 0.1
    side.control.append(frames.encode_lane_gone(7))
    assert side.outgoing.lanes_to_fill(NOW) == [2]
    assert side.kinds(1) == []
    assert side.kinds(2) == [frames.LANE_GONE]


def test_a_few_bytes_leave_by_the_next_best_lane_as_well() -> None:
    side = Side(lanes=2)
    side.write(side.stream(), b"key")
    assert side.kinds(1) == [frames.DATA]
    assert side.kinds(2) == [frames.DATA]


def test_streams_whose_fin_left_or_whose_writer_waits_are_to_be_looked_at() -> None:
    side = Side()
    ended, waiting = side.stream(), side.stream()
    ended.sender.finish()
    side.outgoing.scheduler.activate(ended, NOW, 0.1)
    side.write(waiting, bytes(3000))
    waiting.sender.blocked = True
    assert side.kinds() == [frames.FIN, frames.DATA]
    assert side.outgoing.touched == [ended, waiting]


def test_what_a_dead_lane_had_leaves_by_another() -> None:
    side = Side(lanes=2)
    side.lanes[2].is_blocked = True
    side.write(side.stream(), b"data")
    side.control.append(frames.encode_lane_gone(7))
    assert side.kinds(1) == [frames.LANE_GONE, frames.DATA]
    side.lanes[2].is_blocked = False
    side.outgoing.recover(side.lanes.pop(1), NOW, 0.1)
    assert side.kinds(2) == [frames.LANE_GONE, frames.DATA]


def test_a_full_lane_takes_no_data_and_one_call_no_more_buffers_than_a_writev() -> None:
    side = Side()
    for _ in range(BUFFERS):
        side.control.append(frames.encode_lane_gone(7))
        side.write(side.stream(), b"data")
    assert len(side.outgoing.transmit(side.lanes[1], NOW, BYTES)) <= BUFFERS
    side.lanes[1].note_sent(LANE_IN_FLIGHT_BYTES, NOW, Sent())
    assert side.kinds() == []


def test_the_next_deadline_is_an_acknowledgement_s_or_that_of_paced_bulk() -> None:
    side = Side()
    assert side.outgoing.next_deadline(NOW) is None
    side.lanes[1].note_processed(10, 10, False, NOW)
    due = side.lanes[1].ack_due
    assert due is not None
    assert side.outgoing.next_deadline(NOW) == due
    assert side.outgoing.next_deadline(due) is None
    stream = side.stream()
    stream.sender.grant(1 << 20, 1)
    side.write(stream, bytes(100_000))
    side.lanes[1].pacer.next_at = due + 1.0
    assert side.outgoing.next_deadline(due) == due + 1.0


def test_bulk_waits_for_a_lane_that_takes_it_and_what_is_sparse_goes_on() -> None:
    side = Side()
    bulk = side.stream()
    bulk.sender.grant(1 << 30, 1)
    side.write(bulk, bytes(10_000_000))
    while side.outgoing.has_work(NOW):
        side.kinds()
    assert side.lanes[1].in_flight_bytes < LANE_IN_FLIGHT_BYTES
    side.write(side.stream(), b"key")
    assert side.outgoing.has_work(NOW)
    assert side.kinds() == [frames.DATA]
    side.lanes[1].note_sent(side.lanes[1].sparse_room_bytes, NOW, Sent())
    side.write(side.stream(), b"key")
    assert not side.outgoing.has_work(NOW)
    assert side.kinds() == []


def test_a_lane_with_a_question_of_its_own_has_work() -> None:
    side = Side()
    side.lanes[1].ping_wanted = True
    assert side.outgoing.has_work(NOW)


def test_a_reserved_lane_takes_no_bulk_and_is_not_held_back_by_its_pacer() -> None:
    side = Side()
    bulk = side.stream()
    bulk.sender.grant(1 << 30, 1)
    side.write(bulk, bytes(100_000))
    side.lanes[1].is_reserved = True
    assert side.kinds() == []


def test_as_many_frames_as_a_lane_may_have_are_enough_however_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "LANE_IN_FLIGHT_FRAMES", 2)
    side = Side()
    for _ in range(3):
        side.write(side.stream(), b"key")
    assert side.kinds() == [frames.DATA, frames.DATA]


def test_what_has_lost_its_purpose_does_not_leave() -> None:
    side = Side(lanes=2)
    reset, finished = side.stream(), side.stream()
    side.write(reset, b"key")
    assert side.kinds(1) == [frames.DATA]
    reset.reset()
    side.control.tell_window(finished)
    finished.receiver.finish(0)
    flow = side.datagrams.open(VOICE, NOW)
    side.datagrams.send(flow, b"old", NOW - 10.0)
    for lane in (1, 2):
        assert side.kinds(lane) == []


def test_a_datagram_without_a_byte_leaves_too() -> None:
    side = Side()
    flow = side.datagrams.open(VOICE, NOW)
    for data in (b"", b"x"):
        side.datagrams.send(flow, data, NOW)
    assert side.kinds() == [frames.DATAGRAM, frames.DATAGRAM]


def test_each_stream_is_to_be_looked_at_once_and_bulk_has_no_second_copy() -> None:
    side = Side(lanes=2)
    stream = side.stream()
    stream.sender.grant(1 << 30, 1)
    stream.recent_at, stream.recent_bytes = NOW, 1 << 20
    for _ in range(3):
        side.write(stream, bytes(1000))
    stream.sender.blocked = True
    assert side.kinds(1) == [frames.DATA] * 3
    assert side.outgoing.touched == [stream]
    assert side.kinds(2) == []


def test_where_no_other_lane_takes_bytes_there_is_no_second_copy() -> None:
    side = Side(lanes=2)
    side.lanes[2].is_blocked = True
    side.write(side.stream(), b"key")
    assert side.kinds(1) == [frames.DATA]
    assert not side.lanes[2].duplicates


def test_statistics_say_what_waits() -> None:
    side = Side()
    side.write(side.stream(), b"key")
    side.datagrams.send(side.datagrams.open(VOICE, NOW), b"hello", NOW)
    assert side.outgoing.statistics() == {
        "control_frames": 0,
        "datagram_bytes": 5,
        "sparse_bytes": 3,
        "bulk_bytes": 0,
    }


# --- floods ---------------------------------------------------------------------------------------


def flood(side: Side, count: int, size: int = 1200) -> None:
    """A flow that has just sent much has as many datagrams to send."""
    flow = side.datagrams.open(VOICE, NOW)
    flow.recent_bytes = SPARSE_BYTES
    for _ in range(count):
        side.datagrams.send(flow, bytes(size), NOW)


def test_a_flood_leaves_as_the_pacer_lets_and_what_sends_little_goes_before_it() -> None:
    side = Side()
    lane = side.lanes[1]
    flood(side, 100)
    assert side.outgoing.lanes_to_fill(NOW) == [1]
    first = side.kinds()
    assert 0 < len(first) < 100
    assert lane.in_flight_bytes <= lane.pacer.limit_bytes + lane.pacer.frame_bytes
    assert lane.pacer._held_back
    assert not side.outgoing.has_work(NOW)
    assert side.kinds() == []
    side.datagrams.send(side.datagrams.open(VOICE, NOW), b"word", NOW)
    assert side.outgoing.has_work(NOW)
    assert side.kinds() == [frames.DATAGRAM]
    lane.pacer.next_at = NOW + 1.0
    assert side.outgoing.next_deadline(NOW) == NOW + 1.0


def test_what_sends_little_leaves_a_part_of_the_reserve_to_streams() -> None:
    side = Side()
    lane = side.lanes[1]
    for _ in range(200):
        side.datagrams.send(side.datagrams.open(VOICE, NOW), bytes(1000), NOW)
    side.kinds()
    assert side.datagrams.sparse
    assert 0 < lane.sparse_room_bytes <= SPARSE_RESERVE_BYTES - DATAGRAM_RESERVE_BYTES
    side.write(side.stream(), b"key")
    assert side.kinds() == [frames.DATA]


def turns(side: Side, rounds: int) -> tuple[int, int]:
    """Bytes of data and of datagrams that leave when a round's bytes are acknowledged each time."""
    sizes = {frames.DATA: 0, frames.DATAGRAM: 0}
    lane = side.lanes[1]
    for number in range(rounds):
        now = NOW + number * 1e-3
        lane.acked, lane.in_flight_bytes = lane.sent, 0
        lane.outstanding.clear()
        lane.pacer.next_at = 0.0
        data = join(side.outgoing.transmit(lane, now, BYTES))
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at + 1 : at + 4], "big")
            sizes[data[at]] += length
            at += 8 + length
    return sizes[frames.DATA], sizes[frames.DATAGRAM]


def backlogged(side: Side) -> None:
    stream = side.stream()
    stream.sender.grant(16 << 20, 1)
    side.write(stream, bytes(4 << 20))


def test_a_flood_and_bulk_share_by_bytes_and_more_streams_have_more() -> None:
    side = Side()
    flood(side, 300)
    backlogged(side)
    data, datagrams = turns(side, 6)
    assert datagrams == pytest.approx(data, rel=0.3)
    for _ in range(3):
        backlogged(side)
    data, datagrams = turns(side, 6)
    assert data > 2.5 * datagrams


def test_floods_that_are_too_old_leave_the_turn_to_data() -> None:
    side = Side()
    flood(side, 3)
    backlogged(side)
    later = NOW + FLOW_AGE_S + 0.1
    sent = kinds(join(side.outgoing.transmit(side.lanes[1], later, BYTES)))
    assert set(sent) == {frames.DATA}
    assert side.datagrams.dropped == 3


def test_large_datagrams_are_not_copied_and_one_writev_takes_so_many() -> None:
    side = Side()
    side.datagrams.send(side.datagrams.open(VOICE, NOW), bytes(4000), NOW)
    assert len(side.outgoing.transmit(side.lanes[1], NOW, BYTES)) == 2
    side.lanes[1].pacer.limit_bytes = side.lanes[1].pacer.frame_bytes = LANE_IN_FLIGHT_BYTES // 2
    flood(side, 2 * BUFFERS, 1)
    assert len(side.outgoing.transmit(side.lanes[1], NOW, BYTES)) <= BUFFERS


def test_a_batch_is_divided_once_the_lane_is_known_to_be_slow() -> None:
    side = Side()
    pacer = side.lanes[1].pacer
    flow = side.datagrams.open(VOICE, NOW)
    for rate_bytes_s, parts in ((0.0, 1), (1e6, 3)):
        pacer.rate_bytes_s = rate_bytes_s
        side.lanes[1].pacer.limit_bytes = LANE_IN_FLIGHT_BYTES // 2
        side.datagrams.send(flow, bytes(40 * 1200), NOW, 1200)
        count, lane = 0, side.lanes[1]
        while side.datagrams.waiting:
            lane.acked, lane.in_flight_bytes = lane.sent, 0
            lane.outstanding.clear()
            pacer.next_at = 0.0
            count += len(side.kinds())
        assert count >= parts
        assert (count == 1) == (parts == 1)


# --- two lanes ------------------------------------------------------------------------------------


def test_a_small_datagram_of_a_flow_that_sends_little_leaves_by_the_next_best_lane_as_well() -> (
    None
):
    side = Side(lanes=2)
    flow = side.datagrams.open(VOICE, NOW)
    flow.is_known = True
    side.datagrams.send(flow, b"word", NOW)
    first = join(side.outgoing.transmit(side.lanes[1], NOW, BYTES))
    assert has_serial(first)
    assert side.outgoing.lanes_to_fill(NOW) == [2]
    assert join(side.outgoing.transmit(side.lanes[2], NOW, BYTES)) == first
    assert len(side.lanes[2].outstanding) == 1


@pytest.mark.parametrize(
    ("target", "size", "recent_bytes", "is_known"),
    [
        (VOICE, DUPLICATE_BYTES + 1, 0, True),
        (VOICE, 100, SPARSE_BYTES, True),
        (VOICE, 100, 0, False),
        (VOICE._replace(network=frames.DNS), 100, 0, True),
    ],
)
def test_large_datagrams_floods_openings_and_questions_leave_once(
    target: FlowTarget, size: int, recent_bytes: int, is_known: bool
) -> None:
    side = Side(lanes=2)
    flow = side.datagrams.open(target, NOW)
    flow.is_known = is_known
    flow.recent_bytes = recent_bytes
    side.datagrams.send(flow, bytes(size), NOW)
    sent = [join(side.outgoing.transmit(side.lanes[number], NOW, BYTES)) for number in (1, 2)]
    assert [len(data) > size for data in sent] == [True, False]
    assert not has_serial(sent[0])


def test_with_the_second_lane_blocked_there_is_one_copy() -> None:
    side = Side(lanes=2)
    side.lanes[2].is_blocked = True
    flow = side.datagrams.open(VOICE, NOW)
    flow.is_known = True
    side.datagrams.send(flow, b"word", NOW)
    assert side.kinds(1) == [frames.DATAGRAM]
    assert not side.lanes[2].duplicates
