"""This host as a carrier: it connects programs and streams, and asks its resolvers."""

import asyncio
from collections.abc import Iterator

import pytest

from sshunt.direct.carrier import Direct
from sshunt.mux import frames
from tests.descriptors import no_more_descriptors
from tests.unit.direct.asking import Host, address_in, ask, query
from tests.unit.direct.test_resolve import Asked
from tests.unit.front.office import knows, silent
from tests.unit.relay.ends import Ends, accept, listen, run, threaded


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


def test_a_stream_is_connected_to_the_host_it_names() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            with ends.connect(*listener.getsockname()) as program:
                with await threaded(lambda: accept(listener)) as host:
                    host.sendall(b"hello")
                    assert await threaded(lambda: program.recv(10)) == b"hello"

    run(conversation)


def test_a_question_is_answered_by_a_resolver_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        direct, question = Direct(host.reactor), Asked(query())
        direct.ask(question)
        await question.is_over.wait()
        assert isinstance(question.said, bytes)
        assert address_in(question.said) == "10.9.8.7"
        direct.close()

    ask(monkeypatch, [knows("10.9.8.7")], conversation)


def test_a_host_can_always_be_asked_to_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        direct = Direct(host.reactor)
        assert direct.is_up
        assert direct.name
        direct.close()

    ask(monkeypatch, [], conversation)


def test_at_its_end_questions_under_way_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(host: Host) -> None:
        direct, question = Direct(host.reactor), Asked(query())
        direct.ask(question)
        await asyncio.sleep(0)
        direct.close()
        await question.is_over.wait()
        assert question.said == frames.RESET_NO_RESOURCES

    ask(monkeypatch, [silent], conversation)
