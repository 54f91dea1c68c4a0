"""The agent's look-ups in any Python from 3.6 on: two resolvers, the first of which is silent.

Run by ``test_interpreters``; says how each query was answered, by UDP and by TCP.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable

from sshunt.direct import race
from sshunt.direct.carrier import Direct
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.events import DatagramReceived
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay import dns
from sshunt.relay.incoming import FlowQuestion, StreamConnection
from sshunt.relay.reactor import Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner

QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01"
ANSWER = QUERY[:2] + b"\x81\x80" + QUERY[4:]
DEADLINE_S = 20.0


class Asking(TunnelOwner):
    take: "Callable[[str, bytes], None]"

    def on_datagram(self, event: DatagramReceived) -> bool:
        self.take("udp", event.data)
        return True


class Resolving(TunnelOwner):
    direct: Direct
    tunnel: Tunnel

    def on_datagram(self, event: DatagramReceived) -> bool:
        question = FlowQuestion(self.tunnel, event.flow, event.data)
        question.asked = self.direct.ask(question)
        return True

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        self.direct.connect(StreamConnection(self.tunnel, stream, destination))
        return True


def bound(kind: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(5)
    return sock


def answer_udp(sock: socket.socket) -> None:
    while True:
        query, program = sock.recvfrom(65535)
        sock.sendto(ANSWER if query == QUERY else b"", program)


def answer_tcp(sock: socket.socket) -> None:
    while True:
        program = sock.accept()[0]
        if program.recv(65535) == len(QUERY).to_bytes(2, "big") + QUERY:
            for byte in len(ANSWER).to_bytes(2, "big") + ANSWER:
                program.sendall(bytes([byte]))
        program.close()


def main() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    silent = bound(socket.SOCK_STREAM, "127.0.0.21", 0)
    dns.PORT = silent.getsockname()[1]
    sockets = [
        silent,
        bound(socket.SOCK_DGRAM, "127.0.0.21", dns.PORT),
        bound(socket.SOCK_DGRAM, "127.0.0.22", dns.PORT),
        bound(socket.SOCK_STREAM, "127.0.0.22", dns.PORT),
    ]
    conf = dns.Settings(("127.0.0.21", "127.0.0.22"))
    dns.settings = lambda resolv_conf="": conf
    race.FIRST_S = 0.2
    threading.Thread(target=answer_udp, args=(sockets[2],), daemon=True).start()
    threading.Thread(target=answer_tcp, args=(sockets[3],), daemon=True).start()

    asking, resolving = Asking(), Resolving()
    client = Tunnel(Reactor(loop), Session(CLIENT), asking, outlives_lanes=True)
    agent = Tunnel(Reactor(loop), Session(AGENT), resolving, outlives_lanes=True)
    direct = resolving.direct = Direct(agent.reactor)
    resolving.tunnel = agent
    to_agent, from_client = os.pipe()
    to_client, from_agent = os.pipe()
    client.add_lane(0, to_client, from_client)
    agent.add_lane(0, to_agent, from_agent)
    answers = {}

    def take(name: str, answer: bytes) -> None:
        answers[name] = answer == ANSWER
        if len(answers) == 2:
            loop.stop()

    program, ours = socket.socketpair()
    ours.setblocking(False)
    program.setblocking(False)
    framed = bytearray()

    def on_readable() -> None:
        framed.extend(program.recv(65535))
        if len(framed) == 2 + len(ANSWER):
            loop.remove_reader(program.fileno())
            program.close()
            take("tcp", bytes(framed[2:]))

    before = len(os.listdir("/proc/self/fd")) - 2
    flow = client.session.datagrams.open(FlowTarget(frames.DNS, ".", 53), loop.time())
    asking.take = take
    client.session.datagrams.send(flow, QUERY, loop.time())
    loop.add_reader(program.fileno(), on_readable)
    relay = client.relay(client.open(Destination(frames.DNS, ".", 53)))
    relay.start(ours)
    program.sendall(len(QUERY).to_bytes(2, "big") + QUERY)
    loop.call_later(DEADLINE_S, loop.stop)
    loop.run_forever()
    relay.abort(frames.RESET_ABORTED)
    direct.close()
    loop.call_later(0.3, loop.stop)
    loop.run_forever()
    left = len(os.listdir("/proc/self/fd")) - before
    print("udp", answers.get("udp"), "tcp", answers.get("tcp"), "left", left)


main()
