"""Programs' echo requests become flows, and what comes back their answers, or nothing does."""

import pytest

from sshunt.front import echo
from sshunt.front.echo import Echoes
from sshunt.helper.echo_messages import (
    ASKED,
    ERROR,
    REPLY,
    Asked,
    Failed,
    Replied,
    decode_failed_untrusted,
    decode_replied_untrusted,
    encode_asked,
)
from sshunt.relay.echo import CHILDREN
from sshunt.relay.flow import (
    ECHO,
    FLOW_DONE,
    FLOW_NO_RESOURCES,
    FLOW_NOT_PERMITTED,
    Association,
    Flow,
    Outlet,
)
from sshunt.tell.report import EchoesByPing, EchoesNotPermitted, Event, Report

PING = Asked(1, "192.0.2.1", "10.0.0.1", 64, False, 7, 1, b"data")
PING6 = Asked(2, "2001:db8::1", "fd00::1", 64, False, 7, 1, b"data")


class Carried(Outlet):
    """A flow as whoever carries it has it."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self.sent: list[bytes] = []
        self.is_closed = False

    def send(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.sent.append(datagram)

    def close(self) -> None:
        self.is_closed = True


class World:
    """The packet process on one side, the carrier on the other, a clock and somebody who reads."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.carried: list[Carried] = []
        self.said: list[Replied | Failed] = []
        self.heard: list[Event] = []
        report = Report(_raise)
        report.subscribe(self.heard.append)
        self.echoes = Echoes(self._say, self._carry, lambda: self.now, report)

    def ask(self, asked: Asked) -> Carried:
        self.echoes.hear(ASKED, encode_asked(asked))
        return self.carried[-1]

    def _say(self, kind: int, body: bytes) -> None:
        if kind == REPLY:
            self.said.append(decode_replied_untrusted(body))
        else:
            assert kind == ERROR
            self.said.append(decode_failed_untrusted(body))

    def _carry(self, association: Association) -> Outlet:
        self.carried.append(Carried(association))
        return self.carried[-1]


def _raise(error: Exception) -> None:
    raise error


@pytest.fixture
def world() -> World:
    return World()


def test_a_program_s_requests_to_a_host_are_one_flow(world: World) -> None:
    world.ask(PING)
    flow = world.ask(PING._replace(number=2, sequence=2))
    assert len(world.carried) == 1
    assert flow.association.flow == Flow(ECHO, ("10.0.0.1", 0), ("192.0.2.1", 7))
    assert flow.sent == [b"\x40\0\0\1data", b"\x40\0\0\2data"]


@pytest.mark.parametrize(
    "other",
    [
        PING._replace(identifier=8),
        PING._replace(source="192.0.2.2"),
        PING._replace(destination="10.0.0.2"),
    ],
)
def test_other_programs_hosts_and_destinations_are_others(world: World, other: Asked) -> None:
    first, second = world.ask(PING), world.ask(other)
    assert first.association.source != second.association.source
    assert len(world.echoes) == 2


def test_a_reply_is_told_once_with_what_came_back(world: World) -> None:
    flow = world.ask(PING)
    for data in (b"dat", b"data"):
        flow.association.deliver(b"\0\0\x37\0\1" + data)
    assert world.said == [Replied(1, 55, 3)]


@pytest.mark.parametrize(
    "datagram", [b"", b"\0\0\x37\0\1dada", b"\0\0\x37\0\1data!", b"\0\0\x37\0\2data"]
)
def test_what_answers_nothing_that_was_asked_is_ignored(world: World, datagram: bytes) -> None:
    world.ask(PING).association.deliver(datagram)
    assert world.said == []


def test_an_error_is_told_with_who_says_so(world: World) -> None:
    world.ask(PING).association.deliver(b"\x0b\0\0\0\1\0\0\0\0\x0a\0\0\xfe")
    world.ask(PING._replace(number=5, sequence=5)).association.deliver(b"\3\4\0\0\5\0\0\5\x14")
    world.ask(PING6).association.deliver(b"\1\0\0\0\1\0\0\0\0")
    assert world.said == [
        Failed(1, 11, 0, 0, "10.0.0.254"),
        Failed(5, 3, 4, 1300, "10.0.0.1"),
        Failed(2, 1, 0, 0, "fd00::1"),
    ]


@pytest.mark.parametrize("head", [b"\5\0", b"\3\x10", b"\x0b\2", b"\x0c\0", b"\x81\0"])
def test_an_error_that_a_request_can_t_have_is_kept_back(world: World, head: bytes) -> None:
    world.ask(PING).association.deliver(head + b"\0\0\1\0\0\0\0\x0a\0\0\xfe")
    assert world.said == []


def test_a_flood_is_cut_and_what_comes_later_is_not(world: World) -> None:
    for sequence in range(1000):
        flow = world.ask(PING._replace(sequence=sequence))
    assert len(flow.sent) == echo.RATE
    world.now += 0.5
    for sequence in range(1000):
        world.ask(PING._replace(sequence=sequence))
    assert len(flow.sent) == 1.5 * echo.RATE
    world.now += 60
    for sequence in range(1000):
        world.ask(PING._replace(sequence=sequence))
    assert len(flow.sent) == 2.5 * echo.RATE


def test_only_so_many_answers_are_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "MOST_WAITING", 2)
    for sequence in (1, 2, 3):
        flow = world.ask(PING._replace(number=sequence, sequence=sequence))
    for sequence in (1, 2, 3):
        flow.association.deliver(bytes((0, 0, 0, 0, sequence)) + b"data")
    assert [each.number for each in world.said] == [2, 3]


def test_of_too_many_flows_the_one_that_was_silent_longest_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "MOST_FLOWS", 2)
    first = world.ask(PING)
    second = world.ask(PING._replace(identifier=8))
    world.ask(PING._replace(sequence=2))
    world.ask(PING._replace(identifier=9))
    assert (first.is_closed, second.is_closed, len(world.echoes)) == (False, True, 2)


def test_a_flow_that_is_over_is_begun_anew_by_the_next_request(world: World) -> None:
    for code in (FLOW_DONE, FLOW_NO_RESOURCES):
        flow = world.ask(PING)
        flow.association.ended(code)
        assert len(world.echoes) == 0
    assert world.ask(PING) is not flow
    assert world.heard == []


def test_what_the_far_side_may_not_is_said_once(world: World) -> None:
    for identifier in (1, 2):
        flow = world.ask(PING._replace(identifier=identifier))
        flow.association.failed(FLOW_NOT_PERMITTED, CHILDREN)
        flow.association.failed(FLOW_NO_RESOURCES)
    assert world.heard == [EchoesByPing()]
    for identifier in (3, 4):
        world.ask(PING._replace(identifier=identifier)).association.ended(FLOW_NOT_PERMITTED)
    assert [type(event) for event in world.heard] == [EchoesByPing, EchoesNotPermitted]


def test_in_the_end_nothing_is_asked_any_more(world: World) -> None:
    flows = [world.ask(PING), world.ask(PING6)]
    world.echoes.hear(ASKED + 9, b"")
    world.echoes.close()
    assert all(flow.is_closed for flow in flows)
    assert len(world.echoes) == 0
