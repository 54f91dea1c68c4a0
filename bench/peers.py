"""The things that are measured, each as something that starts, can be connected through, and stops.

sshunt      this checkout, as a user would start it
sshunt-copy the same with --zero-copy never: payload comes through the memory of client and agent
ssh         ssh -L with its default cipher: what one ssh connection can do
ssh-aes     ssh -L -c aes128-gcm@openssh.com: the cipher that sshunt prefers
sshuttle    from PyPI, in an environment of its own that is made when first asked for
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.load import BULK_PORT, ECHO_PORT
from sshunt.lab.world import OFFICE_V4, Lab

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0

#: The difference between the port at which ssh -L listens and the one it leads to.
_FORWARD_OFFSET = 10000

_SSHUTTLE_VENV = Path(__file__).resolve().parent.parent / ".venv" / "peers"


class Peer(NamedTuple):
    """A way to reach the target from the client host.

    ``connected`` is what it prints when it is up; None if it says nothing and only a try can tell.
    ``verbose`` is what makes it tell about itself, if that is of use here.
    """

    name: str
    argv: Callable[[Lab], list[str]]
    address_of: Callable[[Lab, int], tuple[str, int]]
    connected: str | None = None
    verbose: tuple[str, ...] = ()


class Running:
    """A started peer."""

    def __init__(self, lab: Lab, peer: Peer, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._lab = lab
        self._peer = peer
        self.process = process
        self.log = log
        self.since = time.monotonic()

    def address_of(self, port: int) -> tuple[str, int]:
        """Where to connect to on the client host in order to reach ``port`` of the target."""
        return self._peer.address_of(self._lab, port)

    def connect(self, port: int) -> socket.socket:
        """Return a connection through the peer to ``port`` of the target."""
        return self._lab.client.connect(*self.address_of(port), timeout_s=START_DEADLINE_S)

    def wait_until_connected(self) -> None:
        """Return when it says that it is up, or when its listener is there if it says nothing."""
        if self._peer.connected is None:
            self.wait_until_reachable()
            return
        self._wait(lambda: str(self._peer.connected) in self._said(), 0.005)

    def wait_until_reachable(self) -> None:
        """Return when a connection through it succeeds."""
        # A packet sent before the rules are there is lost; so ask often rather than long.
        self._wait(self._is_reachable, 0.05)

    def _is_reachable(self) -> bool:
        try:
            self._lab.client.connect(*self.address_of(BULK_PORT), timeout_s=0.5).close()
        except OSError:
            return False
        return True

    def _wait(self, is_up: Callable[[], bool], every_s: float) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not is_up():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self._peer.name} did not come up; it said:\n{self._said()}")
            time.sleep(every_s)

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def _forward_argv(*options: str) -> Callable[[Lab], list[str]]:
    def argv(lab: Lab) -> list[str]:
        forwards = []
        for port in (BULK_PORT, ECHO_PORT):
            forwards += ["-L", f"{port + _FORWARD_OFFSET}:{lab.target.v4}:{port}"]
        return ["ssh", "-N", *options, *forwards, "server"]

    return argv


def _by_forward(lab: Lab, port: int) -> tuple[str, int]:
    return "127.0.0.1", port + _FORWARD_OFFSET


def _by_real_address(lab: Lab, port: int) -> tuple[str, int]:
    return lab.target.v4, port


def _sshunt_argv(*options: str) -> Callable[[Lab], list[str]]:
    argv = [sys.executable, "-m", "sshunt", "-r", "server", *options, OFFICE_V4]
    return lambda _lab: argv


def _sshuttle_argv(lab: Lab) -> list[str]:
    program = _SSHUTTLE_VENV / "bin" / "sshuttle"
    return [str(program), "--method", "nft", "-r", "server", OFFICE_V4]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("sshunt", _sshunt_argv(), _by_real_address, "sshunt: connected", ("-v",)),
        Peer(
            "sshunt-copy",
            _sshunt_argv("--zero-copy", "never"),
            _by_real_address,
            "sshunt: connected",
            ("-v",),
        ),
        *(
            Peer(
                f"sshunt-{connect}",
                _sshunt_argv("--connect", connect),
                _by_real_address,
                "sshunt: connected",
                ("-v",),
            )
            for connect in ("honest", "fast")
        ),
        Peer("ssh", _forward_argv(), _by_forward),
        Peer("ssh-aes", _forward_argv("-c", "aes128-gcm@openssh.com"), _by_forward),
        Peer("sshuttle", _sshuttle_argv, _by_real_address, "Connected to server"),
    )
}


def prepare(names: list[str]) -> None:
    """Install what the named peers need."""
    if "sshuttle" not in names or (_SSHUTTLE_VENV / "bin" / "sshuttle").exists():
        return
    print(f"installing sshuttle into {_SSHUTTLE_VENV} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", _SSHUTTLE_VENV], check=True)
    pip = [str(_SSHUTTLE_VENV / "bin" / "python"), "-m", "pip", "install", "-q", "sshuttle"]
    subprocess.run(pip, check=True)


@contextmanager
def started(lab: Lab, name: str, *, verbose: bool = False) -> Iterator[Running]:
    """Start a peer and stop it afterwards."""
    peer = PEERS[name]
    argv = [*peer.argv(lab), *(peer.verbose if verbose else ())]
    log = lab.folder / f"{name}.log"
    # Compiled once, as everybody's Python programs are; but not into this checkout.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(lab.folder / "bytecode")}
    with log.open("wb") as output:
        process = lab.client.popen(argv, stdout=output, stderr=output, env=bytecode)
    try:
        yield Running(lab, peer, process, log)
    finally:
        _stop(process)


@contextmanager
def running(lab: Lab, name: str, *, verbose: bool = False) -> Iterator[Running]:
    """Start a peer, wait until the target can be reached through it, and stop it afterwards."""
    with started(lab, name, verbose=verbose) as peer:
        peer.wait_until_reachable()
        yield peer


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
