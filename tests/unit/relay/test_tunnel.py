"""The tunnel around the session: what it tells its owner, and what it never does."""

import asyncio
import socket

import pytest

from sshunt.mux import frames
from sshunt.mux.hello import CLIENT
from sshunt.mux.session import DatagramReceived, Session
from sshunt.mux.streams import Stream
from sshunt.relay.promise import PromisedPayload
from tests.unit.relay.ends import Ends, accept, listen, read_all, run, threaded


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


# --- payload that is moved, not copied ------------------------------------------------------------


def moves(ends: Ends) -> tuple[bool, bool]:
    return ends.client.moves_payload, ends.agent.moves_payload


def test_payload_is_moved_only_while_there_is_one_lane_that_the_session_cannot_outlive() -> None:
    async def conversation(ends: Ends) -> None:
        assert moves(ends) == (True, True)
        ends.join(1)
        assert moves(ends) == (False, False)
        ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
        assert ends.client.moves_payload
        ends.client.lane_ended(ends.client.lanes[1], "cut by the test")
        assert not ends.client.moves_payload

    run(conversation, outlives_lanes=False)


def test_where_the_session_outlives_its_lanes_nothing_is_ever_moved() -> None:
    async def conversation(ends: Ends) -> None:
        assert moves(ends) == (False, False)
        ends.join(1)
        ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
        assert moves(ends) == (False, False)

    run(conversation)


def moving(ends: Ends) -> set[Stream | None]:
    """The streams of which something is under way without a copy."""
    return {
        sent.stream
        for lane in ends.client.session.lanes.values()
        for sent in lane.outstanding
        if isinstance(sent.payload, PromisedPayload)
    }


async def until_moving(ends: Ends, count: int) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while len(moving(ends)) != count:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


def stop_reading(ends: Ends, lane: int) -> None:
    """From now on the lane takes what its pipe holds and nothing arrives: a dead path."""
    ends.agent.loop.remove_reader(ends.agent.lanes[lane]._read_fd)


async def through(ends: Ends, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A connection that is up, and warm: (program, host)."""
    program = ends.connect(*listener.getsockname())
    host = await threaded(lambda: accept(listener))
    await threaded(lambda: program.sendall(bytes(100_000)))
    left = 100_000
    while left:
        left -= len(await threaded(lambda: host.recv(65536)))
    return program, host


def push_at_once(sock: socket.socket) -> None:
    """Send as much as the socket takes at once."""
    sock.setblocking(False)
    while True:
        try:
            sock.send(bytes(16_384))
        except BlockingIOError:
            break
    sock.setblocking(True)
    sock.settimeout(10)


def test_a_dead_lane_resets_the_streams_whose_payload_it_had_moved_and_no_others() -> None:
    async def conversation(ends: Ends) -> None:
        resets: list[int] = []

        def on_reset(stream: Stream, _code: int) -> None:
            resets.append(stream.id)

        ends.client.on_reset = on_reset
        with listen() as listener:
            moved, moved_host = await through(ends, listener)
            other, other_host = await through(ends, listener)
            await until_moving(ends, 0)
            stop_reading(ends, 0)
            push_at_once(moved)
            await until_moving(ends, 1)
            ends.join(1)
            ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
            ends.agent.lane_ended(ends.agent.lanes[0], "cut by the test")
            for sock in (moved, moved_host):
                with pytest.raises(ConnectionResetError):
                    await threaded(lambda sock=sock: read_all(sock))  # type: ignore[misc]
            await threaded(lambda: other.sendall(b"still here"))
            other.shutdown(socket.SHUT_WR)
            assert await threaded(lambda: read_all(other_host)) == b"still here"
            other_host.sendall(b"so am I")
            other_host.close()
            assert await threaded(lambda: read_all(other)) == b"so am I"
            assert len(resets) == 1
            for sock in (moved, moved_host, other):
                sock.close()

    run(conversation, outlives_lanes=False)


def test_with_two_lanes_a_copy_is_kept_and_a_dead_lane_resets_nobody() -> None:
    async def conversation(ends: Ends) -> None:
        ends.join(1)
        with listen() as listener:
            program, host = await through(ends, listener)
            for lane in (0, 1):
                stop_reading(ends, lane)
            push_at_once(program)
            await asyncio.sleep(0.05)
            assert not moving(ends)
            assert any(lane.outstanding for lane in ends.client.session.lanes.values())
            ends.join(2)
            for lane in (0, 1):
                ends.client.lane_ended(ends.client.lanes[lane], "cut by the test")
                ends.agent.lane_ended(ends.agent.lanes[lane], "cut by the test")
            program.shutdown(socket.SHUT_WR)
            assert set(await threaded(lambda: read_all(host))) == {0}
            host.sendall(b"all of it")
            host.close()
            assert await threaded(lambda: read_all(program)) == b"all of it"
            program.close()

    run(conversation, outlives_lanes=False)


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
        assert not ends.client.moves_payload  # there is no lane yet
        with program:
            assert await threaded(lambda: program.recv(1)) == b""

    run(conversation)
