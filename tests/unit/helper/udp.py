"""Datagrams captured by the real helper on a host that is a router; the test is its client."""

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from sshunt.capture.plan import Plan, redirects
from sshunt.helper.protocol import Applied, Apply, Packeted, Packets
from sshunt.helper.udp_messages import FOUND, LOOK_UP, Key, Original, decode_found, encode_look_up
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.model import Action, Endpoint, Route
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation

NETWORKS = ("10.55.0.0/24", "fd00:55::/64")
PEER = {4: "10.55.0.9", 6: "fd00:55::9"}
OTHER_PEER = {4: "10.55.0.10", 6: "fd00:55::a"}
ROUTES = tuple(Route(ip_network(network), Action.REMOTE, 0, 65535) for network in NETWORKS)

#: As they are in linux/in.h and linux/in6.h.
IP_RECVERR, IPV6_RECVERR = 11, 25
IP_PKTINFO, IPV6_PKTINFO = 8, 50


class UdpClient:
    """Captures datagrams on the lab's router, at any of its addresses."""

    def __init__(self, lab: Lab) -> None:
        self.host = lab.client
        self.neighbour = lab.neighbour
        self.helper = Conversation(lab.client)
        self.helper.greet()
        self.listeners = {family: udp(lab.client, address) for family, address in ANY.items()}
        self.port = {family: sock.getsockname()[1] for family, sock in self.listeners.items()}
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE_S)
        with theirs:
            socket.send_fds(self.helper.socket, [encode_request(Packets())], [theirs.fileno()])
        packeted = decode_reply(self.helper.line())
        assert isinstance(packeted, Packeted)
        assert packeted.datagrams
        endpoints: list[Endpoint] = [(ANY[family], self.port[family]) for family in (4, 6)]
        plan = Plan(SESSION, redirects(endpoints, (), endpoints), ROUTES)
        applied = self.helper.ask(Apply(plan))
        assert isinstance(applied, Applied), applied

    def close(self) -> None:
        for sock in (*self.listeners.values(), self.channel):
            sock.close()
        self.helper.hang_up()
        self.helper.process.wait(DEADLINE_S)

    def say(self, kind: int, body: bytes) -> None:
        self.channel.send(bytes((kind,)) + body)

    def look_up(self, family: int, *keys: Key) -> list[Original | None]:
        self.say(LOOK_UP, encode_look_up(family, keys))
        message = self.channel.recv(100_000)
        assert message[0] == FOUND
        found_family, answers = decode_found(message[1:])
        assert (found_family, [key for key, _ in answers]) == (family, list(keys))
        return [original for _, original in answers]

    def arrived(self, family: int, local: str) -> Key:
        """The next datagram's flow, which has come to an address of the router."""
        _, program = self.listeners[family].recvfrom(70_000)
        return Key(packed(local), packed(program[0]), program[1])

    def answer(self, family: int, key: Key, data: bytes) -> None:
        """From the address at which the flow arrived."""
        if family == 4:
            source = socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + key.local + bytes(4)
        else:
            source = socket.IPPROTO_IPV6, IPV6_PKTINFO, key.local + bytes(4)
        program = str(ip_address(key.program)), key.port
        self.listeners[family].sendmsg([data], [source], 0, program)


ANY = {4: "0.0.0.0", 6: "::"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def packed(address: str) -> bytes:
    return ip_address(address).packed


def udp(host: Host, address: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = host.make_socket(family, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE_S)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    return sock


def hear_errors(sock: socket.socket) -> None:
    """Also of what is no hard error, or has no connection."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


@contextlib.contextmanager
def capturing(lab: Lab) -> Iterator[UdpClient]:
    client = UdpClient(lab)
    try:
        yield client
    finally:
        client.close()
