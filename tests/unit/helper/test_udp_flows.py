"""Flows of UDP, by the real helper on a host that is a router: what a client is told of them, and
what programs hear by it. Nobody is behind the destinations, and no packet may ever go there.
"""

import socket
from collections.abc import Iterator

import pytest

from sshunt.helper.udp_flows import ERRORS_A_SECOND_OF_ONE
from sshunt.helper.udp_messages import (
    DELIVER,
    FAIL,
    MAX_DATAGRAM_BYTES,
    Delivery,
    Failure,
    Key,
    Original,
    encode_delivery,
    encode_failure,
)
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from tests.unit.helper.udp import (
    LOOPBACK,
    OTHER_PEER,
    PEER,
    UdpClient,
    capturing,
    hear_errors,
    packed,
    udp,
)


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[UdpClient]:
    with capturing(lab) as client:
        yield client


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def own_address(host: Host, family: int) -> str:
    return host.v4 if family == 4 else host.v6


def program_on(host: Host, family: int) -> socket.socket:
    return udp(host, own_address(host, family))


def test_one_socket_s_destinations_are_told_apart(client: UdpClient, family: int) -> None:
    with program_on(client.host, family) as program:
        keys = []
        for peer in (PEER, OTHER_PEER):
            program.sendto(b"hello", (peer[family], 7))
            keys.append(client.arrived(family, LOOPBACK[family]))
        source = packed(own_address(client.host, family)), program.getsockname()[1]
        assert client.look_up(family, *keys) == [
            Original(*source, packed(peer[family]), 7) for peer in (PEER, OTHER_PEER)
        ]
        assert keys[0].port != keys[1].port
        client.answer(family, keys[1], b"answer")
        heard, who = program.recvfrom(100)
        assert (heard, who[:2]) == (b"answer", (OTHER_PEER[family], 7))


def test_whoever_was_not_redirected_is_not_found(client: UdpClient, family: int) -> None:
    with program_on(client.host, family) as stranger:
        stranger.sendto(b"?", (LOOPBACK[family], client.port[family]))
        key = client.arrived(family, LOOPBACK[family])
        assert client.look_up(family, key) == [None]
        # Nor is a flow that exists, but not with our listener's port: nobody's else can be named.
        assert client.look_up(family, key._replace(port=1)) == [None]


def test_a_peer_that_was_never_written_to_is_heard(client: UdpClient, family: int) -> None:
    with program_on(client.host, family) as program:
        program.sendto(b"hello", (PEER[family], 69))
        key = client.arrived(family, LOOPBACK[family])
        peer = packed(OTHER_PEER[family])
        for payload in (b"", b"block", bytes(60_000)):
            delivery = Delivery(family, key, peer, 1069, 0, payload)
            client.say(DELIVER, encode_delivery(delivery))
            heard, who = program.recvfrom(70_000)
            assert (heard, who[:2]) == (payload, (OTHER_PEER[family], 1069))
        batch = Delivery(family, key, peer, 1069, 2, b"aabbc")
        client.say(DELIVER, encode_delivery(batch))
        assert [program.recv(10) for _ in range(3)] == [b"aa", b"bb", b"c"]
        # What is answered is captured, and not taken for an answer.
        program.sendto(b"ack", (OTHER_PEER[family], 1069))
        answered = client.arrived(family, LOOPBACK[family])
        (original,) = client.look_up(family, answered)
        assert original is not None
        assert original[2:] == (peer, 1069)


def test_nobody_beyond_the_routes_is_spoken_for(client: UdpClient, family: int) -> None:
    beyond = {4: "192.0.2.200", 6: "2001:db8:ffff::1"}[family]
    with program_on(client.host, family) as program:
        program.sendto(b"hello", (PEER[family], 69))
        key = client.arrived(family, LOOPBACK[family])
        for peer, expected in ((beyond, None), (PEER[family], b"last")):
            delivery = Delivery(family, key, packed(peer), 69, 0, expected or b"forged")
            client.say(DELIVER, encode_delivery(delivery))
        assert program.recv(100) == b"last"


def test_a_refused_datagram_is_refused_at_a_connected_socket(
    client: UdpClient, family: int
) -> None:
    with program_on(client.host, family) as program:
        program.connect((PEER[family], 9))
        for failure, error in (
            (Failure.REFUSED, ConnectionRefusedError),
            (Failure.HOST_UNREACHABLE, OSError),
            (Failure.NET_UNREACHABLE, OSError),
            (Failure.NOT_PERMITTED, OSError),
        ):
            if failure is not Failure.REFUSED:
                hear_errors(program)
            program.send(b"hello")
            key = client.arrived(family, LOOPBACK[family])
            client.say(FAIL, encode_failure(family, key, failure))
            with pytest.raises(error) as caught:
                program.recv(100)
            assert not isinstance(caught.value, TimeoutError)


def test_errors_are_limited_in_rate(client: UdpClient) -> None:
    with program_on(client.host, 4) as program:
        hear_errors(program)
        program.sendto(b"hello", (PEER[4], 10))
        key = client.arrived(4, LOOPBACK[4])
        for _ in range(20 * ERRORS_A_SECOND_OF_ONE):
            client.say(FAIL, encode_failure(4, key, Failure.REFUSED))
        client.look_up(4, key)  # so all of them have been looked at
        program.setblocking(False)
        heard = 0
        while True:
            try:
                program.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                break
            heard += 1
        assert 0 < heard <= 3 * ERRORS_A_SECOND_OF_ONE


def test_forwarded_datagrams_are_served_alike(client: UdpClient, family: int) -> None:
    address = own_address(client.neighbour, family)
    with program_on(client.neighbour, family) as program:
        program.connect((PEER[family], 9))
        program.send(b"hello")
        heard, ancillary_source = client.listeners[family].recvfrom(100)
        assert (heard, ancillary_source[0]) == (b"hello", address)
        locals_ = [
            line.split()[3].split("/")[0]
            for line in client.host.run(["ip", "-o", "address"]).stdout.splitlines()
        ]
        keys = [
            Key(packed(local), packed(address), ancillary_source[1])
            for local in locals_
            if (":" in local) == (family == 6)
        ]
        found = dict(zip(keys, client.look_up(family, *keys), strict=True))
        (key,) = [key for key, original in found.items() if original is not None]
        client.say(FAIL, encode_failure(family, key, Failure.REFUSED))
        with pytest.raises(ConnectionRefusedError):
            program.recv(100)
    with program_on(client.neighbour, family) as program:
        program.sendto(b"hello", (PEER[family], 69))
        _, seen = client.listeners[family].recvfrom(100)
        delivery = Delivery(
            family,
            key._replace(port=seen[1]),
            packed(OTHER_PEER[family]),
            1069,
            0,
            bytes(MAX_DATAGRAM_BYTES - 40),
        )
        client.say(DELIVER, encode_delivery(delivery))
        heard, who = program.recvfrom(70_000)
        assert (heard, who[:2]) == (delivery.payload, (OTHER_PEER[family], 1069))


def test_a_service_at_the_peer_s_port_is_in_nobody_s_way(client: UdpClient) -> None:
    with udp(client.host, "0.0.0.0", 1053), program_on(client.host, 4) as program:
        program.sendto(b"hello", (PEER[4], 1053))
        key = client.arrived(4, LOOPBACK[4])
        client.answer(4, key, b"answer")
        assert program.recvfrom(100) == (b"answer", (PEER[4], 1053))
        delivery = Delivery(4, key, packed(OTHER_PEER[4]), 1053, 0, b"other")
        client.say(DELIVER, encode_delivery(delivery))
        assert program.recvfrom(100) == (b"other", (OTHER_PEER[4], 1053))
