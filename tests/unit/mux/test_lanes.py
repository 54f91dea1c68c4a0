"""One lane: positions, acknowledgements, round-trip times, and what is left when it dies."""

import pytest

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.lanes import RTT_WEIGHT, Lane
from sshunt.mux.limits import (
    ACK_DELAY_S,
    ACK_EVERY_BYTES,
    LANE_IN_FLIGHT_BYTES,
    LANE_IN_FLIGHT_FRAMES,
    SPARSE_RESERVE_BYTES,
)
from sshunt.mux.path import Path
from sshunt.mux.sent import Sent


def test_an_acknowledgement_releases_the_frames_that_end_before_it_and_no_other() -> None:
    lane = Lane(1, 0.0)
    first, second = Sent(), Sent()
    lane.note_sent(10, 0.0, first)
    lane.note_sent(10, 0.0, second)
    assert lane.acknowledge(19, 0.0, 0, 1.0) == [first]
    assert list(lane.outstanding) == [second]


def test_a_frame_is_released_once_however_often_it_is_acknowledged() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(10, 0.0, Sent())
    assert len(lane.acknowledge(10, 0.0, 0, 1.0)) == 1
    assert lane.acknowledge(10, 0.0, 0, 1.0) == []
    assert lane.acknowledge(3, 0.0, 0, 1.0) == []
    assert lane.acked == 10


def test_nobody_can_acknowledge_what_was_not_sent() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(10, 0.0, Sent())
    with pytest.raises(RemoteProtocolError):
        lane.acknowledge(11, 0.0, 0, 1.0)


def test_what_is_in_flight_takes_room_until_it_is_acknowledged() -> None:
    lane = Lane(1, 0.0)
    assert (lane.in_flight_bytes, lane.room_bytes) == (0, LANE_IN_FLIGHT_BYTES)
    lane.note_sent(1000, 0.0, Sent())
    assert (lane.in_flight_bytes, lane.room_bytes) == (1000, LANE_IN_FLIGHT_BYTES - 1000)
    lane.acknowledge(400, 0.0, 0, 1.0)
    assert lane.in_flight_bytes == 600
    lane.acknowledge(1000, 0.0, 0, 1.0)
    assert lane.in_flight_bytes == 0


def test_sent_acknowledgements_advance_the_position_and_need_no_answer() -> None:
    lane = Lane(1, 0.0)
    lane.note_silent(20)
    assert (lane.sent, lane.in_flight_bytes, len(lane.outstanding)) == (20, 0, 0)
    lane.note_sent(10, 0.0, Sent())
    assert lane.in_flight_bytes == 30
    lane.note_silent(20)  # behind what waits for an answer: the answer may not tell them apart
    assert lane.in_flight_bytes == 50
    lane.acknowledge(30, 0.0, 0, 1.0)
    lane.note_silent(20)
    assert lane.in_flight_bytes == 0


def test_many_small_frames_fill_a_lane_before_their_bytes_do() -> None:
    lane = Lane(1, 0.0)
    for _ in range(LANE_IN_FLIGHT_FRAMES):
        lane.note_sent(10, 0.0, Sent())
    assert lane.room_bytes == 0
    lane.acknowledge(10, 0.0, 0, 1.0)
    assert lane.room_bytes > 0


def test_the_first_sample_is_the_round_trip_time_and_later_ones_move_it_slowly() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(10, 1.0, Sent())
    lane.acknowledge(10, 0.010, 0, 1.110)
    assert lane.rtt_s == pytest.approx(0.1)
    lane.note_sent(10, 2.0, Sent())
    lane.acknowledge(20, 0.0, 0, 2.3)
    assert lane.rtt_s == pytest.approx(0.1 + 0.2 * RTT_WEIGHT)


def test_an_acknowledgement_that_releases_nothing_measures_nothing() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(10, 1.0, Sent())
    lane.acknowledge(9, 0.0, 0, 5.0)
    assert lane.rtt_s == 0.0


def test_a_peer_that_exaggerates_the_delay_cannot_make_time_negative() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(10, 1.0, Sent())
    lane.acknowledge(10, 4000.0, 0, 1.1)
    assert 0 < lane.rtt_s < 0.001


def test_received_acknowledgements_are_counted_and_not_acknowledged() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(20, 0, False, 1.0)
    assert (lane.received, lane.ack_due, lane.last_heard_at) == (20, None, 1.0)


def test_a_small_frame_is_acknowledged_after_the_delay_counted_from_the_first() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(10, 10, False, 1.0)
    lane.note_processed(10, 10, False, 1.005)
    assert lane.ack_due == 1.0 + ACK_DELAY_S


def test_many_bytes_are_acknowledged_at_once() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(ACK_EVERY_BYTES - 1, ACK_EVERY_BYTES - 1, False, 1.0)
    assert lane.ack_due == 1.0 + ACK_DELAY_S
    lane.note_processed(1, 1, False, 1.001)
    assert lane.ack_due == 1.001


def test_an_urgent_frame_is_acknowledged_at_once() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(8, 8, True, 1.0)
    assert lane.ack_due == 1.0


def test_an_acknowledgement_carries_the_position_and_how_long_it_was_held() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(10, 10, False, 1.0)
    lane.note_processed(30, 10, False, 1.004)
    position, held_s, arrived_at = lane.take_ack(1.010)
    assert (position, round(held_s, 9), arrived_at) == (40, 0.006, 1.004)
    assert lane.ack_due is None
    lane.note_processed(10, 10, False, 2.0)
    assert lane.ack_due == 2.0 + ACK_DELAY_S


def test_a_busy_sender_may_hold_its_acknowledgement_for_longer() -> None:
    lane = Lane(1, 0.0)
    lane.note_processed(10, 10, False, 1.0, 0.5)
    assert lane.ack_due == 1.5


# --- pacing ---------------------------------------------------------------------------------------


def test_bulk_leaves_up_to_the_limit_and_not_beyond() -> None:
    lane = Lane(1, 0.0)
    room = lane.pacer.limit_bytes - lane.pacer.frame_bytes
    lane.note_sent(room, 0.0, Sent())
    assert lane.takes_bulk(0.0)
    lane.note_sent(1, 0.0, Sent())
    assert not lane.takes_bulk(0.0)
    lane.acknowledge(room, 0.0, 0, 0.1)
    assert lane.takes_bulk(0.1)


def test_an_empty_lane_takes_a_frame_however_small_its_limit_is() -> None:
    lane = Lane(1, 0.0)
    lane.pacer.limit_bytes = lane.pacer.frame_bytes - 1
    assert lane.takes_bulk(0.0)
    lane.note_sent(1, 0.0, Sent())
    assert not lane.takes_bulk(0.0)


def test_bulk_waits_for_its_time_even_on_an_empty_lane() -> None:
    lane = Lane(1, 0.0)
    lane.pacer.next_at = 5.0
    assert not lane.takes_bulk(4.999)
    assert lane.takes_bulk(5.0)


def test_sparse_streams_have_room_beyond_the_limit_but_not_without_end() -> None:
    lane = Lane(1, 0.0)
    lane.note_sent(lane.pacer.limit_bytes, 0.0, Sent())
    assert lane.sparse_room_bytes == SPARSE_RESERVE_BYTES
    lane.note_sent(SPARSE_RESERVE_BYTES + 7, 0.0, Sent())
    assert lane.sparse_room_bytes == -7


def test_the_expected_answer_time_is_at_least_the_age_of_the_oldest_frame() -> None:
    lane = Lane(1, 0.0)
    assert lane.expected_s(3.0) == 0.0
    lane.note_sent(10, 1.0, Sent())
    lane.acknowledge(10, 0.0, 0, 1.1)
    assert lane.expected_s(9.0) == pytest.approx(0.1)
    lane.note_sent(10, 9.0, Sent())
    lane.note_sent(10, 9.3, Sent())
    assert lane.expected_s(9.05) == pytest.approx(0.1)
    assert lane.expected_s(9.4) == pytest.approx(0.4)


def test_after_idleness_the_limit_is_smaller() -> None:
    lane = Lane(1, 0.0)
    lane.pacer.limit_bytes = LANE_IN_FLIGHT_BYTES
    lane.note_sent(10, 0.0, Sent())
    assert lane.pacer.limit_bytes == LANE_IN_FLIGHT_BYTES
    lane.note_sent(10, 60.0, Sent())  # the first is still under way: that is not idleness
    assert lane.pacer.limit_bytes == LANE_IN_FLIGHT_BYTES
    lane.acknowledge(20, 0.0, 0, 60.1)
    lane.note_sent(10, 60.2, Sent())
    assert lane.pacer.limit_bytes == LANE_IN_FLIGHT_BYTES
    lane.acknowledge(30, 0.0, 0, 60.3)
    lane.note_sent(10, 90.0, Sent())
    assert lane.pacer.limit_bytes < LANE_IN_FLIGHT_BYTES / 8


def test_lanes_of_one_session_share_what_they_know_of_the_path() -> None:
    path = Path()
    first, second = Lane(1, 0.0, path), Lane(2, 0.0, path)
    for at in (1.0, 1.2, 1.4):
        first.note_sent(10, at, Sent())
        first.acknowledge(first.sent, 0.0, round(at * 1e6) + 50_000, at + 0.1)
    for at in (4.0, 4.2, 4.4):
        second.note_sent(10, at, Sent())
        second.acknowledge(second.sent, 0.0, round(at * 1e6) + 80_000, at + 0.13)
    assert second.pacer.queue_s == pytest.approx(0.03)


def test_a_lane_that_is_kept_free_takes_no_bulk_however_empty_it_is() -> None:
    lane = Lane(1, 0.0)
    lane.is_reserved = True
    assert not lane.takes_bulk(100.0)


def test_an_answer_is_overdue_from_the_last_frame_or_the_last_answer_on() -> None:
    lane = Lane(1, 0.0)
    assert lane.unanswered_s(50.0) == 0.0
    lane.note_sent(10, 1.0, Sent())
    lane.note_sent(10, 2.0, Sent())
    assert lane.unanswered_s(4.0) == 3.0
    lane.acknowledge(10, 0.0, 0, 5.0)
    assert lane.unanswered_s(5.5) == 0.5
    lane.acknowledge(20, 0.0, 0, 6.0)
    assert lane.unanswered_s(50.0) == 0.0


def test_a_lane_has_work_of_its_own_when_asked_to_ping_or_when_an_acknowledgement_is_due() -> None:
    lane = Lane(1, 0.0)
    assert not lane.has_own_work(1.0)
    lane.note_processed(10, 10, False, 1.0)
    assert not lane.has_own_work(1.0)
    assert lane.has_own_work(1.0 + ACK_DELAY_S)
    lane.take_ack(1.1)
    assert not lane.has_own_work(2.0)
    lane.ping_wanted = True
    assert lane.has_own_work(2.0)
