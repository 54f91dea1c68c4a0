"""What the keeper tells about connections that wait."""

import asyncio
import socket

from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import CLIENT
from sshunt.mux.session import Session
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner
from sshunt.remote.holding import WaitingRoom
from sshunt.remote.pool import Pool
from sshunt.remote.upkeep import Keeper
from sshunt.tell.console import Console
from sshunt.tell.report import Report
from sshunt.transport.local import LocalTransport

SOMEWHERE = Destination(TCP, "192.0.2.1", 80)


def unheard(error: Exception) -> None:
    raise error


def test_who_waits_is_counted_with_the_connections_that_were_open_before() -> None:
    async def look() -> str:
        tunnel = Tunnel(
            Reactor(asyncio.get_running_loop()), Session(CLIENT), TunnelOwner(), outlives_lanes=True
        )
        room = WaitingRoom(tunnel)
        far = LocalTransport()
        pool = Pool(tunnel, far, Report(unheard), "gate", most=1, grace_s=60)
        keeper = Keeper(tunnel, far, pool, room, Console(), "gate", grace_s=60, max_retries=None)
        pairs = [socket.socketpair() for _ in range(3)]
        for _, ours in pairs:
            ours.setblocking(False)
        tunnel.relay(tunnel.open(SOMEWHERE)).start(pairs[0][1])
        for _, ours in pairs[1:]:
            room.enter(ours, SOMEWHERE)
        said = keeper.status()
        room.empty()
        tunnel.close()
        tunnel.reactor.close()
        for program, _ in pairs:
            program.close()
        return said

    assert "3 connections waiting" in asyncio.run(look())
