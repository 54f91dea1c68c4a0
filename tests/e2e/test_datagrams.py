"""UDP: unmodified programs on the client and behind it speak with the office.

neighbour ------------- client ------------- server ------------- target
programs                sshunt, programs     sshd + agent         services
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.hosts import Host
from sshunt.lab.world import UNREACHABLE_V4, Lab
from tests.e2e.conntrack import flush
from tests.e2e.tunnels import OFFICE, Tunnel, running
from tests.e2e.udp_services import (
    FROM_ANOTHER_PORT,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    Echo,
    echo,
    udp,
)

PORT = 7007

#: As it is in linux/in.h.
IP_RECVERR = 11


@pytest.fixture(scope="module")
def tunnel(lab: Lab) -> Iterator[Tunnel]:
    """One that serves the hosts behind the client, too."""
    words = ("-l", "0.0.0.0:0,[::]:0", "-r", "server", *OFFICE, f"{UNREACHABLE_V4}/32")
    with running(lab, *words) as tunnel:
        yield tunnel


@pytest.fixture(scope="module", params=[4, 6])
def service(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Echo]:
    address = lab.target.v4 if request.param == 4 else lab.target.v6
    with echo(lab.target, address, PORT) as service:
        yield service


def place(service: Echo) -> tuple[str, int]:
    address, port = service.sock.getsockname()[:2]
    return address, port


def program_on(host: Host, service: Echo) -> socket.socket:
    return udp(host, host.v6 if ":" in place(service)[0] else host.v4)


@pytest.mark.parametrize("name", ["client", "neighbour"])
def test_datagrams_of_any_size_go_and_come_back(
    lab: Lab, tunnel: Tunnel, service: Echo, name: str
) -> None:
    with program_on(getattr(lab, name), service) as program:
        for size in (0, 1, 1200, 1472, 8000, 60_000, 65_507):
            program.sendto(bytes(size), place(service))
            answer, who = program.recvfrom(70_000)
            assert (len(answer), who[:2]) == (size, place(service))
        # The office sees the server, with the program's own port.
        assert service.peers[-1][1] == program.getsockname()[1]


def test_an_answer_from_another_port_of_the_host_is_heard_and_answered(
    lab: Lab, tunnel: Tunnel, service: Echo
) -> None:
    for host in (lab.client, lab.neighbour):
        with program_on(host, service) as program:
            program.sendto(FROM_ANOTHER_PORT, place(service))
            answer, who = program.recvfrom(100)
            other = place(service)[0], service.other_port
            assert (answer, who[:2]) == (FROM_ANOTHER_PORT, other)
            program.sendto(b"ack", other)
            heard, peer = service._other.recvfrom(100)
            assert (heard, peer[1]) == (b"ack", service.peers[-1][1])
            service._other.sendto(b"more", peer)
            assert program.recvfrom(100)[1][:2] == other


def test_whoever_was_never_written_to_is_not_heard(lab: Lab, tunnel: Tunnel) -> None:
    with (
        echo(lab.target, lab.target.v4, PORT + 1) as service,
        udp(lab.client, lab.client.v4, timeout_s=0.3) as program,
        udp(lab.server, "10.55.0.1") as stranger,
    ):
        program.sendto(b"hello", place(service))
        program.recv(100)
        stranger.sendto(b"psst", service.peers[-1])
        with pytest.raises(TimeoutError):
            program.recv(100)


def test_a_closed_port_is_refused(lab: Lab, tunnel: Tunnel, service: Echo) -> None:
    address = place(service)[0]
    for host in (lab.client, lab.neighbour):
        with program_on(host, service) as program:
            program.connect((address, 9))
            program.send(b"hello")
            begun = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                program.recv(100)
            print(f"refused after {1000 * (time.monotonic() - begun):.1f} ms")


def test_who_asks_for_errors_hears_them_without_a_connection(lab: Lab, tunnel: Tunnel) -> None:
    with udp(lab.client, lab.client.v4) as program:
        program.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        program.sendto(b"hello", (lab.target.v4, 9))
        with pytest.raises(ConnectionRefusedError):
            program.recv(100)
        program.sendto(b"hello", (UNREACHABLE_V4, 9))
        with pytest.raises(OSError, match=r"No route|unreachable"):
            program.recv(100)


def test_a_socket_bound_to_an_interface_is_told_that_it_can_t(lab: Lab, tunnel: Tunnel) -> None:
    route = lab.client.run(["ip", "-o", "route", "get", lab.server.v4]).stdout.split()
    interface = route[route.index("dev") + 1].encode()
    with udp(lab.client, "0.0.0.0") as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
        with pytest.raises(PermissionError):
            program.sendto(b"hello", (lab.target.v4, PORT))


def test_a_port_of_root_s_is_another_over_there(lab: Lab, tunnel: Tunnel, service: Echo) -> None:
    with program_on(lab.client, service) as unbound:
        address = unbound.getsockname()[0]
    with udp(lab.client, address, 500) as program:
        program.sendto(b"hello", place(service))
        assert program.recv(100) == b"hello"
        assert service.peers[-1][1] > 1023  # nobody is root there


def test_two_programs_with_one_port_are_told_apart(lab: Lab, tunnel: Tunnel) -> None:
    with (
        echo(lab.target, lab.target.v4, PORT + 2) as service,
        udp(lab.client, lab.client.v4, 4242) as one,
        udp(lab.client, "198.51.100.1", 4242) as other,
        udp(lab.neighbour, lab.neighbour.v4, 4242) as third,
    ):
        for number, program in enumerate((one, other, third)):
            program.sendto(b"%d" % number, place(service))
        answers = [program.recv(100) for program in (one, other, third)]
        assert answers == [b"0", b"1", b"2"]
        assert len(set(service.peers)) == 3


def test_one_socket_speaks_with_many_ports(lab: Lab, tunnel: Tunnel) -> None:
    services = [Echo(lab.target, lab.target.v4, 20_000 + number) for number in range(30)]
    with udp(lab.client, lab.client.v4) as program:
        for service in services:
            program.sendto(b"%d" % place(service)[1], place(service))
        heard = dict(program.recvfrom(100)[::-1] for _ in services)
        assert heard == {place(each): b"%d" % place(each)[1] for each in services}
        assert len({peer for service in services for peer in service.peers}) == 1
    for service in services:
        service.close()


def test_a_batch_stays_a_batch_on_all_the_way(lab: Lab, tunnel: Tunnel) -> None:
    with (
        udp(lab.target, lab.target.v4, PORT + 3) as service,
        udp(lab.client, lab.client.v4) as program,
    ):
        for sock in (service, program):
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        segment = [(SOL_UDP, UDP_SEGMENT, (1200).to_bytes(2, "little"))]
        program.sendmsg([bytes(40 * 1200)], segment, 0, service.getsockname())
        heard = 0
        while heard < 40 * 1200:
            data, _, _, peer = service.recvmsg(70_000, 100)
            heard += len(data)
        service.sendmsg([bytes(40 * 1200)], segment, 0, peer)
        heard, batches = 0, 0
        while heard < 40 * 1200:
            data, ancillary, _, _ = program.recvmsg(70_000, 100)
            heard += len(data)
            batches += any(kind == UDP_GRO for _, kind, _ in ancillary)
        assert heard == 40 * 1200
        assert batches  # the network between may cut them anew


def test_a_service_here_at_the_peer_s_port_is_in_nobody_s_way(lab: Lab, tunnel: Tunnel) -> None:
    with (
        udp(lab.client, "0.0.0.0", PORT + 4),
        echo(lab.target, lab.target.v4, PORT + 4) as service,
        udp(lab.client, lab.client.v4) as program,
    ):
        for question in (b"hello", FROM_ANOTHER_PORT):
            program.sendto(question, place(service))
            assert program.recv(100) == question


def test_multicast_broadcast_and_this_host_are_left_alone(lab: Lab, tunnel: Tunnel) -> None:
    with (
        udp(lab.neighbour, "0.0.0.0", 5353) as neighbour,
        udp(lab.client, lab.client.v4) as program,
    ):
        membership = socket.inet_aton("224.0.0.251") + socket.inet_aton(lab.neighbour.v4)
        neighbour.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        interface = socket.inet_aton("198.51.100.1")
        program.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        program.sendto(b"who", ("224.0.0.251", 5353))
        assert neighbour.recv(100) == b"who"
        program.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        program.sendto(b"all", ("198.51.100.255", 5353))
        assert neighbour.recv(100) == b"all"


#: As firewalld's and ufw's are: what is new is dropped, but for what is redirected, or lo's.
FIREWALL = """
table inet fw {
    chain input {
        type filter hook input priority 10; policy drop;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        meta l4proto ipv6-icmp accept
    }
    chain output {
        type filter hook output priority 10; policy accept;
        ct state invalid drop
    }
}
"""


def test_a_default_drop_firewall_and_strict_routing_are_in_nobody_s_way(
    lab: Lab, tunnel: Tunnel, service: Echo
) -> None:
    strict = ("net/ipv4/conf/all/src_valid_mark", "net/ipv4/conf/all/rp_filter")
    before = [lab.client.run(["sysctl", "-n", name]).stdout.strip() for name in strict]
    lab.client.run(["nft", "-f", "-"], stdin=FIREWALL)
    for name in strict:
        lab.client.write_sysctl(name, "1")
    try:
        for host in (lab.client, lab.neighbour):
            with program_on(host, service) as program:
                for question in (b"hello", FROM_ANOTHER_PORT):
                    program.sendto(question, place(service))
                    assert program.recv(100) == question
                program.connect((place(service)[0], 9))
                program.send(b"hello")
                with pytest.raises(ConnectionRefusedError):
                    program.recv(100)
    finally:
        lab.client.run(["nft", "delete", "table", "inet", "fw"])
        for name, value in zip(strict, before, strict=True):
            lab.client.write_sysctl(name, value)


def test_flows_go_on_when_somebody_flushes_the_kernel_s_table(
    lab: Lab, tunnel: Tunnel, service: Echo
) -> None:
    with program_on(lab.client, service) as program, program_on(lab.neighbour, service) as other:
        for _ in range(3):
            for sock in (program, other):
                sock.sendto(b"hello", place(service))
                assert sock.recvfrom(100)[1][:2] == place(service)
            flush(lab.client)


# --- programs that people use -----------------------------------------------------------------


def test_iperf3_measures_udp_both_ways(lab: Lab, tunnel: Tunnel) -> None:
    for direction in ([], ["--reverse"]):
        server = lab.target.popen(["iperf3", "--server", "--one-off"], stdout=subprocess.DEVNULL)
        lab.target.run(["sh", "-c", "until ss -Hltn | grep -q :5201; do sleep 0.01; done"])
        words = ["-u", "-b", "8M", "-l", "1000", "-t", "1", "-J", *direction]
        measured = lab.client.run(["iperf3", "--client", lab.target.v4, *words])
        server.wait(10)
        ended = json.loads(measured.stdout)["end"]["sum"]
        print(f"{ended['packets']} packets, {ended['lost_packets']} lost")
        assert ended["packets"] > 500
        assert ended["lost_percent"] < 5


def test_dig_asks_a_resolver_in_the_office_and_curl_gets_a_file_by_tftp(
    lab: Lab, tunnel: Tunnel, tmp_path: Path
) -> None:
    """TFTP's server answers from a port of its own for each transfer."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 300)
    (tmp_path / "file").chmod(0o644)  # dnsmasq wants it, whoever it runs as
    words = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
    ]
    words += [f"--listen-address={lab.target.v4}", "--bind-interfaces", "--user=root", "--group="]
    words += ["--address=/wiki.office/10.55.0.2", "--enable-tftp", f"--tftp-root={tmp_path}"]
    words += [f"--txt-record=long.office,{','.join(['x' * 250] * 10)}", "--pid-file="]
    dnsmasq = lab.target.popen(words)
    lab.target.run(["sh", "-c", "until ss -Hlun | grep -q :69; do sleep 0.01; done"])
    said = lab.client.run(["dig", "+short", f"@{lab.target.v4}", "wiki.office"]).stdout
    assert said.split() == ["10.55.0.2"]
    long = ["dig", "+short", "+bufsize=4096", "+notcp", f"@{lab.target.v4}", "long.office", "TXT"]
    assert lab.client.run(long).stdout.count("x" * 250) == 10
    for host in (lab.client, lab.neighbour):
        got = host.run(["sh", "-c", f"curl -sS tftp://{lab.target.v4}/file | sha256sum"]).stdout
        wanted = lab.target.run(["sha256sum", str(tmp_path / "file")]).stdout
        assert got.split()[0] == wanted.split()[0]
    dnsmasq.terminate()
    dnsmasq.wait(10)


def test_socat_pipes_lines_to_a_port(lab: Lab, tunnel: Tunnel, service: Echo) -> None:
    address, port = place(service)
    to = f"UDP6:[{address}]:{port}" if ":" in address else f"UDP4:{address}:{port}"
    said = lab.client.run(["sh", "-c", f"echo hello | socat -t 1 - {to}"]).stdout
    assert said == "hello\n"
