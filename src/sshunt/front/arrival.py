"""Does what is captured arrive here? One connection is made to see, right after the rules are.

Rules that stand are not all: a firewall of this host may drop what was redirected (ufw's ``default
deny outgoing``, an input chain that drops what comes for our listener), or keep it from being
tracked (``notrack``), and then nothing is redirected at all. Programs would hang without a word.

    Prober     a process that was forked before the guard took us in: whoever is in the guard is
               not captured. It connects where it is told to, and sends nothing.
    Arrivals   what is expected at the listeners: a source port, a destination
    check      asks the one, waits for the other
    lost       does so for each family, and says what has been found

The prober says its source port and waits for a word before it connects, so nothing that another
program connects to is ever taken for the probe. What has arrived is closed and never goes to the
far side. What does not arrive has gone out, a single SYN to an address that is routed anyway,
preferably one that belongs to nobody (RFC 5737, RFC 3849).

Not here: whose rule it is (helper).
"""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import NoReturn

from sshunt.host.own import is_own_address
from sshunt.host.parent import tie
from sshunt.model import Action, Endpoint, Route
from sshunt.route.routes import RouteTable
from sshunt.tell.report import ArrivalChecked, ArrivalNotRouted, Report

#: The time that a probe has to arrive. Over lo it takes a fraction of a millisecond; a SYN is sent
#: again after one second.
ARRIVAL_DEADLINE_S = 4.0

#: Addresses that belong to nobody: those for documentation.
_NOBODYS = ("203.0.113.1", "198.51.100.1", "192.0.2.1", "2001:db8::1")

#: A port that is hardly ever in use (tcpmux).
_UNUSED_PORT = 1

#: Errors of connect(2) where this host has no route.
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

#: Descriptors that a prober closes, counted from 3. At a start there are a few dozen.
_MOST_DESCRIPTORS = 4096

_MESSAGE_BYTES = 128


class Fate(Enum):
    """What became of the probe."""

    ARRIVED = auto()
    LOST = auto()  # nothing arrived
    NOT_ROUTED = auto()  # this host has no route there, so no program can even begin
    UNKNOWN = auto()  # there was no prober to ask


#: Routes that are looked at for a destination to try.
_MOST_ROUTES = 64


def destination_to_try(routes: Sequence[Route], family: int) -> Endpoint | None:
    """A destination of this family (4 or 6) that is captured; None if none was found."""
    table = RouteTable(routes)
    candidates = [(address, _UNUSED_PORT) for address in _NOBODYS]
    for route in routes[:_MOST_ROUTES]:
        second = str(route.network[min(1, route.network.num_addresses - 1)])
        candidates.append((second, route.first_port or _UNUSED_PORT))
    for address, port in candidates:
        if (":" in address) == (family == 6):
            route_there = table.lookup(address, port)
            captured = route_there is not None and route_there.action is Action.REMOTE
            if captured and not is_own_address(address):
                return address, port
    return None


class Arrivals:
    """What is expected at the listeners."""

    def __init__(self) -> None:
        self._expected: dict[tuple[int, Endpoint], asyncio.Event] = {}

    def expect(self, port: int, destination: Endpoint) -> asyncio.Event:
        """Set when a connection from this source port to ``destination`` has arrived."""
        return self._expected.setdefault((port, destination), asyncio.Event())

    def forget(self, port: int, destination: Endpoint) -> None:
        """The opposite of ``expect``."""
        self._expected.pop((port, destination), None)

    def expects(self, port: int, destination: Endpoint) -> bool:
        """True if such a connection is expected, and nobody else's."""
        return (port, destination) in self._expected

    def take(self, sock: socket.socket, destination: Endpoint) -> bool:
        """True if this connection was expected and nobody else's."""
        if not self._expected:
            return False
        with suppress(OSError):  # it is gone already
            arrived = self._expected.get((sock.getpeername()[1], destination))
            if arrived is not None:
                arrived.set()
                return True
        return False


class Prober:
    """The process that connects. Make it before any thread, and before the guard; ``close`` it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        tied = tie()
        self._pid = os.fork()
        if self._pid == 0:
            _become_prober(theirs, tied)
        theirs.close()

    async def bind(self, destination: Endpoint) -> int:
        """The source port of the connection that will go to ``destination``. Raises OSError."""
        address, port = destination
        return int(await self._ask(f"{address} {port}"))

    async def connect(self) -> int:
        """Connect; 0, or the error number. Waits no longer than ARRIVAL_DEADLINE_S."""
        return int(await self._ask("connect"))

    async def _ask(self, line: str) -> str:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, line.encode())
        answer = (await loop.sock_recv(self._socket, _MESSAGE_BYTES)).decode()
        if not answer:
            raise ConnectionResetError("the prober is gone")
        return answer

    def close(self) -> None:
        """End it, whatever it does. May be called twice."""
        self._socket.close()
        if self._pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            self._pid = 0


async def check(prober: Prober, arrivals: Arrivals, destination: Endpoint) -> Fate:
    """Connect to ``destination`` and see what becomes of it."""
    try:
        port = await prober.bind(destination)
        arrived = arrivals.expect(port, destination)
        try:
            error = await prober.connect()
            with suppress(asyncio.TimeoutError):  # the kernel has accepted it; we are a moment late
                await asyncio.wait_for(arrived.wait(), 0 if error else ARRIVAL_DEADLINE_S)
        finally:
            arrivals.forget(port, destination)
    except (OSError, ValueError):
        return Fate.UNKNOWN
    if arrived.is_set():
        return Fate.ARRIVED
    return Fate.NOT_ROUTED if error in _NO_ROUTE else Fate.LOST


async def lost(
    prober: Prober,
    arrivals: Arrivals,
    routes: Sequence[Route],
    families: Iterable[int],
    report: Report,
) -> tuple[int, ...]:
    """Those of the families (4, 6) whose captured connections do not arrive."""
    found = []
    for family in families:
        destination = destination_to_try(routes, family)
        if destination is None:
            continue
        fate = await check(prober, arrivals, destination)
        if fate is Fate.LOST:
            found.append(family)
        elif fate is Fate.NOT_ROUTED:
            report.say(ArrivalNotRouted(family, destination[0]))
        else:
            report.say(ArrivalChecked(family, fate.name))
    return tuple(found)


# --- the prober's own process -------------------------------------------------------------------


def _become_prober(conversation: socket.socket, tied: Callable[[], bool]) -> NoReturn:
    """Serve the parent until it hangs up. Never returns: a forked child must not run its end."""
    try:
        has_parent = tied()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        # Among what we inherited may be a socket whose end others wait for.
        os.closerange(3, conversation.fileno())
        os.closerange(conversation.fileno() + 1, _MOST_DESCRIPTORS)
        if has_parent:
            _serve(conversation)
    finally:
        os._exit(0)


def _serve(conversation: socket.socket) -> None:
    while request := conversation.recv(_MESSAGE_BYTES).decode():
        address, port = request.split()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.settimeout(ARRIVAL_DEADLINE_S)
            probe.bind(("", 0))
            conversation.sendall(str(probe.getsockname()[1]).encode())
            if not conversation.recv(_MESSAGE_BYTES):
                break
            conversation.sendall(str(_outcome(probe, (address, int(port)))).encode())


def _outcome(probe: socket.socket, destination: Endpoint) -> int:
    """0 if the connection was made, else the error number."""
    try:
        probe.connect(destination)
    except OSError as error:
        return error.errno or errno.ETIMEDOUT
    return 0
