"""Flows of UDP: real programs, rules, helper, on a host of the lab; the test carries the flows."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.front import datagrams
from sshunt.front.datagram_sockets import bind_datagrams
from sshunt.front.datagrams import Datagrams
from sshunt.helper.protocol import Applied, Apply, Packets
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.host.packets import PacketChannel
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.relay.flow import FLOW_DONE, FLOW_REFUSED, Association, Carrier, Outlet
from tests.e2e.conntrack import flush
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation
from tests.unit.helper.udp import LOOPBACK, OTHER_PEER, PEER, ROUTES, hear_errors, udp


class Carried(Outlet):
    """A flow as its far side sees it."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self.sent: list[tuple[bytes, int]] = []
        self.is_closed = False

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.sent.append((datagram, segment_bytes))
        if datagram.startswith(b"echo"):
            self.association.deliver(datagram, segment_bytes)

    def close(self) -> None:
        self.is_closed = True


class World(Carrier):
    """Captures on a host, and carries what comes: to nowhere."""

    def __init__(self, host: Host, *, any_peer: bool = False) -> None:
        self.host = host
        self.flows: list[Carried] = []
        loop = asyncio.get_running_loop()
        self.helper = Conversation(host)
        self.helper.greet()
        self.packets = PacketChannel(loop)
        line = encode_request(Packets())
        socket.send_fds(self.helper.socket, [line], [self.packets.theirs.fileno()])
        decode_reply(self.helper.line())
        with host.entered():
            sockets = [bind_datagrams((address, 0)) for address in LOOPBACK.values()]
        self.front = Datagrams(loop, sockets, self, self.packets, any_peer=any_peer)
        self.front.start()
        endpoints = [sock.endpoint for sock in sockets]
        plan = Plan(SESSION, redirects(endpoints, (), endpoints), ROUTES)
        assert isinstance(self.helper.ask(Apply(plan)), Applied)

    def associate(self, association: Association) -> Outlet:
        flow = Carried(association)
        self.flows.append(flow)
        return flow

    def program(self, family: int, port: int = 0) -> socket.socket:
        address = self.host.v4 if family == 4 else self.host.v6
        sock = udp(self.host, address, port)
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        self.front.close()
        self.front.close()
        self.packets.close()
        self.helper.hang_up()
        self.helper.process.wait(DEADLINE_S)


Story = Callable[[World], Awaitable[None]]


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.neighbour


def run(host: Host, story: Story, *, any_peer: bool = False) -> None:
    async def whole() -> None:
        world = World(host, any_peer=any_peer)
        try:
            await story(world)
        finally:
            world.close()

    asyncio.run(whole())


async def received(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    return await asyncio.wait_for(loop.sock_recv(sock, 70_000), DEADLINE_S)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_of_any_size_go_and_come(host: Host, family: int) -> None:
    async def story(world: World) -> None:
        with world.program(family) as program:
            program.connect((PEER[family], 7))
            for size in (0, 1, 1200, 1472, 8000, 60_000, 65_507):
                payload = b"echo"[:size] + bytes(max(0, size - 4))
                program.send(payload)
                if size >= 4:
                    assert await received(program) == payload
            (flow,) = world.flows
            assert flow.association.flow.destination == (PEER[family], 7)
            assert flow.association.flow.source == program.getsockname()[:2]
            assert len(flow.sent) == 7
            assert not flow.association.dont_fragment

    run(host, story)


def test_a_thousand_destinations_of_one_socket_are_told_apart(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            before = world.front.flows
            heard: dict[int, bytes] = {}
            loop = asyncio.get_running_loop()
            for first in range(1000, 2000, 100):
                for port in range(first, first + 100):
                    program.sendto(b"echo %d" % port, (PEER[4], port))
                for _ in range(100):
                    data, (address, port) = await asyncio.wait_for(
                        loop.sock_recvfrom(program, 100), DEADLINE_S
                    )
                    assert address == PEER[4]
                    heard[port] = data
            assert heard == {port: b"echo %d" % port for port in range(1000, 2000)}
            assert world.front.flows == before + 1000
            assert len({flow.association.source for flow in world.flows}) == 1

    run(host, story)


def test_two_programs_with_one_port_are_two_sources(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4, 5353) as one, world.program(6, 5353) as other:
            one.sendto(b"echo", (PEER[4], 7))
            other.sendto(b"echo", (PEER[6], 7))
            assert (await received(one), await received(other)) == (b"echo", b"echo")
            first, second = (flow.association.source for flow in world.flows)
            assert first != second

    run(host, story)


def test_a_batch_stays_whole_and_quic_is_not_cut(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            program.connect((PEER[4], 443))
            initial = b"\xc3\0\0\0\1" + bytes(1195)
            segment = (17, 103, (1200).to_bytes(2, "little"))
            program.sendmsg([initial * 40], [segment])
            await eventually(lambda: bool(world.flows and world.flows[0].sent))
            assert world.flows[0].sent == [(initial * 40, 1200)]
            assert world.flows[0].association.dont_fragment
            world.flows[0].association.deliver(bytes(3 * 1200), 1200)
            assert [len(await received(program)) for _ in range(3)] == [1200] * 3

    run(host, story)


def test_strangers_are_heard_and_then_answered(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            program.sendto(b"echo", (PEER[4], 69))
            assert await received(program) == b"echo"
            first = world.flows[0].association
            stranger = first.stranger((PEER[4], 40_001))
            assert stranger is not None
            assert (stranger.source, stranger.flow.source) == (first.source, first.flow.source)
            stranger.deliver(b"block")
            loop = asyncio.get_running_loop()
            heard = await asyncio.wait_for(loop.sock_recvfrom(program, 100), DEADLINE_S)
            assert heard == (b"block", (PEER[4], 40_001))
            program.sendto(b"echo ack", (PEER[4], 40_001))
            assert await received(program) == b"echo ack"
            assert world.flows[1].association.flow.destination == (PEER[4], 40_001)
            stranger.ended(FLOW_DONE)
            assert first.stranger((PEER[6], 1)) is None

    run(host, story)


def test_errors_arrive_where_they_are_heard(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as connected, world.program(4) as unconnected:
            connected.connect((PEER[4], 9))
            connected.send(b"echo")
            assert await received(connected) == b"echo"
            world.flows[0].association.failed(FLOW_REFUSED)
            with pytest.raises(ConnectionRefusedError):
                await received(connected)
            hear_errors(unconnected)
            unconnected.sendto(b"echo", (OTHER_PEER[4], 9))
            assert await received(unconnected) == b"echo"
            world.flows[1].association.ended(FLOW_REFUSED)
            with pytest.raises(ConnectionRefusedError):
                await received(unconnected)
            assert world.front.flows == 1

    run(host, story)


def test_a_flow_that_the_kernel_forgets_goes_on(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            for peer in (PEER[4], OTHER_PEER[4]):
                program.sendto(b"echo " + peer.encode(), (peer, 7))
                assert await received(program) == b"echo " + peer.encode()
            flush(world.host)
            # An answer is lost, and does not leave as what it is, our listener's.
            world.flows[0].association.deliver(b"lost")
            await asyncio.sleep(datagrams.CHECK_EVERY_S)
            for peer in (OTHER_PEER[4], PEER[4]):  # so each may have the other's place now
                program.sendto(b"echo again " + peer.encode(), (peer, 7))
                loop = asyncio.get_running_loop()
                heard = await asyncio.wait_for(loop.sock_recvfrom(program, 100), DEADLINE_S)
                assert heard == (b"echo again " + peer.encode(), (peer, 7))
            assert len(world.flows) == 2

    run(host, story)


def test_flows_end_when_they_have_been_idle(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            for peer, port, data in (
                (PEER[4], 53, b"echo"),
                (OTHER_PEER[4], 53, b"quiet"),
                (PEER[4], 7, b"quiet"),
                (PEER[4], 443, b"\xc3\0\0\0\1" + bytes(1195)),
            ):
                program.sendto(data, (peer, port))
            program.sendto(b"echo", (PEER[4], 53))  # of one name, the other kind of addresses
            await eventually(lambda: len(world.flows) == 4)
            answered, asked, idle, quic = world.flows
            await eventually(lambda: answered.is_closed)
            assert not asked.is_closed
            await eventually(lambda: asked.is_closed)
            assert not idle.is_closed
            await eventually(lambda: idle.is_closed)
            assert not quic.is_closed
            assert world.front.flows == 1
        world.front.close()
        assert quic.is_closed

    monkeypatch.setattr(datagrams, "TICK_S", 0.05)
    monkeypatch.setattr(datagrams, "ANSWERED_S", 0.1)
    monkeypatch.setattr(datagrams, "QUERY_S", 0.5)
    monkeypatch.setattr(datagrams, "IDLE_S", 1.0)
    run(host, story)


def test_with_too_many_flows_those_longest_unused_end(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            for port in range(1, 41):
                program.sendto(b"echo", (PEER[4], port))
                await received(program)
            assert world.front.flows <= 20
            assert world.flows[0].is_closed
            assert not world.flows[-1].is_closed

    monkeypatch.setattr(datagrams, "MAX_FLOWS", 20)
    monkeypatch.setattr(datagrams, "MOST_EVICTED", 5)
    run(host, story)


def test_what_finds_our_socket_by_itself_is_nobody_s_flow(host: Host) -> None:
    async def story(world: World) -> None:
        with world.program(4) as program:
            listener = world.front._sockets[0].endpoint
            program.sendto(b"hello", listener)
            program.sendto(b"echo", (PEER[4], 7))
            assert await received(program) == b"echo"
            assert len(world.front._places) == world.front.flows == len(world.flows) == 1

    run(host, story)
