"""Two remotes in one process, by two sshd, with networks that overlap.

    neighbour ------------- client ------------- server ------------- target
     sshd, a web server      the process          sshd                 a web server
     10.55.0.2 on lo         rules, programs      10.55.0.1             10.55.0.2

The server reaches the office, 10.55.0.0/24. The neighbour has a machine of its own that bears the
address 10.55.0.2, and the client asks it for that one only.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sshunt.lab.hosts import ip
from sshunt.lab.world import Lab
from tests.e2e.tunnels import Remains

BOTH_HAVE = "10.55.0.2"
PROGRAM = Path(__file__).with_name("two_remotes.py")
PORT = 8055  # of the web servers: the lab is other tests', too
DEADLINE_S = 20.0


class Remotes:
    """The process, as it is talked to."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.log = lab.folder / f"remotes-{time.monotonic_ns()}.log"
        with self.log.open("wb") as stderr:
            self.process = lab.client.popen(
                [sys.executable, str(PROGRAM), os.urandom(4).hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self._hear() == "ready"

    def ask(self, *command: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def until_heard(self, name: str, event: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while [name, event] not in self.ask("heard"):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def carrier(lab: Lab, address: str) -> str:
    """Whose agent connects there for a program on the client: the page says who has asked."""
    command = ["curl", "-s", "--max-time", "10", f"http://{address}:{PORT}/"]
    page = lab.client.run(command).stdout
    return {"10.55.0.1": "server", BOTH_HAVE: "neighbour"}[page.split("you are ")[1].strip(" .\n")]


def logins_of(lab: Lab, host: str) -> list[int]:
    """The sshd processes of logins there, not the one that listens."""
    found = []
    for pid in {"server": lab.server, "neighbour": lab.neighbour}[host].pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if words.startswith(b"sshd") and b"[listener]" not in words:
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def office(lab: Lab) -> Iterator[Lab]:
    with ExitStack() as undo:
        sshd = lab.sshd(lab.neighbour)
        undo.callback(sshd.stop)
        address = f"{BOTH_HAVE}/32 dev lo"
        ip(f"address add {address}", netns=lab.neighbour.netns_path.name)
        undo.callback(ip, f"address del {address}", netns=lab.neighbour.netns_path.name)
        for host in (lab.neighbour, lab.server, lab.target):
            lab.web(host, port=PORT)
        yield lab


@pytest.fixture
def remotes(office: Lab) -> Iterator[Remotes]:
    remains = Remains(office)
    remotes = Remotes(office)
    try:
        yield remotes
    finally:
        remotes.close()
        assert remains.left() == []


def test_the_most_specific_network_wins_and_remotes_come_and_go(remotes: Remotes) -> None:
    lab = remotes.lab
    remotes.ask("add", "server", ["10.55.0.0/24"])
    assert carrier(lab, BOTH_HAVE) == "server"
    one = remotes.ask("shared")
    remotes.ask("add", "neighbour", [f"{BOTH_HAVE}/32"])
    assert carrier(lab, BOTH_HAVE) == "neighbour"
    assert carrier(lab, "10.55.0.1") == "server"
    assert remotes.ask("shared")["epoll sets"] == one["epoll sets"]

    with lab.client.connect("10.55.0.1", PORT) as kept:
        kept.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")  # and the rest of it later
        for pid in logins_of(lab, "neighbour"):
            os.kill(pid, signal.SIGKILL)
        remotes.until_heard("neighbour", "RemoteLost")
        assert carrier(lab, "10.55.0.1") == "server"
        remotes.until_heard("neighbour", "RemoteReconnected")
        assert carrier(lab, BOTH_HAVE) == "neighbour"

        remotes.ask("end", "neighbour")
        assert carrier(lab, BOTH_HAVE) == "server"
        remotes.ask("add", "neighbour", [f"{BOTH_HAVE}/32"])
        remotes.ask("replace", "server", ["10.55.0.1/32"])
        assert carrier(lab, BOTH_HAVE) == "neighbour"
        kept.sendall(b"Connection: close\r\n\r\n")
        assert b"you are 10.55.0.1" in kept.makefile("rb").read()

    assert [name for name, event in remotes.ask("heard") if event == "RemoteLost"] == ["neighbour"]
    assert remotes.ask("states") == {"server": True, "neighbour": True}


def test_a_remote_that_is_lost_for_long_holds_up_its_own_programs_only(remotes: Remotes) -> None:
    lab = remotes.lab
    remotes.ask("add", "server", ["10.55.0.0/24"])
    remotes.ask("add", "neighbour", [f"{BOTH_HAVE}/32"])
    frozen = logins_of(lab, "neighbour")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        remotes.until_heard("neighbour", "RemoteLost")
        waiting = lab.client.popen(
            ["curl", "-s", "--max-time", "30", f"http://{BOTH_HAVE}:{PORT}/"],
            stdout=subprocess.PIPE,
        )
        assert carrier(lab, "10.55.0.1") == "server"
        assert waiting.poll() is None
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    page, _ = waiting.communicate(timeout=DEADLINE_S)
    assert b"you are 10.55.0.2" in page
