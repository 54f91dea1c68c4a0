"""What connection tracking is asked, on a host of the lab."""

from collections.abc import Iterator

import pytest

from sshunt.helper.conntrack import Conntrack, Reply, forget_flows
from sshunt.helper.udp_messages import Original
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from tests.unit.helper.udp import LOOPBACK, PEER, UdpClient, capturing, packed, udp


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[UdpClient]:
    with capturing(lab) as client:
        yield client


def questions_on(host: Host) -> Conntrack:
    with host.entered():
        return Conntrack()


def test_many_flows_are_found_at_once_and_unknown_ones_are_not(client: UdpClient) -> None:
    conntrack = questions_on(client.host)
    address = packed(client.host.v4)
    with udp(client.host, client.host.v4) as program:
        replies, expected = [], []
        for port in range(1000, 1040):
            program.sendto(b"hello", (PEER[4], port))
            key = client.arrived(4, LOOPBACK[4])
            replies.append(Reply(key.local, client.port[4], key.program, key.port))
            expected.append(Original(address, program.getsockname()[1], packed(PEER[4]), port))
        unknown = replies[0]._replace(source_port=1)
        assert conntrack.find(4, [unknown, *replies, unknown]) == [None, *expected, None]
    conntrack.close()


def test_flows_of_a_listener_are_forgotten_and_no_others(client: UdpClient) -> None:
    conntrack = questions_on(client.host)
    with udp(client.host, client.host.v4) as four, udp(client.host, client.host.v6) as six:
        replies = {}
        for family, program in ((4, four), (6, six)):
            program.sendto(b"hello", (PEER[family], 7))
            key = client.arrived(family, LOOPBACK[family])
            replies[family] = Reply(key.local, client.port[family], key.program, key.port)
        with client.host.entered():
            here = [packed(address) for address in LOOPBACK.values()]
            forget_flows(6, ("::", client.port[6]), here)
            forget_flows(4, ("127.0.0.2", client.port[4]), here)
            forget_flows(4, ("0.0.0.0", client.port[4] ^ 1), here)
            forget_flows(4, ("0.0.0.0", client.port[4]), [packed("127.0.0.2")])
        assert conntrack.find(6, [replies[6]]) == [None]
        assert conntrack.find(4, [replies[4]]) != [None]
        with client.host.entered():
            forget_flows(4, ("127.0.0.1", client.port[4]), [])
        assert conntrack.find(4, [replies[4]]) == [None]
    conntrack.close()


def test_what_was_not_redirected_is_not_found(client: UdpClient) -> None:
    conntrack = questions_on(client.host)
    with udp(client.host, LOOPBACK[6]) as one, udp(client.host, LOOPBACK[6]) as other:
        one.sendto(b"hello", other.getsockname())
        ends = packed(LOOPBACK[6]), one.getsockname()[1], packed(LOOPBACK[6])
        answers = Reply(ends[2], other.getsockname()[1], ends[0], ends[1])
        itself = Reply(ends[0], ends[1], ends[2], other.getsockname()[1])
        assert conntrack.find(6, [answers, itself]) == [None, None]
    conntrack.close()
