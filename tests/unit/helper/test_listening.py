"""Whose socket a listener is, as the kernel lists them."""

import os
import socket
import sys
from ipaddress import ip_network

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.helper.listening import owners, owners_in, with_own_listeners
from sshunt.model import Action, Route

_ROUTES = (Route(ip_network("10.0.0.0/8"), Action.REMOTE),)
_HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n"
)
_FOUR = "  7: {}:1F40 00000000:0000 07 00000000:00000000 00:00000000 00000000  {}  0 12345 2 0 0\n"


def as_user(uid: int, address: str) -> socket.socket:
    os.seteuid(uid)
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
    finally:
        os.seteuid(0)
    sock.bind((address, 0))
    return sock


@pytest.mark.skipif(os.geteuid() != 0, reason="makes sockets of other users")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_counts_for_whose_socket_it_is_and_for_nobody_else(
    address: str, proc: int
) -> None:
    with as_user(1234, address) as sock:
        endpoint = (address, sock.getsockname()[1])
        assert owners(endpoint, proc) == {1234}
        plan = Plan("feedface", redirects([endpoint], (), [endpoint]), _ROUTES)
        assert with_own_listeners(plan, 1234, proc) == plan
        assert with_own_listeners(plan, 0, proc) == plan
        version = 6 if ":" in address else 4
        assert with_own_listeners(plan, 1235, proc).datagrams(version) is None
        assert with_own_listeners(plan, 1235, proc).listener(version) == endpoint
    assert with_own_listeners(plan, 1234, proc).datagrams(version) is None  # nobody listens


@pytest.mark.parametrize(
    ("listed", "asked", "counts"),
    [
        ("0100007F", bytes((127, 0, 0, 1)), True),
        ("00000000", bytes((127, 0, 0, 1)), True),
        ("0200007F", bytes((127, 0, 0, 1)), False),
        ("0200007F", bytes(4), True),
        ("0000000000000000FFFF00000100007F", bytes((127, 0, 0, 1)), True),
        ("0" * 32, bytes((127, 0, 0, 1)), True),
        ("0" * 24 + "01000000", bytes(15) + b"\1", True),
        ("0" * 24 + "02000000", bytes(15) + b"\1", False),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="as a little-endian host lists them")
def test_sockets_count_that_may_receive_what_comes_there(
    listed: str, asked: bytes, counts: bool
) -> None:
    lines = [_HEAD, _FOUR.format(listed, 1000)]
    assert owners_in(lines, asked, 8000) == ({1000} if counts else set())
    assert owners_in(lines, asked, 8001) == set()


def test_two_users_at_one_port_are_both_told() -> None:
    lines = [_FOUR.format("0100007F", 1000), _FOUR.format("00000000", 1001)]
    assert owners_in(lines, bytes((127, 0, 0, 1)), 8000) == {1000, 1001}
