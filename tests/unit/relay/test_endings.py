"""A session that ends in the middle of something: nothing of it is left, and nobody else minds."""

import asyncio
import fcntl
import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.streams import Stream
from sshunt.relay.incoming import FlowQuestion, StreamConnection
from sshunt.relay.lane import LaneIO
from sshunt.relay.reactor import SPLICE
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import TunnelOwner
from tests.descriptors import no_more_descriptors
from tests.unit.relay.ends import Ends, accept, listen, read_all, run, threaded
from tests.unit.relay.test_tcp import joined, reset, settle
from tests.unit.relay.test_tunnel import ask

#: More than windows, queues and buffers hold: it is under way for as long as nobody reads.
BULK = bytes(40_000_000)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Ending(TunnelOwner):
    """An owner who ends the session when he hears ``what`` for the first time."""

    def __init__(self, what: str, end: Callable[[], None]) -> None:
        self._what = what
        self._end = end
        self.heard: list[str] = []

    def _hear(self, what: str) -> bool:
        self.heard.append(what)
        if what == self._what:
            self._end()
        return True

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        return self._hear("request")

    def on_reset(self, stream: Stream, code: int) -> None:
        self._hear("reset")

    def on_forgotten(self) -> None:
        self._hear("forgotten")

    def on_datagram(self, event: DatagramReceived) -> bool:
        return self._hear("datagram")

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        self._hear("lane ended")

    def on_lane_gone(self, lane_id: int) -> None:
        self._hear("lane gone")

    def on_goodbye(self, code: int, sentence: str) -> None:
        self._hear("goodbye")


def make_heard(ends: Ends, what: str, host: socket.socket) -> None:
    """Do something of which the client's owner hears so."""
    agent = ends.agent
    if what == "request":
        agent.open(Destination(TCP, "127.0.0.1", 1))
    elif what in ("reset", "forgotten"):
        reset(host)
    elif what == "datagram":
        ask(agent, b"hello")
    elif what == "lane ended":
        agent.lane_ended(agent.lanes[0], "cut by the test")
    elif what == "lane gone":
        agent.session.tell_lane_gone(7)
    else:
        agent.session.say_goodbye(frames.GOODBYE_DONE, "")
    agent.wake()


@pytest.mark.parametrize(
    "what", ["request", "reset", "forgotten", "datagram", "lane ended", "lane gone", "goodbye"]
)
@pytest.mark.parametrize("more_lanes", [0, 1])
def test_a_session_may_end_in_the_middle_of_bulk_with_whatever_its_owner_hears(
    what: str, more_lanes: int, way: int
) -> None:
    async def conversation(ends: Ends) -> None:
        for number in range(more_lanes):
            ends.join(number + 1)
        with listen() as listener:
            pairs = [await joined(ends, listener) for _ in range(4)]
        moving = []
        for program, host in pairs[1:]:
            for sock in (program, host):
                moving.append(threaded(lambda s=sock: push(s)))  # type: ignore[misc]
            moving.append(threaded(lambda s=program: drain(s)))  # type: ignore[misc]
            moving.append(threaded(lambda s=host: drain(s)))  # type: ignore[misc]
        moves = asyncio.gather(*moving)
        await asyncio.sleep(0.05)
        client = ends.client
        owner = client._owner = Ending(what, client.close)
        make_heard(ends, what, pairs[0][1])
        for program, _ in pairs:  # all are over at this end
            await threaded(lambda s=program: drain(s))  # type: ignore[misc]
        assert what in owner.heard
        assert not client.relays
        assert not client.lanes
        assert not client.reactor.pipes.in_use
        client.wake()
        ends.agent.close()
        await moves
        for pair in pairs:
            for sock in pair:
                sock.close()

    run(conversation, way=way)


def push(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.sendall(BULK)


def drain(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(1 << 20):
            pass


def test_a_relay_that_is_over_may_be_aborted_again_and_harms_nobody(way: int) -> None:
    """Its descriptor's number is somebody else's by then."""

    async def conversation(ends: Ends) -> None:
        other, ours = socket.socketpair()
        with listen() as listener:
            one = ends.connect(*listener.getsockname())
            one_host = await threaded(lambda: accept(listener))
            [first] = ends.client.relays
            number = first.sock.fileno()
            first.abort(frames.RESET_ABORTED)
            again = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, number))
            ours.close()
            assert again.fileno() == number
            again.setblocking(False)
            stream = ends.client.open(Destination(TCP, *listener.getsockname()))
            ends.client.relay(stream).start(again)
            other_host = await threaded(lambda: accept(listener))
        first.abort(frames.RESET_ABORTED)
        other.sendall(b"question")
        assert await threaded(lambda: other_host.recv(100)) == b"question"
        for sock in (one, one_host, other, other_host):
            sock.close()

    run(conversation, way=way)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_connection_that_is_over_leaves_nothing_to_the_collector(name: str) -> None:
    """It runs once in a hundred thousand objects (sockets.GC_THRESHOLD)."""

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            port = listener.getsockname()[1]
            for is_reset in (False, True):
                program = ends.connect(name, port)
                host = await threaded(lambda: accept(listener))
                await threaded(lambda s=program: s.sendall(b"question"))  # type: ignore[misc]
                assert await threaded(lambda s=host: s.recv(100))  # type: ignore[misc]
                program.close()
                if is_reset:
                    reset(host)
                else:
                    host.close()
        refused = ends.connect(name, port)
        assert await threaded(lambda: refused.recv(1)) == b""
        refused.close()
        await settle(ends)
        await asyncio.sleep(1.1)  # the dialer looks at those that it has begun every second
        assert not [each for each in of_connections() if id(each) not in before]

    def of_connections() -> list[object]:
        kinds = (TcpRelay, StreamConnection, Stream)
        return [each for each in gc.get_objects() if isinstance(each, kinds)]

    gc.collect()
    others = of_connections()  # other tests', which somebody still holds
    before = {id(each) for each in others}
    gc.disable()
    try:
        run(conversation)
    finally:
        gc.enable()


def test_a_connection_that_comes_to_a_closed_session_is_reset_at_once(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        client = ends.client
        stream = client.session.open(Destination(TCP, "127.0.0.1", 1))
        client.close()
        with listen() as door:
            program = await threaded(lambda: socket.create_connection(door.getsockname()))
            ours = await threaded(lambda: accept(door))
        ours.setblocking(False)
        relay = client.relay(stream)
        relay.start(ours)
        program.settimeout(5)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        assert relay.is_over
        assert not client.relays
        program.close()

    run(conversation, way=way)


def test_a_stream_of_a_closed_session_gets_no_connection_any_more(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        waiting: asyncio.Queue[StreamConnection] = asyncio.Queue()

        def request(stream: Stream, destination: Destination) -> None:
            waiting.put_nowait(StreamConnection(ends.agent, stream, destination))

        ends.agent_hears.request = request
        with listen() as listener:
            ends.client.open(Destination(TCP, *listener.getsockname()))
            connection = await asyncio.wait_for(waiting.get(), 10)
            ends.agent.close()
            ends.direct.connect(connection)
            await asyncio.sleep(0.05)
        assert not ends.agent.relays
        connection.refused(frames.RESET_ABORTED)

    run(conversation, way=way)


def test_a_question_of_a_closed_session_may_still_be_answered_or_refused() -> None:
    async def conversation(ends: Ends) -> None:
        waiting: asyncio.Queue[FlowQuestion] = asyncio.Queue()

        def on_datagram(event: DatagramReceived) -> None:
            waiting.put_nowait(FlowQuestion(ends.agent, event.flow, event.data))

        ends.agent_hears.datagram = on_datagram
        for message in (b"one", b"other"):
            assert ends.client.ask(frames.DNS, message, None) is not None
        questions = [await asyncio.wait_for(waiting.get(), 10) for _ in range(2)]
        ends.agent.close()
        questions[0].answer(b"an answer")
        questions[1].refused(frames.RESET_ABORTED)
        questions[0].refused(frames.RESET_ABORTED)
        await asyncio.sleep(0.01)

    run(conversation)


def test_a_lane_that_ends_with_the_last_bytes_it_has_spliced_is_not_read_again() -> None:
    """The FIN has come by another lane before; with it and the last byte the relay is over."""
    half = 100_000

    async def conversation(ends: Ends) -> None:
        client = ends.client
        ends.agent.close()
        pipes = [(os.pipe(), os.pipe()) for _ in range(2)]
        for number, ((to_client, _), (_, from_client)) in enumerate(pipes):
            client.add_lane(number + 1, to_client, from_client)
        await asyncio.sleep(0.05)  # the agent's lane is over by then
        with listen() as door:
            program = await threaded(lambda: socket.create_connection(door.getsockname()))
            ours = await threaded(lambda: accept(door))
        ours.setblocking(False)
        stream = client.open(Destination(TCP, "192.0.2.1", 80))
        client.relay(stream).start(ours)
        program.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        one, other = (from_agent for (_, from_agent), _ in pipes)
        lane = client.lanes[1]
        owner = client._owner = Ending("forgotten", lambda: client.lane_ended(lane, "by its owner"))
        os.write(one, frames.encode_data_head(stream.id, 0, 2 * half) + bytes(half))
        await asyncio.sleep(0.05)
        os.write(other, frames.encode_fin(stream.id, 2 * half))
        await asyncio.sleep(0.05)
        os.write(one, bytes(half))
        assert len(await threaded(lambda: read_all(program))) == 2 * half
        await asyncio.sleep(0.05)
        assert owner.heard == ["forgotten", "lane ended"]
        assert client.spliced_bytes
        for (_, writes), (reads, _) in pipes:
            os.close(writes)
            os.close(reads)
        program.close()

    run(conversation, way=SPLICE)
