"""What becomes of a program's query, with both tunnels and real resolvers: see both_ends."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import dns.message
import dns.query
import dns.rcode
import pytest

from sshunt.front import dns as front
from sshunt.front import dns_connections
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.events import DatagramReceived
from sshunt.relay import dns as relay_dns
from sshunt.remote import queries
from tests.descriptors import no_more_descriptors
from tests.unit.front.both_ends import DEADLINE_S, Names, talk
from tests.unit.front.office import Answer, knows, lies, says, silent, slow
from tests.unit.relay.ends import threaded


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


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
def test_a_query_the_first_resolver_fails_is_asked_of_the_next(
    monkeypatch: pytest.MonkeyPatch, first: Answer | None, tcp: bool
) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        assert await one.ask(tcp=tcp) == "10.9.8.7"

    talk(monkeypatch, [first, knows("10.9.8.7")], conversation)


def test_nxdomain_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask() == "NXDOMAIN"
        assert asked == [["udp"], []]

    talk(monkeypatch, [says(dns.rcode.NXDOMAIN), knows("10.9.8.7")], conversation)


@pytest.mark.parametrize("there", [[None], [silent, None], [says(dns.rcode.SERVFAIL)]])
def test_without_an_answer_the_program_gets_servfail(
    monkeypatch: pytest.MonkeyPatch, there: list[Answer | None]
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await one.ask() == "SERVFAIL"
        assert await one.ask(tcp=True) == "SERVFAIL"
        again = 3 if silent in there else 1
        assert asked == [[*["udp"] * again, "tcp"] for _ in asked]

    talk(monkeypatch, there, conversation)


def test_while_the_connection_is_lost_the_answer_comes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        waiting = asyncio.ensure_future(one.ask())
        while not asked[0]:
            await asyncio.sleep(0.01)
        one.lose_connection()
        assert await waiting == "SERVFAIL"
        assert await one.ask() == await one.ask(tcp=True) == "SERVFAIL"
        assert asked == [["udp"]]

    talk(monkeypatch, [silent], conversation)


def test_a_query_that_the_far_side_never_answers_ends_with_servfail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queries, "QUERY_DEADLINE_S", 0.2)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        one.ends.agent_hears.datagram = lambda _: None
        assert await one.ask() == "SERVFAIL"

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_more_queries_than_there_is_room_for_cost_the_oldest_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_dns, "QUERIES_BYTES", 5 * 2100)

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        asking = []
        for number in range(8):
            asking.append(asyncio.ensure_future(one.ask(f"n{number}.example")))
            while len(asked[0]) <= number:
                await asyncio.sleep(0.01)
        at_once, _ = await asyncio.wait(asking, timeout=0.2)
        assert at_once == set(asking[:3])
        assert [await task for task in asking] == ["SERVFAIL"] * 8

    talk(monkeypatch, [silent], conversation, first_s=0.4)


def test_one_user_s_many_queries_do_not_cost_another_his_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_dns, "QUERIES_BYTES", 5 * 2100)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        users = iter([7, *[8] * 50])
        monkeypatch.setattr(one.forwarder, "_asker", lambda *_: next(users))
        asking = asyncio.ensure_future(one.ask())
        await asyncio.sleep(0.1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(50):
                query = dns.message.make_query(f"n{number}.example", "A")
                sock.sendto(query.to_wire(), (one.address, one.port))
            assert await asking == "10.9.8.7"

    talk(monkeypatch, [slow(0.6, knows("10.9.8.7"))], conversation, first_s=2.0)


def test_many_at_once_each_get_their_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(query: dns.message.Message) -> bytes | list[bytes]:
        number = int(str(query.question[0].name).split(".")[0][1:])
        return knows(f"10.9.{number // 256}.{number % 256}")(query)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        found = await asyncio.gather(
            *(one.ask(f"n{n}.example", tcp=n % 5 == 0) for n in range(300))
        )
        assert found == [f"10.9.{n // 256}.{n % 256}" for n in range(300)]

    talk(monkeypatch, [by_name], conversation)


def test_datagrams_that_are_no_queries_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for rubbish in (b"", b"x", bytes(11), b"\xff" * 12, b"\xff" * 5000):
                sock.sendto(rubbish, (one.address, one.port))
        with socket.create_connection((one.address, one.port)) as sock:
            sock.sendall(b"\0\3abc")
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: sock.recv(100))
        for data in (b"", b"\xff" * 20):
            flow = one.ends.client.session.datagrams.open(FlowTarget(frames.DNS, ".", 53), 0.0)
            one.at_agent(DatagramReceived(flow, data))
            one.carrier.queries.on_datagram(DatagramReceived(flow, data))
        assert await one.ask() == "10.9.8.7"
        assert asked == [["udp"]]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_more_connections_than_there_is_room_for_cost_the_idlest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dns_connections, "MOST_CONNECTIONS", 3)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        with ExitStack() as stack:
            socks = []
            for _ in range(3):
                sock = socket.create_connection((one.address, one.port), timeout=DEADLINE_S)
                socks.append(stack.enter_context(sock))
                await asyncio.sleep(0.05)
            dns.query.send_tcp(socks[0], dns.message.make_query("a.example", "A"))
            await asyncio.sleep(0.05)
            assert await one.ask(tcp=True) == "10.9.8.7"
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: socks[1].recv(1))
            assert (await threaded(lambda: dns.query.receive_tcp(socks[0])))[0].answer
            dns.query.send_tcp(socks[2], dns.message.make_query("c.example", "A"))
            assert (await threaded(lambda: dns.query.receive_tcp(socks[2])))[0].answer

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_one_user_s_silent_connections_do_not_cost_another_his(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dns_connections, "MOST_CONNECTIONS", 4)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        users = iter([7, *[8] * 20])
        monkeypatch.setattr(one.forwarder, "_asker", lambda *_: next(users))
        with ExitStack() as stack:
            socks = []
            for _ in range(21):
                sock = socket.create_connection((one.address, one.port), timeout=DEADLINE_S)
                socks.append(stack.enter_context(sock))
            await asyncio.sleep(0.1)
            dns.query.send_tcp(socks[0], dns.message.make_query("a.example", "A"))
            assert (await threaded(lambda: dns.query.receive_tcp(socks[0])))[0].answer

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_connection_that_is_silent_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_connections, "SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr(dns_connections, "IDLE_S", 0.3)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: sock.recv(1))

    talk(monkeypatch, [silent], conversation)


def test_while_it_is_lost_a_connection_that_asks_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front, "LAST_QUERY_S", 0.1)

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        one.lose_connection()
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            assert await threaded(lambda: sock.recv(100)) == b""

    talk(monkeypatch, [knows("10.9.8.7")], conversation)
