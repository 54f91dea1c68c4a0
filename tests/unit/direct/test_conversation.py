"""DNS over TCP: messages of any size, in any number, both ways; and what begins with none."""

import asyncio
import errno
import socket

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdata
import dns.rrset
import pytest

from tests.unit.front.both_ends import DEADLINE_S, Names, talk
from tests.unit.front.office import knows, says, slow
from tests.unit.relay.ends import threaded

#: Of a text record's strings; a Kerberos ticket in a TKEY query is like that.
TICKET_BYTES = 40_000


def with_ticket(name: str) -> dns.message.Message:
    query = dns.message.make_query(name, "TKEY")
    text = " ".join(f'"{"x" * 250}"' for _ in range(TICKET_BYTES // 250))
    query.additional.append(dns.rrset.from_text(name, 0, "IN", "TXT", text))
    return query


def echoes(query: dns.message.Message) -> bytes:
    """What came with the query goes back with the answer."""
    response = dns.message.make_response(query)
    response.answer.extend(query.additional)
    return response.to_wire()


def zone(query: dns.message.Message) -> list[bytes]:
    """Five messages."""
    wires = []
    for number in range(5):
        response = dns.message.make_response(query)
        text = [f"10.9.{number}.{last}" for last in range(200)]
        response.answer.append(dns.rrset.from_text_list(f"n{number}.example.", 60, "IN", "A", text))
        wires.append(response.to_wire())
    return wires


@pytest.mark.parametrize("tcp", [False, True])
def test_a_query_and_an_answer_of_40_000_bytes_pass(
    monkeypatch: pytest.MonkeyPatch, tcp: bool
) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        query = with_ticket("a.example.")
        by = dns.query.tcp if tcp else dns.query.udp
        answer = await threaded(lambda: by(query, one.address, DEADLINE_S, one.port))
        assert answer.answer == query.additional

    talk(monkeypatch, [echoes], conversation)


def test_all_messages_of_a_zone_transfer_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(one: Names) -> int:
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            dns.query.send_tcp(sock, dns.message.make_query("example.", "AXFR"))
            return sum(len(dns.query.receive_tcp(sock)[0].answer[0]) for _ in range(5))

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await threaded(lambda: transfer(one)) == 1000
        assert asked == [["tcp"]]

    talk(monkeypatch, [zone], conversation)


def test_queries_that_do_not_wait_for_each_other_s_answers_are_all_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pipelined(one: Names) -> list[str]:
        names = [f"n{number}.example." for number in range(50)]
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            for name in names:
                dns.query.send_tcp(sock, dns.message.make_query(name, "A"))
            sock.shutdown(socket.SHUT_WR)
            answers = [dns.query.receive_tcp(sock)[0] for _ in names]
            assert sock.recv(1) == b""
        return [str(answer.question[0].name) for answer in answers]

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await threaded(lambda: pipelined(one)) == [f"n{n}.example." for n in range(50)]
        assert asked == [["tcp"], ["tcp"] * 50]

    talk(monkeypatch, [says(dns.rcode.REFUSED), knows("10.9.8.7")], conversation)


def test_a_connection_that_hangs_up_before_its_answer_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def conversation(one: Names, asked: list[list[str]]) -> None:
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            dns.query.send_tcp(sock, dns.message.make_query("a.example", "A"))
            while not asked[0]:
                await asyncio.sleep(0.01)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        while one.ends.client.session.streams or one.ends.agent.session.streams:
            await asyncio.sleep(0.01)
        assert await one.ask(tcp=True) == "10.9.8.7"

    talk(monkeypatch, [slow(0.3, knows("10.9.8.7"))], conversation)


def test_where_nobody_answers_a_connection_ends_with_servfail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def converse(one: Names) -> int:
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            dns.query.send_tcp(sock, dns.message.make_query("a.example", "A"))
            answer, _ = dns.query.receive_tcp(sock)
            assert sock.recv(1) == b""
        return answer.rcode()

    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        assert await threaded(lambda: converse(one)) == dns.rcode.SERVFAIL
        while one.ends.client.session.streams or one.ends.agent.session.streams:
            await asyncio.sleep(0.01)

    talk(monkeypatch, [None], conversation)


@pytest.mark.parametrize(
    "said",
    [b"", b"\0", b"\0\x05short", b"\0\x0c" + bytes(2) + b"\x80" + bytes(9)],
    ids=["nothing", "half a length", "less than a head", "an answer"],
)
def test_a_program_that_asks_nothing_is_reset_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    def converse(one: Names) -> None:
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            sock.sendall(said)
            try:
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
            except OSError as error:
                if error.errno not in (errno.ECONNRESET, errno.ENOTCONN):
                    raise  # the second of them: the reset was faster than we

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        await threaded(lambda: converse(one))
        while one.ends.client.session.streams or one.ends.agent.session.streams:
            await asyncio.sleep(0.01)
        assert asked == [[]]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_first_query_may_come_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def converse(one: Names) -> str:
        query = dns.message.make_query("a.example", "A").to_wire()
        with socket.create_connection((one.address, one.port), timeout=DEADLINE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in len(query).to_bytes(2, "big") + query:
                sock.sendall(bytes((byte,)))
            answer, _ = dns.query.receive_tcp(sock)
        return str(next(iter(answer.answer[0])))

    async def conversation(one: Names, asked: list[list[str]]) -> None:
        assert await threaded(lambda: converse(one)) == "10.9.8.7"
        assert asked == [["tcp"]]

    talk(monkeypatch, [knows("10.9.8.7")], conversation)
