"""DNS through two tunnels in one event loop: program, forwarder, agent's resolver, resolvers.

program --UDP, TCP-- DnsForwarder == client tunnel ==pipes== agent tunnel == Resolver -- resolvers
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from sshunt.agent import resolve
from sshunt.agent.resolve import Resolver
from sshunt.console import Console
from sshunt.listener import bind
from sshunt.mux import frames
from sshunt.mux.session import DatagramReceived
from sshunt.names import dns as names
from sshunt.names import doors
from sshunt.names.dns import DnsForwarder
from sshunt.names.doors import open_door, system_resolvers
from sshunt.relay import dns as relay_dns
from tests.unit.names.office import Answer, knows, lies, resolver, says, silent
from tests.unit.relay.ends import Ends, run, threaded

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


class Names:
    """Both ends, up. ``asked[n]``: how resolver number n was asked, as it happens."""

    def __init__(self, ends: Ends, *, is_down: bool = False) -> None:
        self.ends = ends
        self.is_down = is_down
        self.resolver = Resolver(ends.agent)
        ends.agent.on_datagram = self._at_agent
        door = open_door(4)
        self.address, self.port = door.endpoint
        self.forwarder = DnsForwarder(ends.client, Console(), [door], lambda: self.is_down)
        ends.client.on_datagram = self.forwarder.on_datagram
        self.forwarder.start()

    def _at_agent(self, event: DatagramReceived) -> None:
        self.resolver.on_query(event.flow, event.kind, event.data)

    async def ask(self, name: str = "git.corp.example", *, tcp: bool = False) -> str:
        """The address, or the name of what went wrong."""
        query = dns.message.make_query(name, "A")
        by = dns.query.tcp if tcp else dns.query.udp
        answer = await threaded(lambda: by(query, self.address, DEADLINE_S, self.port))
        if answer.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(answer.rcode())
        return str(next(iter(answer.answer[0])))


def talk(
    monkeypatch: pytest.MonkeyPatch,
    there: list[Answer | None],
    conversation: Callable[[Names, list[list[str]]], Awaitable[None]],
) -> None:
    """``there`` are the far side's resolvers, in order; None: nobody listens at that address."""
    with socket.create_server(("127.0.0.20", 0)) as free:
        port = free.getsockname()[1]
    addresses = [f"127.0.0.{20 + number}" for number in range(len(there))]
    monkeypatch.setattr(relay_dns, "PORT", port)
    monkeypatch.setattr(relay_dns, "resolvers", lambda: addresses)
    monkeypatch.setattr(resolve, "TRY_S", 0.3)
    monkeypatch.setattr(resolve, "DEADLINE_S", 1.5)

    async def whole(ends: Ends) -> None:
        with ExitStack() as stack:
            asked = [
                stack.enter_context(resolver(address, port, answer))
                for address, answer in zip(addresses, there, strict=True)
                if answer is not None
            ]
            one = Names(ends)
            try:
                await conversation(one, asked)
            finally:
                one.forwarder.close()
                one.resolver.close()
                await asyncio.sleep(0.05)

    run(whole)


@pytest.mark.parametrize("tcp", [False, True])
def test_a_query_is_answered_by_the_far_side_the_way_it_came(
    monkeypatch: pytest.MonkeyPatch, tcp: bool
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask(tcp=tcp) == "10.9.8.7"
        assert asked == [["tcp" if tcp else "udp"]]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    "first", [None, silent, lies, says(dns.rcode.SERVFAIL), says(dns.rcode.REFUSED)]
)
def test_what_the_first_resolver_does_not_know_the_next_is_asked(
    monkeypatch: pytest.MonkeyPatch, first: Answer | None, tcp: bool
) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        assert await one.ask(tcp=tcp) == "10.9.8.7"

    talk(monkeypatch, [first, knows("10.9.8.7")], conversation)


def test_that_a_name_does_not_exist_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask() == "NXDOMAIN"
        assert asked == [["udp"], []]

    talk(monkeypatch, [says(dns.rcode.NXDOMAIN), knows("10.9.8.7")], conversation)


def test_a_silent_resolver_is_asked_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        for _ in range(3):
            assert await one.ask() == "10.9.8.7"
        assert asked == [["udp"], ["udp"] * 3]

    talk(monkeypatch, [silent, knows("10.9.8.7")], conversation)


@pytest.mark.parametrize("there", [[None], [silent, None], [says(dns.rcode.SERVFAIL)]])
def test_where_nobody_answers_the_program_is_told(
    monkeypatch: pytest.MonkeyPatch, there: list[Answer | None]
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask() == "SERVFAIL"
        assert await one.ask(tcp=True) == "SERVFAIL"
        again = 3 if silent in there else 1  # 0.3 s, 0.6 s, what is left of 1.5 s
        assert asked == [[*["udp"] * again, "tcp"] for _ in asked]  # by TCP, silence is an end

    talk(monkeypatch, there, conversation)


def test_while_the_connection_is_lost_the_answer_comes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        waiting = asyncio.ensure_future(one.ask())
        while not asked[0]:
            await asyncio.sleep(0.01)
        one.is_down = True
        one.forwarder.on_down()
        assert await waiting == "SERVFAIL"
        assert await one.ask() == await one.ask(tcp=True) == "SERVFAIL"
        assert asked == [["udp"]]

    talk(monkeypatch, [silent], conversation)


def test_a_query_that_the_far_side_never_answers_ends_with_servfail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "QUERY_DEADLINE_S", 0.2)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        one.ends.agent.on_datagram = None
        assert await one.ask() == await one.ask(tcp=True) == "SERVFAIL"

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_more_queries_than_there_is_room_for_are_told_to_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "MOST_QUERIES", 5)
    monkeypatch.setattr(resolve, "MOST_QUERIES", 3)

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        monkeypatch.setattr(resolve, "TRY_S", DEADLINE_S)
        asking = [asyncio.ensure_future(one.ask(f"n{n}.example")) for n in range(8)]
        at_once, waiting = await asyncio.wait(asking, timeout=0.6)
        assert [task.result() for task in at_once] == ["SERVFAIL"] * 5
        assert len(asked[0]) == 3
        one.forwarder.on_down()
        assert [await task for task in waiting] == ["SERVFAIL"] * 3

    talk(monkeypatch, [silent], conversation)


def test_many_at_once_each_get_their_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(query: dns.message.Message) -> bytes:
        number = int(str(query.question[0].name).split(".")[0][1:])
        return knows(f"10.9.{number // 256}.{number % 256}")(query)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        found = await asyncio.gather(
            *(one.ask(f"n{n}.example", tcp=n % 5 == 0) for n in range(300))
        )
        assert found == [f"10.9.{n // 256}.{n % 256}" for n in range(300)]

    talk(monkeypatch, [by_name], conversation)


def test_what_is_no_query_is_dropped_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for rubbish in (b"", b"x", bytes(11), b"\xff" * 12, bytes(5000)):
                sock.sendto(rubbish, (one.address, one.port))
        with socket.create_connection((one.address, one.port)) as sock:
            sock.sendall(b"\0\3abc")
            assert await threaded(lambda: sock.recv(100)) == b""
        for flow, kind, data in ((1, frames.DNS, b""), (2, frames.DNS_TCP, b"\xff" * 20)):
            one.resolver.on_query(flow, kind, data)
            one.forwarder.on_datagram(DatagramReceived(flow, kind, data))
        assert await one.ask() == "10.9.8.7"
        assert asked == [["udp"]]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_connection_serves_one_query_after_the_other_and_ends_when_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "IDLE_S", 0.3)

    def converse(one: Names) -> list[str]:
        found = []
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            for name in ("a.example", "b.example"):
                dns.query.send_tcp(sock, dns.message.make_query(name, "A"))
                answer, _ = dns.query.receive_tcp(sock)
                found.append(str(answer.question[0].name))
            assert sock.recv(1) == b""
        return found

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        assert await threaded(lambda: converse(one)) == ["a.example.", "b.example."]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_more_connections_than_there_is_room_for_are_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "MOST_CONNECTIONS", 3)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection((one.address, one.port)))
            await asyncio.sleep(0.1)
            sock = stack.enter_context(socket.create_connection((one.address, one.port)))
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: sock.recv(1))

    talk(monkeypatch, [silent], conversation)


def test_the_systems_resolvers_are_named_without_scopes_and_each_once(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "nameserver fe80::1%eth0\nnameserver 127.0.0.53\nnameserver fe80::1%eth1\nnameserver x\n"
    )
    assert system_resolvers(str(file)) == ("fe80::1", "127.0.0.53")


def test_both_sockets_of_a_door_have_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [bind(("127.0.0.1", 0)) for _ in range(3)]
    blockers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in taken]
    for sock, blocker in zip(taken, blockers, strict=True):
        blocker.bind(sock.getsockname())
    attempts = iter([*taken, bind(("127.0.0.1", 0))])
    monkeypatch.setattr(doors, "bind", lambda _endpoint: next(attempts))
    door = open_door(4)
    assert door.udp.getsockname() == door.tcp.getsockname() == door.endpoint
    door.close()
    for blocker in blockers:
        blocker.close()
