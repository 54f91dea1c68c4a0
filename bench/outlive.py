"""Connections outlive the ssh connection, at length: ./dev bench outlive

Four transfers, two each way, each checked by SHA-256, while what carries them fails at random
moments (seeded). Transfers are repeated until there were enough failures (--kills).

    kill    kill -9 of the client's ssh, or of the server's sshd
    cut     the link carries nothing for --cut seconds: no RST, no FIN
    move    the client's address is another one from now on

A pause is the longest time without a byte of a download after a kill, a move or a link's return.
"""

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from bench import processes, report
from sshunt.lab.hosts import Host
from sshunt.lab.link import Shape
from sshunt.lab.servers import payload_sha256, write_payload
from sshunt.lab.world import OFFICE_V4, Lab

#: How long a transfer may take, pauses included, before it is given up.
DEADLINE_S = 900.0

#: How long a transfer is without a byte when it counts as hanging.
HANGS_S = 60.0

#: How long bytes must come after a failure to count as flowing again, or still.
FLOWS_S = 2.0


class Download(threading.Thread):
    """One download of ``size`` bytes. ``moved`` grows as bytes come."""

    def __init__(self, lab: Lab, size: int) -> None:
        super().__init__(daemon=True)
        self.moved = 0
        self.problem = ""
        self._size = size
        self._sock = lab.client.connect(lab.target.v4, 80, timeout_s=HANGS_S)
        self._sock.settimeout(HANGS_S)

    def run(self) -> None:
        try:
            self._fetch()
        except OSError as error:
            self.problem = f"after {self.moved} bytes: {error}"

    def _fetch(self) -> None:
        with self._sock as sock:
            sock.sendall(b"GET /bytes/%d HTTP/1.0\r\n\r\n" % self._size)
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1) or _ended()
            digest = hashlib.sha256()
            while data := sock.recv(1 << 20):
                digest.update(data)
                self.moved += len(data)
        if digest.hexdigest() != payload_sha256(self._size):
            self.problem = f"other bytes, {self.moved} of {self._size}"


def _ended() -> bytes:
    raise OSError("the connection ended before the answer")


class Upload(threading.Thread):
    """One upload of the file's bytes by curl; the far side says their digest."""

    def __init__(self, lab: Lab, body: Path, size: int) -> None:
        super().__init__(daemon=True)
        self.problem = ""
        self._size = size
        limits = ["-m", str(DEADLINE_S), "-X", "POST"]
        url = f"http://{lab.target.v4}/sha256"
        self._curl = lab.client.popen(
            ["curl", "-sS", *limits, "-H", "Expect:", "-T", str(body), url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self) -> None:
        said = self._curl.communicate()[0].decode().strip()
        if said != payload_sha256(self._size):
            self.problem = said


def sshds(server: Host) -> list[int]:
    """The sshd processes of logged-in sessions."""
    found = server.run(["pgrep", "-f", "^sshd: .*@notty"], check=False).stdout.split()
    return sorted({int(pid) for pid in found} & set(server.pids()))


def kill_once(lab: Lab, rng: random.Random) -> bool:
    """Kill an ssh or an sshd; False if there is none just now."""
    ssh = [pid for pid, role in processes.roles(lab).items() if role == "ssh"]
    victims = ssh if rng.random() < 0.7 else sshds(lab.server)
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(victims)


def cut(lab: Lab, seconds: float) -> None:
    """Nothing gets through for a while."""
    lab.link.cut()
    time.sleep(seconds)
    lab.link.mend()


class Mover:
    """Gives the client another address towards the server, each time."""

    def __init__(self, lab: Lab) -> None:
        self._host = lab.client
        self._number = 1

    def move(self) -> None:
        """Now."""
        old, self._number = self._number, self._number + 10
        for verb, number in (("del", old), ("add", self._number)):
            self._host.run(["ip", "addr", verb, f"192.0.2.{number}/24", "dev", "to-server"])
        self._host.run(["ip", "route", "replace", "default", "via", "192.0.2.2"])


def pause_s(downloads: list[Download]) -> float | None:
    """The longest time without a byte from now until they flow again; None if they are over."""
    begin = changed_at = time.monotonic()
    count, longest_s = -1, 0.0
    while any(d.is_alive() for d in downloads):
        time.sleep(0.005)
        now, moved = time.monotonic(), sum(d.moved for d in downloads)
        if moved != count:
            longest_s = max(longest_s, now - changed_at)
            count, changed_at = moved, now
        if now > changed_at + HANGS_S:
            return now - changed_at
        if now > begin + FLOWS_S and now < changed_at + FLOWS_S / 10:
            return longest_s
    return None


def run(lab: Lab, options: argparse.Namespace) -> report.Row:
    """Transfers and kills until there were enough; what was seen."""
    rng = random.Random(options.seed)
    body = lab.folder / "body"
    write_payload(body, options.size)
    mover = Mover(lab)

    def fail() -> bool:
        if options.how == "kill":
            return kill_once(lab, rng)
        if options.how == "cut":
            cut(lab, options.cut)
        else:
            mover.move()
        return True

    kills, rounds = 0, 0
    pauses: list[float] = []
    problems: list[str] = []
    while kills < options.kills:
        downloads = [Download(lab, options.size) for _ in range(2)]
        uploads = [Upload(lab, body, options.size) for _ in range(2)]
        transfers: list[Download | Upload] = [*downloads, *uploads]
        for transfer in transfers:
            transfer.start()
        while any(transfer.is_alive() for transfer in transfers):
            time.sleep(rng.uniform(0.0, 0.6))
            if any(d.is_alive() for d in downloads) and kills < 2 * options.kills and fail():
                kills += 1
                paused = pause_s(downloads)
                if paused is not None:
                    pauses.append(paused)
        problems += [transfer.problem for transfer in transfers if transfer.problem]
        rounds += 1
        print(f"  {kills} kills, {4 * rounds} transfers, {len(problems)} failed", file=sys.stderr)
    for problem in problems:
        print(f"  FAILED: {problem}", file=sys.stderr)
    return {
        "kills": float(kills),
        "transfers": 4.0 * rounds,
        "failed": float(len(problems)),
        "pause_p50_s": report.percentile(pauses, 50),
        "pause_p95_s": report.percentile(pauses, 95),
        "pause_max_s": max(pauses, default=0.0),
    }


def zero_copied(log: str) -> report.Row:
    """What both ends said last of the bytes that they sent without copying them, in GB."""
    seen: report.Row = {}
    for direction in ("up", "down"):
        said = re.findall(rf"lane \d+ {direction}: .*zero-copy: ([0-9.]+) MB sent", log)
        seen[f"zero_copied_{direction}_gb"] = float(said[-1]) / 1e3 if said else 0.0
    return seen


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 if a transfer did not arrive whole."""
    parser = argparse.ArgumentParser(
        prog="./dev bench outlive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--how", choices=("kill", "cut", "move"), default="kill")
    parser.add_argument("--kills", type=int, default=50, help="failures, of whatever kind")
    parser.add_argument("--cut", type=float, default=30.0, help="seconds; default: %(default)s")
    parser.add_argument("--size", type=int, default=500_000_000, help="bytes of each transfer")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    if options.smoke:
        options.kills, options.size = 1, 200_000_000
    print(f"seed {options.seed}", file=sys.stderr)
    # Only an emulated link can be cut; a real one between namespaces is a LAN.
    shape = None if options.how == "kill" else Shape(1e9, 0.001, 2_000_000)
    with Lab(up=shape, down=shape) as lab:
        lab.web(lab.target)
        log = lab.folder / "sshunt.log"
        with log.open("wb") as stderr:
            words = ["-m", "sshunt", "-v", "-r", "server", OFFICE_V4]
            tunnel = lab.client.popen([sys.executable, *words], stderr=stderr)
        row: report.Row = {}
        try:
            while b"sshunt: connected" not in log.read_bytes():
                time.sleep(0.05)
                if tunnel.poll() is not None:
                    raise SystemExit(log.read_text())
            row = run(lab, options)
        finally:
            tunnel.terminate()
            tunnel.wait(10)
            report.OUT.mkdir(exist_ok=True)
            (report.OUT / "outlive.log").write_bytes(log.read_bytes())
            row.update(zero_copied(log.read_text(errors="replace")))
    report.show("outlive", ["", "seen"], [[key, value] for key, value in row.items()])
    report.write("outlive", vars(options), {"medians": row, "rounds": [row]})
    return 1 if row["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
