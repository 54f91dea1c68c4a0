"""How the pacer behaves when things happen: ./dev bench behaviour

    slower     the link falls from 100 to 20 Mbit/s in mid-transfer (20 ms): how long until bulk and
               the echo have settled
    longer     the path grows from 20 to 150 ms in mid-transfer (100 Mbit/s): the same
    worse      both at once: 100 Mbit/s at 20 ms become 20 Mbit/s at 150 ms
    beside     an ordinary cubic flow outside the tunnel on the same 100 Mbit/s link: our share
    joined     the same, but our bulk was there first
    fair       20 bulk streams: Jain's index of their shares
    video      5 Mbit/s in pieces of 40 ms beside bulk: the longest time a piece was late
    requests   1,000 small requests on new connections, ten at once, beside bulk: p50 and p99

Each in both directions where that makes a difference, on an emulated link, through sshunt alone.
"""

import argparse
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

from bench import peers, report
from bench.load import (
    BULK_PORT,
    PIECE_BYTES,
    PIECES,
    PING,
    TICK_S,
    Echoes,
    Flows,
    Target,
    discard,
    lateness,
    send_paced,
    serving,
    watch,
)
from bench.probe import Probes
from bench.words import some_of
from sshunt.lab.link import Shape
from sshunt.lab.world import Lab

_QUEUE_BYTES = 1_250_000
_FIBRE = Shape(100e6, 0.025, _QUEUE_BYTES)
_NEAR = Shape(100e6, 0.010, _QUEUE_BYTES)
_SLOW = Shape(20e6, 0.010, _QUEUE_BYTES)
_FAR = Shape(100e6, 0.075, _QUEUE_BYTES)
_SLOW_AND_FAR = Shape(20e6, 0.075, _QUEUE_BYTES)

#: The time until windows have opened and the controller knows the link.
_WARM_UP_S = 2.0

#: How long bulk runs before the link changes, and how long the change is watched.
_BEFORE_S, _AFTER_S = 4.0, 8.0

#: How many ticks a rate is the mean of: what comes after a queue has drained comes in lumps.
_MEAN_TICKS = 5

#: What "in the end" means: the number of last ticks, and the time after the change from which on
#: echoes count.
_END_TICKS, _END_S = 30, 3.0

#: The first flow's lead, and how long both share the link. Cubic's period on it is several seconds;
#: a share means something only over a few of them.
_LEAD_S, _SHARED_S = 3.0, 25.0

#: An address of the server on its link to the client, and a port that nobody else has there.
_BESIDE = ("192.0.2.2", 5999)

#: What counts as settled: a rate above this share of the link, an echo at most this much above the
#: path.
SETTLED_SHARE, SETTLED_S = 0.8, 0.025


class Stand:
    """A lab with an emulated link, its servers, and a running sshunt."""

    def __init__(self, stack: ExitStack, shape: Shape, *, verbose: bool) -> None:
        self.lab = stack.enter_context(Lab(up=shape, down=shape))
        self.target: Target = stack.enter_context(serving(self.lab.target))
        self.peer = stack.enter_context(peers.running(self.lab, "sshunt", verbose=verbose))
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


def settled_s(good: list[bool]) -> float:
    """When the last bad tick was over."""
    bad = [number for number, is_good in enumerate(good) if not is_good]
    return (bad[-1] + 1) * TICK_S if bad else 0.0


def changed(stand: Stand, shape: Shape, *, down: bool) -> report.Row:
    """Change the link in the midst of bulk; what it looks like afterwards."""
    flows, probes = stand.flows(down=down), stand.probes()
    time.sleep(_BEFORE_S)
    stand.lab.link.change(up=shape, down=shape)
    at_s = time.monotonic() - probes.since
    after = [tick.mbit_s for tick in watch({"bulk": flows}, _AFTER_S)["bulk"]]
    probes.stop()
    enough_mbit_s = SETTLED_SHARE * shape.rate_bit_s / 1e6
    means = [
        statistics.mean(after[max(end - _MEAN_TICKS, 0) : end]) for end in range(1, len(after) + 1)
    ]
    limit_s = 2 * shape.delay_s + SETTLED_S
    late = [s.at_s - at_s for s in probes.echoes if s.took_s > limit_s and s.at_s > at_s]
    tail = [s.took_s * 1e3 for s in probes.echoes if s.at_s > at_s + _END_S]
    return {
        "bulk_settled_s": settled_s([mean > enough_mbit_s for mean in means]),
        "echo_settled_s": max(late, default=0.0),
        "mbit_s_in_the_end": statistics.mean(after[-_END_TICKS:]),
        "echo_p95_after_3_s_ms": report.percentile(tail, 95),
    }


def slower(stand: Stand, *, down: bool) -> report.Row:
    """The rate falls."""
    return changed(stand, _SLOW, down=down)


def longer(stand: Stand, *, down: bool) -> report.Row:
    """The path grows."""
    return changed(stand, _FAR, down=down)


def worse(stand: Stand, *, down: bool) -> report.Row:
    """The rate falls and the path grows."""
    return changed(stand, _SLOW_AND_FAR, down=down)


def beside(stand: Stand, *, down: bool, first: bool = False) -> report.Row:
    """A cubic flow between the same hosts, outside the tunnel; ``first``: ours is there before."""
    lab = stand.lab
    flows = stand.flows(down=down) if first else None
    if flows is not None:
        time.sleep(_BEFORE_S)
    listener = lab.server.listen(*_BESIDE)
    ours = lab.client.connect(*_BESIDE)
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
    time.sleep(_LEAD_S)
    if flows is None:
        flows = stand.flows(down=down)
        time.sleep(_LEAD_S)
    before, moved, since = count[0], flows.moved_bytes, time.monotonic()
    time.sleep(_SHARED_S)
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
    time.sleep(_WARM_UP_S)
    before = flows.received_bytes()
    time.sleep(_AFTER_S)
    shares = [b - a for a, b in zip(before, flows.received_bytes(), strict=True)]
    square = sum(shares) ** 2
    return {"jain": square / (len(shares) * sum(share * share for share in shares))}


def video(stand: Stand, *, down: bool) -> report.Row:
    """A paced stream beside bulk. "p" asks the target for it; up, it is sent by the client."""
    stand.flows(down=down)
    sock = stand.peer.connect(BULK_PORT)
    sock.settimeout(20.0)
    if down:
        sock.sendall(b"p")
        late_s = _received_lateness(sock)
    else:
        sock.sendall(b"t")
        send_paced(sock)
        late_s = stand.target.lateness()
    sock.close()
    return {"latest_ms": max(late_s) * 1e3}


def _received_lateness(sock: socket.socket) -> list[float]:
    late_s = []
    got, begin = 0, 0.0
    while got < PIECE_BYTES * PIECES:
        got += len(sock.recv(65536))
        begin = begin or time.monotonic()
        late_s.append(lateness(time.monotonic() - begin, got))
    return late_s


def requests(
    stand: Stand, *, down: bool, count: int = 1000, alone_s: float = 4.0, turn_s: float = 2.0
) -> report.Row:
    """Requests of 16 bytes on new connections: first alone, then ``count`` beside bulk."""
    echoes = Echoes(stand.lab.client, stand.lab.target, stand.peer.address_of)
    alone = [s * 1e3 for s in echoes.load(at_once=4, seconds=alone_s).latencies_s]
    stand.flows(down=down)
    time.sleep(_WARM_UP_S)
    loaded: list[float] = []
    while len(loaded) < count:
        loaded += [s * 1e3 for s in echoes.load(at_once=10, seconds=turn_s).latencies_s]
    echoes.close()
    return {
        "idle_p50_ms": report.percentile(alone, 50),
        "p50_ms": report.percentile(loaded, 50),
        "p99_ms": report.percentile(loaded, 99),
        "bytes": float(len(PING)),
    }


class Case(NamedTuple):
    """What is done, on which link, with bulk in which directions."""

    run: Callable[..., report.Row]
    shape: Shape
    ways: tuple[str, ...] = ("down", "up")


CASES = {
    "slower": Case(slower, _NEAR),
    "longer": Case(longer, _NEAR),
    "worse": Case(worse, _NEAR),
    "beside": Case(beside, _FIBRE),
    "joined": Case(partial(beside, first=True), _FIBRE),
    "fair": Case(fair, _FIBRE, ("down",)),
    "video": Case(video, _FIBRE),
    "requests": Case(requests, _FIBRE),
}

SMOKE = {"requests": Case(partial(requests, count=5, alone_s=0.3, turn_s=0.5), _FIBRE)}


def run_round(case: Case, way: str, *, verbose: bool) -> report.Row:
    """One case in one direction, on a fresh network."""
    with ExitStack() as stack:
        stand = Stand(stack, case.shape, verbose=verbose)
        return case.run(stand, down=way == "down")


def _shown(row: report.Row) -> str:
    return "  ".join(f"{key} {value:.2f}" for key, value in row.items() if value is not None)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="./dev bench behaviour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cases", type=some_of(CASES), default=",".join(CASES), help="default: %(default)s"
    )
    parser.add_argument("--verbose", action="store_true", help="print what sshunt said")
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    known = CASES
    if options.smoke:
        known, options.rounds, options.cases = SMOKE, 1, list(SMOKE)
    cases = {name: known[name] for name in options.cases}
    rounds: dict[str, list[report.Row]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for name, case in cases.items():
            for way in case.ways:
                row = run_round(case, way, verbose=options.verbose)
                print(f"  {name} {way}: {_shown(row)}", file=sys.stderr)
                rounds.setdefault(f"{name} {way}", []).append(row)
    summary = {name: report.medians(rows) for name, rows in rounds.items()}
    for name, row in summary.items():
        report.show(name, ["", "median"], [[key, value] for key, value in row.items()])
    report.write("behaviour", vars(options), {"medians": summary, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
