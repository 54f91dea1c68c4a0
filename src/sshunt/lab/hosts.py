"""One host of the lab: run programs in it, open sockets in it, see what runs in it.

A host is a network namespace. Its files are the machine's, except that the lab lays its own
accounts, host names and an empty /run over them (see ``accounts``), in a mount namespace that all
hosts of one lab share.

Programs are entered with nsenter(1), which becomes the program: the pid of what ``popen`` returns
is the program's own. ip-netns(8) is not used for it, because "ip netns exec" mounts a new /sys and
so hides the control groups that the tunnel needs.

Sockets need no program at all: ``make_socket`` switches the calling thread into the namespace,
makes the socket and switches back. A socket belongs to the namespace it was made in for ever, so a
test can hold both ends of a connection and see exactly what arrives.

Not here: how hosts are connected (``world``).
"""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import sshunt
from sshunt.lab.accounts import Account

Stream: TypeAlias = int | IO[bytes] | None

#: How long a program may take that is run to its end. Nothing in a lab waits for a real network.
RUN_TIMEOUT_S = 60.0

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: A program that runs a module of the package that its first word leads to. It is searched last.
_RUN_MODULE = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A network namespace with the lab's accounts in it."""

    def __init__(
        self,
        name: str,
        netns: str,
        *,
        addresses: Sequence[str],
        accounts: Mapping[str, Account],
        mounts_pid: int,
    ) -> None:
        self.name = name
        self.netns = netns
        self.addresses = tuple(addresses)
        self._accounts = accounts
        self._mounts_pid = mounts_pid
        self._processes: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name} {' '.join(self.addresses)}>"

    @property
    def netns_path(self) -> Path:
        """The file that names the network namespace, as nsenter(1) takes it."""
        return Path("/run/netns", self.netns)

    @property
    def v4(self) -> str:
        """The IPv4 address by which the other hosts know this one."""
        return next(address for address in self.addresses if "." in address)

    @property
    def v6(self) -> str:
        """The IPv6 address by which the other hosts know this one."""
        return next(address for address in self.addresses if ":" in address)

    # --- programs --------------------------------------------------------------------------

    def command(
        self, argv: Sequence[str], *, user: str = "root", cwd: str = "/", nofile: int | None = None
    ) -> list[str]:
        """Return the argument vector that runs ``argv`` here."""
        enter = ["nsenter", f"--net={self.netns_path}", f"--mount=/proc/{self._mounts_pid}/ns/mnt"]
        if nofile is not None:
            enter += ["prlimit", f"--nofile={nofile}:{nofile}"]
        if user != "root":
            account = self._accounts[user]
            ids = [f"--reuid={account.uid}", f"--regid={account.uid}", "--init-groups"]
            enter += ["setpriv", *ids]
        return [*enter, "env", f"--chdir={cwd}", *argv]

    def environment(self, user: str = "root") -> dict[str, str]:
        """Return what a login of ``user`` would have in its environment, and little else."""
        account = self._accounts[user]
        return {
            "PATH": SYSTEM_PATH,
            "HOME": str(account.home),
            "USER": user,
            "LOGNAME": user,
            "SHELL": account.shell,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            # Root must not leave compiled files in somebody's checkout.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        nofile: int | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = True,
    ) -> "subprocess.Popen[bytes]":
        """Start a program here. It is killed with the lab, at the latest.

        ``env`` is added to the login environment. ``nofile`` sets both limits of open descriptors.
        """
        process = subprocess.Popen(
            self.command(argv, user=user, cwd=cwd, nofile=nofile),
            env={**self.environment(user), **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            # A Ctrl-C at the terminal is for whoever runs the lab; the lab then ends its programs.
            start_new_session=new_session,
        )
        self._processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: str | None = None,
        timeout_s: float = RUN_TIMEOUT_S,
        check: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program here to its end and return what it printed.

        Raises ``subprocess.CalledProcessError`` (with what it said as a note) if it fails and
        ``check`` is set, and ``subprocess.TimeoutExpired``.
        """
        done = subprocess.run(
            self.command(argv, user=user, cwd=cwd),
            env={**self.environment(user), **(env or {})},
            input="" if stdin is None else stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
            start_new_session=True,
        )
        if check and done.returncode != 0:
            raise ProgramFailedError(argv, done)
        return done

    def pids(self) -> list[int]:
        """Return every process that lives in this host's network namespace."""
        return processes_in(self.netns_path)

    def reap(self) -> None:
        """Wait for the programs that have been ended, so that none stays behind as a zombie."""
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()

    # --- sockets ---------------------------------------------------------------------------

    def make_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """Make a socket that belongs to this host, in the calling process."""
        with self.entered():
            return socket.socket(family, kind)

    def connect(self, address: str, port: int, *, timeout_s: float = 10.0) -> socket.socket:
        """Connect a TCP socket of this host; the timeout stays set on the socket."""
        sock = self.make_socket(family_of(address))
        sock.settimeout(timeout_s)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self, address: str, port: int = 0, *, timeout_s: float = 10.0) -> socket.socket:
        """Listen on a TCP socket of this host; the timeout is for ``accept``."""
        sock = self.make_socket(family_of(address))
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(4096)
        except OSError:
            sock.close()
            raise
        sock.settimeout(timeout_s)
        return sock

    def wait_for_port(self, address: str, port: int, *, timeout_s: float = 10.0) -> None:
        """Return as soon as somebody listens there; raise ``TimeoutError`` when nobody does."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.connect(address, port, timeout_s=1.0).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody listens on {address} port {port} in {self.name}")
            time.sleep(0.01)

    def write_sysctl(self, name: str, value: str) -> None:
        """Set a parameter of this host's network, named by its path below /proc/sys."""
        with self.entered():  # /proc/sys/net shows the namespace of the thread that opens it
            Path("/proc/sys", name).write_text(value)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into this host's network namespace for a moment."""
        with open("/proc/thread-self/ns/net") as ours, open(self.netns_path) as theirs:
            _set_network_namespace(theirs.fileno())
            try:
                yield
            finally:
                _set_network_namespace(ours.fileno())


class ProgramFailedError(Exception):
    """A program that had to succeed did not; the message has what it printed."""

    def __init__(self, argv: Sequence[str], done: "subprocess.CompletedProcess[str]") -> None:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        super().__init__(f"{' '.join(argv)}: exit code {done.returncode}: {said}")
        self.done = done


def python(module: str, *words: str) -> list[str]:
    """The argument vector that runs a module of ours as a program, with this very Python.

    Root is who runs it, so neither the current directory (as with ``python -m``) nor the
    environment has a say in what is imported, and no compiled file is left behind.
    """
    package = str(Path(sshunt.__path__[0]).resolve().parent)
    return [sys.executable, "-I", "-B", "-c", _RUN_MODULE, package, module, *words]


def family_of(address: str) -> int:
    """Return the address family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_alive(pid: int) -> bool:
    """Return whether the process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def processes_in(netns_path: Path) -> list[int]:
    """Return the processes whose network namespace is the one that ``netns_path`` names."""
    try:
        wanted = netns_path.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            theirs = os.stat(f"/proc/{entry}/ns/net")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or a zombie, which has left its namespaces
        if (theirs.st_dev, theirs.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(entry))
    return found


def ip(*lines: str, netns: str | None = None) -> None:
    """Run commands of ip(8) in one batch, in the initial namespace or in ``netns``."""
    where = [] if netns is None else ["-netns", netns]
    done = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": SYSTEM_PATH},
    )
    if done.returncode != 0:
        raise RuntimeError(f"ip: {done.stderr.strip()}")


def _set_network_namespace(fd: int) -> None:
    # os.setns exists since Python 3.12 only. setns(2) moves the calling thread alone.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
