"""How the pacer behaves when things happen: ./dev bench behaviour

    slower     the link falls from 100 to 20 Mbit/s in mid-transfer (20 ms): how long until bulk and
    the
               echo have settled
    longer     the path grows from 20 to 150 ms in mid-transfer (100 Mbit/s): the same
    beside     an ordinary cubic flow outside the tunnel on the same 100 Mbit/s link: our share
    fair       20 bulk streams: Jain's index of their shares
    video      5 Mbit/s in pieces of 40 ms beside bulk: the longest time a piece was late
    requests   1,000 small requests, one after the other, beside bulk: p50 and p99

Each in both directions where that makes a difference, on an emulated link, through sshunt alone.
"""

import argparse
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from bench import peers, report
from bench.load import BULK_PORT, PING, Echoes, Flows, Target, discard, serving
from bench.probe import Probes
from sshunt.lab.link import Shape
from sshunt.lab.world import Lab

_FIBRE = Shape(100e6, 0.025, 1_250_000)
_NEAR = Shape(100e6, 0.010, 1_250_000)

TICK_S = 0.1

#: Settled: the rate stays above this share of the link, the echo below the path and this much.
SETTLED_SHARE, SETTLED_S = 0.8, 0.025


class Stand:
    """A lab with an emulated link, its servers, and a running sshunt."""

    def __init__(self, stack: ExitStack, shape: Shape, *, verbose: bool) -> None:
        self.lab = stack.enter_context(Lab(up=shape, down=shape))
        self.target: Target = stack.enter_context(serving(self.lab.target))
        self.peer = stack.enter_context(peers.running(self.lab, "sshunt"))
        self.stack = stack
        if verbose:
            stack.callback(lambda: print(self.peer.log.read_text(), file=sys.stderr))

    def flows(self, *, down: bool, count: int = 1) -> Flows:
        """Bulk that is stopped in the end."""
        flows = Flows(self.target, self.peer.connect, down=down, count=count)
        self.stack.callback(flows.stop)
        return flows

    def probes(self) -> Probes:
        """An echo beside it."""
        return Probes(self.lab.client, self.lab.target, self.peer.address_of)


def rates(flows: Flows, seconds: float) -> list[float]:
    """Mbit/s in each tick of so many seconds."""
    found = []
    last, moved = time.monotonic(), flows.moved_bytes
    end = last + seconds
    while last < end:
        time.sleep(TICK_S)
        now, count = time.monotonic(), flows.moved_bytes
        found.append((count - moved) * 8 / (now - last) / 1e6)
        last, moved = now, count
    return found


def settled_s(good: list[bool], ticks_s: float) -> float:
    """When the last bad tick was over."""
    bad = [number for number, is_good in enumerate(good) if not is_good]
    return (bad[-1] + 1) * ticks_s if bad else 0.0


def changed(stand: Stand, shape: Shape, *, down: bool) -> report.Row:
    """Change the link after 4 s of bulk; what the 8 s after it look like."""
    flows, probes = stand.flows(down=down), stand.probes()
    time.sleep(4.0)
    stand.lab.link.change(up=shape, down=shape)
    at_s = time.monotonic() - probes.since
    after = rates(flows, 8.0)
    probes.stop()
    link = shape.rate_bit_s / 1e6
    # Means over half a second: what comes after a queue has drained comes in lumps.
    means = [
        sum(after[max(n - 4, 0) : n + 1]) / len(after[max(n - 4, 0) : n + 1]) for n in range(80)
    ]
    rtt_s = 2 * shape.delay_s
    late = [s.at_s - at_s for s in probes.echoes if s.took_s > rtt_s + SETTLED_S and s.at_s > at_s]
    tail = [s.took_s * 1e3 for s in probes.echoes if s.at_s > at_s + 3.0]
    return {
        "bulk_settled_s": settled_s([rate > SETTLED_SHARE * link for rate in means], TICK_S),
        "echo_settled_s": max(late, default=0.0),
        "mbit_s_in_the_end": sum(after[-30:]) / 30,
        "echo_p95_after_3_s_ms": report.percentile(tail, 95),
    }


def slower(stand: Stand, *, down: bool) -> report.Row:
    """The rate falls."""
    return changed(stand, Shape(20e6, 0.010, 1_250_000), down=down)


def longer(stand: Stand, *, down: bool) -> report.Row:
    """The path grows."""
    return changed(stand, Shape(100e6, 0.075, 1_250_000), down=down)


def beside(stand: Stand, *, down: bool) -> report.Row:
    """A cubic flow between the same hosts, outside the tunnel."""
    lab = stand.lab
    listener = lab.server.listen("192.0.2.2", 5999)
    ours = lab.client.connect("192.0.2.2", 5999)
    theirs = listener.accept()[0]
    sender, receiver = (theirs, ours) if down else (ours, theirs)
    for sock in (sender, receiver):
        sock.settimeout(None)
    count = [0]

    def receive() -> None:
        for size in discard(receiver):
            count[0] += size

    for work in (receive, lambda: stand.target.send_to(sender)):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(3.0)
    flows = stand.flows(down=down)
    time.sleep(3.0)
    before, moved, since = count[0], flows.moved_bytes, time.monotonic()
    time.sleep(25.0)
    elapsed = time.monotonic() - since
    cubic = (count[0] - before) * 8 / elapsed / 1e6
    sshunt = (flows.moved_bytes - moved) * 8 / elapsed / 1e6
    for sock in (sender, receiver, listener):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    return {"sshunt_mbit_s": sshunt, "cubic_mbit_s": cubic, "share": sshunt / (sshunt + cubic)}


def fair(stand: Stand, *, down: bool) -> report.Row:
    """Twenty streams. Bytes are counted where each arrives, so only down can be told apart here."""
    flows = stand.flows(down=down, count=20)
    time.sleep(2.0)
    before = flows.received_bytes()
    time.sleep(8.0)
    shares = [b - a for a, b in zip(before, flows.received_bytes(), strict=True)]
    square = sum(shares) ** 2
    return {"jain": square / (len(shares) * sum(share * share for share in shares))}


def video(stand: Stand, *, down: bool) -> report.Row:
    """A paced stream beside bulk. "p" asks the target for it; up, it is sent by the client."""
    stand.flows(down=down)
    sock = stand.peer.connect(BULK_PORT)
    piece, every_s = 25_000, 0.04
    sock.sendall(b"p" if down else b"t")
    lateness = []
    sock.settimeout(20.0)
    if down:
        got, begin = 0, 0.0
        while got < piece * 200:
            got += len(sock.recv(65536))
            begin = begin or time.monotonic()
            lateness.append(time.monotonic() - begin - (got // piece) * every_s)
    else:
        begin = time.monotonic()
        for number in range(200):
            time.sleep(max(begin + number * every_s - time.monotonic(), 0))
            sock.sendall(bytes(piece))
        lateness = stand.target.lateness(piece, every_s)
    sock.close()
    return {"latest_ms": max(lateness) * 1e3}


def requests(stand: Stand, *, down: bool) -> report.Row:
    """Requests of 16 bytes on new connections, one after the other."""
    idle = Echoes(stand.lab.client, stand.lab.target, stand.peer.address_of)
    alone = [s * 1e3 for s in idle.load(at_once=4, seconds=4.0).latencies_s]
    stand.flows(down=down)
    time.sleep(2.0)
    loaded: list[float] = []
    while len(loaded) < 1000:
        loaded += [s * 1e3 for s in idle.load(at_once=10, seconds=2.0).latencies_s]
    idle.close()
    return {
        "idle_p50_ms": report.percentile(alone, 50),
        "p50_ms": report.percentile(loaded, 50),
        "p99_ms": report.percentile(loaded, 99),
        "bytes": float(len(PING)),
    }


CASES: dict[str, tuple[Callable[..., report.Row], Shape, tuple[str, ...]]] = {
    "slower": (slower, _NEAR, ("down", "up")),
    "longer": (longer, _NEAR, ("down", "up")),
    "beside": (beside, _FIBRE, ("down", "up")),
    "fair": (fair, _FIBRE, ("down",)),
    "video": (video, _FIBRE, ("down", "up")),
    "requests": (requests, _FIBRE, ("down", "up")),
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="./dev bench behaviour", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="print what sshunt said")
    options = parser.parse_args(argv)
    rounds: dict[str, list[report.Row]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for name in options.cases.split(","):
            case, shape, ways = CASES[name]
            for way in ways:
                with ExitStack() as stack:
                    stand = Stand(stack, shape, verbose=options.verbose)
                    row = case(stand, down=way == "down")
                shown = "  ".join(
                    f"{key} {value:.2f}" for key, value in row.items() if value is not None
                )
                print(f"  {name} {way}: {shown}", file=sys.stderr)
                rounds.setdefault(f"{name} {way}", []).append(row)
    summary = {name: report.medians(rows) for name, rows in rounds.items()}
    for name, row in summary.items():
        report.show(name, ["", "median"], [[key, value] for key, value in row.items()])
    report.write("behaviour", vars(options), {"medians": summary, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
