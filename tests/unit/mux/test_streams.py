"""The two halves of a stream: what may be written, what leaves, and what is handed out in order."""

import pytest

from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.limits import (
    EARLY_JOIN_BYTES,
    EARLY_PIECES,
    ENTRY_BYTES,
    INITIAL_WINDOW_BYTES,
    LEAST_QUEUE_BYTES,
    MAX_WINDOW_BYTES,
    READ_AHEAD_BYTES,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_PAYLOADS,
    SESSION_QUEUE_BYTES,
)
from sshunt.mux.payload import Payload
from sshunt.mux.streams import (
    ANY_LANE,
    CLOSED,
    FIN_KNOWN,
    FINISHED,
    FINISHING,
    OPEN,
    RECEIVER_TRANSITIONS,
    SENDER_TRANSITIONS,
    WAKE_ROOM_BYTES,
    QueueTotal,
    Receiver,
    Sender,
    Stream,
    next_state,
)
from tests.unit.mux.ends import receiver_of

SENDER_INPUTS = ("FINISH", "FIN_LEFT", "FIN_LOST", "RESET")
RECEIVER_INPUTS = ("FIN_KNOWN", "ALL_READ", "RESET")


def taken(sender: Sender, size: int = 1 << 30) -> tuple[int, bytes | None]:
    item = sender.take(size)
    assert item is not None
    offset, payload = item
    return offset, None if payload is None else bytes(payload.view)


def received(receiver: Receiver, offset: int, data: bytes) -> list[bytes]:
    return [bytes(p.view) for p in receiver.receive(offset, Payload(data))]


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "inputs"),
    [(SENDER_TRANSITIONS, SENDER_INPUTS), (RECEIVER_TRANSITIONS, RECEIVER_INPUTS)],
)
def test_every_input_that_a_state_does_not_list_is_an_error(
    table: dict[str, dict[str, str]], inputs: tuple[str, ...]
) -> None:
    for state, row in table.items():
        assert set(row) <= set(inputs)
        for event in inputs:
            if event in row:
                assert next_state(table, state, event) in table
            else:
                with pytest.raises(LocalProtocolError):
                    next_state(table, state, event)


def test_a_reset_closes_every_state_and_nothing_leaves_closed() -> None:
    for table in (SENDER_TRANSITIONS, RECEIVER_TRANSITIONS):
        assert all(row["RESET"] == CLOSED for row in table.values())
        assert set(table[CLOSED].values()) == {CLOSED}


# --- sending --------------------------------------------------------------------------------------


def test_what_is_written_leaves_in_order_with_its_offsets() -> None:
    sender = Sender(1000)
    sender.write(Payload(b"hello "))
    sender.write(Payload(b"world"))
    assert sender.queued_bytes == sender.sendable_bytes == 11
    assert [taken(sender), taken(sender)] == [(0, b"hello "), (6, b"world")]
    assert not sender.has_work


def test_a_payload_larger_than_what_is_asked_for_is_cut() -> None:
    sender = Sender(1000)
    sender.write(Payload(b"hello"))
    assert [taken(sender, 2), taken(sender, 3)] == [(0, b"he"), (2, b"llo")]


def test_nothing_is_sent_beyond_the_credit() -> None:
    sender = Sender(4)
    sender.write(Payload(b"hello"))
    assert taken(sender) == (0, b"hell")
    assert not sender.has_work
    sender.grant(5, 1)
    assert taken(sender) == (4, b"o")


def test_an_older_grant_changes_nothing() -> None:
    sender = Sender(100)
    sender.grant(200, 2)
    sender.grant(300, 1)
    assert sender.limit == 200


def test_a_newer_grant_may_call_credit_back_but_not_for_what_was_sent() -> None:
    sender = Sender(100)
    sender.write(Payload(bytes(100)))
    sender.take(60)
    sender.grant(80, 1)
    assert (sender.limit, sender.sendable_bytes) == (80, 20)
    sender.grant(40, 2)
    assert (sender.limit, sender.has_work) == (60, False)


def test_nothing_is_taken_where_nothing_may_leave() -> None:
    idle, unpaid, reset = Sender(100), Sender(0), Sender(100)
    for sender in (unpaid, reset):
        sender.write(Payload(b"abc"))
    reset.reset()
    assert [sender.take(10) for sender in (idle, unpaid, reset)] == [None, None, None]
    assert unpaid.queued_bytes == 3


def test_room_is_what_credit_and_queue_allow() -> None:
    assert Sender(INITIAL_WINDOW_BYTES).room_bytes() == INITIAL_WINDOW_BYTES
    rich = Sender(MAX_WINDOW_BYTES)
    assert rich.room_bytes() == SEND_QUEUE_BYTES
    rich.write(Payload(bytes(1000)))
    assert rich.room_bytes() == SEND_QUEUE_BYTES - 1000 - ENTRY_BYTES


def test_there_is_no_room_once_the_end_was_written_or_the_stream_was_reset() -> None:
    finished, reset = Sender(INITIAL_WINDOW_BYTES), Sender(INITIAL_WINDOW_BYTES)
    finished.finish()
    reset.reset()
    assert (finished.room_bytes(), reset.room_bytes()) == (0, 0)


def test_a_writer_with_little_room_waits_until_there_is_enough_for_a_read() -> None:
    sender = Sender(INITIAL_WINDOW_BYTES)
    sender.write(Payload(bytes(INITIAL_WINDOW_BYTES - WAKE_ROOM_BYTES)))
    assert (sender.room_bytes(), sender.blocked) == (WAKE_ROOM_BYTES, False)
    sender.write(Payload(b"x"))
    assert (sender.room_bytes(), sender.blocked) == (0, True)


@pytest.mark.parametrize("window_bytes", [1, 5, 1000, 4096])
def test_a_peer_with_a_small_window_can_still_be_written_to(window_bytes: int) -> None:
    sender = Sender(window_bytes)
    assert sender.room_bytes() == window_bytes
    sender.write(Payload(bytes(window_bytes - window_bytes // 2)))
    assert sender.room_bytes() == window_bytes // 2


def test_the_number_of_queued_payloads_is_bounded_not_only_their_bytes() -> None:
    sender = Sender(INITIAL_WINDOW_BYTES)
    for _ in range(SEND_QUEUE_PAYLOADS):
        assert sender.room_bytes()
        sender.write(Payload(b"x"))
    assert (sender.room_bytes(), sender.blocked) == (0, True)
    sender.take(1)
    assert sender.room_bytes()


def test_fin_leaves_behind_the_last_byte_and_needs_no_credit() -> None:
    sender = Sender(3)
    sender.write(Payload(b"abc"))
    sender.finish()
    assert sender.state == FINISHING
    assert [taken(sender), taken(sender)] == [(0, b"abc"), (3, None)]
    assert (sender.state, sender.has_work) == (FINISHED, False)


def test_fin_waits_while_bytes_before_it_have_no_credit() -> None:
    sender = Sender(2)
    sender.write(Payload(b"abc"))
    sender.finish()
    sender.take(9)
    assert not sender.has_work


def test_what_a_dead_lane_gives_back_goes_first_in_its_old_order() -> None:
    sender = Sender(1000)
    for word in (b"aa", b"bb", b"cc", b"dd"):
        sender.write(Payload(word))
    for _ in range(3):
        sender.take(99)
    sender.give_back(4, Payload(b"cc"))  # one lane carried the third, another the first two
    sender.give_back(0, Payload(b"aa"))
    sender.give_back(2, Payload(b"bb"))
    assert (sender.sendable_bytes, sender.has_work) == (8, True)
    assert [taken(sender, 1), taken(sender), taken(sender), taken(sender), taken(sender)] == [
        (0, b"a"),
        (1, b"a"),
        (2, b"bb"),
        (4, b"cc"),
        (6, b"dd"),
    ]


def test_what_is_sent_again_needs_no_new_credit() -> None:
    sender = Sender(2)
    sender.write(Payload(b"abc"))
    sender.take(9)
    sender.give_back(0, Payload(b"ab"))
    assert taken(sender) == (0, b"ab")
    assert not sender.has_work


def test_a_lost_fin_is_sent_again_and_one_that_never_left_is_not_lost() -> None:
    sender = Sender(10)
    sender.finish()
    sender.give_back_fin()  # it has not even left
    assert sender.state == FINISHING
    sender.take(9)
    sender.give_back_fin()
    assert sender.state == FINISHING
    assert taken(sender) == (0, None)


def test_a_reset_releases_everything_and_what_comes_back_later() -> None:
    sender = Sender(10)
    queued, lost, late = Payload(b"ab"), Payload(b"cd"), Payload(b"ef")
    sender.write(queued)
    sender.give_back(0, lost)
    sender.reset()
    sender.give_back(2, late)
    sender.give_back_fin()
    assert [len(queued), len(lost), len(late)] == [0, 0, 0]
    assert (sender.state, sender.has_work, sender.queued_bytes) == (CLOSED, False, 0)


def test_a_sender_that_never_wrote_can_be_reset_twice() -> None:
    sender = Sender(10)
    sender.reset()
    sender.reset()
    assert sender.state == CLOSED


def test_writing_or_finishing_after_the_end_is_our_own_bug() -> None:
    sender = Sender(10)
    sender.finish()
    with pytest.raises(LocalProtocolError):
        sender.write(Payload(b"x"))
    with pytest.raises(LocalProtocolError):
        sender.finish()


# --- receiving ------------------------------------------------------------------------------------


def test_bytes_in_order_are_handed_out_at_once() -> None:
    receiver = receiver_of(100)
    assert received(receiver, 0, b"ab") + received(receiver, 2, b"cd") == [b"ab", b"cd"]


def test_early_bytes_wait_for_the_missing_ones() -> None:
    receiver = receiver_of(100)
    assert received(receiver, 2, b"cd") == []
    assert receiver.early_bytes == 2
    assert received(receiver, 0, b"ab") == [b"ab", b"cd"]
    assert receiver.early_bytes == 0


def test_early_bytes_survive_the_buffer_that_they_came_in() -> None:
    receiver = receiver_of(100)
    buffer = bytearray(b"cd")
    receiver.receive(2, Payload(memoryview(buffer)))
    buffer[:] = b"XX"
    assert received(receiver, 0, b"ab") == [b"ab", b"cd"]


def test_what_came_before_is_not_handed_out_again() -> None:
    receiver = receiver_of(100)
    received(receiver, 0, b"abcd")
    assert received(receiver, 0, b"abcd") == []
    assert received(receiver, 2, b"cdef") == [b"ef"]


@pytest.mark.parametrize(
    "pieces",
    [
        [(2, b"cd"), (6, b"gh"), (4, b"ef")],
        [(2, b"cd"), (1, b"bcde"), (5, b"fgh")],
        [(4, b"ef"), (2, b"cdefgh")],
        [(2, b"cdefgh"), (3, b"de"), (2, b"cd"), (7, b"h")],
        [(6, b"gh"), (1, b"b"), (3, b"d"), (2, b"cdefg")],
        [(3, b"de"), (6, b"g"), (2, b"cdef"), (5, b"fgh")],
    ],
)
def test_overlapping_early_pieces_are_put_together_without_gap_or_repetition(
    pieces: list[tuple[int, bytes]],
) -> None:
    receiver = receiver_of(100)
    for offset, data in pieces:
        assert received(receiver, offset, data) == []
    covered = {at for offset, data in pieces for at in range(offset, offset + len(data))}
    assert receiver.early_bytes == len(covered)
    assert b"".join(received(receiver, 0, b"ab")) == b"abcdefgh"
    assert receiver.early_bytes == 0


def test_bytes_in_order_may_cover_early_ones_partly_or_wholly() -> None:
    receiver = receiver_of(100)
    received(receiver, 2, b"c")
    received(receiver, 4, b"efg")
    received(receiver, 9, b"j")
    assert b"".join(received(receiver, 0, b"abcde")) == b"abcdefg"
    assert receiver.early_bytes == 1


def test_a_thousand_small_neighbours_behind_one_missing_byte_are_few_pieces() -> None:
    receiver = receiver_of(INITIAL_WINDOW_BYTES)
    for at in range(1, 3 * EARLY_PIECES):
        received(receiver, at, b"x")
    assert received(receiver, 0, b"a") == [b"a", b"x" * (3 * EARLY_PIECES - 1)]


def test_neighbours_are_joined_only_up_to_a_size_that_is_cheap_to_copy() -> None:
    receiver = receiver_of(INITIAL_WINDOW_BYTES)
    half = EARLY_JOIN_BYTES // 2
    for index in range(3):
        received(receiver, 1 + index * half, bytes(half))
    assert [len(piece) for piece in received(receiver, 0, b"a")] == [1, 2 * half, half]


def test_a_peer_that_leaves_endless_gaps_breaks_the_protocol() -> None:
    receiver = receiver_of(INITIAL_WINDOW_BYTES)
    for index in range(EARLY_PIECES):
        received(receiver, 1 + 2 * index, b"x")
    with pytest.raises(RemoteProtocolError):
        received(receiver, 1 + 2 * EARLY_PIECES, b"x")


def test_bytes_beyond_the_credit_break_the_protocol() -> None:
    receiver = receiver_of(4)
    with pytest.raises(RemoteProtocolError):
        received(receiver, 0, b"hello")
    with pytest.raises(RemoteProtocolError):
        received(receiver, 1 << 40, b"x")


def test_the_end_comes_once_when_all_before_it_was_handed_out() -> None:
    receiver = receiver_of(100)
    receiver.finish(4)
    assert receiver.state == FIN_KNOWN
    received(receiver, 2, b"cd")
    assert not receiver.take_fin()
    received(receiver, 0, b"ab")
    assert receiver.take_fin()
    assert not receiver.take_fin()
    assert receiver.state == FINISHED


def test_a_receiver_without_a_fin_has_no_end() -> None:
    assert not receiver_of(100).take_fin()


def test_a_repeated_fin_must_have_the_same_offset() -> None:
    receiver = receiver_of(100)
    receiver.finish(4)
    receiver.finish(4)
    with pytest.raises(RemoteProtocolError):
        receiver.finish(5)


def test_an_end_before_bytes_that_came_breaks_the_protocol() -> None:
    receiver = receiver_of(100)
    received(receiver, 0, b"abc")
    with pytest.raises(RemoteProtocolError):
        receiver.finish(2)
    received(receiver, 6, b"x")
    with pytest.raises(RemoteProtocolError):
        receiver.finish(6)
    receiver.finish(7)


def test_an_end_beyond_the_credit_breaks_the_protocol() -> None:
    receiver = receiver_of(100)
    with pytest.raises(RemoteProtocolError):
        receiver.finish(101)
    receiver.finish(100)


def test_bytes_behind_the_end_break_the_protocol() -> None:
    receiver = receiver_of(100)
    receiver.finish(2)
    with pytest.raises(RemoteProtocolError):
        received(receiver, 0, b"abc")


def test_after_a_reset_nothing_is_handed_out() -> None:
    receiver = receiver_of(100)
    received(receiver, 2, b"cd")
    receiver.reset()
    assert receiver.early_bytes == 0
    assert received(receiver, 0, b"ab") == []
    receiver.finish(4)
    assert not receiver.take_fin()
    assert receiver.state == CLOSED


# --- both halves ----------------------------------------------------------------------------------


def test_a_stream_is_over_when_both_halves_are() -> None:
    stream = Stream(Sender(100), receiver_of(100), ANY_LANE)
    assert (stream.sender.state, stream.receiver.state, stream.is_over) == (OPEN, OPEN, False)
    stream.sender.finish()
    stream.sender.take(1)
    assert not stream.is_over
    stream.receiver.finish(0)
    stream.receiver.take_fin()
    assert stream.is_over


def test_a_reset_ends_both_halves() -> None:
    stream = Stream(Sender(100), receiver_of(100), ANY_LANE)
    stream.reset()
    assert stream.is_over


# --- what all senders have queued -----------------------------------------------------------------


def stream_beside(queued_bytes: int, limit: int = MAX_WINDOW_BYTES) -> tuple[QueueTotal, Stream]:
    """A stream with more credit than there is room, and that much queued by others."""
    total = QueueTotal()
    total.size_bytes = queued_bytes
    return total, Stream(Sender(limit, total), receiver_of(100), ANY_LANE)


def test_while_there_is_room_a_sender_may_queue_what_each_may() -> None:
    total, stream = stream_beside(0)
    assert total.room_bytes(stream) == SEND_QUEUE_BYTES
    total.each_bytes = 2 * SEND_QUEUE_BYTES
    assert total.room_bytes(stream) == 2 * SEND_QUEUE_BYTES


def test_when_much_is_queued_a_sender_gets_an_eighth_of_what_is_left_and_always_a_little() -> None:
    total, stream = stream_beside(SESSION_QUEUE_BYTES - SEND_QUEUE_BYTES)
    assert total.room_bytes(stream) == SEND_QUEUE_BYTES // 8
    total.size_bytes = SESSION_QUEUE_BYTES
    assert total.room_bytes(stream) == LEAST_QUEUE_BYTES


def test_while_nothing_leaves_a_sender_gets_half_of_what_is_left() -> None:
    total, stream = stream_beside(SESSION_QUEUE_BYTES - SEND_QUEUE_BYTES)
    total.each_bytes = MAX_WINDOW_BYTES
    assert total.room_bytes(stream) == SEND_QUEUE_BYTES // 2


def test_a_sender_whose_reader_has_stopped_may_write_a_little_beyond_its_credit() -> None:
    total, stream = stream_beside(0, limit=0)
    assert total.room_bytes(stream) == 0
    stream.sender.is_stuck = True
    assert total.room_bytes(stream) == READ_AHEAD_BYTES
    total.size_bytes = SESSION_QUEUE_BYTES
    assert total.room_bytes(stream) == LEAST_QUEUE_BYTES


# --- past the session -----------------------------------------------------------------------------


def test_only_the_next_bytes_may_pass_by_and_only_as_far_as_the_credit_goes() -> None:
    receiver = receiver_of(100)
    assert receiver.waits_for(0, 100)
    assert not receiver.waits_for(0, 101)
    assert not receiver.waits_for(1, 10)
    receiver.advance(60)
    assert receiver.waits_for(60, 40)
    assert received(receiver, 60, b"x") == [b"x"]


def test_behind_a_gap_or_an_end_nothing_may_pass_by() -> None:
    early, ended, reset = receiver_of(100), receiver_of(100), receiver_of(100)
    received(early, 10, b"x")
    assert not early.waits_for(0, 10)
    ended.finish(50)
    assert ended.waits_for(0, 50)
    assert not ended.waits_for(0, 51)
    reset.reset()
    assert not reset.waits_for(0, 1)
