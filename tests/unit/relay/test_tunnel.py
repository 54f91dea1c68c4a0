"""The tunnel around the session: what it tells its owner, and what it never does."""

import asyncio
import socket

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_NOT_PERMITTED, FLOW_REFUSED, FLOW_TOO_LARGE
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.flows import DatagramFlow
from sshunt.relay.reactor import SPLICE
from sshunt.relay.tunnel import Tunnel
from tests.unit.mux.ends import VOICE
from tests.unit.relay.ends import Ends, listen, run, threaded
from tests.unit.relay.test_tcp import joined


async def until(true: "asyncio.Future[object]") -> object:
    return await asyncio.wait_for(true, 10)


def ask(tunnel: Tunnel, data: bytes) -> DatagramFlow:
    """Send a datagram on a flow of its own."""
    now = tunnel.loop.time()
    flow = tunnel.session.datagrams.open(VOICE, now)
    tunnel.session.datagrams.send(flow, data, now)
    return flow


def test_a_datagram_reaches_the_owner_of_the_other_end() -> None:
    async def conversation(ends: Ends) -> None:
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent_hears.datagram = heard.set_result
        ask(ends.client, b"are you there")
        ends.client.wake()
        event = await until(heard)
        assert isinstance(event, DatagramReceived)
        assert (event.flow.target, event.data) == (VOICE, b"are you there")

    run(conversation)


def test_a_batch_is_flushed_once_at_its_end() -> None:
    async def conversation(ends: Ends) -> None:
        tunnel, sent = ends.client, []

        def work() -> None:
            for _ in range(2):
                ask(tunnel, b"")
                tunnel.wake()
                sent.append(tunnel.session.lanes[0].sent)

        await asyncio.sleep(0.05)  # what adding the lane gave rise to
        before = tunnel.session.lanes[0].sent
        tunnel.reactor.batch(work)
        after = tunnel.session.lanes[0].sent
        assert sent == [before, before]
        assert after > before
        tunnel.wake()  # as ever: at the end of the round
        tunnel.session.ping(0)
        assert tunnel.session.lanes[0].sent == after
        await asyncio.sleep(0.05)
        assert tunnel.session.lanes[0].sent > after

    run(conversation)


def test_what_a_failed_batch_had_queued_still_leaves() -> None:
    async def conversation(ends: Ends) -> None:
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent_hears.datagram = heard.set_result

        def work() -> None:
            ask(ends.client, b"still")
            ends.client.wake()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ends.client.reactor.batch(work)
        event = await until(heard)
        assert isinstance(event, DatagramReceived)
        assert event.data == b"still"

    run(conversation)


class Owner:
    """Of a flow; what it is told."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[object] = asyncio.Queue()
        self.on_datagram = self.on_flow_failed = self.on_flow_ended = self.heard.put_nowait


def test_what_becomes_of_a_flow_is_for_its_owner_to_hear() -> None:
    async def conversation(ends: Ends) -> None:
        owner = Owner()
        flow = ask(ends.client, b"hello")
        flow.owner = owner
        asked: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent_hears.datagram = asked.set_result
        ends.client.wake()
        event = await until(asked)
        assert isinstance(event, DatagramReceived)
        datagrams, now = ends.agent.session.datagrams, ends.agent.loop.time()
        datagrams.send(event.flow, b"welcome", now)
        datagrams.fail(event.flow, FLOW_TOO_LARGE, now, 1472)
        datagrams.end(event.flow, now, FLOW_REFUSED)
        ends.agent.wake()
        assert [await asyncio.wait_for(owner.heard.get(), 10) for _ in range(3)] == [
            DatagramReceived(flow, b"welcome"),
            FlowFailed(flow, FLOW_TOO_LARGE, 1472),
            FlowEnded(flow, FLOW_REFUSED),
        ]

    run(conversation)


def test_a_flow_that_nobody_serves_is_ended() -> None:
    async def conversation(ends: Ends) -> None:
        owner = Owner()
        ask(ends.agent, b"hello").owner = owner
        ends.agent.wake()
        event = await asyncio.wait_for(owner.heard.get(), 10)
        assert isinstance(event, FlowEnded)
        assert event.code == FLOW_NOT_PERMITTED
        assert not ends.client.session.datagrams.flows

    run(conversation)


def test_a_goodbye_reaches_the_owner_of_the_other_end() -> None:
    async def conversation(ends: Ends) -> None:
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent_hears.goodbye = lambda code, sentence: heard.set_result((code, sentence))
        ends.client.session.say_goodbye(frames.GOODBYE_DONE, "enough")
        ends.client.wake()
        assert await until(heard) == (frames.GOODBYE_DONE, "enough")

    run(conversation)


def test_a_ping_measures_the_round_trip() -> None:
    async def conversation(ends: Ends) -> None:
        ends.client.session.ping(0)
        ends.client.wake()
        deadline = asyncio.get_running_loop().time() + 10
        while not ends.client.session.rtt_s and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.001)
        assert 0 < ends.client.session.rtt_s < 1

    run(conversation)


def test_a_stream_that_nobody_serves_is_refused() -> None:
    async def conversation(ends: Ends) -> None:
        stream = ends.agent.open(frames.Destination(frames.TCP, "127.0.0.1", 1))
        deadline = asyncio.get_running_loop().time() + 10
        while stream.id in ends.agent.session.streams:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.001)

    run(conversation)


def test_an_idle_tunnel_sleeps() -> None:
    async def conversation(ends: Ends) -> None:
        await asyncio.sleep(0.2)
        pumps = 0
        pump = ends.client.pump

        def counted() -> None:
            nonlocal pumps
            pumps += 1
            pump()

        ends.client.pump = counted  # type: ignore[method-assign]
        await asyncio.sleep(0.5)
        assert pumps == 0

    run(conversation)


# --- lanes that the other side can't see dying, sessions that end ---------------------------------


def test_a_lane_that_the_other_side_gave_up_is_given_up_here_too() -> None:
    async def conversation(ends: Ends) -> None:
        ends.join(1)
        ends.client.session.tell_lane_gone(0)
        ends.client.session.tell_lane_gone(7)  # never heard of
        ends.client.wake()
        gone: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent_hears.lane_ended = lambda _, why: gone.set_result(why)
        assert await until(gone) == "the other side gave it up"
        assert list(ends.agent.lanes) == [1]

    run(conversation)


def test_what_is_left_of_a_closed_tunnel_moves_nothing_any_more() -> None:
    async def conversation(ends: Ends) -> None:
        program = ends.connect("127.0.0.1", 1)
        ends.client.close()
        with program:
            assert await threaded(lambda: program.recv(1)) == b""
        ends.client.wake()
        await asyncio.sleep(0.05)
        assert not ends.client.lanes
        assert not ends.client.relays
        assert not ends.client.session.streams
        ends.client.close()

    run(conversation)


def test_what_happened_behind_the_end_of_a_session_is_nobodys() -> None:
    async def conversation(ends: Ends) -> None:
        heard: list[object] = []

        def goodbye(*what: object) -> None:
            heard.append(what)
            ends.client.close()

        ends.client_hears.goodbye = goodbye
        ends.agent.session.say_goodbye(frames.GOODBYE_DONE, "")
        ends.agent.session.say_goodbye(frames.GOODBYE_DONE, "")
        ends.agent.wake()
        await asyncio.sleep(0.1)
        assert len(heard) == 1

    run(conversation)


def test_a_session_that_is_given_up_leaves_no_pipe_behind() -> None:
    """Its streams may be over at this end, with what they sent never acknowledged."""

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
        host.shutdown(socket.SHUT_WR)
        assert await threaded(lambda: program.recv(1)) == b""
        ends.agent.loop.remove_reader(ends.agent.lanes[0]._read_fd)  # the far side hangs
        await threaded(lambda: program.sendall(bytes(10_000)))
        program.close()
        while ends.client.relays or ends.client.session.streams:
            await asyncio.sleep(0.005)
        assert ends.client.reactor.pipes.in_use, "nothing of it waits for its acknowledgement"
        ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
        ends.client.close()
        assert not ends.client.reactor.pipes.in_use
        host.close()

    run(conversation, way=SPLICE)
