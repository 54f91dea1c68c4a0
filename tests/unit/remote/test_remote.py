"""Remotes with real agents on this host: made, lost, replaced and ended, each by itself."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.model import Action, Route
from sshunt.relay.flow import (
    DNS,
    FLOW_DONE,
    TCP,
    Connection,
    Endpoint,
    Flow,
    Outlet,
    Question,
    Relays,
    SocketConnection,
)
from sshunt.relay.reactor import Reactor
from sshunt.remote import remote as remote_module
from sshunt.remote.remote import Remote, RemoteOwner, Terms
from sshunt.route.router import Claim, Router
from sshunt.tell.report import (
    Event,
    LoginStarted,
    RemoteLost,
    RemoteReconnected,
    Report,
    SessionLost,
    StreamOpened,
)
from sshunt.transport.channel import Channel, Hearer
from sshunt.transport.endings import cancelled
from sshunt.transport.local import LocalTransport
from tests.agent.far_side import eventually, marked
from tests.descriptors import no_more_descriptors
from tests.unit.remote.test_associations import Near

DEADLINE_S = 20.0

#: Does not end when asked to.
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"


@dataclass
class Owner(RemoteOwner):
    """Writes down what it hears."""

    heard: list[str] = field(default_factory=list)
    failed: list[Endpoint] = field(default_factory=list)
    freed: int = 0

    def on_down(self, remote: Remote) -> None:
        self.heard.append(f"{remote.name} down")

    def on_up(self, remote: Remote) -> None:
        self.heard.append(f"{remote.name} up")

    def on_failed(self, destination: Endpoint) -> None:
        self.failed.append(destination)

    def on_freed(self) -> None:
        self.freed += 1


class Query(Question):
    """A question that remembers how it ended."""

    ended = ""

    def answer(self, message: bytes) -> None:
        self.ended = "answered"

    def refused(self, code: int) -> None:
        self.ended = "refused"


class Process:
    """What a process has once, and its remotes, each with an agent of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reactor = Reactor(self.loop)
        self.said: list[Event] = []
        self.report = Report(_raise)
        self.report.subscribe(self.said.append, streams=True)
        self.owner = Owner()
        self.marks: dict[str, str] = {}
        self.remotes: dict[str, Remote] = {}
        self.running: dict[str, asyncio.Task[None]] = {}

    def remote(self, name: str, *, lanes: int = 1, grace_s: int = 60) -> Remote:
        self.marks[name] = os.urandom(8).hex()
        transport = LocalTransport(env={**os.environ, "MARK": self.marks[name]})
        terms = Terms(name, lanes=lanes, grace_s=grace_s, max_retries=None)
        return Remote(self.reactor, transport, self.report, self.owner, terms)

    async def bring_up(self, name: str, *, grace_s: int = 60) -> Remote:
        remote = self.remotes[name] = self.remote(name, grace_s=grace_s)
        await remote.start()
        await remote.check()
        assert await remote.first_rtt() > 0
        self.running[name] = asyncio.ensure_future(remote.run())
        return remote

    async def end(self, name: str) -> None:
        remote = self.remotes.pop(name)
        self.running[name].cancel()
        with suppress(asyncio.CancelledError):
            await self.running.pop(name)
        remote.end_connections()
        await remote.end()
        await remote.close()
        eventually(lambda: marked(self.marks[name]) == [], "the agent's end")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """All of a remote's processes: stub, agent."""
        for pid in marked(self.marks[name]):
            with suppress(ProcessLookupError):  # it was about to end
                os.kill(pid, number)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(int(DEADLINE_S / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never happened: {what}; said: {self.said}")

    def heard(self, kind: type) -> list[str]:
        return [getattr(event, "remote", "") for event in self.said if type(event) is kind]


def _raise(error: Exception) -> None:
    raise error


def run(story: Callable[[Process], Awaitable[None]]) -> None:
    async def whole() -> None:
        process = Process()
        try:
            await story(process)
        finally:
            for name in list(process.remotes):
                await process.end(name)
            process.reactor.close()

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Path:
    """A program's connection by way of a carrier, and the host's end of it."""

    def __init__(self, undo: ExitStack) -> None:
        self.office = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.office.setblocking(False)
        self.program, self.ours = socket.socketpair()
        for sock in (self.program, self.ours):
            undo.enter_context(sock)
            sock.setblocking(False)
        self.undo = undo
        self.host: socket.socket | None = None

    @property
    def connection(self) -> SocketConnection:
        return SocketConnection(Relays(), Flow(TCP, self.office.getsockname()), self.ours)

    async def arrives(self) -> None:
        loop = asyncio.get_running_loop()
        host, _ = await asyncio.wait_for(loop.sock_accept(self.office), DEADLINE_S)
        self.host = self.undo.enter_context(host)
        host.setblocking(False)

    async def carries(self, data: bytes) -> None:
        """From the program to the host, and back."""
        assert self.host is not None
        loop = asyncio.get_running_loop()
        for one, other in ((self.program, self.host), (self.host, self.program)):
            await loop.sock_sendall(one, data)
            got = b""
            while len(got) < len(data):
                got += await asyncio.wait_for(loop.sock_recv(other, 65536), DEADLINE_S)
            assert got == data

    @property
    def is_reset(self) -> bool:
        try:
            return self.program.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def test_a_connection_goes_to_its_host_and_back() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        assert remote.is_up
        assert remote.why_not() == ""
        with ExitStack() as undo:
            path = Path(undo)
            remote.connect(path.connection)
            await path.arrives()
            await path.carries(b"x" * 100_000)
            assert list(remote.sockets()) == [path.ours]
            assert remote.snapshot().connections == 1
            assert remote.moved().sent > 100_000
            path.program.close()
            assert path.host is not None
            path.host.close()
            await process.until(lambda: process.owner.freed == 1, "the end of the connection")

    run(story)


def test_a_programs_connection_is_told_of_and_one_to_a_resolver_is_not() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        with ExitStack() as undo:
            path, query = Path(undo), Path(undo)
            remote.connect(path.connection)
            remote.connect(SocketConnection(Relays(), Flow(DNS, (".", 53)), query.ours))
            assert process.heard(StreamOpened) == ["office"]

    run(story)


def test_what_one_remote_goes_through_is_nothing_to_the_other() -> None:
    async def story(process: Process) -> None:
        office, lab = await process.bring_up("office"), await process.bring_up("lab")
        with ExitStack() as undo:
            there, here = Path(undo), Path(undo)
            office.connect(there.connection)
            lab.connect(here.connection)
            await there.arrives()
            await here.arrives()
            process.kill("lab")
            await process.until(lambda: process.heard(SessionLost) == ["lab"], "the loss")
            await process.until(lambda: here.is_reset, "the reset")
            await there.carries(b"still here")
            await process.until(lambda: process.heard(RemoteReconnected) == ["lab"], "its return")
            assert process.owner.heard == ["lab down", "lab up"]
            await process.end("lab")
            await there.carries(b"and still")
            again = await process.bring_up("lab")
            another = Path(undo)
            again.connect(another.connection)
            await another.arrives()
            await another.carries(b"a third one")
            await there.carries(b"as if nothing had been")

    run(story)


def test_remotes_of_a_process_share_one_epoll_set_and_one_pool_of_pipes() -> None:
    async def story(process: Process) -> None:
        before = len(os.listdir("/proc/self/fd"))
        await process.bring_up("office")
        one = len(os.listdir("/proc/self/fd")) - before
        await process.bring_up("lab")
        assert len(os.listdir("/proc/self/fd")) - before == 2 * one
        kinds = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        ]
        # asyncio's, ours within it, and no third.
        assert kinds.count("anon_inode:[eventpoll]") == 2

    run(story)


def test_the_most_specific_route_decides_which_remote_carries() -> None:
    async def story(process: Process) -> None:
        office, lab = await process.bring_up("office"), await process.bring_up("lab")
        wide, narrow = ip_network("127.0.0.0/8"), ip_network("127.0.0.0/24")
        router = Router(
            [
                Claim(office, (Route(wide, Action.REMOTE),)),
                Claim(lab, (Route(narrow, Action.REMOTE),)),
            ]
        )
        with ExitStack() as undo:
            path = Path(undo)
            router.connect(path.connection)
            await path.arrives()
            assert (len(list(office.sockets())), len(list(lab.sockets()))) == (0, 1)
            await path.carries(b"by the lab")
            router.replace([Claim(office, (Route(wide, Action.REMOTE),))])
            other = Path(undo)
            router.connect(other.connection)
            await other.arrives()
            assert (len(list(office.sockets())), len(list(lab.sockets()))) == (1, 1)
            await path.carries(b"as before")
            await other.carries(b"by the office")

    run(story)


def test_while_it_is_lost_connections_wait_and_questions_are_refused() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        process.kill("office", signal.SIGSTOP)
        remote.on_news("somebody asks", asked=True)
        await process.until(lambda: not remote.is_up, "the loss")
        assert process.heard(RemoteLost) == ["office"]
        with ExitStack() as undo:
            path, query = Path(undo), Query(b"x" * 20, 0)
            remote.connect(path.connection)
            remote.ask(query)
            assert query.ended == "refused"
            assert remote.snapshot().connections == 1
            assert remote.snapshot().lost_for_s is not None
            process.kill("office", signal.SIGCONT)
            await process.until(lambda: remote.is_up, "its return")
            await path.arrives()
            await path.carries(b"it has waited")

    run(story)


def test_datagrams_go_on_with_the_same_far_port_when_it_is_back_and_in_another_session() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.bind(("127.0.0.1", 0))
            host.setblocking(False)
            near = Near(host.getsockname())
            outlet = remote.associate(near)
            loop = asyncio.get_running_loop()

            async def carries(data: bytes) -> int:
                """There and back; the far port."""
                got, far = await asyncio.wait_for(_received(host, outlet, data), DEADLINE_S)
                assert got == data
                host.sendto(data, far)
                await process.until(lambda: near.heard[-1:] == [data], "the way back")
                return int(far[1])

            port = await carries(b"one")
            process.kill("office", signal.SIGSTOP)
            remote.on_news("somebody asks", asked=True)
            await process.until(lambda: not remote.is_up, "the loss")
            outlet.send(b"lost")
            process.kill("office", signal.SIGCONT)
            await process.until(lambda: remote.is_up, "its return")
            await asyncio.sleep(0.2)
            assert await carries(b"two") == port
            process.kill("office")
            await process.until(lambda: process.heard(SessionLost) == ["office"], "the loss")
            await process.until(lambda: remote.is_up, "its return")
            await carries(b"three")
            remote.end_connections()
            assert near.heard[-1] == ("ended", FLOW_DONE)
            assert loop is process.loop

    run(story)


async def _received(host: socket.socket, outlet: Outlet, data: bytes) -> tuple[bytes, Endpoint]:
    """What comes of ``data``, which is sent until it does: a datagram may be lost."""
    while True:
        outlet.send(data)
        for _ in range(30):
            await asyncio.sleep(0.01)
            with suppress(BlockingIOError):
                got, far = host.recvfrom(65535)
                if got == data:
                    return got, far


def test_of_those_that_waited_as_many_go_on_as_the_far_side_allows() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        process.kill("office", signal.SIGSTOP)
        remote.on_news("somebody asks", asked=True)
        await process.until(lambda: not remote.is_up, "the loss")
        with ExitStack() as undo:
            first, second = Path(undo), Path(undo)
            remote.connect(first.connection)
            remote.connect(second.connection)
            table = remote._pool.tunnel.session.table
            assert not table.streams, "the session knows of connections that wait"
            table.peer_max_streams = 1
            process.kill("office", signal.SIGCONT)
            await process.until(lambda: remote.is_up, "its return")
            await first.arrives()
            assert second.is_reset

    run(story)


def test_a_session_has_a_tunnel_of_its_own_and_bytes_are_counted_over_all() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        before, moved = remote._pool.tunnel, remote.moved()
        process.kill("office")  # the agent, too: what comes back is another session
        await process.until(lambda: not remote.is_up, "the loss")
        await process.until(lambda: remote.is_up, "its return")
        assert remote._pool.tunnel is not before
        assert not before.lanes
        assert not before.relays
        assert remote.moved().sent >= moved.sent
        with ExitStack() as undo:
            path = Path(undo)
            remote.connect(path.connection)
            await path.arrives()
        assert remote.moved().sent > moved.sent  # by now; "up" is before anything is sent

    run(story)


def test_ending_its_connections_ends_those_that_wait_too() -> None:
    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        with ExitStack() as undo:
            carried, held = Path(undo), Path(undo)
            remote.connect(carried.connection)
            await carried.arrives()
            process.kill("office", signal.SIGSTOP)
            remote.on_news("somebody asks", asked=True)
            await process.until(lambda: not remote.is_up, "the loss")
            remote.connect(held.connection)
            remote.end_connections()
            assert carried.is_reset
            assert held.is_reset
            remote.end_connections()
            process.kill("office", signal.SIGCONT)

    run(story)


def test_a_session_that_ends_while_it_starts_is_an_error() -> None:
    async def story(process: Process) -> None:
        remote = process.remotes["office"] = process.remote("office", grace_s=0)
        await remote.start()
        process.running["office"] = asyncio.ensure_future(asyncio.sleep(0))
        process.kill("office")

        async def goes_well() -> None:
            while True:
                await remote.check()
                await asyncio.sleep(0.01)

        with pytest.raises(UserError) as caught:
            await asyncio.wait_for(goes_well(), DEADLINE_S)
        assert caught.value.exit_code == ExitCode.LOST
        assert "lost while starting" in caught.value.message

    run(story)


def test_stopped_in_an_attempt_whose_program_ends_slowly_it_waits_for_its_end() -> None:
    class Slow(LocalTransport):
        async def _start(self, hearer: Hearer) -> Channel:
            channel = await super()._start(hearer)
            self._argv = [sys.executable, "-S", "-c", STUBBORN]
            return channel

    async def story(process: Process) -> None:
        mark = process.marks["office"] = os.urandom(8).hex()
        transport = Slow(env={**os.environ, "MARK": mark})
        terms = Terms("office", lanes=1, grace_s=60, max_retries=None)
        remote = Remote(process.reactor, transport, process.report, process.owner, terms)
        process.remotes["office"] = remote
        await remote.start()
        running = process.running["office"] = asyncio.ensure_future(remote.run())
        await process.until(lambda: remote.is_up, "its start")
        process.kill("office")
        await process.until(lambda: len(process.heard(LoginStarted)) == 2, "an attempt")
        await asyncio.sleep(0.1)
        await cancelled(running)
        assert marked(mark) == []

    run(story)


def test_what_is_no_socket_of_this_host_can_not_be_carried() -> None:
    class Stream(Connection):
        code: int | None = None

        def refused(self, code: int) -> None:
            self.code = code

    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        stream = Stream(Flow(TCP, ("10.0.0.1", 1)), wants_opened=True)
        assert remote.connect(stream) is None
        assert stream.code is not None

    run(story)


def test_its_owner_hears_where_nobody_was_though_a_program_was_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_module, "_MOST_TRUSTING", 2)

    async def story(process: Process) -> None:
        remote = await process.bring_up("office")
        with ExitStack() as undo:
            paths = [Path(undo) for _ in range(3)]
            for path in paths:
                path.office.close()
            refusing = [socket.create_server(("127.0.0.1", 0)) for _ in paths]
            closed = [listener.getsockname() for listener in refusing]
            for listener in refusing:
                listener.close()
            for path, destination in zip(paths, closed, strict=True):
                flow = Flow(TCP, destination)
                remote.connect(SocketConnection(Relays(), flow, path.ours))
            await process.until(lambda: process.owner.freed == 3, "the end of all")
            assert process.owner.failed == closed[1:]  # the latest are remembered

    run(story)
