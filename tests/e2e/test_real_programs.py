"""Programs that speak UDP in their own ways, at once and in both families: QUIC, NTP, ping.

neighbour ------------- client ------------- server ------------- target
programs                sshunt, programs     sshd + agent         aioquic, ngtcp2, NTP, web
"""

import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab, wait_until_ready
from tests.e2e.tunnels import OFFICE, Tunnel, fetch, running
from tests.e2e.udp_services import echo, udp

_HTTP3 = str(Path(__file__).with_name("http3.py"))
AIOQUIC, NGTCP2, UDP = 4433, 4434, 4435

#: Seconds between the beginnings of NTP's time and of Unix'.
_NTP_EPOCH = 2_208_988_800


@pytest.fixture(scope="module")
def tunnel(lab: Lab) -> Iterator[Tunnel]:
    with running(lab, "-l", "0.0.0.0:0,[::]:0", "-r", "server", *OFFICE) as tunnel:
        yield tunnel


@pytest.fixture(scope="module")
def certificate(lab: Lab) -> list[str]:
    """A key and its certificate."""
    key, certificate = str(lab.folder / "quic.key"), str(lab.folder / "quic.pem")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subprocess.run(
        [*words.split(), "-subj", "/CN=office", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return [key, certificate]


def each_origin_and_address(lab: Lab) -> Iterator[tuple[Host, str]]:
    for host in (lab.client, lab.neighbour):
        for address in (lab.target.v4, lab.target.v6):
            yield host, address


def test_http3_by_aioquic_which_sends_datagram_by_datagram(
    lab: Lab, tunnel: Tunnel, certificate: list[str]
) -> None:
    for address in (lab.target.v4, lab.target.v6):
        program = [sys.executable, _HTTP3, "serve", address, str(AIOQUIC), *certificate]
        wait_until_ready(lab.target.popen(program, stdout=subprocess.PIPE))
    for host, address in each_origin_and_address(lab):
        fetching = [sys.executable, _HTTP3, "fetch", address, str(AIOQUIC), "/300000"]
        assert host.run(fetching, timeout_s=20).stdout == "300000 ok\n"


def test_http3_by_ngtcp2_which_sends_in_batches(
    lab: Lab, tunnel: Tunnel, certificate: list[str]
) -> None:
    pages, got = lab.folder / "pages", lab.folder / "got"
    pages.mkdir()
    got.mkdir()
    (pages / "page").write_bytes(bytes(range(256)) * 8192)
    for address in (lab.target.v4, lab.target.v6):
        words = ["gtlsserver", "-q", "-d", str(pages), address, str(NGTCP2), *certificate]
        lab.target.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    heard = listen_on_loopback(lab.client)
    for number, (host, address) in enumerate(each_origin_and_address(lab)):
        folder = got / str(number)
        folder.mkdir()
        name = f"[{address}]" if ":" in address else address
        words = ["gtlsclient", "-q", f"--download={folder}", "--exit-on-all-streams-close"]
        url = f"https://{name}:{NGTCP2}/page"
        host.run([*words, address, str(NGTCP2), url], timeout_s=20, check=False)
        assert (folder / "page").read_bytes() == (pages / "page").read_bytes()
    # Several datagrams of at most 1,452 bytes: a batch has stayed one up to the program.
    assert longest(heard) > 3000


def listen_on_loopback(host: Host) -> socket.socket:
    with host.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 * 1024 * 1024)  # SO_RCVBUFFORCE
    with host.entered():
        sock.bind(("lo", 0x0800))
    sock.setblocking(False)
    return sock


def longest(sock: socket.socket) -> int:
    """Of the UDP packets that it has heard."""
    most = 0
    with sock, suppress(BlockingIOError):
        while True:
            packet = sock.recv(70_000)
            if packet[9] == socket.IPPROTO_UDP:
                most = max(most, len(packet))
    return most


def test_ntpdate_learns_the_time_of_a_server_in_the_office(lab: Lab, tunnel: Tunnel) -> None:
    with TimeServer(lab.target, lab.target.v4), TimeServer(lab.target, lab.target.v6):
        for host, address in each_origin_and_address(lab):
            said = host.run(["ntpdate", "-q", "-p", "1", "-t", "2", address], check=False).stdout
            found = re.search(r"([+-]\d+\.\d+) \+/- ", said)
            assert found is not None, said
            assert float(found.group(1)) == pytest.approx(1000.0, abs=0.5)


def test_tcp_udp_and_ping_run_side_by_side_from_each_origin_in_each_family(
    lab: Lab, tunnel: Tunnel
) -> None:
    with echo(lab.target, lab.target.v4, UDP), echo(lab.target, lab.target.v6, UDP):
        for host, address in each_origin_and_address(lab):
            pinging = host.popen(
                ["ping", "-n", "-c", "6", "-i", "0.05", address], stdout=subprocess.PIPE
            )
            name = f"[{address}]" if ":" in address else address
            with udp(host, host.v6 if ":" in address else host.v4) as program:
                for number in range(20):
                    program.sendto(b"%d" % number, (address, UDP))
                assert "Hello" in fetch(host, f"http://{name}/")
                assert {program.recv(100) for _ in range(20)} == {b"%d" % n for n in range(20)}
            assert b" 6 received, 0% packet loss" in pinging.communicate(timeout=10)[0]


class TimeServer:
    """Answers NTP's requests (RFC 5905) a thousand seconds ahead of the clock."""

    def __init__(self, host: Host, address: str) -> None:
        self._sock = udp(host, address, 123, timeout_s=0.1)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "TimeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            try:
                asked, peer = self._sock.recvfrom(100)
            except TimeoutError:
                continue
            now = time.time() + 1000 + _NTP_EPOCH
            stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
            head = struct.pack("!BBbbII4s", 0x24, 1, 6, -20, 0, 0, b"LOCL")
            self._sock.sendto(head + stamp + asked[40:48] + stamp + stamp, peer)
