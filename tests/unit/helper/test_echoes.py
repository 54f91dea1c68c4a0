"""Echo requests that rules logged: the packet process tells of them, and answers as it is told.

neighbour ----------- client: the helper, and we as its client
  pings                 pings, too
"""

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network

import pytest

from sshunt.capture.echo_rules import RATE
from sshunt.capture.plan import Plan, redirects
from sshunt.helper import echo_messages as messages
from sshunt.helper import echoes
from sshunt.helper.echoes import Echoes
from sshunt.helper.nflog import Logged
from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.part import Out
from sshunt.helper.protocol import Applied, Apply, Packeted, Packets
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.model import ANY_FIRST_PORT, ANY_LAST_PORT, Action, Route
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation

HERE, HERE6 = "10.77.1.2", "fd77::9"


class Client:
    """We: what the packet process says to us, and we to it."""

    def __init__(self, helper: Conversation, channel: socket.socket) -> None:
        self.helper = helper
        self.channel = channel

    def asked(self) -> messages.Asked:
        message = self.channel.recv(70_000)
        assert message[0] == messages.ASKED
        return messages.decode_asked(message[1:])

    def reply(self, asked: messages.Asked, hops: int = 50, size: int = 65535) -> None:
        self.say(
            messages.REPLY,
            messages.encode_replied(
                messages.Replied(asked.number, hops, min(size, len(asked.data)))
            ),
        )

    def fail(
        self, asked: messages.Asked, what: int, code: int, offender: str, value: int = 0
    ) -> None:
        self.say(
            messages.ERROR,
            messages.encode_failed(messages.Failed(asked.number, what, code, value, offender)),
        )

    def say(self, kind: int, body: bytes) -> None:
        self.channel.send(bytes((kind,)) + body)


def route(network: str, action: Action = Action.REMOTE, port: int | None = None) -> Route:
    first, last = (ANY_FIRST_PORT, ANY_LAST_PORT) if port is None else (port, port)
    return Route(ip_network(network), action, first, last)


PLAN = Plan(
    SESSION,
    redirects([("0.0.0.0", 7), ("::", 7)]),
    (
        route("10.77.0.0/16"),
        route("fd77::/32"),
        route("10.77.9.0/24", Action.DIRECT),
        route("10.78.0.0/16", port=80),
    ),
    echoes=True,
)


@contextmanager
def capturing(host: Host, *differences: str) -> Iterator[Client]:
    """A helper on ``host`` that captures echo requests, and we as its client."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    with ours, Conversation(host, *differences) as helper:
        helper.greet()
        line = encode_request(Packets())
        socket.send_fds(helper.socket, [line], [theirs.fileno()])
        theirs.close()
        looks_at = decode_reply(helper.line())
        assert isinstance(looks_at, Packeted)
        assert looks_at.echoes
        assert isinstance(helper.ask(Apply(PLAN)), Applied)
        yield Client(helper, ours)


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[Client]:
    with capturing(lab.client) as client:
        yield client


def ping(host: Host, *words: str) -> "subprocess.Popen[bytes]":
    return host.popen(
        ["ping", "-n", "-c", "1", "-W", "2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def said(process: "subprocess.Popen[bytes]") -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return output.decode()


@pytest.mark.parametrize("size", [0, 56, 1472, 8000])
@pytest.mark.parametrize("who", ["client", "neighbour"])
@pytest.mark.parametrize("address", [HERE, HERE6])
def test_a_request_is_told_of_and_its_reply_is_the_host_s(
    lab: Lab, client: Client, who: str, address: str, size: int
) -> None:
    host = getattr(lab, who)
    program = ping(host, "-s", str(size), "-t", "33", address)
    asked = client.asked()
    assert (asked.destination, len(asked.data), asked.sequence) == (address, size, 1)
    assert asked.source in host.addresses
    assert asked.hops == (33 if who == "client" else 32)
    client.reply(asked, hops=50)
    assert f"{size + 8} bytes from {address}: icmp_seq=1 ttl=50" in said(program)


@pytest.mark.parametrize("who", ["client", "neighbour"])
def test_an_error_comes_from_whoever_the_client_says(lab: Lab, client: Client, who: str) -> None:
    errors = [
        (HERE, 11, 0, "10.99.0.1", "From 10.99.0.1 icmp_seq=1 Time to live exceeded"),
        (HERE, 3, 1, "10.99.0.1", "From 10.99.0.1 icmp_seq=1 Destination Host Unreachable"),
        (HERE6, 3, 0, "fd99::1", "From fd99::1 icmp_seq=1 Time exceeded: Hop limit"),
        (HERE6, 1, 0, "fd99::1", "From fd99::1 icmp_seq=1 Destination unreachable: No route"),
    ]
    for address, what, code, offender, sentence in errors:
        program = ping(getattr(lab, who), address)
        client.fail(client.asked(), what, code, offender)
        assert sentence in said(program)


def test_a_request_that_must_not_be_cut_hears_what_would_pass(lab: Lab, client: Client) -> None:
    program = ping(lab.client, "-M", "do", "-s", "1400", "10.77.1.40")
    asked = client.asked()
    assert asked.dont_fragment
    client.fail(asked, 3, 4, "10.99.0.1", 1300)
    assert "From 10.99.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1300)" in said(program)
    program = ping(lab.client, "-M", "dont", "-s", "1400", "10.77.1.41")
    asked = client.asked()
    assert not asked.dont_fragment
    client.reply(asked)
    assert "1408 bytes from" in said(program)


def test_what_came_back_of_the_data_is_what_the_program_gets(lab: Lab, client: Client) -> None:
    program = ping(lab.client, "-s", "500", HERE)
    client.reply(client.asked(), size=56)
    assert "64 bytes from 10.77.1.2: icmp_seq=1 ttl=50 (truncated)" in said(program)


def test_what_nobody_answers_is_silent(lab: Lab, client: Client) -> None:
    for host in (lab.client, lab.neighbour):
        for address in (HERE, HERE6):
            program = ping(host, "-W", "0.2", address)
            client.asked()
            assert "1 packets transmitted, 0 received, 100% packet loss" in said(program)


def test_a_request_is_answered_once(lab: Lab, client: Client) -> None:
    program = ping(lab.client, "-W", "0.2", "-c", "2", "-i", "0.2", HERE)
    asked = client.asked()
    client.reply(asked)
    client.reply(asked)
    client.fail(asked, 3, 1, HERE)
    client.reply(asked._replace(number=asked.number + 1000))
    client.asked()
    text = said(program)
    assert "2 packets transmitted, 1 received" in text
    assert "DUP" not in text
    assert "errors" not in text


def test_an_answer_of_the_other_family_is_none(lab: Lab, client: Client) -> None:
    program = ping(lab.client, "-W", "0.2", HERE)
    client.fail(client.asked(), 1, 0, "fd99::1")
    assert "0 received, 100% packet loss" in said(program)


def test_only_regions_of_every_port_are_captured(lab: Lab, client: Client) -> None:
    for address in ("10.77.9.1", "10.78.0.1", "127.0.0.1", "::1", "192.0.2.1"):
        ping(lab.client, "-W", "0.1", address).wait()
    program = ping(lab.client, HERE)
    asked = client.asked()
    assert asked.destination == HERE
    client.reply(asked)
    assert "1 received" in said(program)


def test_this_router_is_a_hop_of_what_it_passes_on(lab: Lab, client: Client) -> None:
    assert "From 198.51.100.1 icmp_seq=1 Time to live" in said(ping(lab.neighbour, "-t1", HERE))
    assert "From 2001:db8:2::1 icmp_seq=1 Time ex" in said(ping(lab.neighbour, "-t1", HERE6))
    program = ping(lab.client, "-t1", HERE)
    asked = client.asked()
    assert asked.hops == 1
    client.reply(asked)
    assert "1 received" in said(program)


def test_an_interface_may_be_named(lab: Lab, client: Client) -> None:
    for address in (HERE, HERE6):
        program = ping(lab.client, "-I", outer_device(lab), address)
        client.reply(client.asked())
        assert "1 received" in said(program)


def test_nothing_leaves_of_a_socket_that_is_bound_to_an_interface(lab: Lab, client: Client) -> None:
    with lab.client.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, outer_device(lab).encode())
        with pytest.raises(PermissionError):
            sock.sendto(request(1)[20:], (HERE, 0))
    client.asked()


def outer_device(lab: Lab) -> str:
    return lab.client.run(["ip", "-o", "route", "get", HERE]).stdout.split()[4]


def test_a_flood_is_bounded_and_costs_nobody_an_error(lab: Lab, client: Client) -> None:
    with lab.client.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    begin = time.monotonic()
    with sock:
        for sequence in range(8000):
            sock.sendto(request(sequence)[20:], (HERE, 0))
    most = RATE * (1 + time.monotonic() - begin)
    client.channel.settimeout(0.3)
    heard = 0
    with suppress(TimeoutError):
        while True:
            client.asked()
            heard += 1
    client.channel.settimeout(DEADLINE_S)
    assert 0 < heard <= most + 1


def test_rules_that_the_kernel_does_not_own_do_the_same_while_the_helper_lives(lab: Lab) -> None:
    with capturing(lab.target, "plain") as client:
        for address in (HERE, HERE6):
            program = ping(lab.target, address)
            client.reply(client.asked())
            assert "1 received" in said(program)
        lab.target.run(["nft", "flush", "set", "inet", f"sshunt-{SESSION}", "alive"])
        for address in (HERE, HERE6):
            assert "0 received" in said(ping(lab.target, "-W", "0.2", address))
        client.channel.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.asked()


def test_where_the_kernel_refuses_rules_that_log_they_are_left_alone(lab: Lab) -> None:
    with capturing(lab.target, "echoless") as client:
        assert "echo-request" not in client.helper.rules()
        assert f"sshunt-{SESSION}" in client.helper.rules()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (messages.REPLY, b""),
        (messages.REPLY, bytes(8)),
        (messages.ERROR, bytes(9)),
        (messages.ERROR, messages.encode_failed(messages.Failed(1, 5, 0, 0, "10.0.0.1"))),
        (messages.ASKED, bytes(20)),
        (0x2F, b""),
    ],
)
def test_what_can_t_be_said_ends_it(lab: Lab, kind: int, body: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        part = Echoes(Out(ours))
        try:
            with pytest.raises(PacketError):
                part.on_message(kind, body)
        finally:
            part.close()


def test_what_is_remembered_has_an_age_and_a_limit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echoes, "MOST_ASKED", 3)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        part = Echoes(Out(ours))
        try:
            for sequence in range(4):
                part.take(Logged(request(sequence), 0, 0))
            assert part.remembered == [2, 3, 4]
            part.on_message(messages.REPLY, messages.encode_replied(messages.Replied(3, 9, 0)))
            part.on_tick(time.monotonic() + echoes.AGE_S - 1)
            assert part.remembered == [2, 4]
            part.on_tick(time.monotonic() + echoes.AGE_S + 1)
            assert part.remembered == []
            part.take(Logged(b"\x45", 0, 0))
            theirs.close()
            part.take(Logged(request(9), 0, 0))  # nobody hears of it
            assert part.remembered == []
        finally:
            part.close()


def request(sequence: int) -> bytes:
    """An echo request from nobody to nobody."""
    address = socket.inet_aton("127.9.9.9")
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 1, 0, address, address)
    return head + struct.pack("!BBHHH", 8, 0, 0, 1, sequence)
