"""Somebody owns a user's account, and asks the user's helper for what he should not get.

client ------------------------------------- server
 the attacker's helper, another's session     nobody

He may start the helper without a password, speaks to it whatever he likes, and is not root. Each
test is a line of docs/attacks.md.
"""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.helper.blocks import MAX_DEAD_BLOCKS
from sshunt.helper.echo_messages import REPLY, Replied, encode_replied
from sshunt.helper.packet_protocol import ECHO_KINDS, SYN_KINDS, UDP_KINDS
from sshunt.helper.protocol import (
    MAX_REQUEST_BYTES,
    VERSION,
    Applied,
    Apply,
    Guard,
    Hello,
    Packeted,
    Packets,
    Refusal,
    Refused,
    Reply,
    Request,
    Undo,
    Welcome,
)
from sshunt.helper.syn_messages import FAILED, OPENED, encode_failed, encode_number
from sshunt.helper.udp_messages import (
    DELIVER,
    FAIL,
    FOUND,
    LOOK_UP,
    Delivery,
    Failure,
    Key,
    decode_found,
    encode_delivery,
    encode_failure,
    encode_look_up,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.world import Lab
from sshunt.model import Action, Endpoint, Route
from tests.e2e.captures import helpers, soon, tables
from tests.unit.helper.conversation import SESSION
from tests.unit.helper.udp import LOOPBACK, PEER, ROUTES, UdpClient, capturing, packed, udp

_HELPER = Path(__file__).parents[2] / "src/sshunt/helper/__main__.py"
_DEADLINE_S = 20.0


@contextmanager
def seen_as(uid: int) -> Iterator[None]:
    """What is made here counts as made by this user: it is for the kernel to tell."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Attacker:
    """The conversation of ben, or of what has become of him, with his helper."""

    def __init__(self, lab: Lab, session: str = "badbadbadbad", user: str = "ben") -> None:
        self.session = session
        self.uid = lab.account(user).uid
        with seen_as(self.uid):
            self.socket, theirs = socket.socketpair()
            self.channel, self._their_channel = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET
            )
        self.socket.settimeout(_DEADLINE_S)
        self.channel.settimeout(_DEADLINE_S)
        self._lines = self.socket.makefile("rb")
        command = [sys.executable, "-I", "-S", "-B", str(_HELPER)]
        before = set(helpers(lab.client))
        with theirs:
            assert lab.client.popen(command, stdin=theirs.fileno()).wait(_DEADLINE_S) == 0
        (self.pid,) = set(helpers(lab.client)) - before

    def ask(self, request: Request, *riders: socket.socket) -> Reply:
        line = encode_request(request)
        socket.send_fds(self.socket, [line], [rider.fileno() for rider in riders])
        return self.hear()

    def hear(self) -> Reply:
        """The next reply."""
        return decode_reply(self._lines.readline())

    def begin(self) -> None:
        assert isinstance(self.ask(Hello(VERSION, self.session)), Welcome)
        assert isinstance(self.ask(Packets(), self._their_channel), Packeted)
        self._their_channel.close()

    def apply(self, plan: Plan) -> Reply:
        return self.ask(Apply(plan))

    def say(self, kind: int, body: bytes) -> None:
        self.channel.send(bytes((kind,)) + body)

    def is_served(self) -> bool:
        """True if the packet process still answers: a look-up is."""
        key = Key(bytes(4), bytes(4), 1)
        self.say(LOOK_UP, encode_look_up(4, [key]))
        message = self.channel.recv(100_000)
        return message[0] == FOUND and decode_found(message[1:])[1] == [(key, None)]

    def close(self) -> None:
        for sock in (self._lines, self.socket, self.channel, self._their_channel):
            sock.close()


@pytest.fixture
def attacker(lab: Lab) -> Iterator[Attacker]:
    attacker = Attacker(lab)
    yield attacker
    attacker.close()
    soon(lambda: not helpers(lab.client))
    assert attacker.session not in tables(lab)


@pytest.fixture(scope="module")
def victim(lab: Lab) -> Iterator[UdpClient]:
    """Another user's session on the same host, which captures datagrams."""
    with capturing(lab) as victim:
        yield victim


def plan_for(session: str, endpoints: Sequence[Endpoint], routes: Sequence[Route]) -> Plan:
    return Plan(session, redirects(endpoints, (), endpoints), tuple(routes))


_ELSEWHERE = (Route(ip_network("192.0.2.128/25"), Action.REMOTE, 0, 65535),)


# --- others' flows and sockets --------------------------------------------------------------------


def test_another_s_flows_are_not_told_though_his_listener_stands_in_the_attacker_s_plan(
    lab: Lab, attacker: Attacker, victim: UdpClient
) -> None:
    attacker.begin()
    endpoints = [("0.0.0.0", victim.port[4])]
    assert isinstance(attacker.apply(plan_for(attacker.session, endpoints, ROUTES)), Applied)
    with udp(lab.client, lab.client.v4) as program:
        program.sendto(b"hello", (PEER[4], 7))
        key = victim.arrived(4, LOOPBACK[4])
        assert victim.look_up(4, key) != [None]  # there is such a flow
        attacker.say(LOOK_UP, encode_look_up(4, [key]))
        assert decode_found(attacker.channel.recv(100_000)[1:]) == (4, [(key, None)])
        # Nor can he speak to its program, in anybody's name, or tell it of failures.
        delivery = Delivery(4, key, packed(PEER[4]), 7, 0, b"forged")
        attacker.say(DELIVER, encode_delivery(delivery))
        attacker.say(FAIL, encode_failure(4, key, Failure.REFUSED))
        assert attacker.is_served()
        program.settimeout(0.2)
        with pytest.raises(TimeoutError):
            program.recv(100)


def test_another_s_flows_are_not_forgotten_when_the_attacker_s_plan_ends(
    lab: Lab, attacker: Attacker, victim: UdpClient
) -> None:
    with udp(lab.client, lab.client.v4) as program:
        program.sendto(b"hello", (PEER[4], 7))
        key = victim.arrived(4, LOOPBACK[4])
        attacker.begin()
        endpoints = [("0.0.0.0", victim.port[4])]
        assert isinstance(attacker.apply(plan_for(attacker.session, endpoints, ROUTES)), Applied)
        attacker.ask(Undo())
        assert victim.look_up(4, key) != [None]


def test_a_channel_that_root_has_made_does_not_make_him_root(attacker: Attacker) -> None:
    assert isinstance(attacker.ask(Hello(VERSION, attacker.session)), Welcome)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # we are root
    with ours, theirs:
        reply = attacker.ask(Packets(), theirs)
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.NO_CHANNEL


def test_a_listener_of_his_own_gets_him_its_own_flows(lab: Lab, attacker: Attacker) -> None:
    with lab.client.entered(), seen_as(attacker.uid):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, udp(lab.client, lab.client.v4) as program:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(_DEADLINE_S)
        attacker.begin()
        plan = plan_for(attacker.session, [listener.getsockname()], ROUTES)
        assert isinstance(attacker.apply(plan), Applied)
        program.sendto(b"hello", (PEER[4], 7))
        _, (address, port) = listener.recvfrom(100)
        attacker.say(LOOK_UP, encode_look_up(4, [Key(packed("127.0.0.1"), packed(address), port)]))
        _, ((_, original),) = decode_found(attacker.channel.recv(100_000)[1:])
        assert original is not None
        assert original.destination == packed(PEER[4])


def test_answers_to_packets_that_were_not_seen_send_nothing(lab: Lab, attacker: Attacker) -> None:
    attacker.begin()
    assert isinstance(
        attacker.apply(plan_for(attacker.session, [("127.0.0.1", 1)], _ELSEWHERE)), Applied
    )
    with lab.client.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with wire:
        wire.settimeout(0.3)
        for number in range(1000):
            attacker.say(OPENED, encode_number(number))
            attacker.say(REPLY, encode_replied(Replied(number, 64, 56)))
        attacker.say(FAILED, encode_failed((lab.client.v4, 22)))
        assert attacker.is_served()
        seen = []
        with suppress(TimeoutError):
            while True:
                seen.append(wire.recv(2000))
        ip = [frame for frame in seen if frame[12:14] == b"\x08\0" and frame[23] in (1, 6)]
        assert ip == []


# --- what is no message, too much, or too long ----------------------------------------------------


def test_messages_of_any_bytes_end_the_helper_in_order_or_change_nothing(lab: Lab) -> None:
    rng = random.Random(7)
    for number in range(6):
        attacker = Attacker(lab, f"badbadbad{number:03}")
        attacker.begin()
        plan = plan_for(attacker.session, [("127.0.0.1", 1)], _ELSEWHERE)
        assert isinstance(attacker.apply(plan), Applied)
        with suppress(OSError):
            for _ in range(200):
                kind = rng.choice([*UDP_KINDS, *SYN_KINDS, *ECHO_KINDS, 0, 0xFF])
                attacker.say(kind, rng.randbytes(rng.choice((0, 1, 4, 7, 21, 60, 2000))))
        attacker.close()
        soon(lambda: not helpers(lab.client))
        assert attacker.session not in tables(lab)


def test_a_request_that_never_ends_is_given_up_at_its_limit(attacker: Attacker) -> None:
    attacker.begin()
    with suppress(ConnectionError):
        attacker.socket.sendall(b"[" * (MAX_REQUEST_BYTES + 100_000))
    reply = attacker.hear()
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.BAD_REQUEST


def test_descriptors_without_end_stay_nobody_s(attacker: Attacker) -> None:
    attacker.begin()
    for _ in range(50):
        with open("/etc/passwd") as file, socket.socket() as sock:
            riders = [file.fileno(), sock.fileno()]
            socket.send_fds(attacker.socket, [encode_request(Undo())], riders)
        attacker.hear()
    held = [os.readlink(path) for path in Path(f"/proc/{attacker.pid}/fd").iterdir()]
    assert not [link for link in held if "passwd" in link]
    assert len(held) < 30


# --- rules, groups, processes, files of others ----------------------------------------------------


def test_another_session_s_name_gets_nobody_its_rules(lab: Lab, victim: UdpClient) -> None:
    before = tables(lab)
    assert f"sshunt-{SESSION}" in before
    attacker = Attacker(lab, SESSION)
    assert isinstance(attacker.ask(Hello(VERSION, SESSION)), Refused)
    attacker.close()
    soon(lambda: not helpers(lab.client))
    assert tables(lab) == before


_PLAN = json.loads(encode_request(Apply(plan_for("badbadbadbad", [], _ELSEWHERE))))["plan"]


@pytest.mark.parametrize(
    "request_",
    [
        {"request": "guard", "pid": 1},
        {"request": "guard", "path": "/sys/fs/cgroup"},
        {"request": "apply", "plan": {**_PLAN, "rules": "flush ruleset"}},
        {"request": "apply", "plan": {**_PLAN, "session": "x\nflush ruleset"}},
        {"request": "exec", "command": "id"},
    ],
    ids=["a process", "a path", "rules", "rules in a name", "a command"],
)
def test_a_request_that_names_what_root_should_not_do_is_none(
    attacker: Attacker, request_: dict[str, object]
) -> None:
    attacker.begin()
    attacker.socket.sendall(json.dumps(request_).encode() + b"\n")
    reply = attacker.hear()
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.BAD_REQUEST


def test_kill_switches_that_are_left_behind_are_limited(lab: Lab) -> None:
    last: Reply | None = None
    try:
        for number in range(MAX_DEAD_BLOCKS + 1):
            attacker = Attacker(lab, f"badbadba{number:04}")
            assert isinstance(attacker.ask(Hello(VERSION, attacker.session)), Welcome)
            route = Route(ip_network(f"192.0.2.{number}/32"), Action.REMOTE, 0, 65535)
            plan = Plan(attacker.session, redirects([("127.0.0.1", 1)], ()), (route,), blocks=True)
            last = attacker.apply(plan)
            attacker.close()
            soon(lambda: not helpers(lab.client))
        assert isinstance(last, Refused)
        assert last.kind is Refusal.TOO_MANY_BLOCKS
    finally:
        rules = lab.client.run(["nft", "list", "tables"]).stdout
        for line in rules.splitlines():
            if "block" in line:
                lab.client.run(["nft", "delete", *line.split()])


def test_the_group_of_another_s_process_is_not_touched(lab: Lab, attacker: Attacker) -> None:
    attacker.begin()
    sleeper = lab.client.popen(["sleep", "100"], user="dan", stdout=subprocess.DEVNULL)
    group = Path(f"/proc/{sleeper.pid}/cgroup").read_text()
    attacker.ask(Guard())
    time.sleep(0.1)
    assert Path(f"/proc/{sleeper.pid}/cgroup").read_text() == group
    sleeper.kill()
