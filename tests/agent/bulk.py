"""Both ends of a tunnel in one process of any Python from 3.6 on: bulk there and back.

    program == socket == client's relay == pipes == agent's relay == socket == host

Run by ``test_interpreters`` with the way of payload (0 to 2) as its argument; says what came by.
"""

import asyncio
import os
import socket
import sys
import threading

from sshunt.direct.carrier import Direct
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.incoming import StreamConnection
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner

DATA = os.urandom(20_000_000)
DEADLINE_S = 60.0


class Dialing(TunnelOwner):
    direct: Direct
    tunnel: Tunnel

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        self.direct.connect(StreamConnection(self.tunnel, stream, destination))
        return True


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1)
    return sock


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while True:
        more = sock.recv(1 << 20)
        if not more:
            return bytes(data)
        data += more


def main() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    way = int(sys.argv[1])
    client_reactor, agent_reactor = Reactor(loop, way=way), Reactor(loop, way=way)
    client = Tunnel(client_reactor, Session(CLIENT), TunnelOwner(), outlives_lanes=True)
    dialing = Dialing()
    agent = Tunnel(agent_reactor, Session(AGENT), dialing, outlives_lanes=True)
    dialing.direct, dialing.tunnel = Direct(agent_reactor), agent
    to_agent, from_client = os.pipe()
    to_client, from_agent = os.pipe()
    client.add_lane(0, to_client, from_client)
    agent.add_lane(0, to_agent, from_agent)
    office, door = listening(), listening()
    returned = []

    def host() -> None:
        sock = office.accept()[0]
        sock.sendall(read_all(sock))
        sock.close()

    def program() -> None:
        sock = socket.create_connection(door.getsockname())
        sock.sendall(DATA)
        sock.shutdown(socket.SHUT_WR)
        returned.append(read_all(sock))
        loop.call_soon_threadsafe(loop.stop)

    for act in (host, program):
        threading.Thread(target=act, daemon=True).start()
    ours = door.accept()[0]
    ours.setblocking(False)
    destination = Destination(TCP, *office.getsockname())
    client.relay(client.open(destination)).start(ours)
    loop.call_later(DEADLINE_S, loop.stop)
    loop.run_forever()
    print("whole" if returned == [DATA] else "not whole", end=" ")
    print("teed" if client.teed_bytes and agent.teed_bytes else "written", end=" ")
    print("spliced" if client.spliced_bytes and agent.spliced_bytes else "read")


main()
