"""Connections, memory and start-up: ./dev bench conns

    new       50 connections at a time open, echo 16 bytes, close: how many per second, how long
    idle      5,000 connections are opened and held: memory of each process per connection; 100 at a
              time work beside them; afterwards every one of them must answer
    stopped   a sender pushes as much as it can (2 GB at most) to a reader that never reads, both
              directions: growth of each process, and the speed of another flow before and meanwhile
    start     from starting the program to the first echoed byte, beside ``ssh server true``

Each round starts every peer anew; medians are over the rounds.
"""

import argparse
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from bench import peers, processes, report
from bench.load import BULK_PORT, Echoes, Flows, Target, make_room_for_connections, serving
from bench.words import some_of
from sshunt.lab.world import Lab

#: The bytes that are pushed at a stopped reader: more than any window.
PUSH_BYTES = 2_000_000_000

AT_ONCE_NEW = 50
AT_ONCE_BESIDE_IDLE = 100

#: How often memory is looked at while a reader is stopped.
SAMPLE_S = 0.1

CASES = ("new", "idle", "stopped", "start")

#: How often the start is timed in each round.
STARTS = 5


def measure_new(lab: Lab, peer: peers.Running, seconds: float) -> report.Row:
    """New connections per second."""
    echoes = Echoes(lab.client, lab.target, peer.address_of)
    result = echoes.load(at_once=AT_ONCE_NEW, seconds=seconds)
    echoes.close()
    latencies = [1000 * latency for latency in result.latencies_s]
    return {
        "new_per_s": result.per_second,
        "new_p50_ms": report.percentile(latencies, 50),
        "new_p99_ms": report.percentile(latencies, 99),
        "new_failed": result.failed,
    }


def measure_idle(lab: Lab, peer: peers.Running, count: int, seconds: float) -> report.Row:
    """Memory per idle connection, speed beside them, and whether all of them still answer."""
    echoes = Echoes(lab.client, lab.target, peer.address_of)
    alone = echoes.load(at_once=AT_ONCE_BESIDE_IDLE, seconds=seconds)
    pids = processes.roles(lab)
    before = processes.memory_bytes(pids)
    held = echoes.hold(count)
    after = processes.memory_bytes(pids)
    beside = echoes.load(at_once=AT_ONCE_BESIDE_IDLE, seconds=seconds)
    answered = echoes.ask_idle()
    echoes.close()
    row: report.Row = {
        "idle_wanted": count,
        "idle_held": held,
        "idle_answered": answered,
        "idle_alone_per_s": alone.per_second,
        "idle_beside_per_s": beside.per_second,
    }
    for role, size in after.items():
        row[f"idle_{role}_kib_each"] = report.ratio(size - before.get(role, 0), held * 1024)
    return row


def measure_stopped(
    lab: Lab, target: Target, peer: peers.Running, case: str, seconds: float
) -> report.Row:
    """Growth of every process while one reader is stopped, and what another flow notices of it."""
    flow = Flows(target, peer.connect, down=True, count=1)
    time.sleep(min(1.0, seconds))
    speed_before = _speed(flow, seconds)
    pids = processes.roles(lab)
    before = processes.memory_bytes(pids)
    stop = threading.Event()
    pushed = [0]
    sock = peer.connect(BULK_PORT)
    if case == "down":
        sock.sendall(b"d")  # and then we never read
    else:
        sock.sendall(b"s")  # the target never reads
        pusher = threading.Thread(target=_push, args=(sock, stop, pushed))
        pusher.start()
    highest = dict(before)
    since, moved_before = time.monotonic(), flow.moved_bytes
    while time.monotonic() - since < max(seconds, 2 * SAMPLE_S):
        time.sleep(SAMPLE_S)
        for role, size in processes.memory_bytes(pids).items():
            highest[role] = max(highest.get(role, 0), size)
    speed_meanwhile = (flow.moved_bytes - moved_before) * 8 / (time.monotonic() - since) / 1e9
    stop.set()
    if case == "up":
        pusher.join()
    sock.close()
    flow.stop()
    row: report.Row = {
        f"stopped_{case}_speed_before_gbit_s": speed_before,
        f"stopped_{case}_speed_meanwhile_gbit_s": speed_meanwhile,
    }
    if case == "up":
        row["stopped_up_pushed_mb"] = pushed[0] / 1e6
    for role, size in highest.items():
        row[f"stopped_{case}_{role}_growth_mb"] = (size - before.get(role, 0)) / 1e6
    return row


def measure_start(lab: Lab, name: str, times: int) -> report.Row:
    """From start to the first byte through the tunnel, and ``ssh server true`` beside it."""
    firsts, trues = [], []
    for _ in range(times):
        begin = time.monotonic()
        lab.client.run(["ssh", "server", "true"])
        trues.append(time.monotonic() - begin)
        echoes = Echoes(
            lab.client, lab.target, lambda port: peers.PEERS[name].address_of(lab, port)
        )
        with peers.started(lab, name) as peer:
            peer.wait_until_connected()
            if echoes.hold(1) == 1:
                firsts.append(time.monotonic() - peer.since)
            echoes.close()
    first, true = report.median(firsts), report.median(trues)
    above = None if first is None or true is None else first - true
    return {"start_first_byte_s": first, "start_ssh_true_s": true, "start_above_ssh_s": above}


def _speed(flow: Flows, seconds: float) -> float:
    begin, before = time.monotonic(), flow.moved_bytes
    time.sleep(seconds)
    return (flow.moved_bytes - before) * 8 / (time.monotonic() - begin) / 1e9


def _push(sock: socket.socket, stop: threading.Event, pushed: list[int]) -> None:
    """Push until told to stop; a full connection is waited for, as a sender would."""
    block = bytes(1024 * 1024)
    sock.setblocking(False)
    with suppress(OSError):
        while not stop.is_set() and pushed[0] < PUSH_BYTES:
            if select.select([], [sock], [], SAMPLE_S)[1]:
                pushed[0] += sock.send(block)


def run_round(lab: Lab, target: Target, name: str, options: argparse.Namespace) -> report.Row:
    """Everything that was asked for, through one peer; what a peer can't do stays empty."""
    row: report.Row = {}
    seconds, idle = options.seconds, options.idle
    cases: dict[str, list[Callable[[peers.Running], report.Row]]] = {
        "new": [lambda peer: measure_new(lab, peer, seconds)],
        "idle": [lambda peer: measure_idle(lab, peer, idle, seconds)],
        "stopped": [
            lambda peer: measure_stopped(lab, target, peer, "down", seconds),
            lambda peer: measure_stopped(lab, target, peer, "up", seconds),
        ],
    }
    for case, measures in cases.items():
        if case not in options.cases:
            continue
        for measure in measures:
            print(f"  {name}: {case} ...", file=sys.stderr)
            # A fresh start for each: what one case did to a peer is not the next one's burden.
            try:
                with peers.running(lab, name) as peer:
                    row.update(measure(peer))
            except OSError as error:
                print(f"  {name}: {case} failed: {error}", file=sys.stderr)
    if "start" in options.cases:
        row.update(measure_start(lab, name, options.starts))
    return row


def show(summary: dict[str, report.Row]) -> None:
    """Print one table per case, a row per figure and a column per peer."""
    names = list(summary)
    for case in CASES:
        fields = dict.fromkeys(
            field for row in summary.values() for field in row if field.startswith(case + "_")
        )
        rows = [[field, *(summary[name].get(field) for name in names)] for field in fields]
        if rows:
            report.show(f"{case}, median", ["", *names], rows)
    ssh = summary.get("ssh", {})
    for name in names:
        against = report.ratio(summary[name].get("new_per_s"), ssh.get("new_per_s"))
        if name.startswith("sshunt") and against is not None:
            print(f"\nnew connections: {name} is {against:.2f} x ssh -L")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="./dev bench conns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="time of each load")
    parser.add_argument("--idle", type=int, default=5000, help="idle connections to hold")
    parser.add_argument("--starts", type=int, default=STARTS, help="how often to time a start")
    parser.add_argument(
        "--peers",
        type=some_of(peers.PEERS),
        default="sshunt,sshunt-honest,sshunt-fast,ssh,sshuttle",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--cases", type=some_of(CASES), default=",".join(CASES), help="default: %(default)s"
    )
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    if options.smoke:
        options.rounds, options.seconds, options.idle, options.starts = 1, 0.3, 50, 1
        options.peers = ["sshunt", "ssh"]
    names = options.peers
    peers.prepare(names)
    rounds: dict[str, list[report.Row]] = {name: [] for name in names}
    with Lab() as lab, serving(lab.target) as target:
        make_room_for_connections(lab)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name in names:
                rounds[name].append(run_round(lab, target, name, options))
    summary = {name: report.medians(rows) for name, rows in rounds.items()}
    show(summary)
    report.write("conns", vars(options), {"medians": summary, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
