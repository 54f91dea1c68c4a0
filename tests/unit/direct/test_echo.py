"""Echo requests of this host: answered by hosts behind routers, by the routers, or not at all.

neighbour --------- client --------- server --------- target
 asks               passes on        passes on,       answers
                                        but not to REFUSED
"""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sshunt.direct import echo
from sshunt.direct.echo import Echoes
from sshunt.lab.hosts import SYSTEM_PATH, Host
from sshunt.lab.world import ELSEWHERE_V4, Lab
from sshunt.mux.datagram_frames import (
    FLOW_NAME_UNKNOWN,
    FLOW_NO_RESOURCES,
    FLOW_NOT_PERMITTED,
)
from sshunt.relay.echo import ANSWER, CHILDREN, DONT_FRAGMENT, REQUEST, VALUE
from sshunt.relay.flow import ECHO, Association, Flow
from sshunt.relay.reactor import Reactor
from tests.descriptors import no_more_descriptors

DEADLINE_S = 10.0
NOBODY = 65534

REFUSED = "10.55.0.66"
_REFUSING = (
    "table ip refusing { chain forward { type filter hook forward priority 0;"
    f" ip daddr {REFUSED} reject with icmp host-unreachable\n}}\n}}"
)

_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    """The neighbour, in a lab whose server is a router, too."""
    routes = ("198.51.100.0/24 via 192.0.2.1", "2001:db8:2::/64 via 2001:db8:1::1")
    for router in (lab.client, lab.server):
        router.write_sysctl("net/ipv4/icmp_ratelimit", "0")
        router.write_sysctl("net/ipv6/icmp/ratelimit", "0")
    for name in _FORWARDING:
        lab.server.write_sysctl(name, "1")
    for route in routes:
        lab.server.run(["ip", "route", "add", *route.split()])
    lab.server.run(["nft", "-f", "-"], stdin=_REFUSING)
    yield lab.neighbour
    lab.server.run(["nft", "delete", "table", "ip", "refusing"])
    for route in routes:
        lab.server.run(["ip", "route", "del", *route.split()])
    for name in _FORWARDING:
        lab.server.write_sysctl(name, "0")


class Asks(Association):
    """Somebody who asks ``destination``, and what he hears."""

    def __init__(self, echoes: Echoes, destination: str) -> None:
        super().__init__(Flow(ECHO, (destination, 0)), 60.0)
        self.heard: asyncio.Queue[tuple[int, ...] | bytes] = asyncio.Queue()
        self.codes: list[tuple[int, ...]] = []
        self.outlet = echoes.associate(self)

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.heard.put_nowait(datagram)

    def failed(self, code: int, value: int = 0) -> None:
        self.codes.append((code, value))

    def ended(self, code: int) -> None:
        self.codes.append((code,))

    def ask(self, hops: int, sequence: int, data: bytes = b"data", flags: int = 0) -> None:
        self.outlet.send(REQUEST.pack(hops, flags, sequence) + data)

    async def hear(self) -> tuple[tuple[int, ...], bytes]:
        """The next answer: type, code, hops, sequence; and the rest."""
        datagram = await asyncio.wait_for(self.heard.get(), DEADLINE_S)
        assert isinstance(datagram, bytes)
        return ANSWER.unpack_from(datagram), datagram[ANSWER.size :]

    async def ask_for_error(self, hops: int, sequence: int) -> tuple[tuple[int, ...], int, str]:
        """Ask until there is an answer: routers do not send as many errors as they could."""
        while not self.heard.qsize():
            self.ask(hops, sequence)
            await asyncio.sleep(0.2)
        return await self.hear_error()

    async def hear_error(self) -> tuple[tuple[int, ...], int, str]:
        """The next answer, an error: type, code, hops, sequence; the value; who says so."""
        head, rest = await self.hear()
        address = rest[VALUE.size :]
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        offender = socket.inet_ntop(family, address) if address else ""
        return head, VALUE.unpack_from(rest)[0], offender


def run(host: Host, conversation: Callable[[Echoes], Awaitable[None]]) -> None:
    """Whatever is asked in ``conversation`` is asked by ``host``."""
    with host.entered():
        run_here(conversation)


def run_here(conversation: Callable[[Echoes], Awaitable[None]]) -> None:
    """The same by whatever host this thread is in already."""

    bugs: list[dict[str, object]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: bugs.append(context))
        reactor = Reactor(loop)
        echoes = Echoes(reactor)
        try:
            await asyncio.wait_for(conversation(echoes), DEADLINE_S)
        finally:
            echoes.close()
            reactor.close()

    asyncio.run(main())
    assert bugs == []


@pytest.fixture(params=["icmp", "raw"])
def way(host: Host, request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of socket."""
    host.write_sysctl("net/ipv4/ping_group_range", "0 0" if request.param == "icmp" else "1 0")
    yield request.param
    host.write_sysctl("net/ipv4/ping_group_range", "1 0")


@pytest.mark.usefixtures("way")
def test_a_host_s_reply_comes_back_with_its_data_and_number(lab: Lab, host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        for address, reply in ((lab.target.v4, 0), (lab.target.v6, 129)):
            asks = Asks(echoes, address)
            for sequence, size in ((7, 0), (65535, 57), (0, 8000)):
                data = os.urandom(size)
                asks.ask(64, sequence, data)
                assert await asks.hear() == ((reply, 0, 64 - 3, sequence), data)

    run(host, conversation)


@pytest.mark.usefixtures("way")
def test_each_host_on_the_way_is_heard_of_and_this_one_is_the_first(lab: Lab, host: Host) -> None:
    ways = [
        (lab.target.v4, 11, 0, ["198.51.100.2", "198.51.100.1", "192.0.2.2"]),
        (lab.target.v6, 3, 129, ["2001:db8:2::2", "2001:db8:2::1", "2001:db8:1::2"]),
    ]

    async def conversation(echoes: Echoes) -> None:
        for address, exceeded, reply, hosts in ways:
            asks = Asks(echoes, address)
            for hops in range(1, 5):
                asks.ask(hops, hops)
            answers = {}
            for _ in range(4):
                head, rest = await asks.hear()
                answers[head[3]] = (head, rest[4:])
            assert answers.pop(4)[0][0] == reply
            assert {head[0] for head, _ in answers.values()} == {exceeded}
            family = socket.AF_INET if exceeded == 11 else socket.AF_INET6
            said_by = [socket.inet_ntop(family, answers[hops][1]) for hops in (1, 2, 3)]
            assert said_by == hosts

    run(host, conversation)


@pytest.mark.usefixtures("way")
def test_what_is_for_this_host_needs_not_be_passed_on(host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        for address, reply in ((host.v4, 0), (host.v6, 129)):
            asks = Asks(echoes, address)
            asks.ask(1, 1)
            assert (await asks.hear())[0][0] == reply

    run(host, conversation)


@pytest.mark.usefixtures("way")
def test_a_router_s_refusal_comes_back_with_its_address(host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, REFUSED)
        for sequence in (1, 2):  # the error of the first is not taken for one of the second
            assert await asks.ask_for_error(64, sequence) == ((3, 1, 0, sequence), 0, "192.0.2.2")

    run(host, conversation)


@pytest.mark.usefixtures("way")
def test_without_a_route_this_host_says_so(lab: Lab, host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, "10.77.0.1"), Asks(echoes, "fd00:77::1")
        for each in asks:
            each.ask(64, 1)
        assert await asks[0].hear_error() == ((3, 0, 0, 1), 0, "")
        assert await asks[1].hear_error() == ((1, 0, 0, 1), 0, "")

    defaults = ("default via 198.51.100.1", "default via 2001:db8:2::1")
    for route in defaults:
        host.run(["ip", "route", "del", *route.split()])
    try:
        run(host, conversation)
    finally:
        for route in defaults:
            host.run(["ip", "route", "add", *route.split()])


@pytest.mark.usefixtures("way")
def test_what_must_not_be_cut_and_is_too_large_comes_back_with_the_size(
    lab: Lab, host: Host
) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, lab.target.v4)
        asks.ask(64, 1, bytes(1473), DONT_FRAGMENT)
        assert await asks.hear_error() == ((3, 4, 0, 1), 1500, "198.51.100.2")
        asks.ask(64, 2, bytes(1473))
        assert (await asks.hear())[0] == (0, 0, 61, 2)
        device = lab.server.run(["ip", "-o", "route", "get", lab.target.v4]).stdout.split()[2]
        route = [f"{lab.target.v4}/32", "dev", device, "mtu", "1400"]
        lab.server.run(["ip", "route", "add", *route])
        try:
            asks.ask(64, 3, bytes(1472), DONT_FRAGMENT)
            assert await asks.hear_error() == ((3, 4, 0, 3), 1400, "192.0.2.2")
        finally:
            lab.server.run(["ip", "route", "del", *route])
            host.run(["ip", "route", "flush", "cache"])

    run(host, conversation)


def test_a_silent_host_is_silent(lab: Lab, host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, ELSEWHERE_V4)
        asks.ask(64, 1)
        await asyncio.sleep(0.3)
        assert (asks.heard.qsize(), asks.codes) == (0, [])

    lab.client.run(["ip", "route", "add", "blackhole", ELSEWHERE_V4])
    try:
        run(host, conversation)
    finally:
        lab.client.run(["ip", "route", "del", "blackhole", ELSEWHERE_V4])


def test_many_replies_at_once_are_all_heard(
    host: Host, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(echo, "_READS_A_ROUND", 3)

    async def conversation(echoes: Echoes) -> None:
        asks = [Asks(echoes, address) for address in (host.v4, host.v6)]
        for each in asks:
            for sequence in range(20):
                each.ask(9, sequence)
        for each in asks:
            assert [(await each.hear())[0][3] for _ in range(20)] == list(range(20))

    run(host, conversation)


@pytest.mark.usefixtures("way")
def test_who_answers_in_the_place_of_another_is_not_heard(lab: Lab, host: Host) -> None:
    """A neighbour of the host's, from its address on the link, and with the right number."""

    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, lab.target.v6)
        asks.ask(9, 1)
        await asks.hear()
        numbers = [int(line.split()[1].split(":")[1], 16) for line in listed_sockets()]
        for number in numbers:
            forger.sendto(struct.pack("!BBHHH", 129, 0, 0, number, 2), (host.v6, 0))
        asks.ask(9, 3)
        assert (await asks.hear())[0][3] == 3

    def listed_sockets() -> list[str]:
        return Path("/proc/thread-self/net/icmp6").read_text().splitlines()[1:]

    lab.client.run(["ip", "address", "replace", "fe80::77/64", "dev", "to-neighbour", "nodad"])
    with lab.client.entered():
        forger = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        forger.bind(("fe80::77", 0, 0, socket.if_nametoindex("to-neighbour")))
    with forger:
        run(host, conversation)


def test_what_is_no_request_is_ignored(host: Host) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, host.v4)
        for length in range(REQUEST.size):
            asks.outlet.send(b"\1" * length)
        asks.ask(9, 1)
        assert (await asks.hear())[0] == (0, 0, 63, 1)

    run(host, conversation)


@pytest.mark.parametrize("destination", ["target", "", "::1::", "10.55.0", "fe80::1%lo"])
def test_a_name_is_not_asked(host: Host, destination: str) -> None:
    async def conversation(echoes: Echoes) -> None:
        assert Asks(echoes, destination).codes == [(FLOW_NAME_UNKNOWN,)]

    run(host, conversation)


def test_there_are_only_so_many_flows_and_one_that_is_over_makes_room(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "MOST_FLOWS", 2)

    async def conversation(echoes: Echoes) -> None:
        first, second = Asks(echoes, host.v4), Asks(echoes, host.v4)
        assert Asks(echoes, host.v4).codes == [(FLOW_NO_RESOURCES,)]
        first.outlet.close()
        first.outlet.close()
        first.ask(9, 1)
        third = Asks(echoes, host.v4)
        third.ask(9, 1)
        assert (await third.hear())[0][0] == 0
        assert first.heard.empty()
        assert first.codes + second.codes + third.codes == []

    run(host, conversation)


# --- where only ping(8) may ask -----------------------------------------------------------------


@pytest.fixture
def nobody(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Requests are made by an ordinary user, who may have neither kind of socket."""
    monkeypatch.setenv("PATH", SYSTEM_PATH)
    groups, group = os.getgroups(), os.getegid()
    with host.entered():
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(group)
            os.setgroups(groups)


@pytest.mark.usefixtures("nobody")
def test_ping_is_had_to_ask_where_no_socket_may_and_that_is_said(lab: Lab) -> None:
    async def conversation(echoes: Echoes) -> None:
        for address, reply in ((lab.target.v4, 0), (lab.target.v6, 129)):
            asks = Asks(echoes, address)
            for sequence in (1, 2):
                asks.ask(64, sequence, b"data of ours")
                assert await asks.hear() == ((reply, 0, 64 - 3, sequence), b"data of ours")
            assert asks.codes == [(FLOW_NOT_PERMITTED, CHILDREN)]

    run_here(conversation)


@pytest.mark.usefixtures("nobody")
def test_ping_tells_of_the_hosts_on_the_way_and_of_refusals(lab: Lab) -> None:
    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, lab.target.v4)
        asks.ask(1, 1)
        assert await asks.hear_error() == ((11, 0, 0, 1), 0, "")
        assert await asks.ask_for_error(2, 2) == ((11, 0, 0, 2), 0, "198.51.100.1")
        asks = Asks(echoes, lab.target.v6)
        assert await asks.ask_for_error(3, 3) == ((3, 0, 0, 3), 0, "2001:db8:1::2")
        asks = Asks(echoes, REFUSED)
        assert await asks.ask_for_error(64, 4) == ((3, 1, 0, 4), 0, "192.0.2.2")

    run_here(conversation)


@pytest.mark.usefixtures("nobody")
def test_only_so_many_pings_run_and_what_is_over_leaves_none(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "MOST_CHILDREN", 2)

    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, "198.51.100.77")  # nobody is there
        for sequence in range(5):
            asks.ask(64, sequence)
        assert len(echoes.children) == 2
        asks.outlet.close()

    run_here(conversation)


@pytest.mark.usefixtures("nobody")
def test_where_there_is_no_ping_either_the_flow_is_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    async def conversation(echoes: Echoes) -> None:
        asks = Asks(echoes, lab.target.v4)
        asks.ask(64, 1)
        asks.ask(64, 2)
        assert asks.codes == [(FLOW_NOT_PERMITTED, CHILDREN), (FLOW_NOT_PERMITTED,)]
        assert not echoes.outlets

    run_here(conversation)
