"""This machine as a check sees it: its tunnels, what is left of them, the office's side.

A check starts the real sshunt as one of the guest's people and looks at the kernel's own tables,
/proc and systemd from outside. All deadlines are generous: the machine may be emulated.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sshunt.lab.hosts import is_alive, processes_in

SSHUNT = "/usr/local/bin/sshunt"
OFFICE_NETWORK = "10.55.0.0/24"
PAGE = "http://10.55.0.2/"
GREETING = "Hello from the office"

#: A start of sshunt takes 0.3 s on a real machine and may take 30 on an emulated one.
DEADLINE_S = 120.0

#: How long what is to vanish may take to.
CLEAN_S = 20.0

_CGROUPS = Path("/sys/fs/cgroup")
_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/home", "/root", "/etc", "/var/lib")


class FailedError(Exception):
    """The check failed; the message says what was seen instead."""


class ImpossibleError(Exception):
    """This system lacks what the check is about; the message says what."""


def run(
    *argv: str, timeout_s: float = DEADLINE_S, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; a failure of it fails the check unless ``check`` is False."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{' '.join(argv)} did not end within {timeout_s:.0f} s")
    print(
        f"$ {' '.join(argv)}  -> {done.returncode}\n{done.stdout}{done.stderr}", end="", flush=True
    )
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise FailedError(f"{' '.join(argv)}: status {done.returncode}: {said}")
    return done


def eventually(true: Callable[[], bool], what: str, *, within_s: float = DEADLINE_S) -> float:
    """Wait until something is so, and return how long that took; fail the check if it never is."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > within_s:
            raise FailedError(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - begin


def kernel() -> tuple[int, int]:
    """The kernel's version."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


# --- tunnels -----------------------------------------------------------------------------------


class Tunnel:
    """A started sshunt; ``said`` is what it has printed up to now."""

    def __init__(self, argv: Sequence[str], *, stdin: int = subprocess.DEVNULL) -> None:
        self.log = Path(f"/var/tmp/tunnel-{time.monotonic_ns()}.log")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, stdin=stdin, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_connected(self) -> None:
        begin = time.monotonic()
        while not re.search("^sshunt: connected", self.said, re.MULTILINE):
            if self.process.poll() is not None:
                status = self.process.returncode
                raise FailedError(f"sshunt ended with status {status}: {self.said.strip()[-400:]}")
            if time.monotonic() - begin > DEADLINE_S:
                raise FailedError(
                    f"not connected after {DEADLINE_S:.0f} s: {self.said.strip()[-400:]}"
                )
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and return its status; if it does not end, the check fails."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise FailedError(f"asked to stop, it had not ended after {DEADLINE_S:.0f} s")

    def close(self) -> None:
        """Leave nothing of it, whatever became of the check."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        print(f"--- sshunt said:\n{self.said}---", flush=True)
        self.log.unlink()


@contextmanager
def tunnel(*words: str) -> Iterator[Tunnel]:
    """A tunnel of root's that is connected; after the block it is ended."""
    started = Tunnel([SSHUNT, "-r", "office", *words])
    try:
        started.wait_until_connected()
        yield started
    finally:
        started.close()


def fetch(url: str = PAGE) -> None:
    """Fetch the office's page as any program would."""
    page = run("curl", "-sS", "-m", "60", url).stdout
    if GREETING not in page:
        raise FailedError(f"{url}: another page came: {page[:60]!r}")


# --- what is left ------------------------------------------------------------------------------


class Remains:
    """What is here now, and in the office, that was not there when this was made.

    The folder /run/sshunt stays by design, and in it the file of a helper that was killed, until
    the first start a minute later; the latter is overlooked with ``helper_is_killed``.
    """

    def __init__(self, *, helper_is_killed: bool = False) -> None:
        self._overlooked = ("file: /run/sshunt/",) if helper_is_killed else ()
        self._seen = {"file: /run/sshunt"}
        self._seen |= self._things()

    def must_vanish(self, *, within_s: float = CLEAN_S) -> float:
        """Wait until nothing is left and return how long it took; fail if something stays."""
        begin = time.monotonic()
        while found := self._things() - self._seen:
            if time.monotonic() - begin > within_s:
                raise FailedError(f"left after {within_s:.0f} s: {'; '.join(sorted(found))[:500]}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def _things(self) -> set[str]:
        found = {*rules(), *control_groups(), *_processes(), *far_processes(), *_files()}
        return {thing for thing in found if not thing.startswith(self._overlooked)}


def rules() -> list[str]:
    """The kernel's tables of rules."""
    listed = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    return [f"rules: {line}" for line in listed.stdout.splitlines()]


def control_groups() -> list[str]:
    """Control groups that sshunt made."""
    return [f"control group: {path}" for path in _CGROUPS.rglob("sshunt[-_]*") if path.is_dir()]


def sshunts() -> list[int]:
    """Processes of sshunt's on this side: clients, helpers, sweepers, and their ssh."""
    here = set(processes_in(Path("/proc/self/ns/net")))
    pattern = f"{SSHUNT}( |$)|sshunt/helper|ssh .*office"
    found = {pid for pid in here if re.search(pattern, _command(pid))}
    sweepers = {pid for pid in here if b"SWEEP=" in _read(pid, "environ")}
    return sorted((found | sweepers) - {os.getpid()})


def far_processes() -> list[str]:
    """Processes of the office's login: agents, and the sshd that serves them."""
    ada = Path("/home/ada").stat().st_uid
    found = []
    for pid in processes_in(Path("/run/netns/server")):
        with suppress(OSError):
            if Path(f"/proc/{pid}").stat().st_uid == ada and is_alive(pid):
                found.append(f"process in the office: {pid} {_command(pid)[:80]}")
    return found


def _processes() -> list[str]:
    return [f"process: {pid} {_command(pid)[:80]}" for pid in sshunts() if is_alive(pid)]


def _files() -> list[str]:
    find = ["find", *_PLACES, "-xdev", "-iname", "*sshunt*", "-not", "-path", "*/netns/*"]
    done = subprocess.run(find, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    return [f"file: {line}" for line in done.stdout.splitlines()]


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
