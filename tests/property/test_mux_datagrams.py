"""Flows between two sides and a wire that loses, holds back, reorders and repeats."""

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_OTHER, FlowTarget, encode_datagram_head
from sshunt.mux.datagrams import Datagrams
from sshunt.mux.events import DatagramReceived, Event, FlowEnded
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import (
    DATAGRAM_QUEUE_BYTES,
    ENTRY_BYTES,
    FLOW_QUANTUM_BYTES,
    FLOW_QUEUE_BYTES,
)
from sshunt.mux.sent import Sent

pytestmark = pytest.mark.fuzz

NOW = 1.0


class Frame(NamedTuple):
    number: int
    body: bytes
    sent: Sent


class Side:
    """One end: what it was told, and what it has told."""

    def __init__(self, role: int) -> None:
        self.datagrams = Datagrams(role)
        self.opened: list[DatagramFlow] = []
        self.sent: set[tuple[int, bytes]] = set()
        self.received: list[tuple[int, bytes]] = []

    def frames(self) -> list[Frame]:
        """All that leaves now."""
        left = []
        while (item := self.datagrams.take(NOW)) is not None:
            sent, head, data = item
            number = int.from_bytes(head[4:8], "big")
            left.append(Frame(number, head[frames.HEADER_BYTES :] + data, sent))
        return left

    def hear(self, frame: Frame) -> list[Event]:
        events = self.datagrams.receive(frame.number, frame.body, NOW)
        for event in events:
            if isinstance(event, DatagramReceived):
                assert self.datagrams.flows.get(event.flow.number) is event.flow
                self.received.append((event.flow.number, event.data))
        return events

    def check(self) -> None:
        datagrams = self.datagrams
        assert 0 <= datagrams.queued_bytes <= DATAGRAM_QUEUE_BYTES
        assert all(number == flow.number for number, flow in datagrams.flows.items())
        assert all(flow.queued_bytes <= FLOW_QUEUE_BYTES for flow in datagrams.flows.values())


def act(rng: random.Random, side: Side, count: int) -> None:
    """Something that an owner of flows does."""
    datagrams = side.datagrams
    flows = list(datagrams.flows.values())
    what = rng.random()
    if what < 0.2 or not flows:
        target = FlowTarget(frames.UDP, "10.1.2.3", rng.randint(1, 3), rng.randint(0, 3))
        side.opened.append(datagrams.open(target, NOW))
    elif what < 0.3:
        datagrams.end(rng.choice(flows), NOW)
    elif what < 0.4:
        datagrams.fail(rng.choice(flows), FLOW_OTHER, NOW)
    else:
        flow, data = rng.choice(flows), b"%d" % count + bytes(rng.choice((0, 0, 20, 40_000)))
        datagrams.send(flow, data, NOW, rng.choice((0, 0, 10)))
        side.sent.add((flow.number, data))


@settings(deadline=None, max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(0, 120))
def test_whatever_is_lost_nothing_goes_astray_and_an_open_flow_soon_works_again(
    rng: random.Random, steps: int
) -> None:
    client, agent = Side(CLIENT), Side(AGENT)
    wires: dict[int, list[Frame]] = {id(client): [], id(agent): []}
    for count in range(steps):
        side, other = rng.choice(((client, agent), (agent, client)))
        act(rng, side, count)
        wire = wires[id(other)]
        wire += side.frames()
        while wire and rng.random() < 0.7:
            index = rng.randrange(len(wire))
            frame = wire.pop(index)
            if rng.random() < 0.7:
                other.hear(frame)
                frame.sent.on_acked()
                if rng.random() < 0.1:
                    wire.append(frame)
        for each in (client, agent):
            each.check()
    assert set(client.received) <= agent.sent
    assert set(agent.received) <= client.sent
    for side, other in ((client, agent), (agent, client)):
        for flow in side.opened:
            works_again(side, other, flow)


def works_again(side: Side, other: Side, flow: DatagramFlow) -> None:
    """Where nothing is lost any more, the second datagram of an open flow arrives at the latest."""
    for data in (b"perhaps", b"surely"):
        if side.datagrams.flows.get(flow.number) is not flow:
            return
        side.datagrams.send(flow, data, NOW)
        events = [event for frame in side.frames() for event in other.hear(frame)]
        for frame in other.frames():
            side.hear(frame)
    heard = [event for event in events if isinstance(event, DatagramReceived)]
    assert [event.data for event in heard if event.flow.number == flow.number] == [b"surely"]
    assert heard[-1].flow.target == flow.target
    side.datagrams.end(flow, NOW)
    ended = [event for frame in side.frames() for event in other.hear(frame)]
    assert FlowEnded(heard[-1].flow, 0) in ended


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 200), max_size=200))
def test_each_serial_is_handed_out_at_most_once_and_in_order_always(serials: list[int]) -> None:
    agent = Datagrams(AGENT)
    opening = Datagrams(CLIENT)
    opening.send(opening.open(FlowTarget(frames.UDP, "10.1.2.3", 1), NOW), b"0", NOW)
    item = opening.take(NOW)
    assert item is not None
    agent.receive(1, item[1][frames.HEADER_BYTES :] + item[2], NOW)
    heard = []
    for serial in serials:
        body = encode_datagram_head(1, 4, serial=serial)[frames.HEADER_BYTES :] + b"%4d" % serial
        events = agent.receive(1, body, NOW)
        heard += [int(e.data) for e in events if isinstance(e, DatagramReceived)]
    assert len(set(heard)) == len(heard)
    newest = 0
    for serial in serials:
        if serial > newest:
            assert serial in heard
        newest = max(newest, serial)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=20), min_size=2, max_size=8))
def test_flows_that_have_something_share_by_bytes(sizes: list[list[int]]) -> None:
    client = Datagrams(CLIENT)
    left: dict[int, int] = {}
    for each in sizes:
        flow = client.open(FlowTarget(frames.UDP, "10.1.2.3", 1), NOW)
        for size in each:
            client.send(flow, bytes(size), NOW)
        left[flow.number] = len(each)
    taken = dict.fromkeys(left, 0)
    largest = max(max(each) for each in sizes) + ENTRY_BYTES
    while (item := client.take(NOW)) is not None:
        number = int.from_bytes(item[1][4:8], "big")
        taken[number] += len(item[2]) + ENTRY_BYTES
        left[number] -= 1
        busy = [taken[number] for number in left if left[number]]
        if busy:  # who has something is never further behind than a turn and a datagram
            assert taken[number] - min(busy) <= 2 * (FLOW_QUANTUM_BYTES + largest)
    assert not any(left.values())
