"""The far side as a child process: the real bundle, started by the real command line through sh.

A ``Lane`` is one run of that command: its stdin and stdout are the lane, as ssh's pipes would be.
Its ``session`` is the client's end of the protocol, driven by hand: what the agent says is fed to
it, what it has to say is written, and nothing moves unless a test asks for it.
"""

import os
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from sshunt.mux.events import DataReceived, Event
from sshunt.mux.hello import ACCEPTED, CLIENT, FEATURE_CREATE, Hello, make_hello
from sshunt.mux.session import Session
from sshunt.transport.bootstrap import argv, upload
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.hello_search import HelloSearch

#: Everything happens on one machine; this is for a busy one.
DEADLINE_S = 20.0

VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def pyenv_interpreters() -> list[str]:
    """What pyenv has built, by path."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return sorted(str(path) for path in root.glob("versions/*/bin/python"))


def interpreters() -> dict[str, str]:
    """Every Python 3 found on this machine, one per version: {"3.6": its path}."""
    named = [shutil.which(f"python{version}") for version in VERSIONS]
    found: dict[str, str] = {}
    for path in [*pyenv_interpreters(), *filter(None, named), "/usr/bin/python3"]:
        said = version_of(path)
        if said in VERSIONS:
            found.setdefault(said, path)
    return found


def python2() -> str | None:
    """A Python 2.7, if there is one."""
    candidates = [*pyenv_interpreters(), shutil.which("python2.7") or ""]
    return next((path for path in candidates if path and version_of(path) == "2.7"), None)


def version_of(path: str) -> str:
    """ "3.6" and the like; "" for what does not run (pyenv's shims without a version do not)."""
    code = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([path, "-c", code], capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return ""


class Lane:
    """One run of the command. ``mark`` is in the environment of all its processes."""

    def __init__(
        self,
        hello: Hello,
        *,
        python: str | None = None,
        prefix: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.hello = hello
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*prefix, *argv(python)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.environ["PATH"], "MARK": self.mark, **(env or {})},
        )
        self.session = Session(CLIENT)
        self.session.add_lane(hello.lane, 0.0)
        self.events: list[Event] = []
        self._search = HelloSearch()
        self.answer: Hello | None = None

    # --- what a test does -------------------------------------------------------------------

    def greet(self, behind: bytes = b"", *, confirm: bool = True) -> Hello:
        """Upload everything at once, and ``behind``; the far side's HELLO. If it took the lane, the
        session is then confirmed.
        """
        self.write(upload(agent_bundle(), self.hello) + behind)
        while self.answer is None:
            self.answer = self._search.feed(self.read())
        self._receive(self._search.rest)
        if confirm and self.answer.status == ACCEPTED:
            self.session.ping(self.hello.lane)
            self.exchange(until=lambda: not self.session.lanes[self.hello.lane].outstanding)
        return self.answer

    def goodbye(self) -> bytes:
        """The bytes of a goodbye on this lane."""
        self.session.say_goodbye(0, "")
        return self.outgoing()

    def outgoing(self) -> bytes:
        """What the session has to say on this lane."""
        pieces = self.session.transmit(self.hello.lane, 0.0)
        return b"".join(p if isinstance(p, bytes) else bytes(p.view) for p in pieces)

    def exchange(self, until: Callable[[], bool]) -> None:
        """Talk with the agent until the condition holds."""
        self.write(self.outgoing())
        while not until():
            self.write(self.outgoing())
            if not until():
                self._receive(self.read())

    def received(self) -> bytes:
        """All data of all streams so far."""
        parts = [event.payload for event in self.events if isinstance(event, DataReceived)]
        return b"".join(bytes(payload.view) for payload in parts)

    def write(self, data: bytes) -> None:
        if data and self.process.stdin is not None:
            os.write(self.process.stdin.fileno(), data)

    def read(self) -> bytes:
        """What comes next; fails at the end of the stream or after the deadline."""
        if self.process.stdout is None:
            raise AssertionError("no stdout")
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
        if not data:
            raise AssertionError(f"the far side hung up: {self.end()}")
        return data

    def hang_up(self) -> None:
        """Close both pipes, as a dying ssh does."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self) -> tuple[int, str]:
        """Hang up, and wait: (exit status, what it said on stderr)."""
        self.hang_up()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Wait for the end of the command: (exit status, what it said on stderr).

        That is also when nobody holds its stderr any longer, as sshd would see it.
        """
        if self.process.stderr is None:
            raise AssertionError("no stderr")
        try:
            ready, _, _ = select.select([self.process.stderr], [], [], DEADLINE_S)
            if not ready:
                raise AssertionError("the command holds its stderr open")
            said = self.process.stderr.read().decode()
            return self.process.wait(DEADLINE_S), said
        finally:
            self.process.stderr.close()
            self.hang_up()

    def _receive(self, data: bytes) -> None:
        if data:
            self.session.receive(self.hello.lane, memoryview(data), 0.0)
            self.events += self.session.take_events()

    # --- what runs there --------------------------------------------------------------------

    def agents(self) -> list[int]:
        """What this run has detached: processes in a session of their own."""
        ours = os.getsid(0)
        return [pid for pid in marked(self.mark) if os.getsid(pid) != ours]


def lane_hello(token: bytes, *, lane: int = 1, create: bool = True, grace_s: int = 0) -> Hello:
    features = FEATURE_CREATE if create else 0
    return make_hello(CLIENT, token, lane=lane, features=features, grace_s=grace_s)


def marked(mark: str) -> list[int]:
    """Processes with MARK in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if f"MARK={mark}".encode() in Path("/proc", entry, "environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue  # ended meanwhile
    return found


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Fail unless the condition comes true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.01)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
