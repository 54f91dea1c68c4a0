"""SYNs that are held, by the real helper on a host that is a router: what programs see.

The test is the client: it hears of SYNs, and says what becomes of them. Nobody is behind the
destinations, and no packet may ever go there.
"""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from sshunt.capture.plan import Connect, Plan, redirects
from sshunt.helper.held_syns import MOST_AT_PORT
from sshunt.helper.protocol import Applied, Apply, Packeted, Packets, Undo
from sshunt.helper.syn_messages import (
    FAILED,
    GONE,
    HELD,
    OPENED,
    REFUSED,
    Answer,
    Held,
    decode_held,
    decode_number_untrusted,
    encode_failed,
    encode_number,
    encode_refused,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.model import Action, Endpoint, Route
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation

PORT = 8080
TARGET = {4: "10.55.0.9", 6: "fd00:55::9"}
NETWORKS = ("10.55.0.0/24", "fd00:55::/64")
ROUTES = tuple(Route(ip_network(network), Action.REMOTE, 0, 65535) for network in NETWORKS)

#: As it is in linux/in.h and asm-generic/socket.h.
SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST = 80, 80


class Client:
    """Holds SYNs on the lab's router, and hears of them."""

    def __init__(self, lab: Lab, *differences: str, session: str = SESSION) -> None:
        self.host = lab.client
        self.neighbour = lab.neighbour
        self.helper = Conversation(lab.client, *differences)
        self.helper.greet(session)
        self.listeners = {
            4: lab.client.listen("0.0.0.0"),
            6: _listen6(lab.client),
        }
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(DEADLINE_S)
        with theirs:
            socket.send_fds(self.helper.socket, [encode_request(Packets())], [theirs.fileno()])
        packeted = decode_reply(self.helper.line())
        assert isinstance(packeted, Packeted)
        assert packeted.syns

    def hold(self, connect: Connect) -> None:
        endpoints = [sock.getsockname()[:2] for sock in self.listeners.values()]
        plan = Plan(SESSION, redirects(endpoints), ROUTES, connect=connect)
        assert isinstance(self.helper.ask(Apply(plan)), Applied)

    def say(self, kind: int, body: bytes) -> None:
        self._channel.send(bytes((kind,)) + body)

    def hear(self) -> tuple[int, bytes]:
        message = self._channel.recv(1000)
        return message[0], message[1:]

    def held(self) -> Held:
        kind, body = self.hear()
        assert kind == HELD
        return decode_held(body)

    def hears_nothing(self, within_s: float = 0.1) -> bool:
        self._channel.settimeout(within_s)
        try:
            self._channel.recv(1000)
        except TimeoutError:
            return True
        finally:
            self._channel.settimeout(DEADLINE_S)
        return False

    def let_go(self, held: Held) -> None:
        self.say(OPENED, encode_number(held.number))

    def refuse(self, held: Held, answer: Answer) -> None:
        self.say(REFUSED, encode_refused(held.number, answer))

    def accept(self, family: int) -> tuple[Endpoint, Endpoint]:
        """Whence a connection came, and where it wanted to go."""
        sock, source = self.listeners[family].accept()
        with sock:
            level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
            packed = sock.getsockopt(level, SO_ORIGINAL_DST, 28)
        port = int.from_bytes(packed[2:4], "big")
        address = packed[4:8] if family == 4 else packed[8:24]
        name = socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, address)
        return source[:2], (name, port)

    def close(self) -> None:
        self.helper.hang_up()
        self.helper.process.wait(DEADLINE_S)
        self._channel.close()
        for sock in self.listeners.values():
            sock.close()


def _listen6(host: Host) -> socket.socket:
    sock = host.make_socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::", 0))
    sock.listen(100)
    sock.settimeout(DEADLINE_S)
    return sock


class Program:
    """Connects from a host, in a thread: ``error`` is how that ended (0: it is connected)."""

    def __init__(self, host: Host, destination: Endpoint, prepare: Any = None) -> None:
        ipv6 = ":" in destination[0]
        self.sock = host.make_socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
        self.sock.settimeout(DEADLINE_S)
        if prepare is not None:
            prepare(self.sock)
        self._error: int | None = None
        self._thread = threading.Thread(target=self._connect, args=(destination,))
        self._thread.start()

    def _connect(self, destination: Endpoint) -> None:
        self._error = self.sock.connect_ex(destination)

    @property
    def is_waiting(self) -> bool:
        return self._error is None

    @property
    def error(self) -> int | None:
        self._thread.join(DEADLINE_S)
        self.sock.close()
        return self._error


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[Client]:
    client = Client(lab)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def auto(client: Client) -> Iterator[Client]:
    with _holding(client, Connect.AUTO):
        yield client


@pytest.fixture
def honest(client: Client) -> Iterator[Client]:
    with _holding(client, Connect.HONEST):
        yield client


@contextlib.contextmanager
def _holding(client: Client, connect: Connect) -> Iterator[None]:
    client.hold(connect)
    yield
    client.helper.ask(Undo())
    while not client.hears_nothing(0.02):
        pass


def programs_host(client: Client, where: str) -> Host:
    return client.host if where == "here" else client.neighbour


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("where", ["here", "behind this router"])
def test_a_program_connects_when_the_far_side_has(honest: Client, where: str, family: int) -> None:
    destination = TARGET[family], PORT
    program = Program(programs_host(honest, where), destination)
    held = honest.held()
    assert held.destination == destination
    assert held.is_forwarded == (where != "here")
    assert program.is_waiting
    honest.let_go(held)
    assert honest.accept(family) == (held.source, destination)
    assert program.error == 0


FIREWALL = """
table inet firewall {
    chain input {
        type filter hook input priority 0; policy accept;
        iif lo accept
        iifname "to-neighbour" tcp flags syn drop
    }
    chain output {
        type filter hook output priority 0; policy accept;
        meta skuid != 0 drop
    }
}
"""


def test_what_this_host_s_firewall_bars_is_never_heard_of(honest: Client) -> None:
    honest.host.run(["nft", "-f", "-"], stdin=FIREWALL)
    try:
        forwarded = Program(honest.neighbour, (TARGET[4], PORT), lambda s: s.settimeout(0.3))
        users = ["curl", "-s", "-m", "0.3", f"http://{TARGET[4]}:{PORT}/"]
        assert honest.host.run(users, user="ben", check=False).returncode == 28  # timed out
        assert forwarded.error == errno.EAGAIN
        assert honest.hears_nothing(0.05)
    finally:
        honest.host.run(["nft", "delete", "table", "inet", "firewall"])
    program = Program(honest.host, (TARGET[4], PORT))
    honest.let_go(honest.held())
    assert program.error == 0
    honest.accept(4)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("where", ["here", "behind this router"])
@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        (Answer.RESET, {4: errno.ECONNREFUSED, 6: errno.ECONNREFUSED}),
        (Answer.HOST_UNREACHABLE, {4: errno.EHOSTUNREACH, 6: errno.EHOSTUNREACH}),
        (Answer.NETWORK_UNREACHABLE, {4: errno.ENETUNREACH, 6: errno.ENETUNREACH}),
        (Answer.PROHIBITED, {4: errno.EHOSTUNREACH, 6: errno.EACCES}),
    ],
)
def test_a_program_fails_as_the_far_side_does(
    honest: Client, where: str, family: int, answer: Answer, errors: dict[int, int]
) -> None:
    program = Program(programs_host(honest, where), (TARGET[family], PORT))
    honest.refuse(honest.held(), answer)
    assert program.error == errors[family]


def test_one_that_is_bound_to_an_interface_is_told_as_well(honest: Client) -> None:
    link = honest.host.run(["ip", "-o", "route", "get", TARGET[4]]).stdout.split("dev ")[1].split()
    program = Program(
        honest.host,
        (TARGET[4], PORT),
        lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link[0].encode()),
    )
    honest.refuse(honest.held(), Answer.RESET)
    assert program.error == errno.ECONNREFUSED


def test_what_is_sent_again_while_it_waits_is_the_same_one_and_later_another(
    honest: Client,
) -> None:
    program = Program(honest.host, (TARGET[4], PORT))
    first = honest.held()
    assert honest.hears_nothing(1.2)  # its copy comes after a second
    honest.refuse(first, Answer.NOTHING)
    second = honest.held()  # the next one, a second or two later
    assert second.source == first.source
    assert second.number != first.number
    honest.let_go(first)  # this number means nothing any more
    time.sleep(0.05)
    assert program.is_waiting
    honest.let_go(second)
    assert honest.accept(4)[0] == first.source
    assert program.error == 0


def test_another_connection_from_the_same_port_takes_the_place_of_the_first(
    honest: Client,
) -> None:
    def from_one_port(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 20_001))

    def in_a_hurry(sock: socket.socket) -> None:
        from_one_port(sock)
        sock.settimeout(0.2)

    given_up = Program(honest.host, (TARGET[4], PORT), in_a_hurry)
    first = honest.held()
    assert given_up.error == errno.EAGAIN  # it did not want to wait
    program = Program(honest.host, (TARGET[4], PORT), from_one_port)
    kind, body = honest.hear()
    assert (kind, decode_number_untrusted(body)) == (GONE, first.number)
    second = honest.held()
    assert second.source == first.source
    honest.let_go(second)
    assert program.error == 0
    honest.accept(4)


def without_timestamps(host: Host) -> Callable[[], None]:
    host.write_sysctl("net/ipv4/tcp_timestamps", "0")
    return lambda: host.write_sysctl("net/ipv4/tcp_timestamps", "1")


def with_ecn(host: Host) -> Callable[[], None]:
    host.write_sysctl("net/ipv4/tcp_ecn", "1")
    return lambda: host.write_sysctl("net/ipv4/tcp_ecn", "2")


@pytest.mark.parametrize("change", [without_timestamps, with_ecn])
def test_what_a_syn_asks_for_does_not_matter(
    honest: Client, change: Callable[[Host], Callable[[], None]]
) -> None:
    undo = change(honest.host)
    try:
        program = Program(honest.host, (TARGET[4], PORT))
        honest.let_go(honest.held())
        assert program.error == 0
        honest.accept(4)
    finally:
        undo()


def test_data_with_the_syn_comes_after_it(honest: Client) -> None:
    # Without a cookie from before (linux/tcp.h: TCP_FASTOPEN_NO_COOKIE) it goes along at once.
    sock = honest.host.make_socket()
    sock.settimeout(DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, 34, 1)
    sending = threading.Thread(
        target=sock.sendto, args=(b"early", socket.MSG_FASTOPEN, (TARGET[4], PORT))
    )
    sending.start()
    honest.let_go(honest.held())
    accepted, _ = honest.listeners[4].accept()
    sending.join()
    with accepted, sock:
        accepted.settimeout(DEADLINE_S)
        assert accepted.recv(100) == b"early"


def test_multipath_tcp_falls_back_to_tcp(honest: Client) -> None:
    with honest.host.entered():
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
        except OSError:
            pytest.skip("this kernel has no MPTCP")
    with sock:
        sock.setblocking(False)
        assert sock.connect_ex((TARGET[4], PORT)) == errno.EINPROGRESS
        honest.let_go(honest.held())
        honest.accept(4)


def test_where_the_kernel_refuses_rules_that_log_nothing_is_held(lab: Lab) -> None:
    session = "fedcba98"
    client = Client(lab, "logless", session=session)
    try:
        endpoints = [sock.getsockname()[:2] for sock in client.listeners.values()]
        plan = Plan(session, redirects(endpoints), ROUTES, connect=Connect.HONEST)
        assert client.helper.ask(Apply(plan)) == Applied(owner=True, holds=False)
        program = Program(client.host, (TARGET[4], PORT))
        client.accept(4)
        assert program.error == 0
        assert client.hears_nothing(0.02)
    finally:
        client.close()


# --- known destinations --------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_destination_that_has_answered_is_not_asked_again_until_it_has_failed(
    auto: Client, family: int
) -> None:
    destination = TARGET[family], PORT + 1
    first = Program(auto.host, destination)
    auto.let_go(auto.held())
    auto.accept(family)
    assert first.error == 0
    for host in (auto.host, auto.neighbour):
        again = Program(host, destination)
        assert auto.accept(family)[1] == destination
        assert again.error == 0
    assert auto.hears_nothing(0.05)
    auto.say(FAILED, encode_failed(destination))
    deadline = time.monotonic() + DEADLINE_S
    while f". {PORT + 1} " in auto.helper.rules():
        assert time.monotonic() < deadline
    third = Program(auto.host, destination)
    auto.refuse(auto.held(), Answer.RESET)
    assert third.error == errno.ECONNREFUSED


def test_with_honest_it_is_asked_each_time(honest: Client) -> None:
    for _ in range(2):
        program = Program(honest.host, (TARGET[4], PORT))
        honest.let_go(honest.held())
        honest.accept(4)
        assert program.error == 0


def test_no_more_than_some_are_asked_for_at_once_and_the_rest_follow(auto: Client) -> None:
    destination = TARGET[4], PORT + 2
    programs = [Program(auto.host, destination) for _ in range(MOST_AT_PORT + 20)]
    told = [auto.held() for _ in range(MOST_AT_PORT)]
    assert auto.hears_nothing(0.05)
    for held in told[:3]:
        auto.refuse(held, Answer.RESET)
    told += [auto.held() for _ in range(3)]
    assert auto.hears_nothing(0.05)
    for held in told[3:]:  # the first of these lets those go, too, that have not been asked for
        auto.let_go(held)
    errors = sorted(program.error or 0 for program in programs)
    assert errors == [0] * (MOST_AT_PORT + 17) + [errno.ECONNREFUSED] * 3
    for _ in range(MOST_AT_PORT + 17):
        auto.accept(4)


def test_of_what_it_has_not_seen_a_client_can_have_nothing_sent(auto: Client) -> None:
    with auto.host.make_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as seen:
        seen.bind(("lo", 0x0003))  # ETH_P_ALL
        seen.settimeout(0.2)
        for number in (0, 1, 12345, 2**32 - 1):
            auto.say(OPENED, encode_number(number))
            for answer in Answer:
                auto.say(REFUSED, encode_refused(number, answer))
        auto.say(FAILED, encode_failed((auto.host.v4, 22)))
        with pytest.raises(TimeoutError):
            seen.recv(100)
