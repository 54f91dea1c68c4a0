"""Flows and near ends: what each kind of near end does when it is refused or handed over."""

import asyncio
import socket

import pytest

from sshunt.relay.flow import (
    NO_RESOURCES,
    NOT_PERMITTED,
    TCP,
    UDP,
    Asked,
    Association,
    Carrier,
    Connection,
    Flow,
    Outlet,
    Question,
    Relay,
    Relays,
    SocketConnection,
)

FLOW = Flow(TCP, ("192.0.2.1", 80))


class Noted(Relays):
    """Notes what it was given to join."""

    def __init__(self) -> None:
        self.joined: list[tuple[Connection, socket.socket]] = []

    def join(self, connection: Connection, near: socket.socket) -> Relay:
        self.joined.append((connection, near))
        return Relay()


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return program, ours


def test_a_refused_program_sees_a_reset() -> None:
    program, ours = pair()
    SocketConnection(Noted(), FLOW, ours).refused(NOT_PERMITTED)
    with program, pytest.raises(ConnectionResetError):
        program.recv(1)


def test_a_socket_is_handed_over_to_be_joined_or_for_a_stream() -> None:
    program, ours = pair()
    with program, ours:
        relays = Noted()
        connection = SocketConnection(relays, FLOW, ours, wants_opened=True)
        assert connection.take() is ours
        connection.relay()
        assert relays.joined == [(connection, ours)]
        connection.opened()  # nothing is said to a program that need not be told


def test_a_connection_wants_to_be_told_only_if_it_says_so() -> None:
    program, ours = pair()
    with program, ours:
        assert not SocketConnection(Noted(), FLOW, ours).wants_opened


def test_a_question_that_is_over_may_still_be_given_up() -> None:
    Asked().give_up()


def test_an_outlet_that_leads_nowhere_takes_what_it_is_given() -> None:
    outlet = Outlet()
    outlet.send(b"lost")
    outlet.close()


def test_what_a_kind_of_end_must_say_for_itself_is_an_error_until_it_does() -> None:
    relay, carrier = Relay(), Carrier()
    connection, question = Connection(FLOW, wants_opened=False), Question(b"", 0)
    association = Association(Flow(UDP, ("192.0.2.1", 53)), 30.0)
    for call in (
        lambda: relay.is_over,
        lambda: relay.is_connecting,
        lambda: relay.is_abandoned,
        lambda: relay.sock,
        lambda: relay.abort(NO_RESOURCES),
        lambda: connection.refused(NO_RESOURCES),
        connection.relay,
        lambda: question.answer(b""),
        lambda: question.refused(NO_RESOURCES),
        lambda: association.deliver(b""),
        lambda: association.ended(NO_RESOURCES),
        lambda: carrier.is_up,
        lambda: carrier.connect(connection),
        lambda: carrier.associate(association),
        lambda: carrier.ask(question),
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_a_near_end_of_datagrams_need_not_care_for_errors_and_strangers() -> None:
    association = Association(Flow(UDP, ("192.0.2.1", 53)), 30.0)
    association.failed(NO_RESOURCES)
    assert association.stranger(("192.0.2.1", 54)) is None


def test_connecting_is_no_coroutine() -> None:
    """A carrier's face returns at once: thousands of connections a second come by it."""
    for method in (Carrier.connect, Carrier.associate, Carrier.ask):
        assert not asyncio.iscoroutinefunction(method)
