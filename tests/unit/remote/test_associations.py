"""Flows of datagrams go on whatever becomes of the link, and end at both ends.

With sockets at the other end: see tests/unit/direct/test_udp.py; with an agent: test_remote.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import ANY_PEER, DONT_FRAGMENT, FlowTarget
from sshunt.mux.events import DatagramReceived
from sshunt.relay.flow import (
    FLOW_DONE,
    FLOW_NAME_UNKNOWN,
    FLOW_NO_RESOURCES,
    FLOW_NOT_PERMITTED,
    FLOW_REFUSED,
    UDP,
    Association,
    Endpoint,
    Flow,
)
from sshunt.relay.tunnel import Tunnel
from sshunt.remote import associations as module
from sshunt.remote.associations import Associations
from tests.unit.relay.ends import Ends, run
from tests.unit.remote.test_queries import until

HOST = ("192.0.2.7", 7)
SOURCE = ("127.0.0.1", 4321)


class Near(Association):
    """A near end that writes down what it hears; ``welcome`` is for strangers."""

    def __init__(self, host: Endpoint = HOST, idle_s: float = 30.0, **wishes: bool) -> None:
        super().__init__(Flow(UDP, host, SOURCE), idle_s, source=3, **wishes)
        self.heard: list[object] = []
        self.welcome: Near | None = None
        self.strangers: list[Endpoint] = []

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.heard.append((datagram, segment_bytes) if segment_bytes else datagram)

    def failed(self, code: int, value: int = 0) -> None:
        self.heard.append(("failed", code, value))

    def ended(self, code: int) -> None:
        self.heard.append(("ended", code))

    def stranger(self, peer: Endpoint) -> Association | None:
        self.strangers.append(peer)
        return self.welcome


class Far:
    """The client's end with its flows, and an agent that only hears what is sent to it."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.tunnel: Tunnel = ends.client
        self.associations = Associations(ends.client.loop, self)
        ends.client_hears.datagram = self._from_agent
        self.at_agent: list[DatagramReceived] = []
        self.taken: list[bool] = []
        self.hear(ends)

    def hear(self, ends: Ends) -> None:
        ends.agent_hears.datagram = self._take

    def _take(self, event: DatagramReceived) -> None:
        event.flow.owner = self
        self.on_datagram(event)

    def _from_agent(self, event: DatagramReceived) -> None:
        self.taken.append(self.associations.take_stranger(event))
        if not self.taken[-1]:
            client = self.ends.client
            client.session.datagrams.end(event.flow, client.loop.time(), FLOW_NOT_PERMITTED)
            client.wake()

    def on_datagram(self, event: DatagramReceived) -> None:
        self.at_agent.append(event)

    def on_flow_ended(self, _event: object) -> None:
        self.at_agent.clear()

    def on_flow_failed(self, _event: object) -> None: ...

    async def heard(self, count: int) -> list[bytes]:
        """What the agent has heard, as soon as it is so many."""
        await until(lambda: len(self.at_agent) >= count)
        return [event.data for event in self.at_agent]


def talk(story: Callable[[Far], Awaitable[None]]) -> None:
    async def whole(ends: Ends) -> None:
        far = Far(ends)
        try:
            await story(far)
        finally:
            far.associations.close()
            far.associations.close()
        assert not len(far.associations)

    run(whole)


def test_datagrams_batches_and_errors_pass_both_ways_and_the_flow_says_what_it_is() -> None:
    async def story(far: Far) -> None:
        near = Near(dont_fragment=True, any_peer=True)
        outlet = far.associations.associate(near)
        outlet.send(b"one")
        outlet.send(b"twotwo", 3)
        assert await far.heard(2) == [b"one", b"twotwo"]
        flow = far.at_agent[0].flow
        assert far.at_agent[1] == DatagramReceived(flow, b"twotwo", 3)
        flags = ANY_PEER | DONT_FRAGMENT
        assert flow.target == FlowTarget(frames.UDP, *HOST, 3, SOURCE[1], flags)
        datagrams, now = far.ends.agent.session.datagrams, far.ends.agent.loop.time()
        datagrams.send(flow, b"ab", now, 1)
        datagrams.fail(flow, FLOW_REFUSED, now)
        far.ends.agent.wake()
        await until(lambda: len(near.heard) == 2)
        assert near.heard == [(b"ab", 1), ("failed", FLOW_REFUSED, 0)]

    talk(story)


def test_a_flow_that_is_closed_or_idle_is_over_at_both_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SWEEP_EVERY_S", 0.02)

    async def story(far: Far) -> None:
        closed, idle, unused = Near(), Near(idle_s=0.1), Near(idle_s=0.05)
        first, second = far.associations.associate(closed), far.associations.associate(idle)
        far.associations.associate(unused)
        first.send(b"x")
        await far.heard(1)
        first.close()
        first.close()
        first.send(b"too late")
        await until(lambda: not far.at_agent)
        second.send(b"y")
        await until(lambda: bool(idle.heard and unused.heard) and not far.at_agent)
        assert closed.heard == []
        assert idle.heard == unused.heard == [("ended", FLOW_DONE)]
        assert far.ends.agent.session.datagrams.flows == {}
        assert len(far.associations) == 0

    talk(story)


def test_a_flow_that_the_far_side_has_forgotten_begins_anew_and_one_that_it_refuses_is_over() -> (
    None
):
    async def story(far: Far) -> None:
        near = Near()
        outlet = far.associations.associate(near)
        agent = far.ends.agent
        for code in (FLOW_DONE, FLOW_NOT_PERMITTED):
            outlet.send(b"x")
            (event,) = far.at_agent if await far.heard(1) else []
            agent.session.datagrams.end(event.flow, agent.loop.time(), code)
            agent.wake()
            far.at_agent.clear()
            await until(lambda: not far.ends.client.session.datagrams.flows)
        assert near.heard == [("ended", FLOW_NOT_PERMITTED)]

    talk(story)


def test_a_flow_goes_on_in_the_next_session() -> None:
    async def story(far: Far) -> None:
        near = Near()
        outlet = far.associations.associate(near)
        outlet.send(b"one")
        await far.heard(1)
        following = Ends()
        try:
            far.hear(following)
            far.ends.client.close()
            far.tunnel = following.client
            outlet.send(b"two")
            assert await far.heard(2) == [b"one", b"two"]
            now = following.agent.loop.time()
            following.agent.session.datagrams.send(far.at_agent[1].flow, b"back", now)
            following.agent.wake()
            await until(lambda: near.heard == [b"back"])
            far.associations.end_all()
            assert near.heard[1:] == [("ended", FLOW_DONE)]
        finally:
            following.close()

    talk(story)


def test_what_can_have_no_flow_is_over_with_its_first_datagram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(far: Far) -> None:
        nowhere, too_many = Near(("no such name", 1)), Near()
        far.associations.associate(nowhere).send(b"x")
        monkeypatch.setattr("sshunt.mux.datagrams.MAX_FLOWS", 0)
        outlet = far.associations.associate(too_many)
        outlet.send(b"x")
        outlet.send(b"x")
        assert nowhere.heard == [("ended", FLOW_NAME_UNKNOWN)]
        assert too_many.heard == [("ended", FLOW_NO_RESOURCES)]

    talk(story)


def test_a_stranger_is_heard_where_he_is_wanted_until_the_far_side_ends_his_flow() -> None:
    async def story(far: Far) -> None:
        near, guest = Near(), Near(("192.0.2.7", 69))
        far.associations.associate(near).send(b"x")
        await far.heard(1)
        agent, client = far.ends.agent, far.ends.client
        peer = FlowTarget(frames.UDP, "192.0.2.7", 69, source=3)
        datagrams, now = agent.session.datagrams, agent.loop.time()

        def write(target: FlowTarget) -> None:
            datagrams.send(datagrams.open(target, now), b"hello", now)
            agent.wake()

        write(peer)
        await until(lambda: far.taken == [False])
        near.welcome = guest
        write(peer._replace(source=4))  # a source that is not there
        write(peer)
        await until(lambda: len(far.taken) == 3)
        assert far.taken == [False, False, True]
        assert near.strangers == [("192.0.2.7", 69)] * 2
        assert guest.heard == [b"hello"]
        await until(lambda: len(datagrams.flows) == 2)
        (flow,) = [flow for flow in datagrams.flows.values() if flow.is_ours]
        datagrams.end(flow, now)
        agent.wake()
        await until(lambda: len(client.session.datagrams.flows) == 1)
        assert guest.heard == [b"hello", ("ended", FLOW_DONE)]
        await asyncio.sleep(0)

    talk(story)
