"""Which programs wait to be connected, as the kernel lists them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sshunt.host.connecting import Connecting
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    """One whose packets to NOBODY are dropped on their way out."""
    lab.neighbour.run(["nft", "add table inet silent"])
    lab.neighbour.run(
        [
            "nft",
            "add chain inet silent out { type filter hook postrouting priority 0 ; policy drop ; }",
        ]
    )
    return lab.neighbour


NOBODY4, NOBODY6 = ("192.0.2.77", 9), ("2001:db8:1::77", 9)


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as undo:
        yield undo


def begin(host: Host, undo: ExitStack, family: int, destination: tuple[str, int]) -> socket.socket:
    sock = undo.enter_context(host.make_socket(family))
    sock.setblocking(False)
    sock.connect_ex(destination)
    return sock


@pytest.fixture(scope="module")
def connecting(host: Host) -> Iterator[Connecting]:
    with host.entered():
        connecting = Connecting()
    yield connecting
    connecting.close()


def test_those_that_wait_are_listed_and_no_others(
    host: Host, connecting: Connecting, undo: ExitStack
) -> None:
    four = begin(host, undo, socket.AF_INET, NOBODY4)
    six = begin(host, undo, socket.AF_INET6, NOBODY6)
    undo.enter_context(host.listen("127.0.0.1"))
    assert connecting.all() == {
        (four.getsockname(), NOBODY4),
        (six.getsockname()[:2], NOBODY6),
    }
    four.close()
    assert connecting.all() == {(six.getsockname()[:2], NOBODY6)}


def test_a_socket_of_ipv6_that_connects_to_an_ipv4_address_has_ipv4_ends(
    host: Host, connecting: Connecting, undo: ExitStack
) -> None:
    sock = begin(host, undo, socket.AF_INET6, ("::ffff:192.0.2.77", 9))
    own = sock.getsockname()[0].removeprefix("::ffff:"), sock.getsockname()[1]
    assert connecting.all() == {(own, NOBODY4)}


def test_thousands_are_all_listed(host: Host, connecting: Connecting, undo: ExitStack) -> None:
    ends = {(begin(host, undo, socket.AF_INET, NOBODY4).getsockname(), NOBODY4) for _ in range(800)}
    assert connecting.all() == ends


def test_one_that_is_bound_to_an_interface_is_told_from_others(
    host: Host, connecting: Connecting, undo: ExitStack
) -> None:
    for family, nobody in ((socket.AF_INET, NOBODY4), (socket.AF_INET6, NOBODY6)):
        free = begin(host, undo, family, nobody)
        bound = undo.enter_context(host.make_socket(family))
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"to-client")
        bound.connect_ex(nobody)
        assert not connecting.is_bound((free.getsockname()[:2], nobody))
        ends = (bound.getsockname()[:2], nobody)
        assert connecting.is_bound(ends)
        bound.close()
        assert not connecting.is_bound(ends)
    mapped = begin(host, undo, socket.AF_INET6, ("::ffff:192.0.2.77", 9)).getsockname()
    assert not connecting.is_bound(((mapped[0].removeprefix("::ffff:"), mapped[1]), NOBODY4))
