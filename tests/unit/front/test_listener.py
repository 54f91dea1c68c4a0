"""Listening sockets, why one can't be had, and what is said while accepting pauses."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing

import pytest

from sshunt.errors import ExitCode
from sshunt.front import listener as module
from sshunt.front.listener import CannotListen, Listener, bind
from sshunt.tell.report import Event, FrontPaused, FrontResumed, Report

PATIENCE_S = 10.0


# --- sockets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_any_port_of_an_address_can_be_listened_on(address: str) -> None:
    with closing(bind((address, 0))) as sock:
        host, port = sock.getsockname()[:2]
        assert host == address
        with socket.create_connection((host, port)):
            sock.setblocking(True)
            sock.accept()[0].close()


def test_ipv4_and_ipv6_have_a_port_each() -> None:
    with closing(bind(("::", 0))) as sock6:
        with closing(bind(("0.0.0.0", sock6.getsockname()[1]))):
            pass


@pytest.mark.parametrize(
    ("address", "number", "hint"),
    [
        ("127.0.0.1", errno.EADDRINUSE, "choose another port"),
        ("192.0.2.1", errno.EADDRNOTAVAIL, "an address of this host"),
        ("fe80::1", errno.EINVAL, "leave --listen out"),
    ],
)
def test_why_a_listener_cannot_be_had_is_said_with_what_to_do(
    address: str, number: int, hint: str
) -> None:
    with closing(bind(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"can't listen on {address} port {port}") as caught:
            bind((address, port))
    assert caught.value.error_number == number
    assert caught.value.exit_code is ExitCode.LISTEN
    assert hint in caught.value.hint


def test_without_a_descriptor_there_is_no_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(CannotListen, match="Too many open files"):
        bind(("127.0.0.1", 0))


# --- accepting ------------------------------------------------------------------------------------


class Front:
    """A listener, what it has taken, and what it says. ``full``: why no more can be taken."""

    def __init__(self, undo: ExitStack) -> None:
        sock = bind(("127.0.0.1", 0))
        self.endpoint = sock.getsockname()
        self.name = f"127.0.0.1 port {self.endpoint[1]}"
        self.taken: list[socket.socket] = []
        self.said: list[Event] = []
        self.full = ""
        self._undo = undo
        report = Report(lambda error: pytest.fail(str(error)))
        report.subscribe(self.said.append)
        loop = asyncio.get_running_loop()
        self.listener = Listener(sock, loop, report, self._take, lambda: self.full)
        undo.callback(self.listener.close)

    def _take(self, sock: socket.socket) -> None:
        self._undo.callback(sock.close)
        self.taken.append(sock)

    def call(self) -> None:
        program = socket.create_connection(self.endpoint)
        self._undo.callback(program.close)

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), PATIENCE_S)


def run(story: Callable[[Front], Awaitable[None]]) -> None:
    async def whole() -> None:
        with ExitStack() as undo:
            await story(Front(undo))

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.05)


def test_connections_made_before_the_start_are_taken_after_it() -> None:
    async def story(front: Front) -> None:
        front.call()
        await asyncio.sleep(0.02)
        assert front.taken == []
        front.listener.start()
        await front.until(lambda: len(front.taken) == 1)
        assert front.taken[0].getblocking() is False
        assert front.said == []

    run(story)


def test_each_failed_resumption_is_reported_and_the_end_of_a_pause_once() -> None:
    async def story(front: Front) -> None:
        front.full = "full"
        front.listener.start()
        front.call()
        await front.until(lambda: len(front.said) >= 2)
        assert set(front.said) == {FrontPaused(front.name, "full")}
        front.full = ""
        front.call()
        await front.until(lambda: len(front.taken) == 2)
        assert front.said.count(FrontResumed(front.name)) == 1
        assert front.said[-1] == FrontResumed(front.name)

    run(story)


def test_resume_ends_a_pause_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 1000.0)

    async def story(front: Front) -> None:
        front.full = "full"
        front.listener.start()
        front.call()
        await front.until(lambda: bool(front.said))
        front.full = ""
        front.listener.resume()
        await front.until(lambda: len(front.taken) == 1)

    run(story)


def test_a_closed_listener_refuses_connections() -> None:
    async def story(front: Front) -> None:
        front.listener.start()
        front.listener.close()
        front.listener.close()
        with pytest.raises(ConnectionRefusedError):
            front.call()

    run(story)
