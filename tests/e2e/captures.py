"""What the tests of the helper drive: ``capturing.py`` on the client host, and what is left of it.

A test module makes its own fixture ``start`` of ``captures``.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from sshunt.capture.plan import Plan
from sshunt.helper.protocol import Apply
from sshunt.helper.wire import encode_request
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.model import Endpoint
from tests.e2e.tunnels import CLEAN_DEADLINE_S

_PROGRAM = Path(__file__).with_name("capturing.py")
_FOREIGN_TABLE = Path(__file__).with_name("foreign_table.py")

#: The promise is that nothing of ours is left within a second. Two more are for a busy machine, as
#: in ``tunnels``: a test must not fail for want of processors.
_GONE_S = CLEAN_DEADLINE_S


class Capture:
    """``capturing.py`` on the client host."""

    def __init__(
        self,
        host: Host,
        *options: str,
        user: str = "root",
        env: dict[str, str] | None = None,
        terminal: int | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.session = secrets.token_hex(6)
        self._control, theirs = socket.socketpair()
        self._control.settimeout(20)
        descriptor = theirs.fileno()
        with theirs:
            program = [sys.executable, str(_PROGRAM), *options, str(descriptor), self.session]
            program = [*before, *program]
            if terminal is not None:
                program = ["setsid", "--ctty", "--wait", *program]
            self.process = host.popen(
                program,
                user=user,
                env=env,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=terminal,
                stderr=terminal,
            )
        self._answers = self._control.makefile("r")

    def answer(self) -> Any:
        return json.loads(self._answers.readline())

    def ask(self, *command: Any) -> Any:
        self._control.sendall(json.dumps(command).encode() + b"\n")
        return self.answer()

    def apply(
        self,
        routes: list[Any],
        *,
        listen4: str | Endpoint | None = "127.0.0.1",
        listen6: str | Endpoint | None = "::1",
        bypass: tuple[tuple[str, int], ...] = (),
    ) -> Any:
        return self.ask("apply", routes, listen4, listen6, bypass)

    def end(self) -> None:
        """The client's death: its helper has to undo everything."""
        self._answers.close()
        self._control.close()
        self.process.kill()
        self.process.wait()

    def helper_pid(self) -> int:
        """Of the helper that stands by itself; there must be only one."""
        (pid,) = helpers(self.host)
        return pid

    def child_pid(self) -> int:
        """Of the helper that ``--plain`` has started."""
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid


def helpers(host: Host) -> list[int]:
    """The processes on this host that run the helper."""
    found = []
    for pid in host.pids():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(argument.endswith(b"/helper/__main__.py") for argument in arguments[1:]):
            found.append(pid)
    return found


Start: TypeAlias = Callable[..., Capture]


@contextmanager
def captures(lab: Lab) -> Iterator[Start]:
    """Starts captures on the client; nothing of them may be left at the end."""
    started: list[Capture] = []

    def start_one(*options: str, **keywords: Any) -> Capture:
        started.append(Capture(lab.client, *options, **keywords))
        assert started[-1].answer() == "ready"
        return started[-1]

    yield start_one
    for capture in started:
        capture.end()
    sessions = [capture.session for capture in started]
    soon(lambda: not helpers(lab.client))
    soon(lambda: not tables(lab) and not cgroups(*sessions) and not devices(lab))


@contextmanager
def beside_what_crashes_libnftables(lab: Lab) -> Iterator[None]:
    """While the client has a table that does this to Debian 12's; skips where it does not."""
    program = [sys.executable, str(_FOREIGN_TABLE)]
    lab.client.run(program)
    try:
        listing = lab.client.popen(["nft", "list", "tables"], stdout=subprocess.DEVNULL)
        if listing.wait() != -signal.SIGSEGV:
            pytest.skip("this libnftables is not among those that crash")
        yield
    finally:
        lab.client.run([*program, "delete"])


def tables(lab: Lab) -> str:
    return lab.client.run(["nft", "list", "tables"]).stdout


def has_rules(lab: Lab) -> bool:
    """True if anything is captured, kept or dropped; marking (see capture.nft) is none of that."""
    rules = lab.client.run(["nft", "list", "ruleset"]).stdout
    return any(word in rules for word in ("type nat", "\tset ", "drop", "reject"))


def devices(lab: Lab) -> list[str]:
    """The network devices that helpers have made."""
    links = lab.client.run(["ip", "-oneline", "link"]).stdout.splitlines()
    names = [line.split(": ")[1] for line in links]
    return [name for name in names if name.startswith("sshunt")]


def cgroups(*sessions: str) -> list[str]:
    """The control groups of these sessions, wherever the host has mounted them."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(mount[1] for mount in mounts if mount[2] == "cgroup2")
    names = {f"sshunt-{session}" for session in sessions}
    return [path for path, _, _ in os.walk(root) if os.path.basename(path) in names]


def soon(condition: Callable[[], bool], *, within_s: float = _GONE_S) -> None:
    begin = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - begin
        assert waited_s < within_s, f"something is left after {waited_s:.2f} s"
        time.sleep(0.02)


def as_said(plan: Plan) -> dict[str, Any]:
    """The plan as the client would say it to the helper, for tests that say something else."""
    fields: dict[str, Any] = json.loads(encode_request(Apply(plan)))["plan"]
    return fields
