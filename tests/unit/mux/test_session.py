"""Two sessions speak with each other: who says what, and what each hears."""

import pytest

from sshunt.mux import frames, table
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.events import (
    DatagramReceived,
    DataReceived,
    FinReceived,
    GoodbyeReceived,
    LaneGone,
    StreamOpened,
    StreamRequested,
    StreamReset,
    StreamWritable,
)
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import (
    ACK_DELAY_BUSY_S,
    ACK_DELAY_S,
    CONTROL_QUEUE_FRAMES,
    DATA_BYTES,
    DATAGRAM_BYTES,
    DATAGRAM_QUEUE_BYTES,
    ENTRY_BYTES,
    INITIAL_WINDOW_BYTES,
    LANE_IN_FLIGHT_BYTES,
    LANE_IN_FLIGHT_FRAMES,
    LEAST_QUEUE_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_WINDOW_BYTES,
    READ_AHEAD_BYTES,
    SESSION_QUEUE_BYTES,
    STALL_S,
    STREAM_GAP,
    STUCK_S,
    TRANSMIT_BUFFERS,
)
from sshunt.mux.pacer import LOSS_STALLS, STALLS_S
from sshunt.mux.payload import Payload
from sshunt.mux.sent import Sent
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.mux.windows import IDLE_S, PLACES, step_for
from tests.unit.mux.ends import VOICE, WEB, Ends, join, kinds, read_frames, text


def feed(session: Session, data: bytes, lane: int = 1) -> None:
    session.receive(lane, memoryview(data), 0.0)


def agent_with_lane() -> Session:
    agent = Session(AGENT)
    agent.add_lane(1, 0.0)
    return agent


def client_with_lane() -> Session:
    client = Session(CLIENT)
    client.add_lane(1, 0.0)
    return client


# --- opening --------------------------------------------------------------------------------------


def test_a_connection_is_requested_and_accepted() -> None:
    ends = Ends()
    near = ends.client.open(WEB)
    (request,) = ends.send(ends.client)
    assert isinstance(request, StreamRequested)
    assert (request.stream.id, request.destination) == (near.id, WEB)
    assert not near.opened
    ends.agent.accept(request.stream)
    assert ends.send(ends.agent) == [StreamOpened(near)]
    assert near.opened


def test_a_quiet_open_is_not_answered_with_opened() -> None:
    ends = Ends()
    near = ends.client.open(WEB._replace(wants_opened=False))
    (request,) = ends.send(ends.client)
    assert isinstance(request, StreamRequested)
    ends.agent.accept(request.stream)
    assert frames.OPENED not in kinds(ends.transmit(ends.agent))
    assert not near.opened


def test_an_agent_opens_a_stream_to_an_exposed_port_and_names_the_caller() -> None:
    ends = Ends()
    exposed = Destination(frames.EXPOSED, "198.51.100.7", 40000, exposure=3)
    ends.agent.open(exposed)
    (request,) = ends.send(ends.agent)
    assert isinstance(request, StreamRequested)
    assert request.destination == exposed
    assert request.stream.id == 2


def test_data_travels_with_the_open_and_needs_no_round_trip() -> None:
    ends = Ends()
    near = ends.client.open(WEB)
    ends.client.write(near, Payload(b"GET /"), ends.now)
    wire = ends.transmit(ends.client)
    assert kinds(wire) == [frames.OPEN, frames.DATA]
    events = ends.deliver(ends.agent)
    assert [type(event) for event in events] == [StreamRequested, DataReceived]
    assert text(events) == b"GET /"


def test_a_repeated_opened_is_one_event() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    (request,) = ends.send(ends.client)
    assert isinstance(request, StreamRequested)
    ends.agent.accept(request.stream)
    assert ends.send(ends.agent) == [StreamOpened(near)]
    ends.lose_lane(1)
    assert frames.OPENED in kinds(ends.transmit(ends.agent, lane=2))
    assert ends.deliver(ends.client, lane=2) == []


def test_accepting_a_stream_twice_sends_one_opened() -> None:
    ends = Ends()
    _, far = ends.connect()
    ends.agent.accept(far)
    assert not ends.transmit(ends.agent)


def test_stream_numbers_are_odd_at_the_client_even_at_the_agent_and_never_come_back() -> None:
    client, agent = Session(CLIENT), Session(AGENT)
    first = client.open(WEB)
    client.reset(first, frames.RESET_ABORTED)
    assert [first.id, client.open(WEB).id, client.open(WEB).id] == [1, 3, 5]
    assert [agent.open(WEB).id, agent.open(WEB).id] == [2, 4]


def test_the_agent_may_open_streams_too() -> None:
    ends = Ends()
    far = ends.agent.open(WEB)
    (request,) = ends.send(ends.agent)
    assert isinstance(request, StreamRequested)
    ends.client.accept(request.stream)
    assert ends.send(ends.client) == [StreamOpened(far)]


def test_no_more_streams_are_opened_than_the_peer_allows() -> None:
    client = Session(CLIENT, peer_max_streams=2)
    stream = client.open(WEB)
    client.open(WEB)
    assert not client.can_open
    with pytest.raises(LocalProtocolError):
        client.open(WEB)
    client.reset(stream, frames.RESET_ABORTED)
    assert client.can_open


def test_a_bounded_number_of_opens_waits_for_a_lane() -> None:
    client = Session(CLIENT)
    opened = 0
    while client.can_open:
        client.reset(client.open(WEB), frames.RESET_TIMED_OUT)
        opened += 1
    assert opened == MAX_STREAMS // 2
    client.add_lane(1, 0.0)
    client.transmit(1, 0.0)
    assert client.can_open


def test_a_destination_that_cannot_be_sent_costs_no_stream() -> None:
    client = Session(CLIENT)
    with pytest.raises(LocalProtocolError):
        client.open(Destination(frames.TCP, "no such name", 80))
    assert client.open(WEB).id == 1


@pytest.mark.many
def test_a_peer_that_opens_more_than_the_limit_is_told_so_for_each() -> None:
    agent = agent_with_lane()
    short = Destination(frames.TCP, "x", 80)
    numbers = range(1, 2 * MAX_STREAMS + 2, 2)
    feed(agent, b"".join(frames.encode_open(number, short) for number in numbers))
    assert len(agent.take_events()) == len(agent.streams) == MAX_STREAMS
    last = 1 + 2 * MAX_STREAMS
    assert frames.encode_reset(last, frames.RESET_NO_RESOURCES) in join(agent.transmit(1, 0.0))
    feed(agent, frames.encode_window(last, 1, 1))  # a frame of it that was under way: ignored
    feed(agent, frames.encode_reset(1, frames.RESET_ABORTED))
    feed(agent, frames.encode_open(last + 2, WEB))
    assert last + 2 in agent.streams


@pytest.mark.many
def test_a_peer_that_opens_streams_and_does_not_read_the_answers_is_given_up() -> None:
    agent = agent_with_lane()

    short = Destination(frames.TCP, "x", 80)

    def ask_for_ever() -> None:
        for first in range(0, 2 * CONTROL_QUEUE_FRAMES, 1000):
            numbers = range(2 * first + 1, 2 * first + 2001, 2)
            feed(agent, b"".join(frames.encode_open(number, short) for number in numbers))
            for event in agent.take_events():
                assert isinstance(event, StreamRequested)
                agent.reset(event.stream, frames.RESET_REFUSED)

    with pytest.raises(RemoteProtocolError, match="does not read the answers"):
        ask_for_ever()


# --- bytes ----------------------------------------------------------------------------------------


def test_bytes_go_both_ways_in_order() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(b"ping "), ends.now)
    ends.client.write(near, Payload(b"again"), ends.now)
    ends.agent.write(far, Payload(b"pong"), ends.now)
    client, agent = ends.settle()
    assert (text(client), text(agent)) == (b"pong", b"ping again")


def test_a_large_payload_leaves_in_frames_of_the_largest_size() -> None:
    ends = Ends()
    near, _ = ends.connect()
    ends.open_throttle()
    near.sender.grant(10 * DATA_BYTES, 1)
    ends.client.write(near, Payload(bytes(DATA_BYTES + 1)), ends.now)
    sent = read_frames(ends.transmit(ends.client)) + read_frames(ends.transmit(ends.client))
    data = [frame for frame in sent if frame[0] == frames.DATA]
    assert [(frame[2], len(frame[3])) for frame in data] == [(0, DATA_BYTES), (DATA_BYTES, 1)]


def test_an_empty_write_is_our_own_bug() -> None:
    ends = Ends()
    near, _ = ends.connect()
    with pytest.raises(LocalProtocolError):
        ends.client.write(near, Payload(b""), ends.now)


def test_a_stopped_reader_stops_its_sender_and_credit_starts_it_again() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES)), ends.now)
    assert ends.client.room_bytes(near) == 0
    client, agent = ends.settle()
    assert len(text(agent)) == LEAST_WINDOW_BYTES
    assert client == []
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    client, _ = ends.settle()
    assert client == [StreamWritable(near)]
    assert ends.client.room_bytes(near) >= LEAST_WINDOW_BYTES


def test_bytes_that_were_written_beyond_the_credit_leave_when_there_is_more() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES) + b"the rest"), ends.now)
    _, agent = ends.settle()
    assert len(text(agent)) == LEAST_WINDOW_BYTES
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    _, agent = ends.settle()
    assert text(agent) == b"the rest"


def test_a_full_queue_that_drains_wakes_its_writer() -> None:
    ends = Ends()
    near, _ = ends.connect()
    ends.open_throttle()
    near.sender.grant(MAX_WINDOW_BYTES, 1)
    while room := ends.client.room_bytes(near):
        ends.client.write(near, Payload(bytes(room)), ends.now)
    ends.transmit(ends.client)
    assert StreamWritable(near) in ends.client.take_events()


def test_even_a_small_grant_wakes_a_blocked_writer() -> None:
    client = client_with_lane()
    stream = client.open(WEB)
    client.write(stream, Payload(bytes(LEAST_WINDOW_BYTES + 1)), 0.0)
    client.transmit(1, 0.0)
    assert client.room_bytes(stream) == 0
    feed(client, frames.encode_window(stream.id, LEAST_WINDOW_BYTES + 4, 1))
    assert client.take_events() == [StreamWritable(stream)]
    assert client.room_bytes(stream) == 3


def test_a_writer_that_has_finished_is_not_woken() -> None:
    client = client_with_lane()
    stream = client.open(WEB)
    client.write(stream, Payload(bytes(LEAST_WINDOW_BYTES)), 0.0)
    assert client.room_bytes(stream) == 0
    client.finish(stream, 0.0)
    client.transmit(1, 0.0)
    feed(client, frames.encode_window(stream.id, 1 << 30, 1))
    assert client.take_events() == []


def test_no_peer_can_grant_more_than_the_largest_window() -> None:
    client = client_with_lane()
    stream = client.open(WEB)
    client.transmit(1, 0.0)
    feed(client, frames.encode_window(stream.id, frames.MAX_OFFSET, 1))
    assert stream.sender.limit == MAX_WINDOW_BYTES
    assert Session(CLIENT, peer_window_bytes=1 << 31).open(WEB).sender.limit == MAX_WINDOW_BYTES


def test_consuming_a_little_grants_nothing_yet() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.settle()
    ends.agent.consumed(far, 1, ends.now)
    assert not ends.transmit(ends.agent)


@pytest.mark.parametrize("orderly", [True, False])
def test_a_large_window_is_given_back_when_its_stream_ends(orderly: bool) -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES)), ends.now)
    ends.settle()
    ends.agent.ping(1)
    ends.transmit(ends.agent)
    ends.now += 0.1
    ends.deliver(ends.client)
    ends.send(ends.client)  # the agent knows the round-trip time now
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    assert far.receiver.window.window_bytes == INITIAL_WINDOW_BYTES
    assert ends.agent.table.credit.promised_bytes == INITIAL_WINDOW_BYTES - LEAST_WINDOW_BYTES
    if orderly:
        ends.client.finish(near, ends.now)
        ends.agent.finish(far, ends.now)
    else:
        ends.client.reset(near, frames.RESET_ABORTED)
    ends.settle()
    assert ends.agent.table.credit.promised_bytes == 0


def test_once_the_end_is_known_no_credit_is_sent() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES)), ends.now)
    ends.client.finish(near, ends.now)
    ends.settle()
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    assert not ends.transmit(ends.agent)


# --- credit of the whole session ------------------------------------------------------------------


def test_the_opener_says_in_its_open_how_much_it_takes() -> None:
    ends = Ends()
    near, far = ends.connect()
    assert near.receiver.window.limit == far.sender.limit == INITIAL_WINDOW_BYTES
    assert far.receiver.window.limit == near.sender.limit == LEAST_WINDOW_BYTES


def test_thousands_of_idle_streams_leave_large_windows_for_busy_ones() -> None:
    ends = Ends()
    for _ in range(40):
        for _ in range(50):
            ends.client.open(WEB)
        ends.settle()
        ends.now += 2 * IDLE_S
    ends.transmit(ends.client)
    ends.client.open(WEB)  # it calls some back
    ends.settle()
    _, far = ends.connect()
    assert far.sender.limit == INITIAL_WINDOW_BYTES
    idle = [stream.sender.limit for stream in ends.agent.streams.values() if stream is not far]
    assert sum(limit > LEAST_WINDOW_BYTES for limit in idle) < 64


def test_a_connection_whose_credit_was_called_back_still_moves_everything() -> None:
    ends = Ends()
    near, far = ends.connect()
    assert near.receiver.window.recall(0, ends.now)
    ends.client.control.tell_window(near)
    ends.settle()
    assert far.sender.limit == LEAST_WINDOW_BYTES
    content, heard = bytes(range(256)) * 4096, b""
    ends.agent.write(far, Payload(content), ends.now)
    while len(heard) < len(content):
        data = text(ends.settle()[0])
        assert data
        heard += data
        ends.client.consumed(near, len(data), ends.now)
    assert heard == content


def test_bytes_already_under_way_arrive_though_their_credit_is_called_back() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.write(far, Payload(bytes(100_000)), ends.now)
    ends.open_throttle()
    ends.transmit(ends.agent)
    assert near.receiver.window.recall(0, ends.now)
    ends.client.control.tell_window(near)
    ends.transmit(ends.client)
    assert len(text(ends.deliver(ends.client))) == 100_000
    ends.deliver(ends.agent)
    ends.client.consumed(near, 100_000, ends.now)
    ends.settle()
    assert far.sender.limit > 100_000


def test_no_credit_is_called_back_before_the_open_was_acknowledged() -> None:
    client = client_with_lane()
    streams = [client.open(WEB) for _ in range(2000)]
    client.transmit(1, 10 * IDLE_S)
    client.open(WEB)
    assert not any(stream.window_waits for stream in streams)


def test_a_window_frame_lost_with_its_lane_is_sent_again_with_the_current_limit() -> None:
    ends = Ends(lanes=2)
    near, far = ends.connect()
    ends.agent.write(far, Payload(bytes(200_000)), ends.now)
    ends.settle()
    ends.client.consumed(near, 150_000, ends.now)
    ends.transmit(ends.client)
    ends.client.consumed(near, 50_000, ends.now)
    ends.lose_lane(1)
    ends.settle(lane=2)
    assert far.sender.limit == near.receiver.window.limit


def test_at_most_one_window_frame_of_a_stream_waits_for_a_lane() -> None:
    client = client_with_lane()
    stream = client.open(WEB)
    client.transmit(1, 0.0)
    for at in range(0, 1 << 24, 65536):
        feed(client, frames.encode_data_head(stream.id, at, 65536) + bytes(65536))
        client.take_events()
        client.consumed(stream, 65536, 0.0)
    assert client.statistics(0.0)["control_frames"] == 1


def test_the_queues_of_all_streams_are_bounded_and_each_may_queue_a_little() -> None:
    client = Session(CLIENT, peer_window_bytes=MAX_WINDOW_BYTES)
    queued = 0
    for _ in range(1000):
        stream = client.open(WEB)
        while room := client.room_bytes(stream):
            client.write(stream, Payload(bytes(min(room, 100_000))), 0.0)
            queued += min(room, 100_000)
        assert stream.sender.queued_bytes >= LEAST_QUEUE_BYTES
    assert queued <= SESSION_QUEUE_BYTES + 1000 * LEAST_QUEUE_BYTES


@pytest.mark.many
def test_a_stream_of_single_bytes_costs_the_session_no_more_than_any_other() -> None:
    client = Session(CLIENT, peer_window_bytes=MAX_WINDOW_BYTES)
    payloads = 0
    for _ in range(1000):
        stream = client.open(WEB)
        while client.room_bytes(stream):
            client.write(stream, Payload(b"x"), 0.0)
            payloads += 1
    assert payloads * ENTRY_BYTES <= SESSION_QUEUE_BYTES + 1000 * LEAST_QUEUE_BYTES


def test_in_an_outage_a_writer_may_fill_all_of_its_credit() -> None:
    client = Session(CLIENT, peer_window_bytes=MAX_WINDOW_BYTES)
    client.add_lane(1, 0.0)
    stream = client.open(WEB)

    def fill(now: float) -> None:
        while room := client.room_bytes(stream):
            client.write(stream, Payload(bytes(min(room, 65536))), now)

    fill(0.0)
    client.transmit(1, 0.0)
    client.take_events()
    fill(0.0)
    before = stream.sender.queued_bytes
    assert client.relieve(STALL_S - 0.1)
    assert client.take_events() == []
    assert client.relieve(STALL_S)
    assert client.take_events() == [StreamWritable(stream)]
    fill(STALL_S)
    assert stream.sender.queued_bytes > MAX_WINDOW_BYTES // 2 > before
    assert stream.sender.queued_bytes <= MAX_WINDOW_BYTES


def test_a_writer_without_credit_for_long_may_queue_a_little_beyond_it() -> None:
    ends = Ends()
    near, far = ends.connect()
    while room := ends.client.room_bytes(near):
        ends.client.write(near, Payload(bytes(room)), ends.now)
    ends.settle()
    for _ in range(int(STUCK_S / STALL_S) - 1):
        assert ends.client.relieve(ends.now)
    assert ends.client.take_events() == []
    ends.client.relieve(ends.now)
    assert ends.client.take_events() == [StreamWritable(near)]
    ahead = 0
    while room := ends.client.room_bytes(near):
        ahead += min(room, 65536)
        ends.client.write(near, Payload(bytes(min(room, 65536))), ends.now)
    assert READ_AHEAD_BYTES // 2 < ahead <= READ_AHEAD_BYTES
    ends.settle()
    assert near.sender.next_offset == LEAST_WINDOW_BYTES  # nothing left beyond the credit
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    ends.settle()
    assert not near.sender.is_stuck
    assert ends.client.room_bytes(near) == 0


def test_thousands_of_stuck_writers_write_no_more_than_the_session_may_queue() -> None:
    client = client_with_lane()
    streams = [client.open(WEB) for _ in range(2000)]

    def fill() -> int:
        queued = 0
        for stream in streams:
            while room := client.room_bytes(stream):
                queued += room
                client.write(stream, Payload(bytes(room)), 0.0)
        return queued

    fill()
    for _ in range(int(STUCK_S / STALL_S)):
        client.relieve(0.0)
    fill()
    queued = sum(stream.sender.queued_bytes for stream in streams)
    assert queued <= SESSION_QUEUE_BYTES + len(streams) * LEAST_QUEUE_BYTES


# --- the end of a stream --------------------------------------------------------------------------


def test_half_close_both_ways_ends_a_stream_and_both_ends_forget_it() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(b"question"), ends.now)
    ends.client.finish(near, ends.now)
    _, agent = ends.settle()
    assert [type(event) for event in agent] == [DataReceived, FinReceived]
    ends.agent.write(far, Payload(b"answer"), ends.now)
    ends.agent.finish(far, ends.now)
    client, _ = ends.settle()
    assert [type(event) for event in client] == [DataReceived, FinReceived]
    ends.client.consumed(near, len(b"answer"), ends.now)
    ends.agent.consumed(far, len(b"question"), ends.now)
    assert (ends.client.streams, ends.agent.streams) == ({}, {})


def test_a_finished_stream_keeps_its_window_until_all_its_bytes_are_consumed() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.finish(near, ends.now)
    ends.agent.write(far, Payload(bytes(1000)), ends.now)
    ends.agent.finish(far, ends.now)
    ends.settle()
    ends.client.consumed(near, 999, ends.now)
    assert ends.client.streams == {near.id: near}
    ends.client.consumed(near, 1, ends.now)
    assert ends.client.streams == {}


def test_a_fin_that_arrives_last_forgets_the_stream_as_well() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.finish(far, ends.now)
    ends.settle()
    ends.client.finish(near, ends.now)
    ends.settle()
    assert (ends.client.streams, ends.agent.streams) == ({}, {})


def test_a_reset_ends_both_ways_at_once_and_keeps_its_meaning() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(b"lost"), ends.now)
    ends.agent.reset(far, frames.RESET_REFUSED)
    assert ends.send(ends.agent) == [StreamReset(near, frames.RESET_REFUSED)]
    assert (ends.client.streams, ends.agent.streams) == ({}, {})
    assert frames.DATA not in kinds(ends.transmit(ends.client))


def test_a_writer_that_is_woken_and_reset_by_the_same_read_finds_no_room() -> None:
    ends = Ends()
    near, _ = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES)), ends.now)
    assert ends.client.room_bytes(near) == 0
    ends.transmit(ends.client)
    feed(
        ends.client,
        frames.encode_window(near.id, 2 * INITIAL_WINDOW_BYTES, 1)
        + frames.encode_reset(near.id, frames.RESET_ABORTED),
    )
    heard = ends.client.take_events()
    assert heard == [StreamWritable(near), StreamReset(near, frames.RESET_ABORTED)]
    assert ends.client.room_bytes(near) == 0


def test_what_is_consumed_after_a_reset_returns_no_credit() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(bytes(LEAST_WINDOW_BYTES)), ends.now)
    ends.send(ends.client)
    ends.agent.reset(far, frames.RESET_ABORTED)
    ends.agent.consumed(far, LEAST_WINDOW_BYTES, ends.now)
    assert frames.WINDOW not in kinds(ends.transmit(ends.agent))


def test_resetting_a_stream_twice_sends_one_reset() -> None:
    ends = Ends()
    _, far = ends.connect()
    ends.agent.reset(far, frames.RESET_ABORTED)
    ends.agent.reset(far, frames.RESET_ABORTED)
    assert kinds(ends.transmit(ends.agent)).count(frames.RESET) == 1


def test_a_reset_after_both_fins_is_sent_and_has_no_effect_here() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.finish(far, ends.now)
    ends.settle()
    ends.client.finish(near, ends.now)
    ends.transmit(ends.client)
    assert ends.client.streams == {}
    ends.client.reset(near, frames.RESET_ABORTED)
    assert [type(event) for event in ends.send(ends.client)] == [FinReceived]
    assert ends.agent.streams == {}


def test_a_reset_takes_nothing_from_a_slow_reader_once_both_sides_have_said_all() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.write(far, Payload(b"all of it"), ends.now)
    ends.agent.finish(far, ends.now)
    ends.send(ends.agent)
    ends.client.finish(near, ends.now)
    ends.transmit(ends.client)
    ends.agent.reset(far, frames.RESET_ABORTED)
    assert ends.send(ends.agent) == []
    ends.client.consumed(near, len(b"all of it"), ends.now)
    assert ends.client.streams == {}


def test_frames_that_come_late_for_a_closed_stream_are_ignored() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.client.write(near, Payload(b"late"), ends.now)
    ends.client.finish(near, ends.now)
    ends.transmit(ends.client)
    ends.agent.reset(far, frames.RESET_ABORTED)
    assert ends.deliver(ends.agent) == []
    ends.agent.accept(far)  # the relay may not know yet
    ends.agent.consumed(far, 1, ends.now)
    assert not [e for e in ends.send(ends.agent) if not isinstance(e, StreamReset)]


def test_a_reset_streams_payloads_on_a_dead_lane_are_released() -> None:
    ends = Ends()
    near, _ = ends.connect()
    payload = Payload(b"x" * 100)
    ends.client.write(near, payload, ends.now)
    ends.transmit(ends.client)
    ends.client.reset(near, frames.RESET_ABORTED)
    ends.lose_lane(1)
    assert len(payload) == 0


# --- acknowledgements -----------------------------------------------------------------------------


def test_an_acknowledgement_before_a_frames_end_does_not_release_it() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.write(far, Payload(b"x" * 1000), ends.now)
    ends.send(ends.agent)  # so the client owes an acknowledgement
    ends.client.write(near, Payload(b"y" * 1000), ends.now)
    wire = ends.transmit(ends.client)
    assert kinds(wire) == [frames.LANE_ACK, frames.DATA]
    ends.deliver(ends.agent, size=len(wire) - 1)
    ends.now += 1
    ends.send(ends.agent)  # which acknowledges all but the last byte
    assert len(ends.client.lanes[1].outstanding) == 1


def test_the_senders_copy_is_released_when_the_peer_has_processed_it() -> None:
    ends = Ends()
    near, _ = ends.connect()
    payload = Payload(b"x" * 1000)
    ends.client.write(near, payload, ends.now)
    ends.send(ends.client)
    assert len(payload) == 1000
    ends.settle()
    assert len(payload) == 0


def test_an_acknowledgement_is_held_until_data_goes_along_or_its_deadline() -> None:
    ends = Ends()
    ends.client.open(WEB)
    ends.send(ends.client)
    assert not ends.transmit(ends.agent)
    assert ends.agent.next_deadline() == ends.now + ACK_DELAY_S
    assert not ends.agent.has_work(ends.now)
    ends.now += ACK_DELAY_S
    assert ends.agent.has_work(ends.now)
    assert kinds(ends.transmit(ends.agent)) == [frames.LANE_ACK]
    assert ends.agent.next_deadline() is None


def test_a_passed_deadline_of_a_full_lane_is_not_the_next_deadline() -> None:
    ends = Ends(lanes=2)
    ends.client.open(WEB)
    ends.send(ends.client)
    stalled = ends.agent.next_deadline()
    assert stalled is not None
    ends.now = stalled
    assert ends.agent.next_deadline(after=ends.now) is None
    ends.client.open(WEB)
    ends.send(ends.client, lane=2)
    assert ends.agent.next_deadline(after=ends.now) == ends.now + ACK_DELAY_S


def test_a_goodbye_is_acknowledged_at_once_because_nothing_follows_it() -> None:
    ends = Ends()
    ends.client.say_goodbye(frames.GOODBYE_DONE, "")
    ends.send(ends.client)
    assert kinds(ends.transmit(ends.agent)) == [frames.LANE_ACK]


def test_an_acknowledgement_is_never_acknowledged() -> None:
    ends = Ends()
    ends.client.open(WEB)
    ends.send(ends.client)
    ends.now += ACK_DELAY_S
    ends.send(ends.agent)
    assert (ends.client.next_deadline(), ends.client.has_work(ends.now + 9)) == (None, False)


def test_a_ping_is_answered_at_once_and_gives_the_round_trip_time() -> None:
    ends = Ends()
    assert ends.client.rtt_s == 0.0
    ends.client.ping(1)
    assert ends.client.has_work(ends.now)
    assert kinds(ends.transmit(ends.client)) == [frames.PING]
    ends.now += 0.02
    assert ends.deliver(ends.agent) == []
    assert kinds(ends.transmit(ends.agent)) == [frames.LANE_ACK]
    ends.now += 0.03
    ends.deliver(ends.client)
    assert ends.client.rtt_s == pytest.approx(0.05)


def test_the_sessions_round_trip_time_is_its_fastest_lanes() -> None:
    ends = Ends(lanes=3)
    for lane, rtt_s in ((1, 0.2), (2, 0.1)):
        ends.client.ping(lane)
        ends.transmit(ends.client, lane)
        ends.deliver(ends.agent, lane)
        ends.transmit(ends.agent, lane)
        ends.now += rtt_s
        ends.deliver(ends.client, lane)
    assert ends.client.rtt_s == pytest.approx(0.1)


def test_a_full_lane_takes_nothing_but_acknowledgements_and_pings() -> None:
    ends = Ends()
    near, far = ends.connect()
    lane = ends.client.lanes[1]
    lane.note_sent(LANE_IN_FLIGHT_BYTES, ends.now, Sent())
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.datagram(ends.client, b"x")
    ends.client.open(WEB)
    assert not ends.transmit(ends.client)
    ends.client.ping(1)
    ends.agent.write(far, Payload(b"y"), ends.now)
    ends.send(ends.agent)
    assert kinds(ends.transmit(ends.client)) == [frames.LANE_ACK, frames.PING]


# --- order ----------------------------------------------------------------------------------------


def test_control_goes_before_datagrams_and_datagrams_before_data() -> None:
    ends = Ends()
    near, _ = ends.connect()
    ends.client.write(near, Payload(bytes(1000)), ends.now)
    ends.datagram(ends.client, b"d")
    ends.client.open(WEB)
    ends.client.ping(1)
    assert kinds(ends.transmit(ends.client)) == [
        frames.OPEN,
        frames.DATAGRAM,
        frames.DATA,
        frames.PING,
    ]


def test_one_call_hands_out_no_more_buffers_than_a_writev_takes() -> None:
    ends = Ends()
    near, _ = ends.connect()
    for _ in range(TRANSMIT_BUFFERS):
        ends.client.write(near, Payload(b"x"), ends.now)
        ends.datagram(ends.client, b"d")
    for _ in range(4):
        assert len(ends.client.transmit(1, ends.now)) <= TRANSMIT_BUFFERS + 1
    assert not ends.client.has_work(ends.now)


def test_one_call_hands_out_about_as_many_bytes_as_it_was_asked_for() -> None:
    ends = Ends()
    near, _ = ends.connect()
    for _ in range(10):
        ends.client.write(near, Payload(bytes(600)), ends.now)
    # A frame is not cut for it.
    assert len(join(ends.client.transmit(1, ends.now, 1000))) == 2 * (600 + frames.DATA_HEAD_BYTES)


def test_a_lane_at_its_limit_of_frames_gets_no_further_ones() -> None:
    ends = Ends()
    streams = [ends.connect()[0] for _ in range(30)]
    ends.open_throttle()
    sent = b""
    while not sent or len(ends.client.lanes[1].outstanding) < LANE_IN_FLIGHT_FRAMES:
        ends.now += 0.01
        for stream in streams:
            if ends.client.room_bytes(stream):
                ends.client.write(stream, Payload(b"k"), ends.now)
        sent += ends.transmit(ends.client)
    sent += ends.transmit(ends.client)
    sizes = {len(frame[3]) for frame in read_frames(sent) if frame[0] == frames.DATA}
    assert min(sizes) > 0  # an empty one is an error of the protocol, and ends lane after lane
    assert len(ends.client.lanes[1].outstanding) <= LANE_IN_FLIGHT_FRAMES + 1


# --- lanes ----------------------------------------------------------------------------------------


def test_what_a_dead_lane_did_not_deliver_leaves_over_another() -> None:
    ends = Ends(lanes=2)
    near, _ = ends.connect()
    ends.client.write(near, Payload(b"first "), ends.now)
    ends.transmit(ends.client, lane=1)
    ends.client.finish(near, ends.now)
    ends.transmit(ends.client, lane=2)  # the FIN alone, and early
    ends.lose_lane(1)
    ends.transmit(ends.client, lane=2)
    events = ends.deliver(ends.agent, lane=2)
    assert text(events) == b"first "
    assert isinstance(events[-1], FinReceived)


def test_data_that_arrived_unacknowledged_is_sent_again_and_delivered_once() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    ends.client.write(near, Payload(b"once"), ends.now)
    ends.client.finish(near, ends.now)
    first = ends.send(ends.client, lane=1)
    assert len(first) == 3
    ends.lose_lane(1)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.OPEN, frames.DATA, frames.FIN]
    assert ends.deliver(ends.agent, lane=2) == []


def test_control_frames_of_a_dead_lane_leave_first_and_in_their_old_order() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    ends.client.reset(near, frames.RESET_ABORTED)
    ends.transmit(ends.client, lane=1)
    ends.client.say_goodbye(frames.GOODBYE_DONE, "")
    ends.lose_lane(1)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.OPEN, frames.RESET, frames.GOODBYE]


def test_unreliable_frames_die_with_their_lane() -> None:
    ends = Ends(lanes=2)
    ends.client.ping(1)
    ends.datagram(ends.client, b"x")
    ends.transmit(ends.client, lane=1)
    ends.lose_lane(1)
    assert not ends.client.has_work(ends.now)


def test_a_streams_data_stays_on_the_lane_of_its_open_until_that_is_acknowledged() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    ends.transmit(ends.client, lane=1)
    ends.client.write(near, Payload(b"x"), ends.now)
    assert not ends.transmit(ends.client, lane=2)
    ends.settle(lane=1)
    ends.client.write(near, Payload(b"y"), ends.now)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.DATA]


def test_an_open_that_died_with_its_lane_leaves_again_before_its_data() -> None:
    ends = Ends(lanes=3)
    near = ends.client.open(WEB)
    ends.transmit(ends.client, lane=1)
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.lose_lane(1)
    assert kinds(ends.transmit(ends.client, lane=2, size=1)) == [frames.OPEN]
    assert not ends.transmit(ends.client, lane=3)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.DATA]


def test_a_reset_may_overtake_its_open_and_the_open_then_opens_nothing() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.transmit(ends.client, lane=1)
    ends.client.reset(near, frames.RESET_ABORTED)
    ends.now += 0.1  # lane 1 has been silent for so long: what is urgent takes the other
    assert ends.send(ends.client, lane=2) == []
    assert ends.deliver(ends.agent, lane=1) == []


def test_streams_may_open_out_of_order_when_lanes_overtake_each_other() -> None:
    ends = Ends(lanes=2)
    ends.client.open(WEB)
    ends.transmit(ends.client, lane=1)
    ends.now += 0.1
    second = ends.client.open(WEB)
    (request,) = ends.send(ends.client, lane=2)
    assert isinstance(request, StreamRequested)
    assert request.stream.id == second.id
    assert len(ends.deliver(ends.agent, lane=1)) == 1


def test_data_may_overtake_the_news_that_a_stream_is_open() -> None:
    ends = Ends(lanes=2)
    near = ends.client.open(WEB)
    (request,) = ends.send(ends.client)
    assert isinstance(request, StreamRequested)
    ends.agent.accept(request.stream)
    ends.transmit(ends.agent, lane=1)
    ends.now += 0.1
    ends.agent.write(request.stream, Payload(b"banner"), ends.now)
    assert text(ends.send(ends.agent, lane=2)) == b"banner"
    assert ends.deliver(ends.client, lane=1) == [StreamOpened(near)]


def test_without_any_lane_what_is_written_waits() -> None:
    ends = Ends(lanes=0)
    near = ends.client.open(WEB)
    ends.client.write(near, Payload(b"patience"), ends.now)
    ends.add_lane(7)
    assert text(ends.send(ends.client, lane=7)) == b"patience"


def test_a_lane_number_is_used_once() -> None:
    ends = Ends()
    with pytest.raises(LocalProtocolError):
        ends.client.add_lane(1, ends.now)


# --- which lane -----------------------------------------------------------------------------------


def measure(ends: Ends, lane: int, rtt_s: float) -> None:
    """Let the client find that the lane's round trips take so long."""
    ends.client.ping(lane)
    ends.transmit(ends.client, lane)
    ends.deliver(ends.agent, lane)
    ends.now += rtt_s
    ends.transmit(ends.agent, lane)
    ends.deliver(ends.client, lane)
    lanes = ends.client.lanes
    lanes[lane].rtt_s = rtt_s  # but for the time that the agent held the acknowledgement


def with_lanes(*rtts_s: float) -> Ends:
    """Lanes 1, 2 ... whose round trips take so long."""
    ends = Ends(lanes=len(rtts_s))
    for lane, rtt_s in enumerate(rtts_s, 1):
        measure(ends, lane, rtt_s)
    return ends


def lose_segments(ends: Ends, *lanes: int) -> None:
    """The client has seen delivery on these lanes stop and go lately."""
    for lane in lanes:
        ends.client.lanes[lane].pacer._stalls.extend([ends.now] * LOSS_STALLS)
    ends.client.note_lanes(ends.now)  # as with every acknowledgement


def test_control_and_datagrams_take_the_lane_that_answers_soonest() -> None:
    ends = with_lanes(0.2, 0.05, 0.1)
    ends.client.open(WEB)
    ends.datagram(ends.client, b"x")
    assert not ends.transmit(ends.client, lane=1)
    assert not ends.transmit(ends.client, lane=3)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.OPEN, frames.DATAGRAM]


def test_a_small_write_takes_the_fastest_lane() -> None:
    ends = with_lanes(0.2, 0.05)
    near, _ = ends.connect(lane=2)
    ends.client.write(near, Payload(b"a key"), ends.now)
    assert not ends.transmit(ends.client, lane=1)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.DATA]


def test_a_lane_is_unanswered_since_its_oldest_unacknowledged_frame() -> None:
    ends = Ends(lanes=1)
    lane = ends.client.lanes[1]
    assert lane.unanswered_s(ends.now + 100) == 0.0
    ends.client.ping(1)
    ends.transmit(ends.client)
    ends.now += 3.0
    ends.client.ping(1)
    ends.transmit(ends.client)
    assert lane.unanswered_s(ends.now) == 3.0
    ends.deliver(ends.agent)
    ends.send(ends.agent)
    assert lane.unanswered_s(ends.now + 100) == 0.0


def test_a_dead_lanes_number_is_sent_over_the_next_lane() -> None:
    ends = Ends(lanes=1)
    ends.client.lose_lane(1, ends.now)
    ends.client.tell_lane_gone(1)
    ends.client.add_lane(2, ends.now)
    ends.agent.add_lane(2, ends.now)
    assert LaneGone(1) in ends.send(ends.client, lane=2)


def test_a_small_write_is_duplicated_on_the_second_fastest_lane_and_arrives_once() -> None:
    ends = with_lanes(0.2, 0.05, 0.1)
    near, far = ends.connect(lane=2)
    ends.client.write(near, Payload(b"a key"), ends.now)
    for lane, sent in ((1, []), (2, [frames.DATA]), (3, [frames.DATA])):
        assert kinds(ends.transmit(ends.client, lane)) == sent
    events = [*ends.deliver(ends.agent, 3), *ends.deliver(ends.agent, 2)]
    arrived = [e for e in events if isinstance(e, DataReceived)]
    assert [(e.stream, bytes(e.payload.view)) for e in arrived] == [(far, b"a key")]


def test_a_duplicate_of_a_reset_stream_is_not_sent() -> None:
    ends = with_lanes(0.05, 0.1)
    near, _ = ends.connect(lane=1)
    ends.client.write(near, Payload(b"a key"), ends.now)
    ends.transmit(ends.client, lane=1)
    ends.client.reset(near, frames.RESET_ABORTED)
    assert frames.DATA not in kinds(ends.transmit(ends.client, lane=2))


def test_sparse_data_is_offered_to_the_lanes_fastest_first() -> None:
    ends = with_lanes(0.2, 0.05, 0.1)
    near, _ = ends.connect(lane=2)
    assert ends.client.lanes_to_fill(ends.now) == []
    ends.client.write(near, Payload(b"a key"), ends.now)
    assert ends.client.lanes_to_fill(ends.now) == [2, 3, 1]


def test_urgent_frames_are_offered_to_the_fastest_lane_that_is_not_blocked() -> None:
    ends = with_lanes(0.2, 0.05, 0.1)
    ends.client.open(WEB)
    assert ends.client.lanes_to_fill(ends.now) == [2]
    ends.client.lanes[2].is_blocked = True
    assert ends.client.lanes_to_fill(ends.now) == [3]


def test_lanes_that_refuse_bulk_note_that_their_limit_held_it_back() -> None:
    ends = with_lanes(0.2, 0.05)
    near, _ = ends.connect(lane=2, bulky=True)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    full = ends.client.lanes[1].pacer
    full.next_at = ends.now + 1.0
    full._held_back = False
    assert ends.client.lanes_to_fill(ends.now) == [2]
    assert full._held_back


def test_bulk_is_spread_over_all_lanes() -> None:
    ends = with_lanes(0.2, 0.05)
    near, _ = ends.connect(lane=2, bulky=True)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    assert frames.DATA in kinds(ends.transmit(ends.client, lane=1))
    assert frames.DATA in kinds(ends.transmit(ends.client, lane=2))


def test_urgent_frames_avoid_a_lane_that_has_stalled() -> None:
    ends = with_lanes(0.2, 0.05)
    ends.client.ping(2)
    ends.transmit(ends.client, lane=2)
    ends.now += 0.19
    first = ends.client.open(WEB)
    assert kinds(ends.transmit(ends.client, lane=2)) == [frames.OPEN]
    ends.now += 0.02
    ends.client.open(WEB)
    assert not ends.transmit(ends.client, lane=2)
    assert kinds(ends.transmit(ends.client, lane=1)) == [frames.OPEN]
    assert first.pinned_lane == 2


def test_urgent_frames_avoid_a_lane_whose_pipe_is_full() -> None:
    ends = with_lanes(0.2, 0.05)
    ends.client.lanes[2].is_blocked = True
    ends.client.open(WEB)
    assert kinds(ends.transmit(ends.client, lane=1)) == [frames.OPEN]


def test_with_all_pipes_full_any_lane_may_carry_urgent_frames() -> None:
    ends = with_lanes(0.2, 0.05)
    for lane in (1, 2):
        ends.client.lanes[lane].is_blocked = True
    ends.client.open(WEB)
    assert kinds(ends.transmit(ends.client, lane=1)) == [frames.OPEN]


def test_an_only_lane_carries_everything_however_slow() -> None:
    ends = with_lanes(3.0)
    ends.client.ping(1)
    ends.transmit(ends.client)
    ends.now += 60.0
    ends.client.open(WEB)
    assert kinds(ends.transmit(ends.client)) == [frames.OPEN]


def test_the_newest_lane_is_kept_free_of_bulk_while_the_others_lose_segments() -> None:
    ends = with_lanes(0.1, 0.1, 0.05)
    near, _ = ends.connect(lane=3, bulky=True)
    lose_segments(ends, 1, 2)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    ends.client.open(WEB)
    assert kinds(ends.transmit(ends.client, lane=3)) == [frames.OPEN]
    for lane in (1, 2):
        assert frames.DATA in kinds(ends.transmit(ends.client, lane))
    ends.now += STALLS_S + 0.01
    ends.deliver(ends.agent, lane=1)
    ends.send(ends.agent, lane=1)  # an acknowledgement
    assert frames.DATA in kinds(ends.transmit(ends.client, lane=3))


def test_no_lane_is_kept_free_of_bulk_unless_all_others_lose_segments() -> None:
    ends = with_lanes(0.1, 0.1, 0.05)
    near, _ = ends.connect(lane=3, bulky=True)
    for each in ends.client.lanes.values():
        each.pacer._start_up = 0.0  # its start is over
    lose_segments(ends, 1, 3)
    ends.client.write(near, Payload(bytes(250_000)), ends.now)
    for lane in (3, 1, 2):
        assert frames.DATA in kinds(ends.transmit(ends.client, lane))


def test_one_of_several_new_lanes_is_kept_free_of_bulk_at_once() -> None:
    ends = with_lanes(0.1, 0.1, 0.05)
    near, _ = ends.connect(lane=3, bulky=True)
    ends.client.lanes[1].pacer._start_up = 0.0
    lose_segments(ends, 1)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    assert not ends.transmit(ends.client, lane=3)


def test_with_two_lanes_none_is_kept_free_of_bulk() -> None:
    ends = with_lanes(0.1, 0.05)
    near, _ = ends.connect(lane=2)
    lose_segments(ends, 1)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    assert frames.DATA in kinds(ends.transmit(ends.client, lane=2))


@pytest.mark.parametrize("dead", [(1,), (2,), (1, 2)])
def test_a_lane_kept_free_of_bulk_carries_it_when_few_others_are_left(
    dead: tuple[int, ...],
) -> None:
    ends = with_lanes(0.1, 0.1, 0.05)
    near, _ = ends.connect(lane=3, bulky=True)
    lose_segments(ends, 1, 2)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    assert not ends.transmit(ends.client, lane=3)
    for lane in dead:
        ends.lose_lane(lane)
    ends.now += 1.0
    assert frames.DATA in kinds(ends.transmit(ends.client, lane=3))


# --- time -----------------------------------------------------------------------------------------


def test_a_side_that_sends_bulk_holds_acknowledgements_longer() -> None:
    ends = Ends()
    near, far = ends.connect()
    ends.agent.write(far, Payload(bytes(250_000)), ends.now)
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.send(ends.client)
    assert ends.agent.lanes[1].ack_due == pytest.approx(ends.now + ACK_DELAY_BUSY_S)
    ends.open_throttle()
    ends.send(ends.agent)  # the acknowledgement with the rest of its bulk
    ends.client.write(near, Payload(b"x"), ends.now)
    ends.send(ends.client)
    assert ends.agent.lanes[1].ack_due == pytest.approx(ends.now + ACK_DELAY_S)


def test_the_next_deadline_is_when_paced_bulk_may_leave() -> None:
    ends = Ends()
    near, _ = ends.connect(bulky=True)
    pacer = ends.client.lanes[1].pacer
    pacer.next_at = ends.now + 0.004
    assert ends.client.next_deadline(ends.now) is None
    ends.client.write(near, Payload(bytes(100_000)), ends.now)
    assert not ends.transmit(ends.client)
    assert ends.client.next_deadline(ends.now) == ends.now + 0.004
    ends.now += 0.004
    assert kinds(ends.transmit(ends.client))[0] == frames.DATA
    assert ends.client.next_deadline(pacer.next_at) is None


def test_urgent_data_overtakes_paced_bulk() -> None:
    ends = Ends()
    bulk, _ = ends.connect(bulky=True)
    key, _ = ends.connect()
    ends.client.lanes[1].pacer.next_at = ends.now + 0.004
    ends.client.write(bulk, Payload(bytes(100_000)), ends.now)
    assert not ends.client.has_work(ends.now)
    ends.client.write(key, Payload(b"k"), ends.now)
    assert ends.client.has_work(ends.now)
    (frame,) = read_frames(ends.transmit(ends.client))
    assert frame[1] == key.id


def test_bulk_in_flight_stays_within_the_pacers_limit() -> None:
    ends = Ends()
    near, _ = ends.connect()
    ends.client.write(near, Payload(bytes(250_000)), ends.now)
    while ends.transmit(ends.client):
        pass
    lane = ends.client.lanes[1]
    overhead = frames.DATA_HEAD_BYTES * len(lane.outstanding)
    assert 0 < lane.in_flight_bytes <= lane.pacer.limit_bytes + overhead


def test_statistics_count_what_is_queued_and_what_is_in_flight() -> None:
    ends = with_lanes(0.05, 0.1)
    bulk, _ = ends.connect(bulky=True)
    key, _ = ends.connect()
    ends.client.write(bulk, Payload(bytes(100_000)), ends.now)
    ends.client.write(key, Payload(b"key"), ends.now)
    ends.client.open(WEB)
    ends.datagram(ends.client, b"12345")
    before = ends.client.statistics(ends.now)
    del before["lanes"]
    assert before == {
        "control_frames": 1,
        "datagram_bytes": 5,
        "sparse_bytes": 3,
        "bulk_bytes": 100_000,
    }
    ends.transmit(ends.client, lane=1)
    lanes = ends.client.statistics(ends.now)["lanes"]
    assert isinstance(lanes, dict)
    assert {number: lane["in_flight_bytes"] for number, lane in lanes.items()} == {
        "1": ends.client.lanes[1].in_flight_bytes,
        "2": 0,
    }


# --- datagrams ------------------------------------------------------------------------------------


def test_a_datagram_arrives_as_it_was_sent_and_its_flow_with_it() -> None:
    ends = Ends()
    flow = ends.datagram(ends.client, b"hello")
    ends.client.datagrams.send(flow, b"", ends.now)
    first, second = ends.send(ends.client)
    assert isinstance(first, DatagramReceived)
    assert isinstance(second, DatagramReceived)
    assert (first.data, second.data) == (b"hello", b"")
    assert first.flow is second.flow is ends.agent.datagrams.flows[flow.number]
    assert first.flow.target == VOICE


def test_no_datagram_is_dropped_while_a_lane_takes_them() -> None:
    ends = Ends()
    flow = ends.client.datagrams.open(VOICE, ends.now)
    for _ in range(2 * DATAGRAM_QUEUE_BYTES // DATAGRAM_BYTES):
        ends.client.datagrams.send(flow, bytes(DATAGRAM_BYTES), ends.now)
        assert len(ends.send(ends.client)) == 1
        ends.settle()
    assert ends.client.datagrams.dropped == 0


# --- the end of the session -----------------------------------------------------------------------


def test_a_goodbye_says_why() -> None:
    ends = Ends()
    ends.agent.say_goodbye(frames.GOODBYE_INTERNAL, "out of memory")
    assert ends.send(ends.agent) == [GoodbyeReceived(frames.GOODBYE_INTERNAL, "out of memory")]


# --- a peer that breaks the protocol --------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        frames.encode_data_head(1, 0, 1) + b"x",
        frames.encode_fin(3, 0),
        frames.encode_window(2, 5, 1),
        frames.encode_opened(2),
        frames.encode_reset(2, 1),
        frames.encode_reset(0, 1),
        frames.encode_window(0, 1, 1),
        frames.encode_open(2, WEB),
        frames.encode_open(0, WEB),
        frames.encode_open(1 + 2 * (STREAM_GAP + 1), WEB),
        frames.encode_reset(1 + 2 * (STREAM_GAP + 1), 1),
        frames.encode_open(1, WEB) + frames.encode_opened(1),
        frames.encode_lane_ack(1, 0.0, 0.0),
    ],
)
def test_an_agent_refuses_frames_that_make_no_sense(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        feed(agent_with_lane(), data)


@pytest.mark.parametrize(
    "data",
    [
        frames.encode_data_head(1, 0, 1) + b"x",
        frames.encode_fin(2, 0),
        frames.encode_window(0, 1, 1),
        frames.encode_reset(0, 1),
        frames.encode_reset(1, 1),
        frames.encode_open(1, WEB),
        frames.encode_open(0, WEB),
        frames.encode_opened(2),
    ],
)
def test_a_client_refuses_frames_that_make_no_sense(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        feed(client_with_lane(), data)


def test_stream_numbers_may_arrive_out_of_order_up_to_a_limit() -> None:
    agent = agent_with_lane()
    feed(agent, frames.encode_open(2 * STREAM_GAP - 1, WEB))
    assert len(agent.streams) == 1


@pytest.mark.many
def test_the_limit_on_out_of_order_stream_numbers_does_not_limit_a_sessions_life() -> None:
    agent = agent_with_lane()
    short = Destination(frames.TCP, "x", 80)
    for first in range(1, 3 * STREAM_GAP, 2000):
        feed(
            agent,
            b"".join(
                frames.encode_open(number, short) + frames.encode_reset(number, 1)
                for number in range(first, first + 2000, 2)
            ),
        )
    assert agent.streams == {}


def test_data_before_a_broken_frame_is_delivered_once() -> None:
    agent = agent_with_lane()
    agent.add_lane(2, 0.0)
    good = frames.encode_open(1, WEB) + frames.encode_data_head(1, 0, 2) + b"ab"
    with pytest.raises(RemoteProtocolError):
        feed(agent, good + frames.encode_fin(3, 0))
    heard = agent.take_events()
    agent.lose_lane(1, 0.0)
    feed(agent, good + frames.encode_data_head(1, 2, 1) + b"c", lane=2)
    assert text(heard) + text(agent.take_events()) == b"abc"


def test_direct_delivery_is_offered_only_for_the_bytes_a_stream_waits_for() -> None:
    ours, theirs = Session(CLIENT), Session(AGENT)
    ours.add_lane(0, 0.0)
    theirs.add_lane(0, 0.0)
    stream = ours.open(Destination(frames.TCP, "192.0.2.1", 80))

    def head(offset: int, size: int) -> memoryview:
        return memoryview(frames.encode_data_head(stream.id, offset, size))

    assert ours.direct_delivery(0) is None
    ours.receive(0, head(0, 10000), 0.0)
    assert ours.direct_delivery(0) == (stream, 10000)
    ours.delivered(0, 4000, 0.0)
    assert ours.direct_delivery(0) == (stream, 6000)
    ours.receive(0, memoryview(bytes(6000)), 0.0)
    assert [len(e.payload) for e in ours.take_events() if isinstance(e, DataReceived)] == [6000]
    assert ours.direct_delivery(0) is None
    ours.receive(0, head(5000, 5000), 0.0)  # came before
    assert ours.direct_delivery(0) is None
    ours.receive(0, memoryview(bytes(5000)), 0.0)
    ours.receive(0, head(20000, 5000), 0.0)  # too early
    assert ours.direct_delivery(0) is None
    ours.receive(0, memoryview(bytes(5000)), 0.0)
    ours.receive(0, head(10000, 10000), 0.0)  # in order, but a later piece waits behind it
    assert ours.direct_delivery(0) is None


def test_spliced_bytes_count_as_received_acknowledged_and_consumed() -> None:
    ours = Session(CLIENT)
    ours.add_lane(0, 0.0)
    stream = ours.open(Destination(frames.TCP, "192.0.2.1", 80))
    ours.transmit(0, 0.0)
    size = INITIAL_WINDOW_BYTES
    ours.receive(0, memoryview(frames.encode_fin(stream.id, size)), 0.0)
    ours.transmit(0, 1.0)
    ours.receive(0, memoryview(frames.encode_data_head(stream.id, 0, size)), 1.0)
    ours.delivered(0, size, 1.0)
    assert FinReceived(stream) in ours.take_events()
    assert ours.next_deadline() is not None


def test_spliced_bytes_grant_a_new_window() -> None:
    ours = Session(CLIENT)
    ours.add_lane(0, 0.0)
    stream = ours.open(Destination(frames.TCP, "192.0.2.1", 80))
    ours.transmit(0, 0.0)
    size = INITIAL_WINDOW_BYTES
    ours.receive(0, memoryview(frames.encode_data_head(stream.id, 0, size)), 1.0)
    ours.delivered(0, size, 1.0)
    assert frames.encode_window(stream.id, 2 * size, 1) in ours.transmit(0, 1.0)


def test_direct_delivery_is_not_offered_for_a_closed_stream() -> None:
    ours = Session(CLIENT)
    ours.add_lane(0, 0.0)
    stream = ours.open(Destination(frames.TCP, "192.0.2.1", 80))
    ours.receive(0, memoryview(frames.encode_data_head(stream.id, 0, 10000)), 0.0)
    ours.reset(stream, frames.RESET_ABORTED)
    assert ours.direct_delivery(0) is None


# --- places for windows ---------------------------------------------------------------------------

#: How many windows of streams that have not proved themselves may have the initial size.
INITIAL_PLACES = PLACES[step_for(INITIAL_WINDOW_BYTES)] // 2


def fill_places(ends: Ends) -> list[Stream]:
    """Open and accept as many streams as may have the initial window; the agent's ends."""
    for _ in range(INITIAL_PLACES):
        ends.client.open(WEB)
    requests = [event for event in ends.settle()[1] if isinstance(event, StreamRequested)]
    for request in requests:
        ends.agent.accept(request.stream)
    ends.settle()
    return [request.stream for request in requests]


def pass_idle_time(ends: Ends) -> None:
    ends.now += IDLE_S
    ends.transmit(ends.client)


def test_a_stream_whose_end_has_come_leaves_its_place_to_the_next() -> None:
    ends = Ends()
    for far in fill_places(ends):
        ends.agent.write(far, Payload(b"bye"), ends.now)
        ends.agent.finish(far, ends.now)
    ends.settle()
    pass_idle_time(ends)
    assert ends.client.open(WEB).receiver.window.window_bytes < INITIAL_WINDOW_BYTES  # it asked
    assert ends.client.open(WEB).receiver.window.window_bytes == INITIAL_WINDOW_BYTES


def test_an_idle_stream_gives_its_place_to_one_that_reads_fast() -> None:
    ends = Ends()
    fill_places(ends)
    reader = ends.client.open(WEB)
    (request,) = [event for event in ends.settle()[1] if isinstance(event, StreamRequested)]
    ends.agent.accept(request.stream)
    assert reader.receiver.window.window_bytes < INITIAL_WINDOW_BYTES
    pass_idle_time(ends)
    for _ in range(4):
        size = reader.receiver.window.window_bytes // 2
        ends.agent.write(request.stream, Payload(bytes(size)), ends.now)
        ends.settle()
        ends.client.rtt_s = 1.0  # the reader is quick, compared with that
        ends.client.consumed(reader, size, ends.now)
        ends.settle()
    assert reader.receiver.window.window_bytes >= INITIAL_WINDOW_BYTES


def test_a_peer_that_has_as_many_streams_as_it_may_is_refused_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_STREAMS", 2)
    agent = agent_with_lane()
    for number in (1, 3, 5):
        feed(agent, frames.encode_open(number, WEB))
    assert len(agent.take_events()) == 2
    reset = [
        frame for frame in read_frames(join(agent.transmit(1, 0.0))) if frame[0] == frames.RESET
    ]
    assert [frame[1:3] for frame in reset] == [(5, frames.RESET_NO_RESOURCES)]


def test_a_peer_that_reads_no_answers_breaks_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CONTROL_QUEUE_FRAMES", 3)
    agent = agent_with_lane()
    for number in (1, 3, 5, 7):
        feed(agent, frames.encode_open(number, WEB))
        (event,) = agent.take_events()
        assert isinstance(event, StreamRequested)
        agent.accept(event.stream)
    with pytest.raises(RemoteProtocolError, match="does not read"):
        feed(agent, frames.encode_open(9, WEB))
