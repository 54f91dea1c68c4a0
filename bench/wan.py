"""Bulk and a keystroke on one link: ./dev bench wan

Client and server are joined by an emulated link (``sshunt.lab.link``: rate, delay, queue, loss).
Each round starts every peer anew on a fresh network, measures the echo on the idle link, then loads
the link in one or both directions and measures beside the load: 16 bytes every 50 ms, and a new
connection with 16 bytes there and back every 250 ms. The load's first second is not counted.

Figures are medians over the rounds. Peers and links side by side, in one run. The timelines of the
last round go into the JSON file and, with --plot, into docs/wan-CASE.svg.
"""

import argparse
import sys
import time
from typing import NamedTuple

from bench import peers, plot, processes, report
from bench.load import Flows, Target, Tick, serving, watch
from bench.probe import Probes, Sample
from bench.words import some_of
from sshunt.lab.link import DEFAULT_MTU, Shape
from sshunt.lab.world import Lab

#: The beginning of the load that is not counted: until windows have opened.
WARM_UP_S = 1.0

IDLE_S = 2.0

#: How long before the load the timeline begins.
LEAD_S = 1.0


class Case(NamedTuple):
    """A link and how it is loaded. ``loads`` are directions, each with one bulk flow."""

    name: str
    about: str
    up: Shape
    down: Shape
    loads: tuple[str, ...]
    mtu: int = DEFAULT_MTU
    cipher: str = "ssh"


def _symmetric(mbit_s: float, rtt_ms: float, queue_bytes: int, loss: float = 0.0) -> Shape:
    return Shape(mbit_s * 1e6, rtt_ms / 2000, queue_bytes, loss)


_FIBRE = _symmetric(100, 50, 1_250_000)
_HOME = _symmetric(20, 30, 500_000)
_FAT = _symmetric(600, 100, 8_000_000)
_LOSSY = _symmetric(100, 80, 1_250_000, 0.005)

CASES = {
    case.name: case
    for case in (
        Case("fibre-down", "100 Mbit/s, 50 ms, 1.25 MB queue", _FIBRE, _FIBRE, ("down",)),
        Case("fibre-up", "100 Mbit/s, 50 ms, 1.25 MB queue", _FIBRE, _FIBRE, ("up",)),
        Case("home-down", "20 Mbit/s, 30 ms, 500 KB queue", _HOME, _HOME, ("down",)),
        Case("home-up", "20 Mbit/s, 30 ms, 500 KB queue", _HOME, _HOME, ("up",)),
        Case(
            "cable-both",
            "50 down / 10 up Mbit/s, 40 ms, both loaded",
            _symmetric(10, 40, 250_000),
            _symmetric(50, 40, 625_000),
            ("down", "up"),
        ),
        Case("fat-down", "600 Mbit/s, 100 ms, MTU 9000", _FAT, _FAT, ("down",), 9000, "ssh-aes"),
        Case("fat-up", "600 Mbit/s, 100 ms, MTU 9000", _FAT, _FAT, ("up",), 9000, "ssh-aes"),
        Case("lossy-down", "100 Mbit/s, 80 ms, 0.5 % loss", _LOSSY, _LOSSY, ("down",)),
        Case("lossy-up", "100 Mbit/s, 80 ms, 0.5 % loss", _LOSSY, _LOSSY, ("up",)),
    )
}


def measure(
    lab: Lab, target: Target, peer: peers.Running, case: Case, seconds: float
) -> tuple[report.Row, plot.Timeline]:
    """Run one case through a running peer: its figures and its timeline."""
    idle = Probes(lab.client, lab.target, peer.address_of)
    time.sleep(min(IDLE_S, seconds))
    idle.stop()
    row = _latencies("idle", idle.echoes, idle.connects, since_s=0.2)
    probes = Probes(lab.client, lab.target, peer.address_of)
    time.sleep(LEAD_S)
    flows = {way: Flows(target, peer.connect, down=way == "down", count=1) for way in case.loads}
    begin_s = time.monotonic() - probes.since
    warming = watch(flows, WARM_UP_S)
    pids = processes.roles(lab)
    cpu_before = processes.cpu_seconds(pids)
    before = {way: (time.monotonic(), flow.moved_bytes) for way, flow in flows.items()}
    counted = watch(flows, seconds)
    for way, flow in flows.items():
        since, count = before[way]
        rate = (flow.moved_bytes - count) * 8 / (time.monotonic() - since)
        row[f"{way}_mbit_s"] = rate / 1e6
    cpu_after = processes.cpu_seconds(pids)
    for role in ("client", "agent"):
        row[f"{role}_cpu"] = (cpu_after.get(role, 0) - cpu_before.get(role, 0)) / seconds
    end_s = time.monotonic() - probes.since
    probes.stop()
    for flow in flows.values():
        flow.stop()
    row.update(
        _latencies(
            "loaded",
            [s for s in probes.echoes if begin_s + WARM_UP_S <= s.at_s <= end_s],
            [s for s in probes.connects if begin_s + WARM_UP_S <= s.at_s <= end_s],
        )
    )
    ticks = {way: warming[way] + counted[way] for way in flows}
    echoes = [s for s in probes.echoes if s.at_s <= end_s]
    return row, _timeline(ticks, echoes, begin_s=begin_s, probes_since_s=probes.since)


def _timeline(
    ticks: dict[str, list[Tick]], echoes: list[Sample], *, begin_s: float, probes_since_s: float
) -> plot.Timeline:
    """Both as seconds since the load's beginning, in the units of the table."""
    lines = {
        f"{way}_mbit_s": [
            (round(tick.at_s - probes_since_s - begin_s, 3), round(tick.mbit_s, 2))
            for tick in ticks[way]
        ]
        for way in ticks
    }
    lines[plot.ECHO] = [(round(s.at_s - begin_s, 3), round(s.took_s * 1e3, 2)) for s in echoes]
    return lines


def _latencies(
    name: str, echoes: list[Sample], connects: list[Sample], since_s: float = 0.0
) -> report.Row:
    took = [s.took_s * 1e3 for s in echoes if s.at_s >= since_s]
    new = [s.took_s * 1e3 for s in connects if s.at_s >= since_s]
    return {
        f"{name}_echo_p50_ms": report.percentile(took, 50),
        f"{name}_echo_p95_ms": report.percentile(took, 95),
        f"{name}_connect_p50_ms": report.percentile(new, 50),
        f"{name}_connect_p95_ms": report.percentile(new, 95),
    }


def run_round(
    case: Case, name: str, seconds: float, *, verbose: bool
) -> tuple[report.Row, plot.Timeline]:
    """One peer on one link."""
    with (
        Lab(up=case.up, down=case.down, mtu=case.mtu) as lab,
        serving(lab.target) as target,
        peers.running(lab, name, verbose=verbose) as peer,
    ):
        row, timeline = measure(lab, target, peer, case, seconds)
        if verbose:
            print(peer.log.read_text(errors="replace"), file=sys.stderr)
    shown = "  ".join(f"{key} {value:.1f}" for key, value in row.items() if value is not None)
    print(f"  {case.name} {name}: {shown}", file=sys.stderr)
    return row, timeline


_COLUMNS = {
    "down_mbit_s": "down Mbit/s",
    "up_mbit_s": "up Mbit/s",
    "idle_echo_p50_ms": "echo idle p50",
    "loaded_echo_p50_ms": "loaded p50",
    "loaded_echo_p95_ms": "p95 ms",
    "idle_connect_p50_ms": "new connection idle",
    "loaded_connect_p50_ms": "loaded ms",
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="./dev bench wan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="counted time of each case")
    parser.add_argument(
        "--peers", type=some_of(peers.PEERS), default="sshunt,ssh", help="default: %(default)s"
    )
    parser.add_argument(
        "--cases", type=some_of(CASES), default=",".join(CASES), help="default: %(default)s"
    )
    parser.add_argument("--plot", action="store_true", help="draw docs/wan-CASE.svg")
    parser.add_argument("--verbose", action="store_true", help="print what sshunt said")
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    if options.smoke:
        options.rounds, options.seconds, options.cases = 1, 0.5, ["fibre-down"]
    names = options.peers
    cases = [CASES[name] for name in options.cases]
    peers.prepare(names)
    rounds: dict[str, dict[str, list[report.Row]]] = {}
    timelines: dict[str, dict[str, plot.Timeline]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for case in cases:
            for name in names:
                chosen = case.cipher if name == "ssh" else name
                row, timeline = run_round(case, chosen, options.seconds, verbose=options.verbose)
                timelines.setdefault(case.name, {})[chosen] = timeline
                rounds.setdefault(case.name, {}).setdefault(chosen, []).append(row)
    summary = {
        case: {name: report.medians(rows) for name, rows in by_name.items()}
        for case, by_name in rounds.items()
    }
    for case in cases:
        report.show(
            f"{case.name}: {case.about}",
            ["", *_COLUMNS.values()],
            [[name, *map(row.get, _COLUMNS)] for name, row in summary[case.name].items()],
        )
        if options.plot:
            plot.draw(case.name, f"{case.name}: {case.about}", timelines[case.name])
    results = {"medians": summary, "rounds": rounds, "timelines": timelines}
    report.write("wan", vars(options), results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
