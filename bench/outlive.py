"""Connections outlive the ssh connection, at length: ./dev bench outlive

Four transfers, two each way, each checked by SHA-256, while what carries them is killed at random
moments (seeded): the client's ssh, the server's sshd. Transfers are repeated until there were so
many kills. A pause is the time from a kill to the next byte of a download.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from bench import processes, report
from sshunt.lab.hosts import Host
from sshunt.lab.servers import payload, payload_sha256
from sshunt.lab.world import OFFICE_V4, Lab

DEADLINE_S = 120.0

#: No byte for so long, and a transfer hangs.
HANGS_S = 60.0


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


def pause_s(downloads: list[Download]) -> float | None:
    """How long it takes until a download goes on; None if all are over by then."""
    begin, before = time.monotonic(), sum(d.moved for d in downloads)
    time.sleep(0.05)  # what is in the pipes still comes
    before = sum(d.moved for d in downloads)
    while any(d.is_alive() for d in downloads) and time.monotonic() < begin + HANGS_S:
        if sum(d.moved for d in downloads) > before:
            return time.monotonic() - begin
        time.sleep(0.005)
    return None


def run(lab: Lab, options: argparse.Namespace) -> report.Row:
    """Transfers and kills until there were enough; what was seen."""
    rng = random.Random(options.seed)
    body = lab.folder / "body"
    with body.open("wb") as file:
        for block in payload(options.size):
            file.write(block)
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
            if any(d.is_alive() for d in downloads) and kill_once(lab, rng):
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


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 if a transfer did not arrive whole."""
    parser = argparse.ArgumentParser(prog="./dev bench outlive", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--size", type=int, default=500_000_000, help="bytes of each transfer")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    parser.add_argument("--smoke", action="store_true", help="a few seconds; figures mean nothing")
    options = parser.parse_args(argv)
    if options.smoke:
        options.kills, options.size = 2, 30_000_000
    print(f"seed {options.seed}", file=sys.stderr)
    with Lab() as lab:
        lab.web(lab.target)
        log = lab.folder / "sshunt.log"
        with log.open("wb") as stderr:
            words = ["-m", "sshunt", "-v", "-r", "server", OFFICE_V4]
            tunnel = lab.client.popen([sys.executable, *words], stderr=stderr)
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
    report.show("outlive", ["", "seen"], [[key, value] for key, value in row.items()])
    report.write("outlive", vars(options), {"medians": row})
    return 1 if row["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
