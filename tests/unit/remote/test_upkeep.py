"""The link to a real agent on this host, kept up while its processes are killed and frozen."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.mux.frames import TCP, Destination
from sshunt.relay.lane import LaneIO
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner
from sshunt.remote.keeper import LEAST_ATTEMPT_S
from sshunt.remote.pool import Pool
from sshunt.remote.upkeep import Upkeep
from sshunt.tell.report import (
    AttemptFailed,
    Event,
    PersonNeeded,
    RemoteChecked,
    RemoteLost,
    RemoteReconnected,
    Report,
    SessionLost,
)
from sshunt.transport.channel import Channel, Hearer
from sshunt.transport.local import LocalTransport
from tests.agent.far_side import marked

DEADLINE_S = 20.0

#: Stands between us and the far side's command, as ssh does: if it is killed, both ends notice.
SSH = """
import os, subprocess, sys, threading
far = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
def from_far():
    while data := os.read(far.stdout.fileno(), 65536):
        os.write(1, data)
        if "JUNK" in os.environ:
            os.write(1, bytes([255]) * 100)
    os.close(1)
threading.Thread(target=from_far, daemon=True).start()
while data := os.read(0, 65536):
    far.stdin.write(data)
far.stdin.close()
sys.exit(far.wait())
"""


class Far(LocalTransport):
    """This host, a program that can be replaced, and an address that can be probed."""

    def __init__(self, mark: str, address: Endpoint | None = None) -> None:
        self.env = {**os.environ, "MARK": mark}
        super().__init__(prefix=(sys.executable, "-S", "-c", SSH), env=self.env)
        self.needs_person = False
        self.reaches_nobody = False
        self.is_broken = False
        self.attempts: list[float] = []
        self._address = address

    def becomes(self, *words: str) -> None:
        """From now on this is started instead."""
        self._argv = list(words)

    def attempt_failed(self, error: UserError) -> bool:
        return self.needs_person

    async def _start(self, hearer: Hearer) -> Channel:
        self.attempts.append(time.monotonic())
        if self.is_broken:
            raise ZeroDivisionError
        channel = await super()._start(hearer)
        if self._address is not None:
            channel.peers = lambda: (self._address,)  # type: ignore[method-assign,assignment,return-value]
        if self.reaches_nobody:
            channel.has_reached = lambda: False  # type: ignore[method-assign]
        return channel


class Remote(TunnelOwner):
    """Tunnel, pool and upkeep as they are put together for a session, and what was said."""

    def __init__(self, far: Far, *, grace_s: int = 60, max_retries: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.said: list[Event] = []
        report = Report(print)
        report.subscribe(self.said.append)
        self.reactor = Reactor(loop)
        self.pool = Pool(self.reactor, self, far, report, "here", most=1, grace_s=grace_s)
        self.upkeep = Upkeep(
            "here",
            far,
            self.pool,
            report,
            self,
            is_attended=False,
            grace_s=grace_s,
            max_retries=max_retries,
        )
        self.was_down: list[bool] = []  # at each change
        self.running: asyncio.Future[None] = loop.create_future()

    @property
    def tunnel(self) -> Tunnel:
        """The present session's."""
        return self.pool.tunnel

    async def start(self) -> None:
        await self.pool.connect(deadline_s=DEADLINE_S)
        self.upkeep.note_peers()
        self.running = asyncio.ensure_future(self.upkeep.run())
        await asyncio.sleep(0.05)

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        if self.tunnel.lanes:
            self.tunnel.session.say_goodbye(frames.GOODBYE_DONE, "")
            self.tunnel.pump()
            await until(lambda: not self.tunnel.lanes)
        self.tunnel.close()
        self.reactor.close()
        await self.pool.close()

    @property
    def ssh(self) -> int:
        """The program of the lane that came up last."""
        assert self.pool.last is not None
        return self.pool.last.pid

    def told(self, kind: type) -> list[Event]:
        return [event for event in self.said if type(event) is kind]

    async def hears(self, kind: type, times: int = 1) -> Event:
        await until(lambda: len(self.told(kind)) >= times)
        return self.told(kind)[times - 1]

    def on_down(self) -> None:
        self.was_down.append(self.upkeep.link.is_down)

    def on_up(self) -> None:
        self.was_down.append(self.upkeep.link.is_down)

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        self.pool.on_lane_ended(lane, reason)
        self.upkeep.on_lane_ended(reason)

    def on_goodbye(self, code: int, sentence: str) -> None:
        if code != frames.GOODBYE_DONE:
            self.upkeep.on_goodbye(sentence)


def agent(mark: str, remote: Remote) -> int:
    ours = os.getsid(remote.ssh)
    (found,) = [pid for pid in marked(mark) if os.getsid(pid) != ours]
    return found


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), DEADLINE_S)


@pytest.fixture
def mark() -> Iterator[str]:
    """In the environment of all of the far side's processes, of which none is left at the end."""
    made = os.urandom(8).hex()
    yield made
    for pid in marked(made):
        os.kill(pid, signal.SIGKILL)


def run(story: Callable[[Remote, Far], Awaitable[None]], far: Far, **options: int) -> None:
    async def whole() -> None:
        remote = Remote(far, **options)
        await remote.start()
        try:
            await story(remote, far)
        finally:
            await remote.close()

    asyncio.run(whole())


def test_a_lane_whose_program_is_killed_is_replaced_and_connections_are_kept(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            program, ours = socket.socketpair()
            program.setblocking(False)
            ours.setblocking(False)
            there = Destination(TCP, *server.getsockname())
            remote.tunnel.relay(remote.tunnel.open(there)).start(ours)
            loop = asyncio.get_running_loop()
            served, _ = await loop.sock_accept(server)
            os.kill(remote.ssh, signal.SIGKILL)
            await remote.hears(RemoteReconnected)
            await loop.sock_sendall(program, b"still there?")
            assert await loop.sock_recv(served, 100) == b"still there?"
            for sock in (program, served):
                sock.close()
            await until(lambda: not remote.tunnel.relays)
        (lost,) = remote.told(RemoteLost)
        assert isinstance(lost, RemoteLost)
        assert (lost.remote, lost.connections, lost.are_kept) == ("here", 1, True)
        assert abs(lost.since - time.time()) < DEADLINE_S
        (again,) = remote.told(RemoteReconnected)
        assert isinstance(again, RemoteReconnected)
        assert again.kept == 1
        assert remote.was_down == [True, False]
        assert len(far.attempts) == 2

    run(story, Far(mark))


def test_when_the_agent_is_killed_the_session_is_lost_and_a_new_one_begins(mark: str) -> None:
    async def story(remote: Remote, _far: Far) -> None:
        os.kill(agent(mark, remote), signal.SIGKILL)
        await remote.hears(RemoteReconnected)
        assert remote.told(SessionLost) == [SessionLost("here", "its agent died", 0)]

    run(story, Far(mark))


def test_an_agent_that_is_found_dead_has_lost_the_session_too(mark: str) -> None:
    async def story(remote: Remote, _far: Far) -> None:
        dead = agent(mark, remote)
        os.kill(remote.ssh, signal.SIGKILL)
        os.kill(dead, signal.SIGKILL)
        await remote.hears(RemoteReconnected)
        (lost,) = remote.told(SessionLost)
        assert isinstance(lost, SessionLost)
        assert lost.why.startswith("the far side refused: ")

    run(story, Far(mark))


def test_an_agent_that_says_goodbye_has_lost_the_session(mark: str) -> None:
    async def story(remote: Remote, _far: Far) -> None:
        os.kill(agent(mark, remote), signal.SIGTERM)
        await remote.hears(RemoteReconnected)
        assert len(remote.told(SessionLost)) == 1

    run(story, Far(mark))


def test_a_lane_whose_program_is_frozen_is_replaced_and_the_session_goes_on(mark: str) -> None:
    async def story(remote: Remote, _far: Far) -> None:
        frozen = remote.ssh
        os.kill(frozen, signal.SIGSTOP)
        remote.upkeep.on_news("the test says so")
        await remote.hears(RemoteReconnected)
        assert remote.ssh != frozen
        assert list(remote.tunnel.lanes) == [1]
        assert remote.told(SessionLost) == []

    run(story, Far(mark))


def test_an_attempt_that_reaches_nobody_is_made_again_when_there_are_news(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        words = list(far._argv)
        far.becomes("sleep", "1000")
        far.reaches_nobody = True
        os.kill(remote.ssh, signal.SIGKILL)
        await until(lambda: len(far.attempts) == 2)
        far.becomes(*words)
        await asyncio.sleep(LEAST_ATTEMPT_S + 0.1)
        remote.upkeep.on_news("another network")
        await remote.hears(RemoteReconnected)
        assert len(far.attempts) == 3
        assert remote.told(AttemptFailed) == []

    run(story, Far(mark))


def test_a_session_that_breaks_the_protocol_on_lane_after_lane_is_given_up(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        far.env["JUNK"] = "yes"
        os.kill(remote.ssh, signal.SIGKILL)
        lost = await remote.hears(SessionLost)
        assert isinstance(lost, SessionLost)
        assert lost.why == "it broke the protocol on one ssh connection after the other"
        del far.env["JUNK"]
        await until(lambda: not remote.upkeep.link.is_down)
        assert len(remote.told(SessionLost)) == 1

    run(story, Far(mark))


def test_a_bug_in_an_attempt_ends_the_upkeep(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        far.is_broken = True
        os.kill(remote.ssh, signal.SIGKILL)
        await asyncio.wait([remote.running], timeout=DEADLINE_S)
        assert isinstance(remote.running.exception(), ZeroDivisionError)

    run(story, Far(mark))


def test_a_frozen_agent_is_suspect_after_news_and_answers_again(mark: str) -> None:
    async def story(remote: Remote, _far: Far) -> None:
        frozen = agent(mark, remote)
        os.kill(frozen, signal.SIGSTOP)
        remote.upkeep.on_news("the test says so")
        assert remote.told(RemoteChecked) == [RemoteChecked("here", "the test says so")]
        lost = await remote.hears(RemoteLost)
        assert isinstance(lost, RemoteLost)
        assert lost.why.startswith("no answer for 1.")
        os.kill(frozen, signal.SIGCONT)
        await remote.hears(RemoteReconnected)
        assert len(remote.tunnel.lanes) == 1

    run(story, Far(mark))


def test_attempts_that_fail_are_counted_and_end_the_session_in_the_end(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        far.becomes("false")
        os.kill(remote.ssh, signal.SIGKILL)
        await asyncio.wait([remote.running], timeout=DEADLINE_S)
        error = remote.running.exception()
        assert isinstance(error, UserError)
        assert error.exit_code is ExitCode.LOST
        assert error.message.startswith("the connection to here was lost, and 2 attempts failed: ")
        first = remote.told(AttemptFailed)[0]
        assert isinstance(first, AttemptFailed)
        assert first.failures == 1
        assert error.message.endswith(first.why)
        assert len(far.attempts) == 3
        assert far.attempts[2] - far.attempts[1] > 0.3

    run(story, Far(mark), max_retries=1)


def test_where_a_person_is_needed_only_a_person_hurries_the_next_attempt(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        words = list(far._argv)
        far.becomes("false")
        far.needs_person = True
        os.kill(remote.ssh, signal.SIGKILL)
        await remote.hears(PersonNeeded)
        far.becomes(*words)
        remote.upkeep.on_news("another network")
        await asyncio.sleep(0.3)
        assert len(far.attempts) == 2
        remote.upkeep.on_news("asked to", asked=True)
        await remote.hears(RemoteReconnected)

    run(story, Far(mark))


@pytest.mark.parametrize("is_listening", [True, False])
def test_the_servers_address_is_probed_and_a_refusal_is_an_answer(
    mark: str, is_listening: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, port = server.getsockname()
        if not is_listening:
            server.close()

        async def story(remote: Remote, far: Far) -> None:
            words = list(far._argv)
            far.becomes("false")
            os.kill(remote.ssh, signal.SIGKILL)
            await remote.hears(AttemptFailed)
            far.becomes(*words)
            await remote.hears(RemoteReconnected)

        run(story, Far(mark, (address, port)))


def test_no_attempt_is_made_until_the_server_s_address_answers(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        words = list(far._argv)
        far.becomes("false")
        os.kill(remote.ssh, signal.SIGKILL)
        await remote.hears(AttemptFailed)
        far.becomes(*words)
        await asyncio.sleep(2.5)
        assert len(far.attempts) == 2
        remote.upkeep.on_news("another network")
        await remote.hears(RemoteReconnected)

    run(story, Far(mark, ("255.255.255.255", 22)))  # nobody's: what connects to it fails


def test_stopped_in_an_attempt_it_leaves_no_process(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        far.becomes("sleep", "1000")
        os.kill(remote.ssh, signal.SIGKILL)
        await until(lambda: len(far.attempts) == 2)
        await asyncio.sleep(0.1)
        while not remote.running.done():
            remote.running.cancel()  # again and again, as somebody in a hurry does
            await asyncio.sleep(0)
        assert not any("sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in marked(mark))

    run(story, Far(mark))


def test_events_after_the_stop_are_ignored(mark: str) -> None:
    async def story(remote: Remote, far: Far) -> None:
        remote.upkeep.stop()
        os.kill(remote.ssh, signal.SIGKILL)
        await until(lambda: not remote.tunnel.lanes)
        remote.upkeep.on_goodbye("bye")
        remote.upkeep.on_news("another network")
        await asyncio.sleep(0.1)
        assert remote.told(RemoteLost) == []
        assert len(far.attempts) == 1

    run(story, Far(mark))
