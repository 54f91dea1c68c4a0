"""Which streams there are: numbers of both sides, limits, late frames, places for windows."""

import pytest

from sshunt.mux import frames, table
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import LEAST_WINDOW_BYTES, MAX_STREAMS, MAX_WINDOW_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.sent import ControlQueue
from sshunt.mux.streams import ANY_LANE, NO_LANE
from sshunt.mux.table import StreamTable
from sshunt.mux.windows import IDLE_S
from tests.unit.mux.ends import WEB, kinds


def table_of(role: int, max_streams: int = MAX_STREAMS) -> StreamTable:
    return StreamTable(role, LEAST_WINDOW_BYTES, max_streams, ControlQueue())


def waiting(streams: StreamTable) -> list[int]:
    """The types of the control frames that wait for a lane."""
    return [kinds(sent.leave(1))[0] for sent in streams.control.waiting]


def test_each_side_opens_with_numbers_of_its_own() -> None:
    client, agent = table_of(CLIENT), table_of(AGENT)
    assert [client.open(WEB).id for _ in range(3)] == [1, 3, 5]
    assert [agent.open(WEB).id for _ in range(3)] == [2, 4, 6]
    assert waiting(client) == [frames.OPEN] * 3


def test_a_stream_of_ours_is_nobody_s_before_its_open_left_and_theirs_is_any_lane_s() -> None:
    client = table_of(CLIENT)
    assert client.open(WEB).pinned_lane == NO_LANE
    theirs = client.open_theirs(2, 1000)
    assert theirs is not None
    assert (theirs.pinned_lane, theirs.sender.limit) == (ANY_LANE, 1000)


def test_what_the_peer_allows_is_bounded_by_our_own_limits() -> None:
    table = StreamTable(CLIENT, 1 << 31, 1 << 31, ControlQueue())
    assert (table.peer_window_bytes, table.peer_max_streams) == (MAX_WINDOW_BYTES, MAX_STREAMS)


def test_no_more_are_opened_than_the_peer_allows() -> None:
    client = table_of(CLIENT, 2)
    first, _ = client.open(WEB), client.open(WEB)
    assert not client.can_open
    with pytest.raises(LocalProtocolError):
        client.open(WEB)
    first.reset()
    client.forget(first)
    assert client.open(WEB).id == 5


def test_a_host_that_cannot_be_sent_opens_nothing() -> None:
    client = table_of(CLIENT)
    with pytest.raises(LocalProtocolError):
        client.open(Destination(frames.TCP, "no such name", 80))
    assert not client.streams
    assert client.credit.promised_bytes == 0
    assert client.open(WEB).id == 1


def test_an_open_that_comes_twice_opens_once() -> None:
    agent = table_of(AGENT)
    assert agent.open_theirs(1, 1000) is not None
    assert agent.open_theirs(1, 1000) is None
    assert list(agent.streams) == [1]


def test_an_open_that_its_reset_has_overtaken_opens_nothing() -> None:
    agent = table_of(AGENT)
    agent.note_reset(1)
    assert agent.open_theirs(1, 1000) is None


@pytest.mark.parametrize("number", [0, 2])
def test_an_open_of_no_stream_or_of_our_own_is_an_error_of_the_peer(number: int) -> None:
    with pytest.raises(RemoteProtocolError):
        table_of(AGENT).open_theirs(number, 1000)


def test_one_too_many_of_a_peer_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_STREAMS", 2)
    agent = table_of(AGENT)
    opened = [agent.open_theirs(number, 1 << 31) for number in (1, 3, 5)]
    assert opened[2] is None
    assert opened[0] is not None
    assert opened[0].sender.limit == MAX_WINDOW_BYTES
    assert waiting(agent) == [frames.RESET]
    opened[0].reset()
    agent.forget(opened[0])
    agent.forget(opened[0])
    assert agent.open_theirs(7, 1000) is not None


def test_a_peer_that_reads_no_answers_breaks_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CONTROL_QUEUE_FRAMES", 1)
    agent = table_of(AGENT)
    agent.open_theirs(1, 1000)
    for _ in range(2):
        agent.control.append(frames.encode_opened(1))
    with pytest.raises(RemoteProtocolError):
        agent.open_theirs(3, 1000)


def test_where_places_are_short_a_new_stream_has_some_called_back() -> None:
    client = table_of(CLIENT)
    idle = client.open(WEB)
    idle.pinned_lane = ANY_LANE
    client.now += 2 * IDLE_S
    client.credit.is_short = True
    client.open(WEB)
    assert idle.receiver.window.limit == LEAST_WINDOW_BYTES
    assert not client.credit.is_short


def test_a_stream_with_something_left_to_say_is_not_forgotten() -> None:
    client = table_of(CLIENT)
    stream = client.open(WEB)
    client.forget_if_over(stream)
    assert client.find(1) is stream


def test_a_stream_that_only_its_reader_keeps_is_over_for_what_its_peer_still_says() -> None:
    client = table_of(CLIENT)
    stream = client.open(WEB)
    stream.receiver.receive(0, Payload(b"unread"))
    stream.receiver.finish(6)
    assert stream.receiver.take_fin()
    assert client.find(1) is stream
    stream.sender.finish()
    stream.sender.take(1000)
    client.forget_if_over(stream)
    assert client.streams == {1: stream}
    assert client.find(1) is None


def test_frames_of_streams_that_are_over_are_late_and_of_those_that_never_were_errors() -> None:
    client = table_of(CLIENT)
    ours, theirs = client.open(WEB), client.open_theirs(2, 1000)
    assert theirs is not None
    assert client.find(1) is ours
    for stream in (ours, theirs):
        stream.reset()
        client.forget_if_over(stream)
    assert client.find(1) is client.find(2) is None
    client.note_reset(1)
    client.check_ours(1)
    for number in (0, 3, 4):
        with pytest.raises(RemoteProtocolError):
            client.find(number)
    with pytest.raises(RemoteProtocolError):
        client.check_ours(2)


def test_who_does_not_use_a_large_window_gives_it_back_where_places_are_short() -> None:
    client = table_of(CLIENT)
    client.now = 1.0
    pinned, finished, idle = (client.open(WEB) for _ in range(3))
    finished.pinned_lane = idle.pinned_lane = ANY_LANE
    finished.receiver.finish(10)
    client.now += 2 * IDLE_S
    client.make_places()
    assert pinned.receiver.window.limit > LEAST_WINDOW_BYTES
    assert idle.receiver.window.limit == LEAST_WINDOW_BYTES
    assert waiting(client) == [frames.OPEN] * 3 + [frames.WINDOW]
