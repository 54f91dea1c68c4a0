"""Whatever this host's programs send to the door for DNS, by UDP and TCP: it holds a bounded number
of queries and connections, and answers the next honest one. Whatever the far side's resolvers say:
the agent lives, and holds nothing afterwards.
"""

import asyncio
import os
import socket
from contextlib import suppress

import dns.exception
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.front.dns_connections import MOST_CONNECTIONS
from sshunt.relay.dns import QUERIES_BYTES, QUERY_COST_BYTES
from tests.unit.front.both_ends import Names, talk
from tests.unit.front.office import Answer, Raw, knows

pytestmark = pytest.mark.fuzz

MOST_QUERIES = QUERIES_BYTES // QUERY_COST_BYTES

QUERY = dns.message.make_query("git.corp.example", "A").to_wire()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def mutated(at: int, value: int, data: bytes) -> bytes:
    at %= len(data)
    return data[:at] + bytes([value]) + data[at + 1 :]


messages = st.one_of(
    st.just(QUERY),
    st.builds(mutated, st.integers(0, 1000), st.integers(0, 255), st.just(QUERY)),
    st.binary(max_size=100),
    st.integers(0, 65535).map(lambda size: QUERY + bytes(size - size // 20)),
)
by_tcp = st.one_of(
    messages.map(lambda message: framed(message[:65535])),
    messages.map(lambda message: framed(message[:65535])[: len(message) // 2 + 1]),
    st.binary(min_size=1, max_size=300),
)
steps = st.one_of(
    st.tuples(st.just("udp"), messages, st.integers(1, 30)),
    st.tuples(st.just("tcp"), by_tcp, st.integers(1, 5)),
    st.tuples(st.just("hang up"), st.just(b""), st.just(0)),
)


@settings(deadline=None, max_examples=20)
@given(st.lists(steps, max_size=15))
def test_no_program_harms_the_door_or_the_next_program(
    attack: list[tuple[str, bytes, int]],
) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        before = len(os.listdir("/proc/self/fd"))
        here = (one.address, one.port)
        ours: list[socket.socket] = []
        for act, said, times in attack:
            for _ in range(times):
                kind = socket.SOCK_DGRAM if act == "udp" else socket.SOCK_STREAM
                sock = socket.socket(socket.AF_INET, kind)
                ours.append(sock)
                sock.connect(here)
                sock.setblocking(False)
                with suppress(OSError):
                    sock.send(said[:65507] if act == "udp" else said)
            if act == "hang up":
                while ours:
                    ours.pop().close()
            await asyncio.sleep(0.005)
            assert len(one.carrier.queries) <= MOST_QUERIES
            assert len(one.forwarder._connections._open) <= MOST_CONNECTIONS
            most = before + len(ours) + MOST_CONNECTIONS + 2 * len(one.resolver._asking)
            assert len(os.listdir("/proc/self/fd")) <= most
        for sock in ours:
            sock.close()
        for tcp in (False, True):
            assert await one.ask(tcp=tcp) == "SERVFAIL"  # no resolver over there listens

    with pytest.MonkeyPatch.context() as patch:
        talk(patch, [None], conversation)


def like(query: dns.message.Message, at: int, value: int, cut: int) -> bytes:
    """Nearly the answer."""
    said = knows("10.9.8.7")(query)
    assert isinstance(said, bytes)
    return mutated(at, value, said)[: len(said) - cut % len(said)]


answers = st.one_of(
    st.builds(
        lambda at, value, cut: lambda query: like(query, at, value, cut), *[st.integers(0, 255)] * 3
    ),
    st.binary(max_size=200).map(lambda said: lambda _query: said),
    st.binary(max_size=200).map(lambda said: lambda _query: Raw(said)),
    st.binary(max_size=100).map(lambda rest: lambda query: query.to_wire()[:2] + b"\x80" + rest),
    st.lists(st.binary(max_size=20), max_size=30).map(lambda said: lambda _query: said),
)


@settings(deadline=None, max_examples=20)
@given(st.lists(answers, min_size=1, max_size=3))
def test_no_resolver_harms_the_agent_or_what_the_next_one_answers(bad: list[Answer]) -> None:
    async def conversation(one: Names, _asked: list[list[str]]) -> None:
        bug = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bug.append(context))
        for tcp in (False, True, False, True):
            with suppress(dns.exception.DNSException, OSError, EOFError, IndexError):
                await one.ask(f"n{tcp}.example", tcp=tcp)
        while one.resolver._asking or one.resolver._conversations:
            await asyncio.sleep(0.01)
        assert not bug

    with pytest.MonkeyPatch.context() as patch:
        talk(patch, [*bad, knows("10.9.8.7")], conversation, first_s=0.1)
