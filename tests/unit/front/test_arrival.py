"""Which destination is tried, and what counts as the probe."""

import socket
from ipaddress import ip_network

import pytest

from sshunt.front.arrival import Arrivals, destination_to_try
from sshunt.model import Action, Route


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
def test_what_is_tried_is_captured_and_nobodys_if_that_can_be(
    routes: list[Route], family: int, destination: tuple[str, int] | None
) -> None:
    assert destination_to_try(routes, family) == destination


def test_only_what_was_expected_is_taken() -> None:
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
