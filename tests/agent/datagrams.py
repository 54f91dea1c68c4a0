"""The agent's UDP in any Python from 3.6 on: two tunnels in one process, real sockets behind them.

Run by ``test_interpreters``; says what came back, in this order: one datagram, a batch that the
host has sent back as one, a refusal, somebody who answers from another port, an empty datagram.
"""

import asyncio
import os
import socket
import threading

from sshunt.direct.carrier import Direct
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.events import DatagramReceived, FlowEnded, FlowFailed
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.relay.incoming import FlowAssociation
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner

DEADLINE_S = 20.0
BATCH = b"a" * 500 + b"b" * 500 + b"c" * 7


class Serving(TunnelOwner):
    """As the agent does."""

    direct: Direct
    tunnel: Tunnel

    def on_datagram(self, event: DatagramReceived) -> bool:
        association = FlowAssociation(self.tunnel, event.flow)
        association.outlet = self.direct.associate(association)
        association.on_datagram(event)
        return True


class Near(TunnelOwner):
    """The client's end of every flow."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[object] = asyncio.Queue()

    def on_datagram(self, event: DatagramReceived) -> bool:
        event.flow.owner = self  # of a flow that the agent has opened
        if event.flow.is_ours:
            self.heard.put_nowait((event.data, event.segment_bytes))
        else:
            self.heard.put_nowait(f"stranger {event.data.decode()}")
        return True

    def on_flow_failed(self, event: FlowFailed) -> None:
        self.heard.put_nowait(f"failed {event.code}")

    def on_flow_ended(self, event: FlowEnded) -> None:
        self.heard.put_nowait(f"ended {event.code}")


def echo(sock: socket.socket, other: socket.socket) -> None:
    """Sends everything back, what it is asked to by another socket; a batch as one."""
    sock.setsockopt(socket.IPPROTO_UDP, 104, 1)  # UDP_GRO
    while True:
        data, notes, _, program = sock.recvmsg(65535, 64)
        if data == b"other":
            other.sendto(data, program)
        else:
            size = [(17, 103, notes[0][2][:2])] if notes else []  # UDP_SEGMENT
            sock.sendmsg([data], size, 0, program)


async def converse(client: Tunnel, near: Near, host: str, port: int, closed: int) -> "list[object]":
    datagrams, loop = client.session.datagrams, client.loop
    echoing = datagrams.open(FlowTarget(frames.UDP, host, port, 1), loop.time())
    refusing = datagrams.open(FlowTarget(frames.UDP, host, closed, 1), loop.time())
    echoing.owner = refusing.owner = near
    heard = []
    for flow, data, segment_bytes in (
        (echoing, b"one", 0),
        (echoing, BATCH, 500),
        (refusing, b"two", 0),
        (echoing, b"other", 0),
        (echoing, b"", 0),
    ):
        datagrams.send(flow, data, loop.time(), segment_bytes)
        client.wake()
        heard.append(await asyncio.wait_for(near.heard.get(), DEADLINE_S))
    return heard


def main(host: str) -> object:
    """What must not be collected while descriptors are counted."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(3)]
    for sock in socks:
        sock.bind((host, 0))
    closed = socks[2].getsockname()[1]
    socks[2].close()
    threading.Thread(target=echo, args=(socks[0], socks[1]), daemon=True).start()

    near, serving = Near(), Serving()
    client = Tunnel(Reactor(loop), Session(CLIENT), near, outlives_lanes=True)
    agent = Tunnel(Reactor(loop), Session(AGENT), serving, outlives_lanes=True)
    direct = serving.direct = Direct(agent.reactor)
    serving.tunnel = agent
    to_agent, from_client = os.pipe()
    to_client, from_agent = os.pipe()
    client.add_lane(0, to_client, from_client)
    agent.add_lane(0, to_agent, from_agent)
    before = len(os.listdir("/proc/self/fd"))
    port = socks[0].getsockname()[1]
    one, batch, *rest = loop.run_until_complete(converse(client, near, host, port, closed))
    direct.close()
    left = len(os.listdir("/proc/self/fd")) - before
    print(one, batch == (BATCH, 500), *rest, "left", left)
    return loop, socks, client, agent


kept = [main(address) for address in ("127.0.0.1", "::1")]
