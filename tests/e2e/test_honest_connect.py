"""connect(2) says what the far side found, by real programs, from this host and behind it.

neighbour ------------- client ------------- server ------------- target
                        sshunt                                    open, closed and silent ports

The target drops what comes to SILENT ports, drops the first SYN to SLOW ones, and has thirty-two
further addresses that are silent altogether.
"""

import errno
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from sshunt.lab.hosts import Host, ip
from sshunt.lab.world import OFFICE_V4, UNREACHABLE_V4, Lab
from tests.e2e.tunnels import OFFICE, Remains, Tunnel, fetch, running

CLOSED, SILENT = 9, 9001
SLOW = {"client": 9002, "neighbour": 9003}

#: Addresses that never answer.
SILENT_HOSTS = [f"10.55.0.{number}" for number in range(101, 133)]
SILENT_V6 = "fd00:55::101"

RULES = f"""
table inet silent {{
    set seen {{ type inet_service; flags dynamic; size 1024; }}
    chain input {{
        type filter hook input priority 0;
        tcp dport {SILENT} drop
        ip daddr 10.55.0.101-10.55.0.132 drop
        ip6 daddr {SILENT_V6} tcp flags syn drop
        tcp dport 9002-9003 tcp sport @seen accept
        tcp dport 9002-9003 tcp flags syn add @seen {{ tcp sport }} drop
    }}
}}
"""


@pytest.fixture(scope="module")
def office(lab: Lab) -> Iterator[Lab]:
    """The lab, whose target is silent here and there."""
    lab.target.run(["nft", "-f", "-"], stdin=RULES)
    link = lab.target.run(["ip", "-o", "route", "get", "10.55.0.1"]).stdout
    device = link.split("dev ")[1].split()[0]
    for address in SILENT_HOSTS:
        ip(f"address add {address}/24 dev {device}", netns=lab.target.netns)
    ip(f"address add {SILENT_V6}/64 dev {device} nodad", netns=lab.target.netns)
    yield lab
    lab.target.run(["nft", "delete", "table", "inet", "silent"])


@pytest.fixture(scope="module")
def tunnel(office: Lab) -> Iterator[Tunnel]:
    words = ("-r", "server", "-l", "0.0.0.0:0,[::]:0", *OFFICE, "10.66.0.0/24")
    with running(office, *words) as tunnel:
        yield tunnel


@pytest.fixture(params=["here", "behind it"])
def host(office: Lab, tunnel: Tunnel, request: pytest.FixtureRequest) -> Host:
    return office.client if request.param == "here" else office.neighbour


def error_of_connect(host: Host, address: str, port: int) -> int:
    try:
        host.connect(address, port).close()
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or -1
    return 0


def begin(host: Host, address: str, port: int) -> socket.socket:
    """A socket that is connecting, as a program that does not wait has it."""
    sock = host.make_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setblocking(False)
    assert sock.connect_ex((address, port)) == errno.EINPROGRESS
    return sock


def send_and_receive(sock: socket.socket) -> bytes:
    sock.sendall(b"data that left with the request" * 1000)
    return sock.recv(1)


def outcome(sock: socket.socket, within_s: float) -> int | None:
    """How it ended; None: it has not."""
    if not select.select([], [sock], [], within_s)[1]:
        return None
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def eventually(true: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def dials(lab: Lab, *filters: str) -> int:
    """What the far side tries to connect just now."""
    listing = lab.server.run(["ss", "-Htn", "state", "syn-sent", *filters]).stdout
    return len(listing.splitlines())


# --- other ways of it, before the tunnel that the rest share -------------------------------------


def test_with_fast_everything_is_open_at_first(office: Lab) -> None:
    with running(office, "-r", "server", "--connect", "fast", *OFFICE):
        # The reset may come while connect(2) is still on its way back to the program.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            with office.client.connect(office.target.v4, CLOSED) as ours:
                send_and_receive(ours)


def test_with_honest_each_is_asked_for_by_the_session_that_came_last(office: Lab) -> None:
    def streams(tunnel: Tunnel, port: int) -> int:
        return len(re.findall(rf"to {office.target.v4} port {port}$", tunnel.said, re.MULTILINE))

    with running(office, "-v", "-r", "server", "--connect", "honest", *OFFICE) as first:
        for _ in range(2):
            assert error_of_connect(office.client, office.target.v4, 80) == 0
            assert error_of_connect(office.client, office.target.v6, CLOSED) == errno.ECONNREFUSED
        assert streams(first, 80) == 2
        second = Tunnel(office, ["-v", "-r", "server", OFFICE_V4])
        second.wait_until_connected()
        for _ in range(2):  # the second one is let go at once, and the other does not hold it
            assert error_of_connect(office.client, office.target.v4, 80) == 0
        assert error_of_connect(office.client, office.target.v4, CLOSED) == errno.ECONNREFUSED
        second.wait_until(lambda: streams(second, 80) == 2)
        assert streams(first, 80) == 2
        assert streams(first, CLOSED) == 0
        assert second.stop() == 0
        assert error_of_connect(office.client, office.target.v4, 80) == 0
        assert streams(first, 80) == 3


def test_a_helper_that_is_killed_while_connections_wait_leaves_nothing(office: Lab) -> None:
    remains = Remains(office)
    tunnel = Tunnel(office, ["-r", "server", OFFICE_V4])
    tunnel.wait_until_connected()
    waiting = [begin(office.client, office.target.v4, SILENT) for _ in range(100)]
    assert eventually(lambda: dials(office) >= 64)
    for pid in tunnel.pids("helper"):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    assert tunnel.process.wait(10) != 0
    assert remains.left() == []
    assert outcome(waiting[0], 0) is None  # the kernel tries again, and nobody is in its way
    for sock in waiting:
        sock.close()


# --- what programs are told ----------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_an_open_port_is_open_and_a_closed_one_refuses(
    office: Lab, host: Host, version: int
) -> None:
    address = office.target.v4 if version == 4 else office.target.v6
    for _ in range(2):  # the second one to the open port is let go at once
        assert error_of_connect(host, address, 80) == 0
        assert error_of_connect(host, address, CLOSED) == errno.ECONNREFUSED
    assert "Hello" in fetch(host, f"http://{address if version == 4 else f'[{address}]'}/")


def test_a_program_that_does_not_wait_is_told_as_well(office: Lab, host: Host) -> None:
    with begin(host, office.target.v4, CLOSED) as refused, begin(host, office.target.v6, 80) as up:
        assert outcome(refused, 10) == errno.ECONNREFUSED
        assert outcome(up, 10) == 0


def test_one_that_is_bound_to_an_interface_is_refused_at_once(office: Lab, tunnel: Tunnel) -> None:
    bound = ["curl", "-sS", "--interface", "to-server", f"http://{office.target.v4}:9006/"]
    with office.target.listen(office.target.v4, 9006):
        assert office.client.run(bound, check=False).returncode == 7  # "failed to connect"


def test_a_network_that_the_far_side_has_no_way_to_is_unreachable_here(
    office: Lab, host: Host
) -> None:
    assert error_of_connect(host, UNREACHABLE_V4, 80) == errno.EHOSTUNREACH


def test_a_host_that_is_not_there_is_unreachable_when_the_far_side_knows(
    office: Lab, tunnel: Tunnel
) -> None:
    # The server asks for its hardware address for three seconds before it gives up.
    assert error_of_connect(office.client, "10.55.0.99", 80) == errno.EHOSTUNREACH


def test_a_slow_host_is_waited_for(office: Lab, host: Host) -> None:
    port = SLOW[host.name]
    with office.target.listen(office.target.v4, port):
        with begin(host, office.target.v4, port) as slow:
            assert outcome(slow, 0.3) is None
            assert outcome(slow, 10) == 0


def test_curl_takes_the_address_that_lives_beside_one_that_does_not(
    office: Lab, tunnel: Tunnel
) -> None:
    both = f"both.example:80:[{SILENT_V6}],{office.target.v4}"
    began = time.monotonic()
    assert "Hello" in fetch(office.client, "http://both.example/", "--resolve", both)
    assert time.monotonic() - began < 2  # it tries the other one after 0.2 s


def test_psql_goes_on_to_the_host_that_is_there(office: Lab, tunnel: Tunnel) -> None:
    with office.target.listen(office.target.v4, 9005) as listener:
        program = office.client.popen(
            ["psql", f"host={office.target.v4},{office.target.v4} port={CLOSED},9005 user=x"],
            stderr=subprocess.PIPE,
        )
        listener.accept()[0].close()  # which is all that it wants to know
        _, said = program.communicate(timeout=10)
    assert f"port {CLOSED} failed: Connection refused" in said.decode()
    assert "port 9005 failed: server closed the connection" in said.decode()


def test_a_scan_of_a_thousand_ports_is_exactly_right(office: Lab, tunnel: Tunnel) -> None:
    open_ports = {80, 9100, 9500, 9999}
    listeners = [office.target.listen(office.target.v4, port) for port in open_ports - {80}]
    found = set()
    ports = [*range(9099, 10_098), 80]
    for first in range(0, len(ports), 200):
        tried = {port: begin(office.client, office.target.v4, port) for port in ports[first:][:200]}
        for port, sock in tried.items():
            error = outcome(sock, 10)
            assert error in (0, errno.ECONNREFUSED)
            if error == 0:
                found.add(port)
            sock.close()
    assert found == open_ports
    for listener in listeners:
        listener.close()


# --- what nobody waits for ------------------------------------------------------------------------


def test_what_a_program_has_given_up_the_far_side_gives_up_too(office: Lab, tunnel: Tunnel) -> None:
    to_silent = ("dport", "=", f":{SILENT}")
    forwarded = begin(office.neighbour, office.target.v4, SILENT)
    here = begin(office.client, office.target.v4, SILENT)
    killed = office.client.popen(["curl", "-s", f"http://{office.target.v4}:{SILENT}/"])
    assert eventually(lambda: dials(office, *to_silent) == 3)
    assert outcome(here, 1.0) is None
    here.close()
    killed.kill()
    killed.wait()
    forwarded.close()
    assert eventually(lambda: dials(office, *to_silent) == 1, 5)
    assert eventually(lambda: dials(office, *to_silent) == 0, 15)  # its next SYN does not come


def test_thousands_that_wait_for_the_dead_do_not_delay_one_to_the_living(
    office: Lab, tunnel: Tunnel
) -> None:
    waiting = []
    for port in range(9200, 9330):
        waiting += [begin(office.client, address, port) for address in SILENT_HOSTS]
    assert eventually(lambda: dials(office) > 1000)
    slowest = 0.0
    for port in (80, CLOSED, 80, CLOSED):
        began = time.monotonic()
        error_of_connect(office.client, office.target.v6, port)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.9  # a SYN that got lost would have been sent again after a second
    assert outcome(waiting[0], 0) is None
    for sock in waiting:
        sock.close()
    assert eventually(lambda: dials(office) == 0)


def test_a_known_destination_that_is_gone_is_noticed_by_the_first_that_goes_there(
    office: Lab, tunnel: Tunnel
) -> None:
    with office.target.listen(office.target.v4, 9004):
        assert error_of_connect(office.client, office.target.v4, 9004) == 0
    with pytest.raises(ConnectionResetError):  # perhaps as early as from connect(2)
        with office.client.connect(office.target.v4, 9004) as ours:
            ours.recv(1)
    assert eventually(
        lambda: error_of_connect(office.client, office.target.v4, 9004) == errno.ECONNREFUSED
    )
