"""What the end-to-end tests drive: a real sshunt in the lab, and the check that nothing is left.

``Remains`` remembers what a lab's hosts looked like before; ``left`` says what is there in
addition: processes on either side, rules, control groups, files. It looks from outside, at the
kernel's own tables and /proc, and knows nothing of how sshunt is made.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import processes
from sshunt.lab.hosts import Host, is_alive
from sshunt.lab.leftovers import left_by
from sshunt.lab.world import OFFICE_V4, OFFICE_V6, Lab

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0

#: After a kill nothing may be left. The promise is a second (CLEAN_PROMISE_S); two more are for a
#: busy machine, because a test must not fail for want of processors: two cores may be shared with
#: other test runs, and looking once (nft and find in a namespace, all of /proc) costs 50 ms itself.
#: Whoever wants to see the real figure runs the tests with -rP: "gone after" is printed.
CLEAN_PROMISE_S = 1.0
CLEAN_DEADLINE_S = CLEAN_PROMISE_S + 2.0

OFFICE = (OFFICE_V4, OFFICE_V6)

SSHUNT = (sys.executable, "-m", "sshunt")


class Tunnel:
    """A started sshunt. ``said`` is what it has printed on stderr up to now."""

    def __init__(
        self,
        lab: Lab,
        words: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        nofile: int | None = None,
        before: Sequence[str] = (),
        program: Sequence[str] = SSHUNT,
    ) -> None:
        self.lab = lab
        self.log = lab.folder / f"tunnel-{time.monotonic_ns()}.log"
        with self.log.open("wb") as stderr:
            self.process = lab.client.popen(
                [*before, *program, *words],
                user=user,
                env=env,
                nofile=nofile,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_connected(self) -> None:
        self.wait_until(
            lambda: re.search("^sshunt: connected", self.said, re.MULTILINE) is not None
        )

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not true():
            if self.process.poll() is not None:
                raise AssertionError(f"sshunt ended with {self.process.returncode}: {self.said}")
            if time.monotonic() > deadline:
                raise AssertionError(f"sshunt is not where it should be; it said: {self.said}")
            time.sleep(0.01)

    def pids(self, role: str) -> list[int]:
        """The tunnel's processes of one role (see bench.processes)."""
        return [pid for pid, theirs in processes.roles(self.lab).items() if theirs == role]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_DEADLINE_S)


class Remains:
    """What is there now that was not there when this was made."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._pids = {host.name: set(host.pids()) for host in self._hosts}
        self._seen = self._things()

    @property
    def _hosts(self) -> tuple[Host, ...]:
        return (self._lab.client, self._lab.server)

    def left(self, *, within_s: float = CLEAN_DEADLINE_S) -> list[str]:
        """Everything that is still there after ``within_s``; empty as soon as nothing is.

        The clock starts with the call, so make it right after the kill. When something is left, the
        first line says how long it was waited for.
        """
        begin = time.monotonic()
        while (found := self._left()) and time.monotonic() < begin + within_s:
            time.sleep(0.02)
        waited = f"after {time.monotonic() - begin:.2f} s (the promise is {CLEAN_PROMISE_S:.0f} s)"
        print("left" if found else "gone", waited, *found, sep="\n")
        return [waited, *found] if found else []

    def _left(self) -> list[str]:
        found = [thing for thing in self._things() if thing not in self._seen]
        for host in self._hosts:
            for pid in set(host.pids()) - self._pids[host.name]:
                if is_alive(pid):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(f"process on {host.name}: {pid} {words.decode()[:100]}")
        return found

    def _things(self) -> list[str]:
        rules = self._lab.client.run(["nft", "list", "ruleset"]).stdout
        uids = {account.uid for account in self._lab.accounts.values()} - {0}
        files = [str(path) for path in left_by(uids)]
        for account in self._lab.accounts.values():
            files += [str(path) for path in account.home.rglob("*") if "sshunt" in path.name]
        # /run/sshunt stays, and so does what a killed helper has in there (helper.marks).
        run = self._lab.client.run(["find", "/run", "-iname", "*sshunt*"]).stdout.split()
        run = [path for path in run if not path.startswith("/run/sshunt")]
        # What is known for a while (nft_held) comes and goes with another tunnel's connections.
        lines = [line for line in rules.splitlines() if line.strip() and " expires " not in line]
        return lines + files + run


def cgroups_of(tunnel: Tunnel) -> list[Path]:
    """The control groups that the tunnel's client and ssh live in and that bear our name."""
    found = set()
    for pid in (tunnel.process.pid, *tunnel.pids("ssh")):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            path = line.split(":", 2)[2]
            if "sshunt" in path:
                # os.walk, since other people's groups come and go meanwhile.
                for place, below, _ in os.walk("/sys/fs/cgroup"):
                    found |= {Path(place, name) for name in below if name == Path(path).name}
    return sorted(found)


@contextmanager
def running(lab: Lab, *words: str, program: Sequence[str] = SSHUNT) -> Iterator[Tunnel]:
    """A tunnel that is up, must stay up, ends in good order and leaves nothing behind."""
    remains = Remains(lab)
    tunnel = Tunnel(lab, words, program=program)
    try:
        tunnel.wait_until_connected()
        cgroups = cgroups_of(tunnel)
        yield tunnel
        assert tunnel.process.poll() is None, f"it ended on its own: {tunnel.said}"
    finally:
        code = tunnel.stop()
    assert "Traceback" not in tunnel.said
    assert code == 0
    assert remains.left() == []
    assert not [path for path in cgroups if path.exists()]


def fetch(host: Host, url: str, *options: str, user: str = "root") -> str:
    """What curl gets; raises if it gets nothing within 10 s."""
    return host.run(["curl", "-sS", "-g", "-m", "10", *options, url], user=user).stdout


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the end of one may be that of another
            os.kill(pid, signal.SIGKILL)
