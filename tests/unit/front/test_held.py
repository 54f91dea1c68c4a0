"""Connections that are held: what the packet process is told of them, and who gets the far end."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from sshunt.front import held
from sshunt.front.arrival import Arrivals
from sshunt.front.held import HeldSyn, HeldSyns
from sshunt.helper.syn_messages import (
    FAILED,
    GONE,
    HELD,
    OPENED,
    REFUSED,
    Answer,
    Held,
    decode_failed_untrusted,
    decode_number_untrusted,
    decode_refused_untrusted,
    encode_held,
    encode_number,
)
from sshunt.host.connecting import Connecting, Ends
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.relay.flow import Connection, Relay

HERE, THERE = ("127.0.0.1", 40000), ("10.0.0.1", 80)


class Far(Relay):
    """A far end that is under way, and what has become of it."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []
        self.aborted = 0

    def take_connection(self, sock: socket.socket) -> None:
        self.taken.append(sock)

    def abort(self, code: int) -> None:
        self.aborted += 1


class Programs(Connecting):
    """Those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[Ends] = set()
        self.bound: set[Ends] = set()
        self.fails = False

    def all(self) -> set[Ends]:
        if self.fails:
            raise OSError
        return self.waiting

    def is_bound(self, ends: Ends) -> bool:
        return ends in self.all() | self.bound


class Front:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.said: list[tuple[object, ...]] = []
        self.carried: list[HeldSyn] = []
        self.arrivals = Arrivals()
        self.ours: set[int] = set()
        self.connecting = Programs()
        self.held = HeldSyns(
            self.loop, self._say, self._carry, self.arrivals, self._is_ours, self.connecting
        )

    def _say(self, kind: int, body: bytes) -> None:
        if kind == FAILED:
            self.said.append(("failed", decode_failed_untrusted(body)))
        elif kind == OPENED:
            self.said.append(("opened", decode_number_untrusted(body)))
        else:
            assert kind == REFUSED
            self.said.append(("refused", *decode_refused_untrusted(body)))

    def _carry(self, connection: Connection) -> None:
        assert isinstance(connection, HeldSyn)
        self.carried.append(connection)

    def _is_ours(self, port: int, _destination: Endpoint) -> bool:
        return port in self.ours

    def tell(
        self,
        number: int,
        source: Endpoint = HERE,
        destination: Endpoint = THERE,
        *,
        is_forwarded: bool = False,
    ) -> None:
        self.held.hear(HELD, encode_held(Held(number, is_forwarded, source, destination)))

    def carried_by(self, far: Far, number: int = 1, source: Endpoint = HERE) -> HeldSyn:
        self.tell(number, source)
        self.carried[-1].begun(far)
        return self.carried[-1]

    def go_on(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front()
    yield front
    front.held.close()
    front.held.close()
    front.loop.close()


@pytest.fixture
def accepted() -> Iterator[socket.socket]:
    """A connection from a program, as it is accepted."""
    with ExitStack() as undo:
        listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        undo.enter_context(socket.create_connection(listener.getsockname()))
        yield undo.enter_context(listener.accept()[0])


def source_of(sock: socket.socket) -> Endpoint:
    address, port = sock.getpeername()
    return address, port


def test_what_comes_from_there_and_leads_there_is_paired_with_its_far_end(
    front: Front, accepted: socket.socket
) -> None:
    far = Far()
    syn = front.carried_by(far, 1, source_of(accepted))
    assert syn.flow.destination == THERE
    assert syn.wants_opened
    assert front.said == []
    syn.opened()
    syn.opened()  # which changes nothing
    assert front.said == [("opened", 1)]
    assert not front.held.take(accepted, ("10.0.0.2", 80))
    assert front.held.take(accepted, THERE)
    assert far.taken == [accepted]
    assert not front.held.take(accepted, THERE)
    assert syn.is_over


def test_one_that_has_another_port_by_now_takes_the_oldest_that_was_let_go_there(
    front: Front, accepted: socket.socket
) -> None:
    fars = [Far() for _ in range(3)]
    syns = [front.carried_by(far, 1 + n, ("127.0.0.1", 1 + n)) for n, far in enumerate(fars)]
    assert not front.held.take(accepted, THERE)  # none is let go
    syns[1].opened()
    syns[0].opened()
    for far in (fars[1], fars[0]):
        assert front.held.take(accepted, THERE)
        assert far.taken == [accepted]
    assert not front.held.take(accepted, THERE)
    assert fars[2].taken == []


def test_nothing_is_ours_that_was_not_held(front: Front, accepted: socket.socket) -> None:
    assert not front.held.take(accepted, THERE)
    front.carried_by(Far())
    assert not front.held.take(accepted, THERE)
    accepted.close()
    assert not front.held.take(accepted, THERE)


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (frames.RESET_REFUSED, Answer.RESET),
        (frames.RESET_ABORTED, Answer.RESET),
        (frames.RESET_OTHER, Answer.RESET),
        (frames.RESET_HOST_UNREACHABLE, Answer.HOST_UNREACHABLE),
        (frames.RESET_NET_UNREACHABLE, Answer.NETWORK_UNREACHABLE),
        (frames.RESET_NOT_PERMITTED, Answer.PROHIBITED),
        (frames.RESET_TIMED_OUT, Answer.NOTHING),
        (frames.RESET_NO_RESOURCES, Answer.NOTHING),
        (250, Answer.NOTHING),
    ],
)
def test_a_refusal_is_told_as_what_it_is(front: Front, code: int, answer: Answer) -> None:
    syn = front.carried_by(Far())
    syn.refused(code)
    assert front.said == [("refused", 1, answer)]
    assert syn.is_over
    assert len(front.held) == 0
    syn.refused(code)  # its stream ends, too
    assert len(front.said) == 1


def test_one_that_is_gone_is_given_up_over_there(front: Front) -> None:
    far = Far()
    syn = front.carried_by(far)
    for number, aborted in ((7, 0), (1, 1)):  # another one, it
        front.held.hear(GONE, encode_number(number))
        assert far.aborted == aborted
    assert syn.is_over
    syn.opened()
    assert front.said == []


def test_one_that_nobody_carries_yet_can_be_given_up(front: Front) -> None:
    front.tell(1)  # the link is lost
    front.held.hear(GONE, encode_number(1))
    assert front.carried[0].is_over


def test_another_from_the_same_port_takes_its_place(front: Front) -> None:
    first, second = Far(), Far()
    front.carried_by(first, 1)
    front.carried_by(second, 2).opened()
    assert first.aborted == 1
    assert front.said == [("opened", 2)]


def test_a_far_end_that_nobody_comes_for_is_given_up(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "PAIRED_WITHIN_S", 0.02)
    fars = Far(), Far()
    front.carried_by(fars[0], 1).opened()
    front.go_on(0.01)
    front.carried_by(fars[1], 2, ("127.0.0.1", 40001)).opened()
    front.go_on(0.05)
    assert [far.aborted for far in fars] == [1, 1]


def test_one_that_is_bound_to_an_interface_is_refused_at_once(front: Front) -> None:
    front.connecting.bound = {(HERE, THERE)}
    front.tell(1)
    assert front.said == [("refused", 1, Answer.RESET)]
    front.tell(2, is_forwarded=True)  # which is not for us to know
    assert len(front.carried) == 1
    front.connecting.fails = True
    front.tell(3, ("127.0.0.1", 3))
    assert len(front.carried) == 2


def test_whose_program_waits_no_more_is_given_up(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "LOOKED_FOR_AFTER_S", 0.0)
    waits, left, forwarded = Far(), Far(), Far()
    front.carried_by(waits, 1, ("127.0.0.1", 1))
    front.carried_by(left, 2, ("127.0.0.1", 2))
    front.tell(3, ("192.0.2.1", 3), is_forwarded=True)
    front.carried[-1].begun(forwarded)
    front.connecting.waiting = {(("127.0.0.1", 1), THERE)}
    front.connecting.fails = True
    front.held.look()
    assert not left.aborted  # who knows
    front.connecting.fails = False
    front.held.look()
    assert [far.aborted for far in (waits, left, forwarded)] == [0, 1, 0]
    assert front.said == [("refused", 2, Answer.NOTHING)]


def test_the_young_are_not_looked_for(front: Front) -> None:
    front.connecting.fails = True
    front.held.look()
    far = Far()
    front.carried_by(far)
    front.connecting.fails = False
    front.held.look()
    assert far.aborted == 0


def test_one_whose_copy_was_let_go_takes_the_far_end_that_is_under_way(
    front: Front, accepted: socket.socket
) -> None:
    far = Far()
    syn = front.carried_by(far, 1, source_of(accepted))
    assert front.held.take(accepted, THERE)  # others had an answer from there meanwhile
    assert far.taken == [accepted]
    assert front.said == [("refused", 1, Answer.NOTHING)]
    syn.opened()
    assert len(front.said) == 1


def test_one_that_came_while_nobody_carried_it_is_reset(
    front: Front, accepted: socket.socket
) -> None:
    front.tell(1, source_of(accepted))
    assert front.held.take(accepted, THERE)
    assert accepted.fileno() == -1


def test_our_own_probe_is_let_go_at_once_and_our_own_ssh_refused(front: Front) -> None:
    front.arrivals.expect(HERE[1], THERE)
    front.tell(1)
    front.ours.add(22222)
    front.tell(2, ("127.0.0.1", 22222))
    assert front.said == [("opened", 1), ("refused", 2, Answer.RESET)]
    assert not front.carried


def test_a_destination_that_has_failed_is_told(front: Front) -> None:
    front.held.failed(THERE)
    assert front.said == [("failed", THERE)]


def test_where_its_route_is_gone_it_is_not_answered(front: Front) -> None:
    def as_a_carrier_of_this_host(connection: Connection) -> Relay:
        return connection.relay()

    front.tell(1)
    relay = as_a_carrier_of_this_host(front.carried[0])
    assert front.said == [("refused", 1, Answer.NOTHING)]
    assert relay.is_over
    assert relay.is_abandoned
    assert not relay.is_connecting
    relay.abort(frames.RESET_REFUSED)
    for end in (relay.connect, relay.take_connection):
        _is_closed_by(end)


def _is_closed_by(end: Callable[[socket.socket], None]) -> None:
    sock = socket.socket()
    end(sock)
    assert sock.fileno() == -1


def test_at_the_end_all_far_ends_are_given_up(front: Front) -> None:
    fars = Far(), Far()
    front.carried_by(fars[0], 1)
    front.carried_by(fars[1], 2, ("127.0.0.1", 2)).opened()
    front.held.close()
    assert [far.aborted for far in fars] == [1, 1]
