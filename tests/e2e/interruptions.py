"""What the tests of interrupted connections share: a link that can be cut, a tunnel, talks over it.

The link can be cut without anybody being told (no RST, no FIN), and mended.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from sshunt.lab.link import Shape
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.tunnels import SSHUNT, Tunnel, running

LINK = Shape(rate_bit_s=200e6, delay_s=0.002, queue_bytes=1_000_000)

#: With these sshd itself soon ends a connection on which nobody answers: after a long cut its TCP
#: would find that out minutes later, and a test looks for what is left behind.
SOON = {"ClientAliveInterval": "1", "ClientAliveCountMax": "3"}

#: The server's first address is no longer its sshd's.
NO_FIRST_ADDRESS = """
table inet moved {
    chain input {
        type filter hook input priority 0;
        ip daddr 192.0.2.2 tcp dport 22 reject with tcp reset
    }
}
"""


@contextmanager
def office() -> Iterator[Lab]:
    """A lab whose link can be cut for long."""
    with Lab(sshd=False, up=LINK, down=LINK) as lab:
        lab.sshd(lab.server, options=SOON)
        lab.web(lab.target)
        yield lab


@contextmanager
def cut(lab: Lab) -> Iterator[None]:
    """Nothing gets through, and nobody is told."""
    lab.link.cut()
    try:
        yield
    finally:
        lab.link.mend()


@contextmanager
def lost(lab: Lab, tunnel: Tunnel) -> Iterator[None]:
    """The link is cut, and sshunt has noticed: soon, because it is asked to look."""
    with cut(lab):
        lab.client.run([*SSHUNT, "reconnect"])
        tunnel.wait_until(lambda: "is lost since" in tunnel.said)
        yield


def wait_until_said(words: str, *tunnels: Tunnel) -> None:
    for tunnel in tunnels:
        tunnel.wait_until(partial(lambda said_by: words in said_by.said, tunnel))


@contextmanager
def up(lab: Lab, *words: str) -> Iterator[Tunnel]:
    with running(lab, "-v", "-r", "server", *words, OFFICE_V4) as tunnel:
        yield tunnel


@contextmanager
def another_address(lab: Lab) -> Iterator[None]:
    """The client's address towards the server is another one meanwhile."""

    def move(old: str, new: str) -> None:
        lab.client.run(["ip", "addr", "del", old, "dev", "to-server"])
        lab.client.run(["ip", "addr", "add", new, "dev", "to-server"])
        lab.client.run(["ip", "route", "replace", "default", "via", "192.0.2.2"])

    move("192.0.2.1/24", "192.0.2.77/24")
    try:
        yield
    finally:
        move("192.0.2.77/24", "192.0.2.1/24")


class Talk:
    """An open connection to a server that sends back what it gets."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        listener = stack.enter_context(lab.target.listen(lab.target.v4))
        port = listener.getsockname()[1]
        self.near = stack.enter_context(lab.client.connect(lab.target.v4, port, timeout_s=10))
        self.far = stack.enter_context(listener.accept()[0])
        self.near.settimeout(30)
        self.far.settimeout(30)

    def says(self, words: bytes) -> bool:
        """Both ways, and back."""
        self.near.sendall(words)
        there = self.far.recv(len(words), socket.MSG_WAITALL)
        self.far.sendall(there)
        return self.near.recv(len(words), socket.MSG_WAITALL) == words


def sshds_of(lab: Lab) -> list[int]:
    """The sshd processes of logged-in sessions."""
    found = lab.server.run(["pgrep", "-f", "^sshd: .*(@notty|\\[priv\\])"], check=False)
    ours = set(lab.server.pids())
    return [int(pid) for pid in found.stdout.split() if int(pid) in ours]
