"""Bulk flows on a fast LAN: ./dev bench lan

Client, server and target are three network namespaces joined by veth pairs (``sshunt.lab.world``).
Each round starts every peer anew, one after the other, and measures one flow up, one flow down and
eight flows down through it; medians are over the rounds. CPU seconds per GB are those of one flow,
by role, both directions shown.
"""

import argparse
import sys
import time

from bench import peers, processes, report
from bench.load import Flows, Target, serving
from bench.words import some_of
from sshunt.lab.world import Lab

#: The time for slow start, window growth and the processors' clocks before anything is counted.
WARM_UP_S = 1.0

CASES = {"up": (False, 1), "down": (True, 1), "down8": (True, 8)}


def measure(lab: Lab, target: Target, peer: peers.Running, case: str, seconds: float) -> report.Row:
    """Run one case through a running peer: Gbit/s, and CPU seconds per GB by role."""
    down, count = CASES[case]
    flows = Flows(target, peer.connect, down=down, count=count)
    time.sleep(min(WARM_UP_S, seconds))
    pids = processes.roles(lab)
    cpu_before = processes.cpu_seconds(pids)
    begin, bytes_before = time.monotonic(), flows.moved_bytes
    time.sleep(seconds)
    moved = flows.moved_bytes - bytes_before
    elapsed = time.monotonic() - begin
    cpu_after = processes.cpu_seconds(pids)
    flows.stop()
    row: report.Row = {f"{case}_gbit_s": moved * 8 / elapsed / 1e9}
    for role, after in cpu_after.items():
        used = after - cpu_before.get(role, 0.0)
        row[f"{case}_{role}_cpu_s_per_gb"] = report.ratio(used, moved / 1e9)
    return row


def run_round(lab: Lab, target: Target, name: str, seconds: float) -> report.Row:
    """Start a peer and run every case through it."""
    row: report.Row = {}
    with peers.running(lab, name) as peer:
        for case in CASES:
            print(f"  {name}: {case} ...", file=sys.stderr, end="\r", flush=True)
            row.update(measure(lab, target, peer, case, seconds))
    rates = "  ".join(f"{case} {row[f'{case}_gbit_s']:.2f}" for case in CASES)
    print(f"  {name}: {rates} Gbit/s", file=sys.stderr)
    return row


def show(summary: dict[str, report.Row]) -> None:
    """Print the tables."""
    report.show(
        "Gbit/s, median",
        ["", *CASES],
        [[name, *(row.get(f"{case}_gbit_s") for case in CASES)] for name, row in summary.items()],
    )
    ours = summary.get("sshunt")
    if ours is not None:
        report.show(
            "sshunt as a multiple of",
            ["", *CASES],
            [
                [
                    name,
                    *(report.ratio(ours[key], row[key]) for key in map("{}_gbit_s".format, CASES)),
                ]
                for name, row in summary.items()
                if name != "sshunt"
            ],
        )
    report.show(
        "CPU seconds per GB, one flow",
        ["", *processes.ROLES],
        [
            [f"{name} {case}", *(row.get(f"{case}_{r}_cpu_s_per_gb") for r in processes.ROLES)]
            for name, row in summary.items()
            for case in ("up", "down")
        ],
    )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="./dev bench lan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="counted time of each case")
    parser.add_argument(
        "--peers",
        type=some_of(peers.PEERS),
        default="sshunt,sshunt-copy,ssh,ssh-aes,sshuttle",
        help="default: %(default)s",
    )
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    if options.smoke:
        options.rounds, options.seconds, options.peers = 1, 0.3, ["sshunt", "ssh"]
    names = options.peers
    peers.prepare(names)
    rounds: dict[str, list[report.Row]] = {name: [] for name in names}
    with Lab() as lab, serving(lab.target) as target:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name in names:
                rounds[name].append(run_round(lab, target, name, options.seconds))
    summary = {name: report.medians(rows) for name, rows in rounds.items()}
    show(summary)
    report.write("lan", vars(options), {"medians": summary, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
