"""Whose socket is at the other end, as the kernel of this very machine says."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from sshunt.front.dns_askers import UNKNOWN, Askers
from sshunt.front.dns_sockets import DnsSockets, open_dns_sockets

#: Sends a datagram to, or connects to, where its words say, as another user; waits to be told.
PROGRAM = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
kind = socket.SOCK_DGRAM if sys.argv[2] == "udp" else socket.SOCK_STREAM
family = socket.AF_INET6 if ":" in sys.argv[4] else socket.AF_INET
with socket.socket(family, kind) as sock:
    sock.connect((sys.argv[4], int(sys.argv[1])))
    sock.send(b"x")
    input()
"""


@pytest.fixture(params=[4, 6])
def sockets(request: pytest.FixtureRequest) -> Iterator[DnsSockets]:
    with closing(open_dns_sockets(request.param)) as sockets:
        sockets.udp.settimeout(20)
        sockets.tcp.settimeout(20)
        yield sockets


@pytest.mark.parametrize("kind", ["udp", "tcp"])
@pytest.mark.parametrize("uid", [0, 4321])
def test_the_user_behind_a_query_or_a_connection_is_known(
    sockets: DnsSockets, kind: str, uid: int
) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    address, port = sockets.endpoint
    words = [sys.executable, "-c", PROGRAM, str(port), kind, str(uid), address]
    with (
        closing(Askers(sockets)) as askers,
        subprocess.Popen(words, stdin=subprocess.PIPE) as other,
    ):
        try:
            if kind == "udp":
                ours, program = sockets.udp, sockets.udp.recvfrom(10)[1]
            else:
                ours, program = sockets.tcp.accept()
            elsewhere = ("192.0.2.1" if ":" not in address else "2001:db8::1", 53)
            assert askers.of(ours, program, [elsewhere, sockets.endpoint]) == 1 + uid % 255
            if kind == "tcp":
                assert askers.of(ours, program, [elsewhere]) == UNKNOWN
                ours.close()
        finally:
            other.communicate(b"\n")


def test_where_the_kernel_tells_no_user_all_queries_count_as_one_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError

    with closing(open_dns_sockets(4)) as sockets:
        monkeypatch.setattr(socket, "socket", refuse)
        askers = Askers(sockets)
        assert askers.of(sockets.udp, ("127.0.0.1", 9), [sockets.endpoint]) == UNKNOWN
        askers.close()
