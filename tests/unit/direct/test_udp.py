"""UDP to real sockets: one port for each source, who may write to it, errors, batches, sizes.

Near (a near end that writes down what it hears) -- UdpSockets -- sockets of this host
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from sshunt.direct import dial, udp
from sshunt.direct.dial import Dialer
from sshunt.direct.udp import UdpSockets
from sshunt.relay.flow import (
    FLOW_DONE,
    FLOW_HOPS_EXCEEDED,
    FLOW_HOST_UNREACHABLE,
    FLOW_NAME_UNKNOWN,
    FLOW_NET_UNREACHABLE,
    FLOW_NO_RESOURCES,
    FLOW_NOT_PERMITTED,
    FLOW_REFUSED,
    FLOW_TOO_LARGE,
    UDP,
    Association,
    Endpoint,
    Flow,
    Outlet,
)
from sshunt.relay.reactor import Reactor


class Near(Association):
    """``wanted``: strangers are welcome."""

    def __init__(
        self,
        peer: Endpoint,
        port: int = 0,
        source: int = 1,
        *,
        idle_s: float = 30.0,
        dont_fragment: bool = False,
        any_peer: bool = False,
        wanted: bool = True,
    ) -> None:
        super().__init__(
            Flow(UDP, peer, ("", port)),
            idle_s,
            source=source,
            dont_fragment=dont_fragment,
            any_peer=any_peer,
        )
        self.heard: list[object] = []
        self.strangers: list[Near] = []
        self.wanted = wanted
        self.answers = Outlet()

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.heard.append((datagram, segment_bytes) if segment_bytes else datagram)

    def failed(self, code: int, value: int = 0) -> None:
        self.heard.append(("failed", code, value))

    def ended(self, code: int) -> None:
        self.heard.append(("ended", code))

    def stranger(self, peer: Endpoint) -> Association | None:
        self.strangers.append(Near(peer))
        return self.strangers[-1] if self.wanted else None

    def answers_by(self, outlet: Outlet) -> None:
        self.answers = outlet

    async def hears(self, *what: object) -> None:
        """That and nothing else, before long."""
        await until(lambda: len(self.heard) >= len(what))
        assert self.heard == list(what)


class Hosts:
    """What the conversations have: the far ends, and sockets of far hosts."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reactor = Reactor(self.loop)
        self.dialer = Dialer(self.reactor)
        self.udp = UdpSockets(self.reactor, self.dialer)
        self.socks: list[socket.socket] = []

    def host(self, address: str = "127.0.0.1", port: int = 0) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, port))
        sock.setblocking(False)
        self.socks.append(sock)
        return sock

    def closed_port(self, address: str = "127.0.0.1") -> int:
        sock = self.host(address)
        sock.close()
        return int(self.socks.pop().getsockname()[1]) if sock.fileno() >= 0 else self._port(address)

    def _port(self, address: str) -> int:
        self.socks.pop()
        with socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
        ) as sock:
            sock.bind((address, 0))
            return int(sock.getsockname()[1])

    async def from_source(self, sock: socket.socket) -> tuple[bytes, Endpoint]:
        """What the host hears next, and from whom."""
        for _ in range(2000):
            try:
                data, address = sock.recvfrom(65535)
                return data, address[:2]
            except BlockingIOError:
                await asyncio.sleep(0.005)
        raise AssertionError("nothing came")

    def close(self) -> None:
        self.udp.close()
        self.dialer.close()
        self.reactor.close()
        for sock in self.socks:
            sock.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def talk(story: Callable[[Hosts], Awaitable[None]]) -> None:
    async def whole() -> None:
        hosts = Hosts()
        problems: list[object] = []
        hosts.loop.set_exception_handler(lambda _, what: problems.append(what))
        try:
            await story(hosts)
        finally:
            hosts.close()
            await asyncio.sleep(0)
        assert not problems

    asyncio.run(whole())


def address_of(sock: socket.socket) -> Endpoint:
    host, port = sock.getsockname()[:2]
    return host, port


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_source_has_one_port_for_all_whom_it_writes_to_and_keeps_its_own_if_it_is_free(
    address: str,
) -> None:
    async def story(hosts: Hosts) -> None:
        one, two, other = hosts.host(address), hosts.host(address), hosts.host(address)
        port = hosts.closed_port(address)
        nears = [Near(address_of(sock), port) for sock in (one, two)]
        for near in nears:
            hosts.udp.associate(near).send(b"hello")
        data, source = await hosts.from_source(one)
        assert (data, source) == (b"hello", (address, port))
        assert await hosts.from_source(two) == (b"hello", source)
        one.sendto(b"back", source)
        two.sendto(b"", source)
        await nears[0].hears(b"back")
        await nears[1].hears(b"")
        # Another source with the same port gets another one.
        hosts.udp.associate(Near(address_of(other), port, source=2)).send(b"x")
        _, third = await hosts.from_source(other)
        assert third[1] not in (0, port)

    talk(story)


@pytest.mark.parametrize("size", [0, 1, 1200, 8000, 65507])
def test_datagrams_of_any_size_pass(size: int) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        near = Near(address_of(host))
        hosts.udp.associate(near).send(bytes(size))
        data, source = await hosts.from_source(host)
        assert data == bytes(size)
        host.sendto(data, source)
        await near.hears(bytes(size))

    talk(story)


def test_what_udp_can_not_carry_is_said() -> None:
    async def story(hosts: Hosts) -> None:
        near = Near(address_of(hosts.host()))
        hosts.udp.associate(near).send(bytes(65508))
        await near.hears(("failed", FLOW_TOO_LARGE, 65507))

    talk(story)


@pytest.mark.parametrize("has_segments", [True, False])
def test_batches_stay_whole_on_both_ways_and_no_segment_is_lost_where_they_can_not(
    has_segments: bool,
) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        if has_segments:
            host.setsockopt(socket.IPPROTO_UDP, udp._UDP_GRO, 1)
        near = Near(address_of(host))
        outlet = hosts.udp.associate(near)
        batch = b"".join(bytes((n,)) * 600 for n in range(100)) + b"rest"
        if not has_segments:
            (source_socket,) = hosts.udp._sockets.values()
            source_socket._has_segments = False
        outlet.send(batch, 600)
        parts: list[bytes] = []
        while len(b"".join(parts)) < len(batch):
            data, source = await hosts.from_source(host)
            parts.append(data)
        assert b"".join(parts) == batch
        assert len(parts) == (2 if has_segments else 101)
        note = [(socket.IPPROTO_UDP, udp._UDP_SEGMENT, struct.pack("=H", 600))]
        host.sendmsg([batch[:30004]], note, 0, source)
        await near.hears((batch[:30004], 600))
        outlet.send(b"one", 600)
        assert (await hosts.from_source(host))[0] == b"one"

    talk(story)


def test_a_network_that_takes_no_batches_gets_single_datagrams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        outlet = hosts.udp.associate(Near(address_of(host)))
        # More segments at once than the kernel cuts: EINVAL, as for segments that are too long.
        monkeypatch.setattr(udp, "_MOST_SEGMENTS", 1000)
        outlet.send(bytes(150), 1)
        for _ in range(150):
            assert (await hosts.from_source(host))[0] == b"\0"
        (source,) = hosts.udp._sockets.values()
        assert not source._has_segments

    talk(story)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_refusal_comes_back_to_the_flow_that_it_is_for_and_disturbs_no_other(
    address: str,
) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host(address)
        nobody = Near((address, hosts.closed_port(address)))
        somebody = Near(address_of(host))
        refused, heard = hosts.udp.associate(nobody), hosts.udp.associate(somebody)
        for number in range(3):  # the error is there when the next one is sent
            refused.send(b"x")
            heard.send(b"%d" % number)
            assert (await hosts.from_source(host))[0] == b"%d" % number
        failure = ("failed", FLOW_REFUSED, 0)
        await nobody.hears(failure, failure, failure)
        assert somebody.heard == []

    talk(story)


def test_what_is_too_large_for_one_piece_is_said_where_the_program_wants_it() -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        whole = Near(address_of(host), source=1, dont_fragment=True)
        hosts.udp.associate(whole).send(b"fits")
        assert (await hosts.from_source(host))[0] == b"fits"
        # Loopback takes anything; what a router says of a packet is told like this.
        (source,) = hosts.udp._sockets.values()
        source._tell(whole, errno.EMSGSIZE, 2, 3, 4, 1500)
        cut = Near(address_of(host), source=2)
        source._tell(cut, errno.EMSGSIZE, 2, 3, 4, 1500)
        await whole.hears(("failed", FLOW_TOO_LARGE, 1472))
        assert cut.heard == []

    talk(story)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ((errno.EHOSTUNREACH, 2, 3, 1, 0), FLOW_HOST_UNREACHABLE),
        ((errno.ENETUNREACH, 2, 3, 0, 0), FLOW_NET_UNREACHABLE),
        ((errno.EHOSTUNREACH, 2, 3, 13, 0), FLOW_NOT_PERMITTED),
        ((errno.EHOSTUNREACH, 2, 11, 0, 0), FLOW_HOPS_EXCEEDED),
        ((errno.EHOSTUNREACH, 3, 3, 0, 0), FLOW_HOPS_EXCEEDED),
        ((errno.EACCES, 3, 1, 1, 0), FLOW_NOT_PERMITTED),
        ((errno.ECONNREFUSED, 3, 1, 4, 0), FLOW_REFUSED),
    ],
)
def test_each_icmp_error_has_its_meaning(error: tuple[int, int, int, int, int], said: int) -> None:
    async def story(hosts: Hosts) -> None:
        near = Near(address_of(hosts.host()))
        hosts.udp.associate(near)
        (source,) = hosts.udp._sockets.values()
        source._tell(near, *error)
        assert near.heard == [("failed", said, 0)]

    talk(story)


def test_what_this_host_will_not_send_is_said() -> None:
    async def story(hosts: Hosts) -> None:
        near = Near(("255.255.255.255", 9))
        hosts.udp.associate(near).send(b"x")
        assert near.heard == [("failed", FLOW_NOT_PERMITTED, 0)]

    talk(story)


def test_an_address_that_was_written_to_may_answer_from_another_port_and_others_may_not() -> None:
    async def story(hosts: Hosts) -> None:
        host, same, other = hosts.host(), hosts.host(), hosts.host("127.0.0.2")
        near = Near(address_of(host))
        hosts.udp.associate(near).send(b"read file")
        _, source = await hosts.from_source(host)
        other.sendto(b"spoof", source)
        same.sendto(b"block 1", source)
        same.sendto(b"block 2", source)
        await until(lambda: bool(near.strangers))
        (stranger,) = near.strangers
        await stranger.hears(b"block 1", b"block 2")
        assert stranger.flow.destination == address_of(same)
        stranger.answers.send(b"ack")
        assert await hosts.from_source(same) == (b"ack", source)
        # A flow of the source's own to him takes its place, and keeps the port.
        own = Near(address_of(same))
        hosts.udp.associate(own).send(b"ack 2")
        assert await hosts.from_source(same) == (b"ack 2", source)
        same.sendto(b"block 3", source)
        await own.hears(b"block 3")
        assert stranger.heard[2:] == [("ended", FLOW_DONE)]

    talk(story)


def test_a_stranger_is_announced_once_where_he_is_not_wanted_any_more() -> None:
    async def story(hosts: Hosts) -> None:
        host, same = hosts.host(), hosts.host()
        near = Near(address_of(host))
        hosts.udp.associate(near).send(b"x")
        _, source = await hosts.from_source(host)
        same.sendto(b"1", source)
        await until(lambda: bool(near.strangers))
        await near.strangers[0].hears(b"1")
        near.strangers[0].answers.close()
        same.sendto(b"2", source)
        host.sendto(b"end", source)
        await near.hears(b"end")
        assert len(near.strangers) == 1

    talk(story)


def test_strangers_are_as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "MOST_STRANGERS", 1)

    async def story(hosts: Hosts) -> None:
        host, first, second = hosts.host(), hosts.host(), hosts.host()
        near = Near(address_of(host))
        hosts.udp.associate(near).send(b"x")
        _, source = await hosts.from_source(host)
        for sock in (first, second, host):
            sock.sendto(b"1", source)
        await near.hears(b"1")
        assert len(near.strangers) == 1
        near.strangers[0].answers.close()
        near.wanted = False
        second.sendto(b"2", source)
        await until(lambda: len(near.strangers) == 2)

    talk(story)


def test_everybody_may_write_to_a_source_that_wants_it() -> None:
    async def story(hosts: Hosts) -> None:
        host, other = hosts.host(), hosts.host("127.0.0.2")
        near = Near(address_of(host), any_peer=True)
        hosts.udp.associate(near).send(b"x")
        _, (_, port) = await hosts.from_source(host)
        other.sendto(b"hello", ("127.0.0.1", port))
        await until(lambda: bool(near.strangers))
        await near.strangers[0].hears(b"hello")

    talk(story)


def test_a_socket_is_closed_with_its_last_flow_and_idle_flows_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp, "SWEEP_EVERY_S", 0.02)

    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        closed, idle, lives = (
            Near(address_of(host), idle_s=30.0),
            Near(("127.0.0.1", 9), idle_s=0.05),
            Near(address_of(host), source=2),
        )
        outlet = hosts.udp.associate(closed)
        hosts.udp.associate(idle)
        hosts.udp.associate(lives)
        outlet.close()
        outlet.close()
        outlet.send(b"too late")
        await idle.hears(("ended", FLOW_DONE))
        assert list(hosts.udp._sockets) == [(2, socket.AF_INET)]
        assert closed.heard == lives.heard == []

    talk(story)


def test_a_name_is_looked_up_once_and_what_was_sent_meanwhile_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        asked: list[str] = []

        def found(name: str, port: int) -> list[object]:
            asked.append(name)
            if name == "nowhere.example":
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [(socket.AF_INET, 1, 0, "", ("127.0.0.1", port))]

        monkeypatch.setattr(dial, "_getaddrinfo", found)
        port = address_of(host)[1]
        near, nowhere = Near(("game.example", port)), Near(("nowhere.example", port), source=2)
        given_up = hosts.udp.associate(Near(("game.example", port), source=3))
        outlet = hosts.udp.associate(near)
        for number in range(20):
            outlet.send(b"%d" % number)
        hosts.udp.associate(nowhere).send(b"x")
        given_up.close()
        for number in range(udp.MOST_WAITING):
            data, source = await hosts.from_source(host)
            assert data == b"%d" % number
        host.sendto(b"back", source)
        await near.hears(b"back")
        await nowhere.hears(("ended", FLOW_NAME_UNKNOWN))
        assert asked.count("game.example") == 2
        assert len(hosts.udp._sockets) == 1
        monkeypatch.setattr(dial, "MAX_LOOKUPS", 0)
        too_many = Near(("game.example", port), source=4)
        hosts.udp.associate(too_many)
        await too_many.hears(("ended", FLOW_NO_RESOURCES))

    talk(story)


def test_without_descriptors_the_source_that_was_silent_longest_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        silent, newest, refused = (Near(address_of(host), source=n) for n in (1, 2, 3))
        hosts.udp.associate(silent)
        left = iter([True, True, False])
        monkeypatch.setattr(udp, "is_reserved", lambda _: next(left))
        hosts.udp.associate(refused)
        assert refused.heard == [("ended", FLOW_NO_RESOURCES)]
        monkeypatch.setattr(udp, "SILENT_S", 0.0)
        await asyncio.sleep(0.01)
        hosts.udp.associate(newest)
        assert silent.heard == [("ended", FLOW_DONE)]
        assert newest.heard == []

    talk(story)


def test_much_that_comes_at_once_is_read_in_turns_and_all_of_it() -> None:
    async def story(hosts: Hosts) -> None:
        host = hosts.host()
        near = Near(address_of(host))
        hosts.udp.associate(near).send(b"x")
        _, source = await hosts.from_source(host)
        sent = [b"%d" % number for number in range(3 * udp.READS_PER_ROUND)]
        for data in sent:
            host.sendto(data, source)
        await until(lambda: len(near.heard) == len(sent))
        assert near.heard == sent

    talk(story)
