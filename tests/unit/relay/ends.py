"""Two tunnels in one event loop, joined by real pipes: the data path without ssh and kernel rules.

    program --socket-- TcpRelay, client tunnel ==pipes== agent tunnel, Dialer --socket-- host

``Ends`` owns everything; programs and hosts are plain blocking sockets driven from threads of the
loop's executor, as unmodified programs are.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sshunt.direct.dial import Dialer
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.relay.lane import LaneIO
from sshunt.relay.tcp import TcpRelay
from sshunt.relay.tunnel import AUTO, Tunnel

DEADLINE_S = 20.0

#: Programs and hosts that may act at the same time.
MOST_PROGRAMS = 32

T = TypeVar("T")


class Ends:
    """A client tunnel and an agent tunnel with one lane between them."""

    def __init__(self, *, outlives_lanes: bool = True, way: int = AUTO) -> None:
        loop = asyncio.get_running_loop()
        self.client = Tunnel(loop, Session(CLIENT), outlives_lanes=outlives_lanes, way=way)
        self.agent = Tunnel(loop, Session(AGENT), outlives_lanes=outlives_lanes, way=way)
        self.dialer = Dialer(self.agent)
        self.agent.on_request = self.dialer.on_request
        self.ended: list[str] = []
        for tunnel in (self.client, self.agent):
            tunnel.on_lane_ended = self._on_lane_ended
        self.join(0)

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
        relay = TcpRelay(self.client, self.client.open(Destination(TCP, host, port)))
        relay.start(ours)
        program.settimeout(DEADLINE_S)
        return program

    def close(self) -> None:
        self.dialer.close()
        self.client.close()
        self.agent.close()


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
