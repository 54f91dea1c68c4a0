"""UDP in sessions of their own: what options change, and what a lost connection does."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from sshunt.lab.world import ELSEWHERE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.interruptions import sshds_of
from tests.e2e.resolvers import laid_over
from tests.e2e.tunnels import OFFICE
from tests.e2e.udp_services import Echo, echo, udp

PORT = 7007

#: As they are in asm-generic/socket.h.
SO_PRIORITY, SO_MARK = 12, 36


def place(service: Echo) -> tuple[str, int]:
    address, port = service.sock.getsockname()[:2]
    return address, port


def test_without_udp_it_goes_as_it_went(lab: Lab, start: Start) -> None:
    start("--no-udp", "-r", "server", f"{ELSEWHERE_V4}/32")
    with (
        echo(lab.server, ELSEWHERE_V4, PORT) as service,
        udp(lab.client, lab.client.v4) as program,
    ):
        program.sendto(b"hello", place(service))
        program.recv(100)
        assert service.peers[-1] == program.getsockname()


def test_vpns_own_datagrams_dhcp_and_agents_go_as_they_went(lab: Lab, start: Start) -> None:
    start("-r", "server", f"{ELSEWHERE_V4}/32")
    with (
        echo(lab.server, ELSEWHERE_V4, PORT) as service,
        echo(lab.server, ELSEWHERE_V4, 67) as dhcp,
        udp(lab.client, lab.client.v4) as plain,
        udp(lab.client, lab.client.v4) as renewing,
    ):
        plain.sendto(b"hello", place(service))
        plain.recv(100)
        assert service.peers[-1] != plain.getsockname()
        renewing.sendto(b"renew", place(dhcp))
        renewing.recv(100)
        assert dhcp.peers[-1] == renewing.getsockname()
        for option, value in ((SO_MARK, 0xCA6C), (SO_MARK, 0x80000), (SO_PRIORITY, 3)):
            with udp(lab.client, lab.client.v4) as program:
                program.setsockopt(socket.SOL_SOCKET, option, value)
                program.sendto(b"hello", place(service))
                program.recv(100)
                assert service.peers[-1] == program.getsockname()


#: As Docker's: with it the kernel goes on translating what it has translated.
OTHERS_NAT = """
table ip docker {
    chain output {
        type nat hook output priority -100;
        ip daddr 172.31.0.1 redirect
    }
}
"""


def test_after_the_end_a_flow_goes_on_as_it_went_before(lab: Lab, start: Start) -> None:
    lab.client.run(["nft", "-f", "-"], stdin=OTHERS_NAT)
    tunnel = start("-r", "server", f"{ELSEWHERE_V4}/32")
    with (
        echo(lab.server, ELSEWHERE_V4, PORT) as service,
        udp(lab.client, lab.client.v4) as program,
    ):
        program.sendto(b"hello", place(service))
        program.recv(100)
        assert service.peers[-1] != program.getsockname()
        tunnel.stop()
        program.sendto(b"hello", place(service))
        assert program.recvfrom(100)[1] == place(service)
        assert service.peers[-1] == program.getsockname()
    lab.client.run(["nft", "delete", "table", "ip", "docker"])


def test_with_no_filter_strangers_are_heard(lab: Lab, start: Start) -> None:
    start("--udp-filter", "none", "-r", "server", *OFFICE)
    with (
        echo(lab.target, lab.target.v4, PORT) as service,
        udp(lab.client, lab.client.v4) as program,
        udp(lab.server, "10.55.0.1") as stranger,
    ):
        program.sendto(b"hello", place(service))
        program.recv(100)
        stranger.sendto(b"psst", ("10.55.0.1", service.peers[-1][1]))
        assert program.recvfrom(100) == (b"psst", stranger.getsockname())


def test_a_program_that_asked_in_vain_before_the_start_is_answered_after_it(
    lab: Lab, start: Start
) -> None:
    lab.client.run(["nft", "-f", "-"], stdin=OTHERS_NAT)  # so connection tracking is there
    with (
        echo(lab.target, lab.target.v4, PORT) as service,
        udp(lab.client, lab.client.v4, timeout_s=0.2) as program,
        echo(lab.server, ELSEWHERE_V4, PORT) as elsewhere,
        udp(lab.client, lab.client.v4) as answered,
    ):
        program.sendto(b"in vain", place(service))
        with pytest.raises(OSError, match=r"timed out|unreachable"):
            program.recv(100)
        answered.sendto(b"hello", place(elsewhere))
        answered.recv(100)
        start("-r", "server", *OFFICE, f"{ELSEWHERE_V4}/32")
        program.settimeout(10)
        program.sendto(b"again", place(service))
        assert program.recv(100) == b"again"
        # What was answered before goes on as it went.
        answered.sendto(b"hello", place(elsewhere))
        answered.recv(100)
        assert set(elsewhere.peers) == {answered.getsockname()}
    lab.client.run(["nft", "delete", "table", "ip", "docker"])


def test_flows_go_on_when_ssh_has_died(lab: Lab, start: Start) -> None:
    tunnel = start("-r", "server", *OFFICE)
    with (
        echo(lab.target, lab.target.v4, PORT) as service,
        udp(lab.client, lab.client.v4, timeout_s=0.2) as program,
    ):
        program.sendto(b"before", place(service))
        assert program.recv(100) == b"before"
        for pid in sshds_of(lab):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        answer = b""
        while answer != b"after":
            assert time.monotonic() < deadline, tunnel.said
            program.sendto(b"after", place(service))
            try:
                answer = program.recv(100)
            except TimeoutError:
                continue
        assert len(set(service.peers)) == 1


def test_a_resolver_next_door_is_left_alone_by_routes_that_hold_it(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    conf, switch = tmp_path / "resolv.conf", tmp_path / "nsswitch.conf"
    conf.write_text(f"nameserver {lab.neighbour.v4}\n")
    switch.write_text("hosts: files dns\n")
    before = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]
    start("-r", "server", "198.51.100.0/24", before=before)
    with (
        echo(lab.neighbour, lab.neighbour.v4, 53) as resolver,
        echo(lab.neighbour, lab.neighbour.v4, 54) as other,
        udp(lab.client, "198.51.100.1", timeout_s=0.3) as program,
    ):
        program.sendto(b"hello", place(resolver))
        assert program.recv(100) == b"hello"
        program.sendto(b"hello", place(other))
        with pytest.raises(OSError, match=r"timed out"):
            program.recv(100)
