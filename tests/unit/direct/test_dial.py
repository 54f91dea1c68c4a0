"""Names that the agent looks up: each has a deadline, all together a limit, and none leaks.

The machine's resolver is replaced by one that fails, or waits, to order.
"""

import asyncio
import errno
import os
import resource
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sshunt.direct import dial
from sshunt.mux import frames
from sshunt.relay.sockets import DIALED_PRIORITY, RESERVED_DESCRIPTORS
from tests.descriptors import no_more_descriptors
from tests.unit.relay.ends import Ends, accept, listen, run, threaded

SO_PRIORITY = 12


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Resolver:
    """Answers getaddrinfo with ``answer``, but not before ``go`` is set."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.go = threading.Event()
        self.asked = 0

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> Any:
        self.asked += 1
        self.go.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in self.answer]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver([])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.go.set()  # or its threads would be waited for at the end of the process


def refusals(ends: Ends) -> list[int]:
    """The reset codes that the client is told, as they come."""
    codes: list[int] = []
    ends.client_hears.reset = lambda _stream, code: codes.append(code)
    return codes


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 10)


def refused(resolver: Resolver, go: bool) -> list[int]:
    """What the client is told about one name."""
    told: list[int] = []
    if go:
        resolver.go.set()

    async def conversation(ends: Ends) -> None:
        codes = refusals(ends)
        with ends.connect("name.example", 80):
            await until(lambda: bool(codes))
        told.extend(codes)

    run(conversation)
    return told


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), frames.RESET_NAME_UNKNOWN),
        (socket.gaierror(socket.EAI_AGAIN, "nobody answers"), frames.RESET_TIMED_OUT),
        (socket.gaierror(socket.EAI_MEMORY, "no memory"), frames.RESET_NO_RESOURCES),
        (OSError(errno.EMFILE, "no descriptors"), frames.RESET_NO_RESOURCES),
        (UnicodeError("no name at all"), frames.RESET_NAME_UNKNOWN),
        (RuntimeError("can't start new thread"), frames.RESET_NO_RESOURCES),
    ],
)
def test_a_failed_look_up_tells_its_reason(
    resolver: Resolver, failure: Exception, code: int
) -> None:
    resolver.answer = failure
    assert refused(resolver, go=True) == [code]


def test_a_look_up_that_takes_too_long_is_given_up(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "LOOKUP_DEADLINE_S", 0.05)
    assert refused(resolver, go=False) == [frames.RESET_TIMED_OUT]


def test_the_next_address_is_tried_when_one_refuses_or_does_not_answer(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "ADDRESS_DEADLINE_S", 0.1)
    resolver.go.set()

    async def conversation(ends: Ends) -> None:
        with listen() as listener, listen() as refusing, full_listener() as silent:
            resolver.answer = [
                refusing.getsockname(),
                silent.getsockname(),
                listener.getsockname(),
            ]
            refusing.close()
            with ends.connect("name.example", 80) as program:
                program.sendall(b"hello")
                with await threaded(lambda: accept(listener)) as host:
                    assert await threaded(lambda: host.recv(100)) == b"hello"

    run(conversation)


@pytest.mark.parametrize("host", ["127.0.0.1", "name.example"])
def test_a_socket_has_its_priority_only_until_it_is_connected(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    resolver.go.set()
    made: list[socket.socket] = []
    new_socket = dial._new_socket

    def note(family: int) -> socket.socket:
        made.append(new_socket(family))
        assert made[-1].getsockopt(socket.SOL_SOCKET, SO_PRIORITY) == DIALED_PRIORITY
        return made[-1]

    monkeypatch.setattr(dial, "_new_socket", note)

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            resolver.answer = [listener.getsockname()]
            with ends.connect(host, listener.getsockname()[1]) as program:
                program.sendall(b"hello")
                with await threaded(lambda: accept(listener)) as far:
                    assert await threaded(lambda: far.recv(100)) == b"hello"
                    (sock,) = made
                    await until(lambda: sock.getsockopt(socket.SOL_SOCKET, SO_PRIORITY) == 0)

    run(conversation)


def full_listener() -> socket.socket:
    """A listener whose backlog is full: further SYNs are not answered."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling.append(socket.socket())
    filling[-1].connect(listener.getsockname())
    return listener


#: Sockets that fill a backlog; closed after each test.
filling: list[socket.socket] = []


@pytest.fixture(autouse=True)
def emptied(nothing_leaks: None) -> Iterator[None]:
    yield
    while filling:
        filling.pop().close()


def test_look_ups_beyond_the_limit_are_refused_and_the_others_go_on(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "MAX_LOOKUPS", 3)
    monkeypatch.setattr(dial, "LOOKUP_THREADS", 2)

    async def conversation(ends: Ends) -> None:
        codes = refusals(ends)
        programs = [ends.connect("name.example", 80) for _ in range(5)]
        await until(lambda: len(codes) == 2 and resolver.asked == 2)
        assert codes == [frames.RESET_NO_RESOURCES] * 2
        resolver.go.set()
        await until(lambda: len(codes) == 5)
        assert codes[2:] == [frames.RESET_NAME_UNKNOWN] * 3
        programs.append(ends.connect("name.example", 80))  # there is room again
        await until(lambda: len(codes) == 6)
        assert codes[5] == frames.RESET_NAME_UNKNOWN
        for program in programs:
            program.close()

    run(conversation)


@pytest.mark.parametrize("when", ["looking up", "connecting"])
def test_look_ups_and_connects_under_way_at_the_end_leak_nothing(
    resolver: Resolver, when: str
) -> None:
    async def looking_up(ends: Ends) -> None:
        with ends.connect("name.example", 80):
            await until(lambda: resolver.asked == 1)

    async def connecting(ends: Ends) -> None:
        resolver.go.set()
        before = len(os.listdir("/proc/self/fd"))
        with full_listener() as silent:
            resolver.answer = [silent.getsockname()]
            with ends.connect("name.example", 80):
                # The listener, what fills it, the program's two ends, and the one connecting.
                await until(lambda: len(os.listdir("/proc/self/fd")) == before + 5)

    conversations: dict[str, Callable[[Ends], Awaitable[None]]] = {
        "looking up": looking_up,
        "connecting": connecting,
    }
    run(conversations[when])


# --- connects that don't come about ---------------------------------------------------------------


def deaf() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose backlog is full: further connects get no answer at all."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        waiting.append(sock)
    return listener, waiting


@pytest.mark.parametrize("leaves", [True, False], ids=["program left", "program waits"])
def test_a_connect_that_gets_no_answer_is_given_up(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "SWEEP_EVERY_S", 0.05)
    monkeypatch.setattr(dial, "ABANDONED_DEADLINE_S" if leaves else "CONNECT_DEADLINE_S", 0.2)

    async def conversation(ends: Ends) -> None:
        listener, waiting = deaf()
        codes = refusals(ends)
        program = ends.connect(*listener.getsockname())
        if leaves:
            program.shutdown(socket.SHUT_WR)
        await until(lambda: bool(codes))
        assert codes == [frames.RESET_TIMED_OUT]
        assert not ends.agent.relays
        for sock in (listener, program, *waiting):
            sock.close()

    run(conversation)


def test_a_connection_that_came_about_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "SWEEP_EVERY_S", 0.02)
    monkeypatch.setattr(dial, "ABANDONED_DEADLINE_S", 0.0)
    monkeypatch.setattr(dial, "CONNECT_DEADLINE_S", 0.0)

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            program.shutdown(socket.SHUT_WR)
            host = await threaded(lambda: accept(listener))
            await asyncio.sleep(0.2)
            host.sendall(b"still here")
            assert await threaded(lambda: program.recv(100)) == b"still here"
            program.close()
            host.close()

    run(conversation)


# --- the reserve of descriptors -------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "name.example"])
@pytest.mark.parametrize("more", [0, 1])
def test_a_connect_that_would_take_a_reserved_descriptor_is_refused(
    resolver: Resolver, host: str, more: int
) -> None:
    resolver.go.set()

    async def conversation(ends: Ends) -> None:
        codes = refusals(ends)
        with listen() as listener:
            resolver.answer = [listener.getsockname()]
            await threaded(lambda: None)  # its thread is there now
            program, free = ends.connect(host, listener.getsockname()[1]), lowest_free()
            with limited_to(free + RESERVED_DESCRIPTORS + more):
                if more:
                    (await threaded(lambda: accept(listener))).close()
                else:
                    await until(lambda: codes == [frames.RESET_NO_RESOURCES])
            program.close()

    run(conversation)


def lowest_free() -> int:
    number = os.dup(0)
    os.close(number)
    return number


@contextmanager
def limited_to(count: int) -> Iterator[None]:
    """This process may have ``count`` descriptors meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
