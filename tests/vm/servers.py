"""This machine's sshunt against servers of other Debians, and against busybox with dropbear.

A server is a chroot that runs in the lab's server host: its sshd, its shell, its Python, its files.
The client is this machine's.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sshunt.lab.hosts import ProgramFailedError, is_alive
from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.tunnels import Tunnel, kill
from tests.vm import results, roots

CLEAN_DEADLINE_S = 20.0
BYTES = 20_000_000

_SSHD = ("openssh-server", "python3")


class Server(NamedTuple):
    """A kind of server: its root, and whether it is turned into a busybox with dropbear."""

    root: roots.Root
    is_busybox: bool = False


SERVERS = {
    "Debian 11": Server(roots.Root("server-bullseye", "bullseye", _SSHD)),
    "Debian 13": Server(roots.Root("server-trixie", "trixie", _SSHD)),
    "Debian sid": Server(roots.Root("server-sid", "sid", _SSHD)),
    "busybox, dropbear": Server(
        roots.Root("server-busybox", "bookworm", ("busybox", "dropbear-bin", "python3")), True
    ),
}


class WrongError(Exception):
    """Something was not as it should be; the message says what."""


class Far:
    """A running server."""

    def __init__(self, root: Path, lab: Lab, server: Server) -> None:
        self.root = root
        self._lab = lab
        self._server = server
        roots.run_in(root, ["useradd", "--create-home", "--shell", "/bin/sh", "ada"])
        ssh = root / "home/ada/.ssh"
        ssh.mkdir(mode=0o700)
        shutil.copy(lab.key.with_suffix(".pub"), ssh / "authorized_keys")
        roots.run_in(root, ["chown", "-R", "ada:", "/home/ada"])
        (root / "run/sshd").mkdir(parents=True, exist_ok=True)
        if server.is_busybox:
            _become_busybox(root)
        self.before: set[str] = set()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start its ssh server and wait until it answers."""
        command = self._command()
        self.before = self.files()
        enter = ["nsenter", f"--net={self._lab.server.netns_path}", "chroot", str(self.root)]
        path = self.root / "var/log/ssh-server.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [*enter, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._lab.server.wait_for_port(self._lab.server.v4, 22)
        except TimeoutError:
            process.kill()
            raise WrongError(f"its ssh server did not start: {path.read_text(errors='replace')}")
        return process

    def _command(self) -> list[str]:
        known = self._lab.account("root").home / ".ssh/known_hosts"
        if self._server.is_busybox:
            key = "/etc/dropbear_key"
            said = roots.run_in(self.root, ["dropbearkey", "-t", "ed25519", "-f", key]).stdout
            public = re.findall(r"(?m)^ssh-ed25519 \S+", said)[0]
            known.write_text(f"* {public}\n")
            return ["/usr/sbin/dropbear", "-F", "-E", "-s", "-p", "22", "-r", key]
        shutil.copy(self._lab.host_key, self.root / "etc/ssh/lab_key")
        known.write_text("* " + self._lab.host_key.with_suffix(".pub").read_text())
        return ["/usr/sbin/sshd", "-D", "-e", "-h", "/etc/ssh/lab_key"]

    def facts(self) -> dict[str, str]:
        """Versions of what is there."""
        python = roots.run_in(self.root, ["python3", "-V"]).stdout.split()[1]
        packages = ["dropbear-bin", "busybox"] if self._server.is_busybox else ["openssh-server"]
        query = ["dpkg-query", "-W", "-f=${Package} ${Version}\n", *packages]
        programs = "; ".join(roots.run_in(self.root, query).stdout.splitlines())
        shell = roots.run_in(self.root, ["readlink", "-f", "/bin/sh"]).stdout.strip()
        return {"server": programs, "login shell": shell, "Python there": python}

    def left(self, before: set[str]) -> list[str]:
        """What is there now and was not ``before``: files, and processes of the login."""
        pids = [pid for pid in self._lab.server.pids() if is_alive(pid) and self._is_ada(pid)]
        return [*sorted(self.files() - before), *(f"process {pid}" for pid in pids)]

    def files(self) -> set[str]:
        """All that belongs to the login in places that it may write to."""
        places = [self.root / name for name in ("home", "tmp", "var/tmp", "run", "dev/shm")]
        ada = (self.root / "home/ada").stat().st_uid
        found = [path for place in places for path in place.rglob("*")]
        return {str(path) for path in found if path.lstat().st_uid == ada}

    def _is_ada(self, pid: int) -> bool:
        ada = (self.root / "home/ada").stat().st_uid
        try:
            return os.stat(f"/proc/{pid}").st_uid == ada
        except FileNotFoundError:
            return False


def _become_busybox(root: Path) -> None:
    """Put busybox in the place of every program it can be, the shell first."""
    applets = roots.run_in(root, ["/bin/busybox", "--list"]).stdout.split()
    for name in ("bash", "dash"):
        (root / "usr/bin" / name).unlink()
    for name in applets:
        path = next((p for p in _places(root, name) if p.exists() or p.is_symlink()), None)
        path = root / "usr/bin" / name if path is None else path
        if name != "busybox" and path.name == name:
            path.unlink(missing_ok=True)
            path.symlink_to("/bin/busybox")


def _places(root: Path, name: str) -> list[Path]:
    return [root / folder / name for folder in ("usr/bin", "usr/sbin")]


@contextmanager
def _running(root: Path, folder: Path, lab: Lab, server: Server) -> Iterator[Far]:
    with roots.overlaid(root, within=folder) as mounted, roots.kernel_mounts(mounted.path):
        far = Far(mounted.path, lab, server)
        process = far.start()
        try:
            yield far
        finally:
            process.terminate()
            process.wait()
            for pid in lab.server.pids():  # what a failed check left: it holds the overlay
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


# --- checks: each returns what was seen --------------------------------------------------------

Check = Callable[[Lab, Far, Tunnel], str]

#: How a check fails.
_WRONG = (WrongError, AssertionError, ProgramFailedError, OSError, subprocess.SubprocessError)


def page(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """a page comes through the tunnel"""
    if "Hello" not in _curl(lab, "/"):
        raise WrongError("another page came")
    return ""


def download(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """a download arrives byte for byte"""
    fetch = f"curl -sS -m 60 http://{lab.target.v4}/bytes/{BYTES} | sha256sum"
    _must_be_equal(lab.client.run(["sh", "-c", fetch]).stdout)
    return f"{BYTES // 1_000_000} MB"


def outlived(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """ssh is killed in the middle of a download, which goes on"""
    fetch = f"curl -sS -m 60 --limit-rate 10M http://{lab.target.v4}/bytes/{BYTES} | sha256sum"
    running = lab.client.popen(["sh", "-c", fetch], stdout=subprocess.PIPE)
    time.sleep(0.5)
    kill(tunnel.pids("ssh"))
    if running.poll() is not None:
        raise WrongError("it was over before ssh could be killed")
    _must_be_equal(running.communicate(timeout=90)[0].decode())
    return "another ssh took over"


def not_installed(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """no file is left in the server's home or its temporary folders while it runs"""
    new = [path for path in far.files() - far.before if Path(path).is_file()]
    if new:
        raise WrongError(f"there is {new[0]}")
    return ""


def refused(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """a closed port of the office does not look open"""
    try:
        with lab.client.connect(lab.target.v4, 81) as sock:
            sock.recv(1)
    except (ConnectionRefusedError, ConnectionResetError):
        return ""
    raise WrongError("it looked open")


def told(lab: Lab, far: Far, tunnel: Tunnel) -> str:
    """stopped: the far side is told and nothing is left there"""
    status = tunnel.stop()
    begin = time.monotonic()
    while left := far.left(far.before):
        if time.monotonic() - begin > CLEAN_DEADLINE_S:
            raise WrongError(f"left after {CLEAN_DEADLINE_S:.0f} s: {'; '.join(left)[:300]}")
        time.sleep(0.05)
    if status != 0 or "Traceback" in tunnel.said:
        raise WrongError(f"status {status}: {tunnel.said[-300:]}")
    return ""


CHECKS: tuple[Check, ...] = (page, download, outlived, not_installed, refused, told)


def _curl(lab: Lab, path: str) -> str:
    return lab.client.run(["curl", "-sS", "-m", "20", f"http://{lab.target.v4}{path}"]).stdout


def _must_be_equal(digest: str) -> None:
    if digest.split()[0] != payload_sha256(BYTES):
        raise WrongError("other bytes arrived")


def try_all(name: str, folder: Path, lab: Lab, *, renew: bool) -> results.Column:
    """Try all checks against one kind of server."""
    server = SERVERS[name]
    root = roots.make_root(server.root, fresh=renew)
    found: list[results.Result] = []
    with _running(root, folder / re.sub(r"\W+", "-", name), lab, server) as far:
        tunnel = Tunnel(lab, ["-r", "server", OFFICE_V4])
        try:
            found.append(_try("sshunt connects", lambda: _connected(tunnel)))
            if found[0].result == results.OK:
                for check in CHECKS:
                    title = (check.__doc__ or check.__name__).partition("\n")[0]
                    found.append(_try(title, partial(check, lab, far, tunnel)))
        finally:
            tunnel.stop()
        return results.Column(name, far.facts(), found)


def _connected(tunnel: Tunnel) -> str:
    tunnel.wait_until_connected()
    return ""


def _try(name: str, check: Callable[[], str]) -> results.Result:
    begin = time.monotonic()
    try:
        result, why = results.OK, check()
    except _WRONG as error:
        result, why = results.FAILED, str(error)
    tried = results.Result(name, result, why, time.monotonic() - begin)
    results.show(tried)
    return tried
