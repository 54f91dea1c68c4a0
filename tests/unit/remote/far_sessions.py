"""The client's end of a session whose far side is real: an agent on this host, without ssh."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sshunt.errors import ExitCode, UserError
from sshunt.mux import frames
from sshunt.mux.hello import Hello
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel
from sshunt.remote.pool import Pool
from sshunt.tell.report import Event, Report
from sshunt.transport.channel import Channel, Hearer
from sshunt.transport.local import LocalTransport
from tests.agent.far_side import marked
from tests.unit.relay.ends import Hears

MOST = 3
DEADLINE_S = 20.0


class Far(LocalTransport):
    """A far side on this host. With ``asks`` a further login would take a person; ``shares``: but
    channels of the one connection can be had. ``fails``: no further login succeeds for now.
    """

    def __init__(self, mark: str, python: str | None = None) -> None:
        super().__init__(python=python, env={**os.environ, "MARK": mark})
        self.mark = mark
        self.asks = self.shares = self.fails = False
        self.logins = 0  # further ones
        self.shares_connection = False

    async def open_beside(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        ready: asyncio.Event,
        deadline_s: float,
        path_rtt_s: float,
    ) -> Channel:
        self.logins += 1
        if self.fails:
            raise UserError("no way", "", ExitCode.CONNECT)
        if self.asks and not self.shares_connection:
            await asyncio.sleep(0.05)
            self.shares_connection = self.shares
            raise UserError("refused", "", ExitCode.AUTH)
        return await super().open_beside(
            hello, hearer, ready=ready, deadline_s=deadline_s, path_rtt_s=path_rtt_s
        )


class Session:
    """The client's end of a session: its pool, and what was said of it."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.said: list[Event] = []
        self.report = Report(_raise)
        self.report.subscribe(self.said.append)
        hears = Hears()
        reactor = Reactor(asyncio.get_running_loop())
        self.reactor = reactor
        self.pool = Pool(reactor, hears, far, self.report, "gate", most=MOST, grace_s=60)
        hears.lane_ended = self.pool.on_lane_ended

    @property
    def tunnel(self) -> Tunnel:
        """The present session's."""
        return self.pool.tunnel

    @property
    def lanes(self) -> list[int]:
        return sorted(self.tunnel.lanes)

    def heard(self, kind: type) -> list[Event]:
        return [event for event in self.said if isinstance(event, kind)]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(int(DEADLINE_S / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never happened: {what}; said: {self.said}")

    async def connect(self, *, resumes: bool = False) -> None:
        await self.pool.connect(resumes=resumes, deadline_s=DEADLINE_S)
        # Until then the far side may believe that we know nothing of the session.
        await self.until(lambda: self.tunnel.session.rtt_s > 0, "an answer")

    async def end(self) -> None:
        if self.tunnel.lanes:
            self.tunnel.session.say_goodbye(frames.GOODBYE_DONE, "")
            self.tunnel.pump()
            with suppress(AssertionError):
                await self.until(lambda: not self.tunnel.lanes, "the goodbye")
        self.tunnel.close()
        self.reactor.close()
        await self.pool.close()


def _raise(error: Exception) -> None:
    raise error


def run(far: Far, conversation: Callable[[Session], Awaitable[None]]) -> None:
    async def whole() -> None:
        session = Session(far)
        try:
            await conversation(session)
        finally:
            await session.end()

    asyncio.run(whole())


def agent_of(session: Session) -> int:
    """The agent's process, while the session's channel is up."""
    assert session.pool.last is not None
    stub = os.getsid(session.pool.last.pid)
    (agent,) = [pid for pid in marked(session.far.mark) if os.getsid(pid) != stub]
    return agent


def kill_agent(session: Session) -> None:
    os.kill(agent_of(session), 9)


async def few_moments() -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)


async def connection(session: Session) -> tuple[socket.socket, socket.socket]:
    """A program's connection through the session, and its other end, at a host over there."""
    with socket.create_server(("127.0.0.1", 0)) as office:
        office.setblocking(False)
        program, ours = socket.socketpair()
        for sock in (program, ours):
            sock.setblocking(False)
        address = frames.Destination(frames.TCP, *office.getsockname())
        session.tunnel.relay(session.tunnel.open(address)).start(ours)
        host, _ = await asyncio.get_running_loop().sock_accept(office)
        host.setblocking(False)
        return program, host
