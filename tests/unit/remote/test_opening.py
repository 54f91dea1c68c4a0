"""Programs that are told when their far end is up: when they hear, and what if it never is."""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from sshunt.mux import frames
from sshunt.mux.frames import Destination
from sshunt.mux.payload import Payload
from sshunt.relay.flow import TCP, Endpoint, Flow, Relays, SocketConnection
from sshunt.relay.sockets import reset_code
from sshunt.remote.opening import Opening
from tests.descriptors import no_more_descriptors
from tests.unit.relay.ends import DEADLINE_S, Ends, accept, listen, read_all, run, threaded


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Told(SocketConnection):
    """Answers its program as a SOCKS server does: before anything else."""

    said: list[str]

    def opened(self) -> None:
        self.said.append("opened")
        self.take().send(b"granted, ")

    def refused(self, code: int) -> None:
        self.said.append(f"refused {code}")
        super().refused(code)


async def opening(ends: Ends, destination: Endpoint) -> tuple[socket.socket, Opening, list[str]]:
    """A program, and what has become of its connection so far."""
    with listen() as door:
        program = await threaded(lambda: socket.create_connection(door.getsockname()))
        ours = await threaded(lambda: door.accept()[0])
    ours.setblocking(False)
    program.settimeout(DEADLINE_S)
    connection = Told(Relays(), Flow(TCP, destination), ours, wants_opened=True)
    connection.said = []
    stream = ends.client.open(Destination(TCP, *destination))
    return program, Opening(ends.client, stream, connection), connection.said


async def until_over(opening: Opening) -> None:
    async def look() -> None:
        while not opening.is_over:
            await asyncio.sleep(0.002)

    await asyncio.wait_for(look(), DEADLINE_S)


def serve_nobody(*_: object) -> None:
    """A far side that says neither yes nor no."""


def test_a_program_hears_before_anything_else_that_its_far_end_is_up() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, one, said = await opening(ends, listener.getsockname())
            program.sendall(b"question")
            assert one.is_connecting
            assert not said
            host = await threaded(lambda: accept(listener))
        host.sendall(b"answer")
        assert await threaded(lambda: host.recv(100)) == b"question"
        host.close()
        assert await threaded(lambda: read_all(program)) == b"granted, answer"
        assert said == ["opened"]
        assert not one.is_connecting
        program.close()
        await until_over(one)
        assert not ends.client.relays

    run(conversation)


def test_a_program_whose_far_end_refuses_hears_the_code_and_nothing_else() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            closed = listener.getsockname()
        program, one, said = await opening(ends, closed)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        assert said == [f"refused {reset_code(errno.ECONNREFUSED)}"]
        assert one.is_over
        assert not ends.client.relays
        program.close()

    run(conversation)


def test_a_program_that_resets_meanwhile_is_no_longer_connected_for() -> None:
    async def conversation(ends: Ends) -> None:
        asked: list[object] = []
        ends.agent_hears.request = lambda stream, _: asked.append(stream)
        program, one, said = await opening(ends, ("192.0.2.1", 80))
        while not asked:
            await asyncio.sleep(0.002)
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        program.close()
        await until_over(one)
        assert not said
        while ends.agent.session.streams:
            await asyncio.sleep(0.002)

    run(conversation)


def test_bytes_that_overtake_the_word_of_it_say_the_same() -> None:
    async def conversation(ends: Ends) -> None:
        ends.agent_hears.request = serve_nobody
        program, one, said = await opening(ends, ("192.0.2.1", 80))
        one.on_data(Payload(b"answer"))
        assert said == ["opened"]
        assert await threaded(lambda: program.recv(100)) == b"granted, answer"
        assert one.direct_fd() == -1
        one.abort(frames.RESET_ABORTED)
        assert one.is_over
        program.close()

    run(conversation)


def test_an_end_that_overtakes_it_does_so_too() -> None:
    async def conversation(ends: Ends) -> None:
        ends.agent_hears.request = serve_nobody
        program, one, said = await opening(ends, ("192.0.2.1", 80))
        one.on_writable()
        one.on_fin()
        assert said == ["opened"]
        assert await threaded(lambda: read_all(program)) == b"granted, "
        one.abort(frames.RESET_ABORTED)
        program.close()

    run(conversation)


def test_the_end_of_the_session_refuses_who_still_waits() -> None:
    async def conversation(ends: Ends) -> None:
        ends.agent_hears.request = serve_nobody
        program, one, said = await opening(ends, ("192.0.2.1", 80))
        ends.client.reset_all()
        one.abort(frames.RESET_ABORTED)  # once is enough
        assert said == [f"refused {frames.RESET_ABORTED}"]
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        program.close()

    run(conversation)


def test_a_socket_that_cannot_be_watched_is_refused() -> None:
    async def conversation(ends: Ends) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        ends.agent_hears.request = serve_nobody
        ends.client.reactor.readiness.add = full  # type: ignore[assignment, method-assign]
        program, one, said = await opening(ends, ("192.0.2.1", 80))
        assert one.is_over
        assert said == [f"refused {frames.RESET_NO_RESOURCES}"]
        program.close()

    run(conversation)
