"""Sockets that send in the name of others, on a host of the lab."""

import socket
from contextlib import closing, suppress

from sshunt.helper.in_their_name import InTheirName
from sshunt.helper.udp_messages import Original
from sshunt.lab.world import Lab
from tests.unit.helper.udp import PEER, packed, udp


def test_they_hear_nothing_of_what_this_host_is_sent(lab: Lab) -> None:
    with lab.client.entered():
        sockets = InTheirName(4)
    with udp(lab.client, "127.0.0.1") as one, udp(lab.client, "127.0.0.1") as other:
        one.sendto(b"hello", other.getsockname())
        assert other.recv(10) == b"hello"
        sockets._datagrams.setblocking(False)
        try:
            heard = sockets._datagrams.recv(100)
        except BlockingIOError:
            heard = b""
        assert heard == b""
    sockets.close()


def test_another_host_takes_a_datagram_in_a_peer_s_name(lab: Lab) -> None:
    for family, host in ((4, lab.neighbour.v4), (6, lab.neighbour.v6)):
        with lab.client.entered():
            sockets = InTheirName(family)
        with closing(sockets), udp(lab.neighbour, host) as program:
            program.settimeout(1.0)
            end = Original(packed(host), program.getsockname()[1], packed(PEER[family]), 9)
            for payload in (b"", b"odd", bytes(9000)):
                heard, who = b"none", ("", 0)
                for _ in range(10):  # while the link is new, one may be lost
                    sockets.send(packed(PEER[family]), 53, end, payload)
                    with suppress(TimeoutError):
                        while heard != payload:
                            heard, who = program.recvfrom(10_000)
                        break
                assert (heard, who[:2]) == (payload, (PEER[family], 53))


def test_a_program_that_is_nowhere_is_no_error(lab: Lab) -> None:
    with lab.client.entered():
        sockets = InTheirName(4)
    nowhere = Original(socket.inet_aton("255.255.255.255"), 1, packed(PEER[4]), 9)
    sockets.send(packed(PEER[4]), 53, nowhere, b"x")
    sockets.close()
