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
from sshunt.relay.flow import (
    NO_RESOURCES,
    TCP,
    Endpoint,
    Flow,
    LateConnection,
    Relay,
    Relays,
    SocketConnection,
)
from sshunt.relay.sockets import reset_code
from sshunt.remote.opening import LateOpening, Opening
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


# --- without a socket until then ------------------------------------------------------------------


class Late(LateConnection):
    """Writes down what it hears."""

    def __init__(self, destination: Endpoint) -> None:
        super().__init__(Flow(TCP, destination), wants_opened=True)
        self.said: list[str] = []
        self.relays: list[Relay] = []

    @property
    def is_over(self) -> bool:
        return False

    def begun(self, relay: Relay) -> None:
        self.relays.append(relay)

    def opened(self) -> None:
        self.said.append("opened")

    def refused(self, code: int) -> None:
        self.said.append(f"refused {code}")


def late(ends: Ends, destination: Endpoint) -> tuple[LateOpening, Late]:
    connection = Late(destination)
    stream = ends.client.open(Destination(TCP, *destination, wants_opened=True))
    one = LateOpening(ends.client, stream, connection)
    assert connection.relays == [one]
    return one, connection


async def accepted() -> tuple[socket.socket, socket.socket]:
    """A program, and its socket here."""
    with listen() as door:
        program = await threaded(lambda: socket.create_connection(door.getsockname()))
        ours = await threaded(lambda: door.accept()[0])
    ours.setblocking(False)
    program.settimeout(DEADLINE_S)
    return program, ours


async def until(connection: Late, said: str) -> None:
    while said not in connection.said:
        await asyncio.sleep(0.002)


def test_what_a_host_says_before_there_is_a_socket_waits_for_it() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            one, connection = late(ends, listener.getsockname())
            assert one.is_connecting
            with pytest.raises(ValueError, match="no socket"):
                _ = one.sock
            host = await threaded(lambda: accept(listener))
        host.sendall(b"welcome")
        await until(connection, "opened")
        await asyncio.sleep(0.02)
        assert not one.is_connecting
        with pytest.raises(ValueError, match="no socket"):
            _ = one.sock
        program, ours = await accepted()
        one.take_connection(ours)
        assert one.sock is ours
        program.sendall(b"thanks")
        assert await threaded(lambda: program.recv(100)) == b"welcome"
        assert await threaded(lambda: host.recv(100)) == b"thanks"
        host.close()
        program.close()
        await until_over_late(one)
        assert connection.said == ["opened"]
        assert not ends.client.relays

    run(conversation)


async def until_over_late(one: LateOpening) -> None:
    while not one.is_over:
        await asyncio.sleep(0.002)


def test_a_refusal_is_its_connection_s_to_tell() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            closed = listener.getsockname()
        one, connection = late(ends, closed)
        await until_over_late(one)
        assert connection.said == [f"refused {reset_code(errno.ECONNREFUSED)}"]
        program, ours = await accepted()
        one.take_connection(ours)  # too late
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        program.close()
        assert not ends.client.relays

    run(conversation)


def test_what_ends_it_here_is_not_the_far_host_s_answer() -> None:
    async def conversation(ends: Ends) -> None:
        ends.agent_hears.request = serve_nobody
        one, connection = late(ends, ("192.0.2.1", 80))
        assert one.direct_fd() == -1
        one.on_writable()
        ends.client.reset_all()
        one.abort(frames.RESET_REFUSED)  # once is enough
        assert connection.said == [f"refused {NO_RESOURCES}"]
        assert one.is_over

    run(conversation)


def test_given_up_when_it_is_up_it_is_given_up_over_there() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            one, connection = late(ends, listener.getsockname())
            host = await threaded(lambda: accept(listener))
        await until(connection, "opened")
        one.abort(frames.RESET_ABORTED)
        assert one.is_over
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: host.recv(1))
        host.close()
        program, ours = await accepted()
        one.take_connection(ours)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        program.close()

    run(conversation)


def test_a_socket_that_comes_before_the_far_end_ends_with_it() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            closed = listener.getsockname()
        with listen() as door:
            program = socket.create_connection(door.getsockname(), DEADLINE_S)
            ours, _ = door.accept()
        ours.setblocking(False)
        one, connection = late(ends, closed)
        one.take_connection(ours)
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: program.recv(1))
        program.close()
        assert connection.said == []

    run(conversation)


@pytest.mark.parametrize("what", ["bytes", "an end"])
def test_what_overtakes_the_word_that_it_is_up_says_the_same(what: str) -> None:
    async def conversation(ends: Ends) -> None:
        ends.agent_hears.request = serve_nobody
        one, connection = late(ends, ("192.0.2.1", 80))
        if what == "bytes":
            one.on_data(Payload(b"answer"))
        else:
            one.on_fin()
        assert connection.said == ["opened"]
        program, ours = await accepted()
        one.take_connection(ours)
        expected = b"answer" if what == "bytes" else b""
        assert await threaded(lambda: program.recv(100)) == expected
        one.abort(frames.RESET_ABORTED)
        program.close()

    run(conversation)
