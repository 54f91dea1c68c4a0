"""All flows of a session: numbers, turns, limits, and what the two sides make of each other."""

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    BATCH,
    END,
    ERROR,
    FLOW_DONE,
    FLOW_NO_RESOURCES,
    FLOW_NOT_PERMITTED,
    FLOW_REFUSED,
    FLOW_TOO_LARGE,
    FLOW_UNKNOWN,
    OPENING,
    PLAIN,
    FlowTarget,
    decode_datagram_untrusted,
    encode_datagram_head,
    encode_flow_end,
    encode_flow_error,
    encode_opening_head,
)
from sshunt.mux.datagrams import MAX_NUMBER, Datagrams
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.events import DatagramReceived, Event, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import (
    DATAGRAM_AGE_S,
    DATAGRAM_BYTES,
    DATAGRAM_QUEUE_BYTES,
    ENTRY_BYTES,
    FLOW_AGE_S,
    FLOW_QUANTUM_BYTES,
    FLOW_QUEUE_BYTES,
    MAX_FLOWS,
)
from sshunt.mux.scheduler import SPARSE_BYTES
from tests.unit.mux.ends import VOICE

NOW = 100.0
DNS = FlowTarget(frames.DNS, ".", 0)


class Both:
    """A client's flows and an agent's, and nothing between them that could lose anything."""

    def __init__(self) -> None:
        self.client, self.agent = Datagrams(CLIENT), Datagrams(AGENT)
        self.now = NOW

    def open(self, data: bytes = b"hello", target: FlowTarget = VOICE) -> DatagramFlow:
        """A flow of the client's with a datagram that waits."""
        flow = self.client.open(target, self.now)
        self.client.send(flow, data, self.now)
        return flow

    def up(self) -> list[Event]:
        """All that the client has leaves; what the agent makes of it."""
        return move(self.client, self.agent, self.now)

    def down(self) -> list[Event]:
        return move(self.agent, self.client, self.now)

    def connected(self) -> tuple[DatagramFlow, DatagramFlow]:
        """Both ends of a flow that both know."""
        near = self.open()
        (event,) = self.up()
        assert isinstance(event, DatagramReceived)
        self.agent.send(event.flow, b"welcome", self.now)
        assert self.down() == [DatagramReceived(near, b"welcome")]
        return near, event.flow


def number_in(head: bytes) -> int:
    """The flow of a frame."""
    return int.from_bytes(head[4:8], "big")


def leave(sender: Datagrams, now: float = NOW) -> list[tuple[int, int, bytes]]:
    """(flow, kind, payload) of all that leaves, in order."""
    found = []
    while (item := sender.take(now)) is not None:
        _, head, data = item
        datagram = decode_datagram_untrusted(head[frames.HEADER_BYTES :] + data)
        found.append((number_in(head), datagram.kind, datagram.payload))
    assert not sender.waiting
    return found


def move(sender: Datagrams, receiver: Datagrams, now: float) -> list[Event]:
    events: list[Event] = []
    while (item := sender.take(now)) is not None:
        _, head, data = item
        number = number_in(head)
        events += receiver.receive(number, head[frames.HEADER_BYTES :] + data, now)
    return events


def body(raw: bytes) -> bytes:
    return raw[frames.HEADER_BYTES :]


# --- numbers --------------------------------------------------------------------------------------


def test_the_client_has_odd_numbers_and_the_agent_even_ones() -> None:
    client, agent = Datagrams(CLIENT), Datagrams(AGENT)
    assert [client.open(VOICE, NOW).number for _ in range(3)] == [1, 3, 5]
    assert [agent.open(VOICE, NOW).number for _ in range(3)] == [2, 4, 6]


def test_when_all_numbers_were_used_those_of_flows_that_are_over_are_used_again() -> None:
    client = Datagrams(CLIENT)
    first, second = (client.open(VOICE, NOW) for _ in range(2))
    client.next_number = MAX_NUMBER
    assert client.open(VOICE, NOW).number == MAX_NUMBER
    client.end(second, NOW)
    assert client.open(VOICE, NOW).number == second.number
    assert client.flows[first.number] is first


def test_a_side_opens_no_more_flows_than_the_other_takes() -> None:
    both = Both()
    for _ in range(MAX_FLOWS):
        last = both.client.open(VOICE, NOW)
    assert not both.client.can_open
    with pytest.raises(LocalProtocolError):
        both.client.open(VOICE, NOW)
    both.client.end(last, NOW)
    assert both.client.can_open


def test_a_flow_too_many_of_a_peer_is_ended() -> None:
    agent = Datagrams(AGENT)
    for number in range(1, 2 * MAX_FLOWS, 2):
        agent.receive(number, body(encode_opening_head(number, VOICE, 0)), NOW)
    number = 2 * MAX_FLOWS + 1
    assert agent.receive(number, body(encode_opening_head(number, VOICE, 0)), NOW) == []
    assert len(agent.flows) == MAX_FLOWS
    assert leave(agent) == [(number, END, b"")]
    client = Datagrams(CLIENT)
    flow = client.open(VOICE, NOW)
    raw = body(encode_flow_end(1, FLOW_NO_RESOURCES))
    assert client.receive(1, raw, NOW) == [FlowEnded(flow, FLOW_NO_RESOURCES)]


def test_a_flow_to_an_impossible_host_is_refused() -> None:
    client = Datagrams(CLIENT)
    with pytest.raises(LocalProtocolError):
        client.open(FlowTarget(frames.UDP, "no such name", 1), NOW)
    assert not client.flows


# --- the two sides --------------------------------------------------------------------------------


def test_a_flow_is_named_until_the_other_side_has_answered_and_then_only_numbered() -> None:
    both = Both()
    near = both.open(b"one")
    both.client.send(near, b"two", NOW)
    assert leave(both.client) == [(1, OPENING, b"one"), (1, OPENING, b"two")]
    near, far = both.connected()
    both.client.send(near, b"three", NOW)
    both.client.send(near, b"four4", NOW, 4)
    both.agent.send(far, b"five", NOW)
    assert leave(both.client) == [(3, PLAIN, b"three"), (3, BATCH, b"four4")]
    assert leave(both.agent) == [(3, PLAIN, b"five")]


def test_a_flow_is_known_when_the_datagram_that_opened_it_was_acknowledged() -> None:
    both = Both()
    near = both.open(b"one")
    item = both.client.take(NOW)
    assert item is not None
    both.client.fail(near, FLOW_REFUSED, NOW)
    error = both.client.take(NOW)
    assert error is not None
    error[0].on_acked()  # says nothing of the flow
    both.client.send(near, b"two", NOW)
    assert leave(both.client) == [(1, OPENING, b"two")]
    item[0].on_acked()
    both.client.send(near, b"three", NOW)
    assert leave(both.client) == [(1, PLAIN, b"three")]


def test_all_datagrams_of_a_flow_belong_to_it_on_both_sides() -> None:
    both = Both()
    near, far = both.connected()
    assert far.target == near.target == VOICE
    both.client.send(near, b"", NOW)
    both.client.send(near, b"abcabcab", NOW, 3)
    assert both.up() == [DatagramReceived(far, b""), DatagramReceived(far, b"abcabcab", 3)]


def test_a_flow_that_the_agent_opens_is_the_same_the_other_way_round() -> None:
    both = Both()
    far = both.agent.open(VOICE._replace(source=3), NOW)
    both.agent.send(far, b"hello", NOW)
    (event,) = both.down()
    assert isinstance(event, DatagramReceived)
    assert (event.flow.number, event.flow.target.source) == (2, 3)
    both.client.send(event.flow, b"welcome", NOW)
    assert both.up() == [DatagramReceived(far, b"welcome")]


def test_an_error_is_told_and_the_flow_goes_on() -> None:
    both = Both()
    near, far = both.connected()
    both.agent.fail(far, FLOW_TOO_LARGE, NOW, 1472)
    assert both.down() == [FlowFailed(near, FLOW_TOO_LARGE, 1472)]
    both.client.send(near, b"less", NOW)
    assert both.up() == [DatagramReceived(far, b"less")]


@pytest.mark.parametrize("code", [FLOW_DONE, FLOW_REFUSED, FLOW_NOT_PERMITTED])
def test_the_end_of_a_flow_is_told_behind_its_last_datagram(code: int) -> None:
    both = Both()
    near, far = both.connected()
    both.client.send(near, b"last", NOW)
    both.client.end(near, NOW, code)
    both.client.end(near, NOW, code)
    both.client.send(near, b"too late", NOW)
    both.client.fail(near, FLOW_REFUSED, NOW)
    assert both.up() == [DatagramReceived(far, b"last"), FlowEnded(far, code)]
    assert both.client.flows == both.agent.flows == {}


def test_a_flow_of_another_session_has_no_effect_on_this_one() -> None:
    both = Both()
    before = Datagrams(CLIENT).open(VOICE, NOW)
    near = both.open()
    both.client.send(before, b"x", NOW)
    both.client.end(before, NOW)
    assert both.client.flows == {1: near}
    assert leave(both.client) == [(1, OPENING, b"hello")]


def test_a_flow_that_the_other_side_has_forgotten_is_named_again() -> None:
    both = Both()
    near, far = both.connected()
    both.agent.flows.clear()
    both.client.send(near, b"lost", NOW)
    assert both.up() == []
    assert both.down() == []
    both.client.send(near, b"again", NOW)
    (event,) = both.up()
    assert isinstance(event, DatagramReceived)
    assert (event.flow.target, event.data) == (VOICE, b"again")
    assert event.flow is not far


def test_a_flow_that_its_opener_has_forgotten_is_ended() -> None:
    both = Both()
    _, far = both.connected()
    both.client.flows.clear()
    both.agent.send(far, b"late", NOW)
    assert both.down() == []
    assert both.up() == [FlowEnded(far, FLOW_DONE)]


def test_errors_ends_and_unknown_kinds_of_unknown_flows_are_not_answered() -> None:
    client = Datagrams(CLIENT)
    flow = client.open(VOICE, NOW)
    for number in (flow.number, 7, 8):
        for raw in (encode_flow_error(number, FLOW_UNKNOWN), b"\x09" * 12):
            assert client.receive(number, body(raw), NOW) == []
    for raw in (encode_flow_error(8, FLOW_REFUSED), encode_flow_end(8)):
        assert client.receive(8, body(raw), NOW) == []
    assert leave(client) == []


def test_a_number_that_is_used_anew_ends_the_flow_before() -> None:
    both = Both()
    _, far = both.connected()
    other = VOICE._replace(port=6)
    ended, fresh = both.agent.receive(1, body(encode_opening_head(1, other, 1)) + b"x", NOW)
    assert ended == FlowEnded(far, FLOW_DONE)
    assert isinstance(fresh, DatagramReceived)
    assert fresh.flow.target == other
    assert list(both.agent.flows.values()) == [fresh.flow]


def test_one_of_the_copies_of_a_datagram_is_delivered() -> None:
    agent = Datagrams(AGENT)
    opening = body(encode_opening_head(1, VOICE, 1, serial=1)) + b"a"
    second = body(encode_datagram_head(1, 1, serial=2)) + b"b"
    events = [e for raw in (opening, second, second, opening) for e in agent.receive(1, raw, NOW)]
    assert [event.data for event in events if isinstance(event, DatagramReceived)] == [b"a", b"b"]


@pytest.mark.parametrize("number", [0, 2])
def test_an_opening_of_no_flow_or_of_our_own_is_an_error_of_the_peer(number: int) -> None:
    agent = Datagrams(AGENT)
    with pytest.raises(RemoteProtocolError):
        agent.receive(number, body(encode_opening_head(number, VOICE, 0)), NOW)


# --- questions ------------------------------------------------------------------------------------


def test_an_answered_question_ends_its_flow_without_a_message() -> None:
    both = Both()
    near = both.open(b"who?", DNS)
    (event,) = both.up()
    assert isinstance(event, DatagramReceived)
    both.agent.send(event.flow, b"it", NOW)
    assert not both.agent.flows
    assert both.down() == [DatagramReceived(near, b"it")]
    assert not both.client.flows
    assert leave(both.client) == leave(both.agent) == []


def test_a_flow_whose_answer_is_no_longer_awaited_is_ended() -> None:
    both = Both()
    near = both.open(b"who?", DNS)
    (event,) = both.up()
    assert isinstance(event, DatagramReceived)
    both.client.end(near, NOW)
    assert both.up() == [FlowEnded(event.flow, FLOW_DONE)]
    both.agent.send(event.flow, b"it", NOW)
    assert leave(both.agent) == []


# --- what waits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "rtt_s", "age_s"),
    [(VOICE, 0.0, FLOW_AGE_S), (VOICE, 0.3, 0.6), (DNS, 0.0, DATAGRAM_AGE_S), (DNS, 0.3, 0.5)],
)
def test_what_waited_too_long_is_dropped_questions_later_than_others(
    target: FlowTarget, rtt_s: float, age_s: float
) -> None:
    client = Datagrams(CLIENT)
    client.note_rtt(rtt_s)
    flow = client.open(target, NOW)
    client.send(flow, b"old", NOW)
    client.send(flow, b"new", NOW + 0.002)
    assert leave(client, NOW + age_s + 0.001) == [(1, OPENING, b"new")]
    assert client.dropped == 1


def test_the_word_that_a_flow_is_over_is_never_too_old() -> None:
    both = Both()
    near, far = both.connected()
    both.client.send(near, b"old", NOW)
    both.client.end(near, NOW)
    both.now += 60.0
    assert both.up() == [FlowEnded(far, FLOW_DONE)]


def test_when_too_much_of_a_flow_waits_its_oldest_are_dropped() -> None:
    client = Datagrams(CLIENT)
    other = client.open(VOICE, NOW)
    client.send(other, b"kept", NOW)
    flow = client.open(VOICE, NOW)
    size = 10_000
    kept = FLOW_QUEUE_BYTES // (size + ENTRY_BYTES)
    for index in range(kept + 3):
        client.send(flow, bytes((index,)) * size, NOW)
    left = leave(client)
    assert (1, OPENING, b"kept") in left
    assert [payload[0] for number, _, payload in left if number == 3] == list(range(3, kept + 3))
    assert client.dropped == 3


def test_when_all_flows_together_queue_too_much_the_oldest_datagrams_are_dropped() -> None:
    client = Datagrams(CLIENT)
    kept = DATAGRAM_QUEUE_BYTES // (DATAGRAM_BYTES + ENTRY_BYTES)
    flows = [client.open(VOICE, NOW) for _ in range(kept + 3)]
    for flow in flows:
        client.send(flow, bytes(DATAGRAM_BYTES), NOW)
    assert [number for number, _, _ in leave(client)] == [flow.number for flow in flows[3:]]
    assert client.dropped == 3


def test_a_flow_that_waits_for_its_turn_with_nothing_to_send_loses_nothing() -> None:
    client = Datagrams(CLIENT)
    busy = client.open(VOICE, NOW)
    for _ in range(3):
        client.send(busy, bytes(FLOW_QUANTUM_BYTES), NOW)
    once = client.open(VOICE, NOW)
    client.take(NOW)
    client.send(once, b"once", NOW)
    item = client.take(NOW)
    assert item is not None
    assert number_in(item[1]) == once.number
    flows = [client.open(VOICE, NOW) for _ in range(DATAGRAM_QUEUE_BYTES // DATAGRAM_BYTES + 1)]
    for flow in flows:
        client.send(flow, bytes(DATAGRAM_BYTES), NOW)
    left = leave(client)
    assert len(left) + client.dropped == 2 + len(flows)
    assert client.queued_bytes == 0


def test_the_queue_of_empty_datagrams_is_bounded() -> None:
    client = Datagrams(CLIENT)
    flows = [client.open(VOICE, NOW) for _ in range(1000)]
    for index in range(100_000):
        client.send(flows[index % 1000], b"", NOW)
    assert client.payload_bytes == 0
    assert client.queued_bytes <= DATAGRAM_QUEUE_BYTES
    assert len(leave(client)) + client.dropped == 100_000


def test_answers_to_a_peer_that_speaks_of_unknown_flows_are_bounded() -> None:
    client = Datagrams(CLIENT)
    for number in range(1, 100_000):
        assert client.receive(number, body(encode_datagram_head(number, 1)) + b"x", NOW) == []
    assert client.queued_bytes <= FLOW_QUEUE_BYTES
    assert {kind for _, kind, _ in leave(client)} == {END, ERROR}


def test_a_flow_that_sends_little_goes_before_a_flood() -> None:
    client = Datagrams(CLIENT)
    flood = client.open(VOICE, NOW)
    for _ in range(50):
        client.send(flood, bytes(1200), NOW)
    for _ in range(3):
        client.take(NOW)  # it has had its turn
    question = client.open(DNS, NOW)
    client.send(question, b"who?", NOW)
    assert leave(client)[0] == (question.number, OPENING, b"who?")


def test_a_flood_is_asked_only_where_bulk_may_leave_and_one_that_sends_little_always() -> None:
    client = Datagrams(CLIENT)
    flood, voice = (client.open(VOICE, NOW) for _ in range(2))
    for _ in range(40):
        client.send(flood, bytes(1200), NOW)
    sparse = 0
    while client.take(NOW, bulk=False) is not None:
        sparse += 1
    assert sparse * (1200 + ENTRY_BYTES) == pytest.approx(SPARSE_BYTES, abs=2 * FLOW_QUANTUM_BYTES)
    client.send(voice, b"word", NOW)
    item = client.take(NOW, bulk=False)
    assert item is not None
    assert item[2] == b"word"
    client.send(flood, b"more", NOW + 0.001)
    assert client.take(NOW, bulk=False) is None
    assert client.take(NOW) is not None
    # In the next round trip it may have become one that sends little.
    client.receive(1, body(encode_flow_end(1)), NOW)
    leave(client)
    client.send(voice, bytes(SPARSE_BYTES), NOW)
    assert client.take(NOW, bulk=False) is None
    leave(client)
    client.send(voice, b"word", NOW + 1.0)
    assert client.take(NOW + 1.0, bulk=False) is not None


def test_a_batch_leaves_in_parts_where_frames_are_small() -> None:
    both = Both()
    near, far = both.connected()
    both.client.send(near, b"aabbccd", NOW, 2)
    heard: list[Event] = []
    while (item := both.client.take(NOW, largest=4)) is not None:
        _, head, data = item
        heard += both.agent.receive(1, body(head) + data, NOW)
    assert heard == [DatagramReceived(far, b"aabb", 2), DatagramReceived(far, b"ccd", 2)]
    assert (both.client.waiting, both.client.queued_bytes) == (0, 0)


def test_floods_share_by_bytes_and_not_by_datagrams() -> None:
    client = Datagrams(CLIENT)
    large, small = (client.open(VOICE, NOW) for _ in range(2))
    for _ in range(80):
        client.send(large, bytes(1200), NOW)
    for _ in range(240):
        client.send(small, bytes(100), NOW)
    left = [number for number, _, _ in leave(client)]
    ends = {flow: len(left) - 1 - left[::-1].index(flow.number) for flow in (large, small)}
    assert left[: ends[small]].count(large.number) == pytest.approx(
        240 * (100 + ENTRY_BYTES) / (1200 + ENTRY_BYTES), abs=3
    )


def test_a_busy_flow_does_not_starve_the_others() -> None:
    client = Datagrams(CLIENT)
    flood, chatty = (client.open(VOICE, NOW) for _ in range(2))
    for _ in range(60):
        client.send(flood, bytes(1200), NOW)
    taken = []
    for _ in range(40):
        if not chatty.queue:
            client.send(chatty, bytes(1000), NOW)
        item = client.take(NOW)
        assert item is not None
        taken.append(number_in(item[1]))
    assert 15 <= taken.count(flood.number) <= 25


def test_a_datagram_larger_than_udp_carries_is_our_own_bug() -> None:
    client = Datagrams(CLIENT)
    with pytest.raises(LocalProtocolError):
        client.send(client.open(VOICE, NOW), bytes(DATAGRAM_BYTES + 1), NOW)


# --- idle flows -----------------------------------------------------------------------------------


def test_a_flow_ends_when_it_was_idle_for_as_long_as_whoever_serves_it_says() -> None:
    both = Both()
    near, far = both.connected()
    near.idle_s = 30.0
    both.now += 30.0
    assert both.client.end_idle(both.now) == []
    both.client.send(near, b"x", both.now)
    both.up()
    both.now += 30.0
    both.agent.send(far, b"y", both.now)
    both.down()
    both.now += 30.0
    assert both.client.end_idle(both.now) == []
    assert both.client.end_idle(both.now + 0.1) == [near]
    assert both.up() == [FlowEnded(far, FLOW_DONE)]
