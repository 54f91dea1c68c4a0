"""Targets become routes; the look-up in routes."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from sshunt.config.targets import parse_target
from sshunt.errors import ExitCode, UserError
from sshunt.model import Action, Route
from sshunt.route.routes import RouteTable, resolve

_ZONE = {
    "both.example": ["192.0.2.1", "2001:db8::1"],
    "two.example": ["192.0.2.1", "192.0.2.2", "192.0.2.1"],
    "six.example": ["2001:db8::6"],
}


async def _getaddrinfo(
    host: str, port: None, /, *, type: int
) -> Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]:
    if host not in _ZONE:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(0, type, 6, "", (address, 0)) for address in _ZONE[host]]


def _resolve(targets: str, excludes: str = "", *, ipv6: bool = True) -> list[str]:
    routes = asyncio.run(
        resolve(
            [parse_target(word) for word in targets.split()],
            [parse_target(word) for word in excludes.split()],
            ipv6=ipv6,
            getaddrinfo=_getaddrinfo,
        )
    )
    return [
        f"{route.action.value} {route.network} {route.first_port}-{route.last_port}"
        for route in routes
    ]


def test_a_name_becomes_all_its_addresses_once() -> None:
    assert _resolve("both.example two.example:80") == [
        "remote 192.0.2.1/32 0-65535",
        "remote 2001:db8::1/128 0-65535",
        "remote 192.0.2.1/32 80-80",
        "remote 192.0.2.2/32 80-80",
    ]


def test_excludes_become_direct_routes_and_duplicates_collapse() -> None:
    assert _resolve("10/8 10.0.0.0/8", "10.1.0.0/16 10.1.2.3/16") == [
        "remote 10.0.0.0/8 0-65535",
        "direct 10.1.0.0/16 0-65535",
    ]


def test_without_ipv6_only_ipv4_is_left() -> None:
    assert _resolve("both.example ::/0", ipv6=False) == ["remote 192.0.2.1/32 0-65535"]


def test_a_width_applies_to_all_addresses_of_a_name() -> None:
    assert _resolve("two.example/24") == ["remote 192.0.2.0/24 0-65535"]
    assert _resolve("six.example/64") == ["remote 2001:db8::/64 0-65535"]


@pytest.mark.parametrize("target", ["both.example/24", "two.example/33"])
def test_a_width_that_cannot_be_meant_is_a_usage_error(target: str) -> None:
    with pytest.raises(UserError) as caught:
        _resolve(target)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_width_for_a_name_with_both_families_is_fine_when_ipv6_is_disabled() -> None:
    assert _resolve("both.example/24", ipv6=False) == ["remote 192.0.2.0/24 0-65535"]


@pytest.mark.parametrize(("target", "ipv6"), [("nowhere.example", True), ("six.example", False)])
def test_a_name_without_usable_address_is_a_name_error(target: str, ipv6: bool) -> None:
    with pytest.raises(UserError, match=target) as caught:
        _resolve(target, ipv6=ipv6)
    assert caught.value.exit_code is ExitCode.NAME


_TABLE = RouteTable(
    [
        Route(ip_network("0.0.0.0/0"), Action.REMOTE),
        Route(ip_network("10.0.0.0/8"), Action.DIRECT),
        Route(ip_network("10.0.0.0/8"), Action.REMOTE, 80, 90),
        Route(ip_network("10.0.0.0/8"), Action.DIRECT, 85, 86),
        Route(ip_network("10.1.0.0/16"), Action.REMOTE),
        Route(ip_network("10.1.0.0/16"), Action.DIRECT),
        Route(ip_network("2001:db8::/32"), Action.REMOTE),
    ]
)


@pytest.mark.parametrize(
    ("address", "port", "action"),
    [
        ("192.0.2.1", 80, Action.REMOTE),
        ("10.2.0.1", 22, Action.DIRECT),
        ("10.2.0.1", 80, Action.REMOTE),
        ("10.2.0.1", 85, Action.DIRECT),
        ("10.1.0.1", 80, Action.DIRECT),
        ("2001:db8::5", 80, Action.REMOTE),
        ("2001:db9::5", 80, None),
    ],
)
def test_the_most_specific_route_wins_and_exclusion_wins_a_tie(
    address: str, port: int, action: Action | None
) -> None:
    route = _TABLE.lookup(address, port)
    assert (route.action if route else None) is action
