"""What a process has once: with a real helper in a host of the lab's, a real agent on this one."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.cli import parse
from sshunt.commands.running import Up
from sshunt.errors import ExitCode, UserError
from sshunt.front.listener import bind
from sshunt.host.rules import Rules
from sshunt.host.wanted import Wanted
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.tell.console import Console
from sshunt.tell.report import (
    CallerRefused,
    Event,
    PeersBypassed,
    RemoteChecked,
    RemoteConnected,
    Report,
)
from sshunt.transport.local import LocalTransport
from tests.agent.far_side import eventually, marked
from tests.unit.host.test_rules import World
from tests.unit.relay.ends import threaded

OPTIONS = parse(["-r", "gate", "10.0.0.0/8"])
DEADLINE_S = 20.0


class Running:
    """An Up that has logged in."""

    def __init__(self, rules: Rules, session: str) -> None:
        self.session = session
        self.said: list[Event] = []
        self.report = Report(lambda error: pytest.fail(str(error)))
        self.report.subscribe(self.said.append)
        self.mark = os.urandom(8).hex()
        transport = LocalTransport(env={**os.environ, "MARK": self.mark})
        self.up = Up(OPTIONS, Console(), self.report, rules, transport, "gate")
        self.listener = bind(("127.0.0.1", 0))
        self.endpoint = self.listener.getsockname()[:2]
        self.stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def heard(self, kind: type) -> list[Event]:
        return [event for event in self.said if type(event) is kind]

    async def watched(self) -> None:
        """As ``up`` does it, until it is asked to stop or something ends it."""
        await asyncio.wait_for(self.up.watch(self.stop), DEADLINE_S)

    async def end(self) -> None:
        self.up.end_local()
        self.up.end_local()
        await self.up.end()
        await self.up.remote.close()
        self.up.listen_no_more()
        eventually(lambda: marked(self.mark) == [], "the agent's end")


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.neighbour


def run(host: Host, story: Callable[[Running, World], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = World(host)
        async with world.rules() as rules:
            rules.want(Wanted())
            await rules.settled()
            running = Running(rules, world.session)
            await running.up.remote.start()
            running.up.accept([running.listener], [], [], ())
            try:
                await story(running, world)
            finally:
                await running.end()

    asyncio.run(whole())


def test_asked_to_stop_it_stops_and_says_what_was_moved(host: Host) -> None:
    async def story(running: Running, _world: World) -> None:
        watching = asyncio.ensure_future(running.watched())
        await asyncio.sleep(0.05)
        assert not watching.done()
        running.stop.set_result("SIGTERM")
        await watching
        closed = running.up.closed("SIGTERM")
        assert (closed.remote, closed.signal) == ("gate", "SIGTERM")
        assert closed.sent_bytes > 0

    run(host, story)


def test_a_bug_anywhere_in_the_loop_ends_it(host: Host) -> None:
    async def story(running: Running, _world: World) -> None:
        watching = asyncio.ensure_future(running.watched())
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await watching

    run(host, story)


def test_a_bug_while_it_ends_is_not_lost(host: Host) -> None:
    async def story(running: Running, _world: World) -> None:
        running.stop.set_result("SIGTERM")
        await running.watched()
        running.up.raise_bug()
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await running.up.end()
        with pytest.raises(ZeroDivisionError):
            running.up.raise_bug()

    run(host, story)


def test_the_end_of_the_helper_ends_it(host: Host) -> None:
    async def story(running: Running, world: World) -> None:
        watching = asyncio.ensure_future(running.watched())
        world.end_helper()
        with pytest.raises(UserError, match="the helper that holds the rules ended") as caught:
            await watching
        assert caught.value.exit_code == ExitCode.LOST

    run(host, story)


def test_the_rules_follow_the_plan_and_the_peers_are_told(host: Host) -> None:
    async def story(running: Running, world: World) -> None:
        plan = Plan(running.session, redirects([running.endpoint]), (), (("192.0.2.9", 22),))
        await running.up.capture(plan)
        assert "192.0.2.9" in world.table()
        assert running.heard(PeersBypassed) == [PeersBypassed("gate", (("192.0.2.9", 22),))]

    run(host, story)


def test_a_caller_that_nothing_redirected_is_refused(host: Host) -> None:
    def call(endpoint: tuple[str, int]) -> bytes:
        with socket.create_connection(endpoint, DEADLINE_S) as caller:
            return caller.recv(1)

    async def story(running: Running, _world: World) -> None:
        with pytest.raises(ConnectionResetError):
            await threaded(lambda: call(running.endpoint))
        assert len(running.heard(CallerRefused)) == 1

    run(host, story)


def test_other_commands_of_this_user_are_answered(host: Host) -> None:
    async def story(running: Running, _world: World) -> None:
        running.report.say(RemoteConnected("gate", "gate", 0.01, (), has_dns=False))
        about = running.up._answer("about")
        assert str(about["says"]).endswith(": connected")
        assert "looking at the connection" in str(running.up._answer("reconnect")["says"])
        assert len(running.heard(RemoteChecked)) == 1
        with pytest.raises(KeyError):
            running.up._answer("dance")

    run(host, story)
