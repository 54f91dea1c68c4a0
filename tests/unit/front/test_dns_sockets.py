"""Whom this host's programs ask names, and the sockets at which they are answered."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.front import dns_sockets
from sshunt.front.dns_sockets import left_alone, open_dns_sockets, system_resolvers
from sshunt.front.listener import CannotListen, bind


def test_the_systems_resolvers_are_named_once_and_link_local_ones_apart(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    resolvers = ("fe80::1%eth0", "127.0.0.53", "fe80::1%eth0", "2001:db8::1%eth0", "127.0.0.53")
    file.write_text("".join(f"nameserver {resolver}\n" for resolver in (*resolvers, "x")))
    assert system_resolvers(str(file)) == ("127.0.0.53", "2001:db8::1")
    assert left_alone(ipv6=True, resolv_conf=str(file)) == ("fe80::1%eth0",)
    assert left_alone(ipv6=False, resolv_conf=str(file)) == ("fe80::1%eth0", "2001:db8::1")


def test_a_cloud_s_resolver_at_a_link_local_ipv4_address_is_one_like_any(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 169.254.169.254\n")
    assert system_resolvers(str(file)) == ("169.254.169.254",)
    assert left_alone(ipv6=True, resolv_conf=str(file)) == ()


def test_both_listening_sockets_have_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [bind(("127.0.0.1", 0)) for _ in range(3)]
    blockers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in taken]
    for sock, blocker in zip(taken, blockers, strict=True):
        blocker.bind(sock.getsockname())
    attempts = iter([*taken, bind(("127.0.0.1", 0))])
    monkeypatch.setattr(dns_sockets, "bind", lambda _endpoint: next(attempts))
    sockets = open_dns_sockets(4)
    assert sockets.udp.getsockname() == sockets.tcp.getsockname() == sockets.endpoint
    sockets.close()
    for blocker in blockers:
        blocker.close()


@pytest.mark.parametrize(("family", "address"), [(4, "127.0.0.1"), (6, "::1")])
def test_the_dns_sockets_are_on_loopback_only(family: int, address: str) -> None:
    sockets = open_dns_sockets(family)
    assert sockets.endpoint == (address, sockets.udp.getsockname()[1])
    assert not sockets.udp.getblocking()
    sockets.close()
    assert sockets.udp.fileno() == sockets.tcp.fileno() == -1


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that is free for TCP and taken for UDP; every attempt gets it."""
    with ExitStack() as undo:
        blocker = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        blocker.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dns_sockets, "bind", lambda _: bind(blocker.getsockname()))
        yield blocker


def test_attempts_at_ports_taken_for_udp_are_limited(taken: socket.socket) -> None:
    with pytest.raises(CannotListen, match=r"listen for DNS on 127\.0\.0\.1: Address") as caught:
        open_dns_sockets(4)
    assert caught.value.error_number == errno.EADDRINUSE
    assert caught.value.hint == "leave --dns out"
