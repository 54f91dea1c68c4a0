"""Two tunnels in one event loop, joined by real pipes: the data path without ssh and kernel rules.

    program --socket-- TcpRelay, client tunnel ==pipes== agent tunnel, Direct --socket-- host

``Ends`` owns everything; programs and hosts are plain blocking sockets driven from threads of the
loop's executor, as unmodified programs are.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sshunt.direct.carrier import Direct
from sshunt.mux.events import DatagramReceived
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.incoming import StreamConnection
from sshunt.relay.lane import LaneIO
from sshunt.relay.reactor import AUTO, Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner

DEADLINE_S = 20.0

#: Programs and hosts that may act at the same time.
MOST_PROGRAMS = 32

T = TypeVar("T")


class Hears(TunnelOwner):
    """An owner whose test says what is to be done with what it hears; nothing, if it does not."""

    def __init__(self) -> None:
        self.request: Callable[[Stream, Destination], object] | None = None
        self.reset: Callable[[Stream, int], object] = _ignore
        self.datagram: Callable[[DatagramReceived], object] | None = None
        self.lane_ended: Callable[[LaneIO, str], object] = _ignore
        self.goodbye: Callable[[int, str], object] = _ignore

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        if self.request is None:
            return super().on_request(stream, destination)
        self.request(stream, destination)
        return True

    def on_reset(self, stream: Stream, code: int) -> None:
        self.reset(stream, code)

    def on_datagram(self, event: DatagramReceived) -> bool:
        if self.datagram is None:
            return super().on_datagram(event)
        self.datagram(event)
        return True

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        self.lane_ended(lane, reason)

    def on_goodbye(self, code: int, sentence: str) -> None:
        self.goodbye(code, sentence)


def _ignore(*_: Any) -> None:
    pass


class Ends:
    """A client tunnel and an agent tunnel with one lane between them; each hears what its end does,
    and has a reactor of its own, as in two processes.
    """

    def __init__(self, *, outlives_lanes: bool = True, way: int = AUTO) -> None:
        loop = asyncio.get_running_loop()
        self.client_hears, self.agent_hears = Hears(), Hears()
        self.client = Tunnel(
            Reactor(loop, way=way),
            Session(CLIENT),
            self.client_hears,
            outlives_lanes=outlives_lanes,
        )
        self.agent = Tunnel(
            Reactor(loop, way=way), Session(AGENT), self.agent_hears, outlives_lanes=outlives_lanes
        )
        self.direct = Direct(self.agent.reactor)
        self.agent_hears.request = self.serve
        self.ended: list[str] = []
        for hears in (self.client_hears, self.agent_hears):
            hears.lane_ended = self._on_lane_ended
        self.join(0)

    def serve(self, stream: Stream, destination: Destination) -> None:
        """As the agent does."""
        self.direct.connect(StreamConnection(self.agent, stream, destination))

    def join(self, lane: int) -> None:
        """One more lane: two pipes."""
        to_agent, from_client = os.pipe()
        to_client, from_agent = os.pipe()
        self.client.add_lane(lane, to_client, from_client)
        self.agent.add_lane(lane, to_agent, from_agent)

    def _on_lane_ended(self, _lane: LaneIO, reason: str) -> None:
        self.ended.append(reason)

    def connect(self, host: str, port: int) -> socket.socket:
        """What a program gets that connects to (host, port) through the tunnel."""
        program, ours = socket.socketpair()
        ours.setblocking(False)
        self.client.relay(self.client.open(Destination(TCP, host, port))).start(ours)
        program.settimeout(DEADLINE_S)
        return program

    def close(self) -> None:
        self.direct.close()
        for tunnel in (self.client, self.agent):
            tunnel.close()
            tunnel.reactor.close()


def listen() -> socket.socket:
    """A host's listening socket on loopback."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(DEADLINE_S)
    return sock


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(DEADLINE_S)
    return sock


async def threaded(call: Callable[[], T]) -> T:
    """Run a blocking call beside the loop."""
    return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, call), 30)


def run(
    conversation: Callable[[Ends], Awaitable[None]],
    *,
    outlives_lanes: bool = True,
    way: int = AUTO,
) -> None:
    """Run one conversation with fresh ends and close them."""

    async def whole() -> None:
        # The default has six threads on two processors: programs that wait would keep out others.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MOST_PROGRAMS))
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: problems.append(what))
        ends = Ends(outlives_lanes=outlives_lanes, way=way)
        try:
            await conversation(ends)
        finally:
            ends.close()
        assert not problems, "a callback has failed"

    asyncio.run(whole())


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)
