"""Which destination is tried, what counts as the probe, and what is found out by it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest

from sshunt.front import arrival
from sshunt.front.arrival import Arrivals, Fate, Prober, check, destination_to_try, lost
from sshunt.model import Action, Endpoint, Route
from sshunt.tell.report import ArrivalChecked, Event, Report


def route(
    network: str, action: Action = Action.REMOTE, ports: tuple[int, int] = (0, 65535)
) -> Route:
    return Route(ip_network(network), action, *ports)


@pytest.mark.parametrize(
    ("routes", "family", "destination"),
    [
        ([route("0.0.0.0/0")], 4, ("203.0.113.1", 1)),
        ([route("0.0.0.0/0"), route("203.0.113.0/24", Action.DIRECT)], 4, ("198.51.100.1", 1)),
        ([route("10.55.0.0/24")], 4, ("10.55.0.1", 1)),
        ([route("10.55.0.7/32", ports=(443, 443))], 4, ("10.55.0.7", 443)),
        ([route("::/0")], 6, ("2001:db8::1", 1)),
        ([route("10.0.0.0/8")], 6, None),
        ([route("127.0.0.0/8")], 4, None),  # this host itself is never captured
        ([route("10.0.0.0/24"), route("10.0.0.0/30", Action.DIRECT)], 4, None),
    ],
)
def test_the_probed_address_is_routed_and_nobodys_where_possible(
    routes: list[Route], family: int, destination: tuple[str, int] | None
) -> None:
    assert destination_to_try(routes, family) == destination


def test_only_the_expected_connection_is_taken_for_the_probe() -> None:
    arrivals = Arrivals()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as program:
            sock, _ = listener.accept()
            with sock:
                assert not arrivals.take(sock, ("10.0.0.1", 1))
                arrived = arrivals.expect(program.getsockname()[1], ("10.0.0.1", 1))
                assert not arrivals.take(sock, ("10.0.0.1", 2))
                assert not arrived.is_set()
                assert arrivals.take(sock, ("10.0.0.1", 1))
                assert arrived.is_set()
                arrivals.forget(program.getsockname()[1], ("10.0.0.1", 1))
                assert not arrivals.take(sock, ("10.0.0.1", 1))


# --- the prober, on loopback: as if it were captured ----------------------------------------------


class Office:
    """A prober, and what is expected; ``said`` is what has been reported."""

    def __init__(self) -> None:
        self.prober = Prober()
        self.arrivals = Arrivals()
        self.said: list[Event] = []
        self.report = Report(lambda error: pytest.fail(str(error)))
        self.report.subscribe(self.said.append)

    def run(self, story: Callable[["Office"], Awaitable[object]]) -> object:
        async def within_deadline() -> object:
            return await asyncio.wait_for(story(self), 10)

        try:
            return asyncio.run(within_deadline())
        finally:
            self.prober.close()
            self.prober.close()


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setattr(arrival, "ARRIVAL_DEADLINE_S", 0.2)
    return Office()


async def fate_of(office: Office, *, taken: bool) -> Fate:
    """What becomes of a probe of a listener that takes what was accepted, or does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        destination: Endpoint = listener.getsockname()[:2]

        def accept() -> None:
            sock, _ = listener.accept()
            with sock:
                assert not taken or office.arrivals.take(sock, destination)

        loop = asyncio.get_running_loop()
        loop.add_reader(listener, accept)
        try:
            return await check(office.prober, office.arrivals, destination)
        finally:
            loop.remove_reader(listener)


def test_a_probe_that_is_taken_has_arrived(office: Office) -> None:
    assert office.run(lambda office: fate_of(office, taken=True)) is Fate.ARRIVED


def test_a_probe_that_ends_elsewhere_is_lost(office: Office) -> None:
    assert office.run(lambda office: fate_of(office, taken=False)) is Fate.LOST


def test_without_a_prober_nothing_is_known(office: Office) -> None:
    office.prober.close()

    async def ask(office: Office) -> Fate:
        return await check(office.prober, office.arrivals, ("127.0.0.1", 1))

    assert office.run(ask) is Fate.UNKNOWN


def test_a_destination_that_no_socket_can_have_is_not_known(office: Office) -> None:
    async def ask(office: Office) -> Fate:
        return await check(office.prober, office.arrivals, ("no address", 1))

    assert office.run(ask) is Fate.UNKNOWN


def test_an_inconclusive_arrival_check_is_a_detail_and_not_a_loss(office: Office) -> None:
    """What is found by a real prober is shown end to end: see tests/e2e/test_arrival.py."""
    office.prober.close()
    only_ipv4 = [route("0.0.0.0/0")]

    async def look(office: Office) -> tuple[int, ...]:
        return await lost(office.prober, office.arrivals, only_ipv4, (4, 6), office.report)

    assert office.run(look) == ()
    assert office.said == [ArrivalChecked(4, "UNKNOWN")]
