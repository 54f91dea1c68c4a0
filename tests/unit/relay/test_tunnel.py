"""The tunnel around the session: what it tells its owner, and what it never does."""

import asyncio
import socket

import pytest

from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived
from sshunt.mux.hello import CLIENT
from sshunt.mux.session import Session
from sshunt.relay.tunnel import SPLICE
from tests.unit.relay.ends import Ends, listen, run, threaded
from tests.unit.relay.test_tcp import joined


async def until(true: "asyncio.Future[object]") -> object:
    return await asyncio.wait_for(true, 10)


def test_a_datagram_reaches_the_owner_of_the_other_end() -> None:
    async def conversation(ends: Ends) -> None:
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[object] = loop.create_future()
        ends.agent.on_datagram = heard.set_result
        ends.client.session.send_datagram(7, frames.ECHO, b"are you there", loop.time())
        ends.client.wake()
        assert await until(heard) == DatagramReceived(7, frames.ECHO, b"are you there")

    run(conversation)


def test_what_a_turn_gives_rise_to_leaves_at_its_end_and_not_before_and_once() -> None:
    async def conversation(ends: Ends) -> None:
        tunnel, sent = ends.client, []

        def work() -> None:
            for flow in (1, 2):
                tunnel.session.send_datagram(
                    flow, frames.ECHO, b"", asyncio.get_running_loop().time()
                )
                tunnel.wake()
                sent.append(tunnel.session.lanes[0].sent)

        await asyncio.sleep(0.05)  # what adding the lane gave rise to
        before = tunnel.session.lanes[0].sent
        tunnel.turn(work)
        after = tunnel.session.lanes[0].sent
        assert sent == [before, before]
        assert after > before
        tunnel.wake()  # as ever: at the end of the round
        tunnel.session.ping(0)
        assert tunnel.session.lanes[0].sent == after
        await asyncio.sleep(0.05)
        assert tunnel.session.lanes[0].sent > after

    run(conversation)


def test_work_that_fails_takes_nothing_along() -> None:
    async def conversation(ends: Ends) -> None:
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent.on_datagram = heard.set_result

        def work() -> None:
            now = asyncio.get_running_loop().time()
            ends.client.session.send_datagram(7, frames.ECHO, b"still", now)
            ends.client.wake()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ends.client.turn(work)
        assert await until(heard) == DatagramReceived(7, frames.ECHO, b"still")

    run(conversation)


def test_a_goodbye_reaches_the_owner_of_the_other_end() -> None:
    async def conversation(ends: Ends) -> None:
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ends.agent.on_goodbye = lambda code, sentence: heard.set_result((code, sentence))
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
        ends.agent.on_lane_ended = lambda _, why: gone.set_result(why)
        assert await until(gone) == "the other side gave it up"
        assert list(ends.agent.lanes) == [1]

    run(conversation)


def test_another_session_begins_where_one_was_lost() -> None:
    async def conversation(ends: Ends) -> None:
        program = ends.connect("127.0.0.1", 1)
        ends.client.reset_all()
        ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
        before = ends.client.session
        ends.client.begin(Session(CLIENT), outlives_lanes=False)
        assert ends.client.session is not before
        assert not ends.client.session.streams
        with program:
            assert await threaded(lambda: program.recv(1)) == b""

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
        assert ends.client.pipes.taken, "nothing of it waits for its acknowledgement"
        ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
        ends.client.begin(Session(CLIENT), outlives_lanes=True)
        assert not ends.client.pipes.taken
        host.close()

    run(conversation, way=SPLICE)
