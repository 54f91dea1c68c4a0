"""A redirected connection is handed on with its destination; what must not be carried is reset.

That the kernel's own answer is the destination is shown end to end: see tests/e2e/test_capture.py.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sshunt.front.arrival import Arrivals
from sshunt.front.held import HeldSyns
from sshunt.front.original import OriginalDestinations
from sshunt.front.redirect import Redirected
from sshunt.host.connecting import Connecting
from sshunt.model import Endpoint
from sshunt.relay.flow import TCP, Connection, Flow, Relays, SocketConnection
from sshunt.tell.report import CallerRefused, Event, Report

SOMEWHERE = ("10.0.0.1", 443)


class Front:
    """One front, a program that has connected to it, and what has been carried and said."""

    def __init__(self, undo: ExitStack) -> None:
        self.listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.program = undo.enter_context(socket.create_connection(self.listener.getsockname()))
        self.program.settimeout(5)
        self.accepted, _ = self.listener.accept()
        undo.callback(self.accepted.close)
        self.carried: list[Connection] = []
        self.said: list[Event] = []
        self.report = Report(lambda error: pytest.fail(str(error)))
        self.report.subscribe(self.said.append)
        self.arrivals = Arrivals()
        loop = asyncio.new_event_loop()
        undo.callback(loop.close)
        self.held = HeldSyns(
            loop,
            lambda _kind, _body: None,
            self.carried.append,
            self.arrivals,
            lambda _port, _destination: self.are_ours,
            Connecting(),
        )
        undo.callback(self.held.close)
        self.are_ours = False

    def take(self, original: OriginalDestinations | None = None) -> None:
        Redirected(
            original.of if original is not None else lambda _: SOMEWHERE,
            self.carried.append,
            Relays(),
            self.report,
            self.arrivals,
            self.held,
            lambda _sock, _destination: self.are_ours,
        ).take(self.accepted)

    @property
    def was_reset(self) -> bool:
        try:
            self.program.recv(1)
        except ConnectionResetError:
            return True
        return False


@pytest.fixture
def front() -> Iterator[Front]:
    with ExitStack() as undo:
        yield Front(undo)


def test_a_connection_is_carried_to_where_its_program_wanted_to_go(front: Front) -> None:
    front.take()
    (connection,) = front.carried
    assert connection.flow == Flow(TCP, SOMEWHERE)
    assert isinstance(connection, SocketConnection)
    assert connection.take() is front.accepted
    assert front.accepted.fileno() >= 0
    assert front.said == []


def test_a_connection_that_nothing_redirected_is_reset_and_that_is_said(front: Front) -> None:
    front.take(OriginalDestinations(front.listener))
    assert front.was_reset
    assert front.carried == []
    assert [type(event) for event in front.said] == [CallerRefused]


def test_a_program_that_has_hung_up_already_is_dropped_silently(front: Front) -> None:
    class Gone(OriginalDestinations):
        def of(self, sock: socket.socket) -> Endpoint:
            raise OSError("Transport endpoint is not connected")

    front.take(Gone(front.listener))
    assert front.was_reset
    assert front.carried == []
    assert front.said == []


def test_the_probe_is_closed_and_never_carried(front: Front) -> None:
    arrived = front.arrivals.expect(front.program.getsockname()[1], SOMEWHERE)
    front.take()
    assert arrived.is_set()
    assert front.program.recv(1) == b""
    assert front.carried == []


def test_a_connection_of_our_own_ssh_is_reset(front: Front) -> None:
    front.are_ours = True
    front.take()
    assert front.was_reset
    assert front.carried == []
    assert front.said == []
