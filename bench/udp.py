"""Datagrams on a fast LAN: ./dev bench udp

Client, server and target are three network namespaces joined by veth pairs (``sshunt.lab.world``).
Beside sshunt stands what people do without it: socat, which copies datagrams into a connection
through ``ssh -L`` and out of it again (it may join datagrams on the way, so bytes are counted).

    loss      datagrams of 200 bytes at a steady pace, those that arrive
    batches   the same bytes in batches of 40 x 1,200 (UDP_SEGMENT), as fast as it goes
    flow      a flow's first round trip, and those that follow
    echo      a byte there and back over TCP, idle and beside the fastest of these floods
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from bench import peers, report
from bench.load import ECHO_PORT, serving
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab

PORT = 6001
_FORWARDED_PORT = 16001
_ECHO_PORT = 6002

#: Paces in datagrams a second, of 200 bytes.
PACES = (1000, 10_000, 30_000)
SIZE = 200
SEGMENT = 1200
SEGMENTS = 40

#: A flow's round trips that are looked at.
FLOWS = 50

_SOL_UDP, _UDP_SEGMENT = 17, 103

#: Sends words[3] datagrams a second of words[4] bytes for words[5] seconds; says how many.
_SENDER = """
import socket, sys, time
address, port, pace, size, seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((address, port))
begin, sent, data = time.monotonic(), 0, bytes(size)
while (now := time.monotonic() - begin) < seconds:
    for _ in range(int(now * pace) - sent):
        try:
            sock.send(data)
        except OSError:
            pass
        sent += 1
    time.sleep(0.001)
print(sent)
"""

#: Counts bytes until a second has passed without any; says how many.
_SINK = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
sock.setsockopt(17, 104, 1)
sock.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
count, buffer = 0, bytearray(65536)
sock.settimeout(10.0)
try:
    while True:
        count += sock.recv_into(buffer)
        sock.settimeout(1.0)
except TimeoutError:
    print(count)
"""


#: Repeats each datagram.
_ECHO = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    sock.sendto(*sock.recvfrom(100))
"""


@contextmanager
def way(lab: Lab, name: str) -> Iterator[tuple[str, int]]:
    """Where to send to, in order to reach the target's PORT through a peer."""
    if name == "sshunt":
        yield lab.target.v4, PORT
        return
    there = f"TCP4-LISTEN:{PORT},fork,reuseaddr"
    here = f"UDP4-LISTEN:{PORT},fork,bind=127.0.0.1"
    forward = ["ssh", "-N", "-L", f"{_FORWARDED_PORT}:{lab.target.v4}:{PORT}", "server"]
    with ExitStack() as stack:
        for host, argv in (
            (lab.target, ["socat", there, f"UDP4:127.0.0.1:{PORT}"]),
            (lab.client, forward),
            (lab.client, ["socat", "-b65536", here, f"TCP4:127.0.0.1:{_FORWARDED_PORT}"]),
        ):
            process = host.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        lab.client.wait_for_port("127.0.0.1", _FORWARDED_PORT)
        yield "127.0.0.1", PORT


def flood(
    lab: Lab, to: tuple[str, int], pace: int, seconds: float
) -> tuple["subprocess.Popen[bytes]", "subprocess.Popen[bytes]"]:
    """A sink and a sender, started."""
    program = [sys.executable, "-c"]
    sink = lab.target.popen([*program, _SINK, str(PORT)], stdout=subprocess.PIPE)
    assert sink.stdout is not None
    sink.stdout.readline()
    words = [to[0], str(to[1]), str(pace), str(SIZE), str(seconds)]
    return sink, lab.client.popen([*program, _SENDER, *words], stdout=subprocess.PIPE)


def loss_percent(sink: "subprocess.Popen[bytes]", sender: "subprocess.Popen[bytes]") -> float:
    """What of a flood did not arrive, once it is over."""
    sent, arrived = (int(process.communicate()[0]) for process in (sender, sink))
    return 100 * (1 - arrived / (sent * SIZE))


def batches_gbit_s(lab: Lab, to: tuple[str, int], seconds: float) -> float:
    """What arrives of batches, sent as fast as the socket takes them."""
    sink = lab.target.popen([sys.executable, "-c", _SINK, str(PORT)], stdout=subprocess.PIPE)
    assert sink.stdout is not None
    sink.stdout.readline()
    segment = [(_SOL_UDP, _UDP_SEGMENT, SEGMENT.to_bytes(2, sys.byteorder))]
    with udp(lab.client) as sock:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            with suppress(OSError):
                sock.sendmsg([bytes(SEGMENT * SEGMENTS)], segment, 0, to)
            time.sleep(0.0002)
    return int(sink.communicate()[0]) * 8 / seconds / 1e9


def udp(host: Host) -> socket.socket:
    """A socket of a host's."""
    sock = host.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(1.0)
    return sock


def flow_ms(lab: Lab) -> tuple[float, float]:
    """Medians of the first round trip of flows, and of their second."""
    words = [sys.executable, "-c", _ECHO, str(_ECHO_PORT)]
    echo = lab.target.popen(words, stdout=subprocess.PIPE)
    assert echo.stdout is not None
    echo.stdout.readline()
    to = lab.target.v4, _ECHO_PORT
    firsts: list[float] = []
    seconds: list[float] = []
    for _ in range(FLOWS):
        with udp(lab.client) as sock:
            for times in (firsts, seconds):
                begin = time.monotonic()
                sock.sendto(b"x", to)
                with suppress(TimeoutError):
                    sock.recv(10)
                    times.append((time.monotonic() - begin) * 1000)
    echo.terminate()
    echo.communicate()
    return statistics.median(firsts or [0.0]), statistics.median(seconds or [0.0])


def echo_ms(peer: peers.Running, seconds: float) -> float:
    """The median of a byte's round trip over TCP."""
    times = []
    with peer.connect(ECHO_PORT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.monotonic()
            sock.send(b"x")
            sock.recv(1)
            times.append((time.monotonic() - begin) * 1000)
            time.sleep(0.01)
    return statistics.median(times)


def run_round(lab: Lab, name: str, seconds: float) -> report.Row:
    """Start a peer and measure everything."""
    row: report.Row = {}
    with peers.running(lab, "sshunt" if name == "sshunt" else "ssh") as peer:
        for pace in PACES:
            with way(lab, name) as to:
                row[f"loss_{pace}_percent"] = loss_percent(*flood(lab, to, pace, seconds))
        with way(lab, name) as to:
            row["batches_gbit_s"] = batches_gbit_s(lab, to, seconds)
        if name == "sshunt":
            row["first_ms"], row["second_ms"] = flow_ms(lab)
        with echoing(lab):
            row["echo_idle_ms"] = echo_ms(peer, min(1.0, seconds))
            with way(lab, name) as to:
                started = flood(lab, to, PACES[-1], seconds + 1.0)
                time.sleep(0.5)
                row["echo_flooded_ms"] = echo_ms(peer, seconds)
                loss_percent(*started)
    shown = "  ".join(f"{key} {value:.2f}" for key, value in row.items() if value is not None)
    print(f"  {name}: {shown}", file=sys.stderr)
    return row


@contextmanager
def echoing(lab: Lab) -> Iterator[None]:
    """A service that repeats each byte."""
    words = ["socat", f"TCP4-LISTEN:{ECHO_PORT},fork,reuseaddr,nodelay", "PIPE"]
    process = lab.target.popen(words, stderr=subprocess.DEVNULL)
    lab.target.wait_for_port("127.0.0.1", ECHO_PORT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="./dev bench udp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="counted time of each case")
    options = parser.parse_args(argv)
    names = ["sshunt", "socat"]
    rounds: dict[str, list[report.Row]] = {name: [] for name in names}
    with Lab() as lab, serving(lab.target):
        for _ in range(options.rounds):
            for name in names:
                rounds[name].append(run_round(lab, name, options.seconds))
    summary = {name: report.medians(rows) for name, rows in rounds.items()}
    fields = list(summary["sshunt"])
    report.show("Medians", ["", *names], [[f, *(summary[n].get(f) for n in names)] for f in fields])
    report.write("udp", vars(options), {"medians": summary, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
