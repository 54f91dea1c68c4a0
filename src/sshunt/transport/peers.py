"""Whom a process is really connected to.

The second way of not capturing ourselves: the addresses and ports that ssh's own connections have
in the kernel. Not what the configuration or a second name look-up says, which may differ from what
ssh did (round-robin names, Match blocks, ProxyCommand, ProxyJump); sshuttle trusted the name, and
that is where most reports of tunnels that swallow themselves come from.

Where ssh reaches its server by way of another program on this host (an ``ssh -L`` of the user's,
Tor, cloudflared, a corporate proxy's relay), that program's own connections would be captured, and
once lost they could never be made again: they would wait for us, and we for them. ``behind`` finds
whom such a program is connected to, where it is one that we may look at.

Reads /proc through psutil; connects to nothing. Processes may come and go meanwhile: what has gone
has no peers.
"""

import os
from collections.abc import Iterable
from typing import Any

import psutil

from sshunt.host.own import is_own_address
from sshunt.model import Endpoint

#: Programs of this host between ssh and its server, one behind the other.
MOST_RELAYS = 4

#: Peers of such programs; Tor has a handful.
MOST_BEHIND = 64

#: Connections that exist or are being made; the others carry nothing any more.
_LIVE = frozenset({psutil.CONN_ESTABLISHED, psutil.CONN_SYN_SENT})


def ssh_peers(pid: int) -> tuple[Endpoint, ...]:
    """The remote (address, port) of every TCP connection of a process and its descendants."""
    peers: dict[Endpoint, None] = {}
    for process in _family(pid):
        for address, port in _peers_of(process):
            # A dual-stack socket's IPv4 peer: on the wire, and in a rule, it is IPv4.
            peers[address.removeprefix("::ffff:"), port] = None
    return tuple(peers)


def own_peer(pid: int) -> Endpoint | None:
    """The remote (address, port) of a process that has one TCP connection of its own."""
    try:
        peers = _peers_of(psutil.Process(pid), frozenset({psutil.CONN_ESTABLISHED}))
    except (psutil.Error, OSError):  # gone; out of descriptors
        return None
    if len(peers) != 1:
        return None
    address, port = peers[0]
    return address.removeprefix("::ffff:"), port


def behind(peers: Iterable[Endpoint]) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """Peers that are programs on this host, followed to the peers these are connected to.

    Returns (whom those programs are connected to, on other hosts; those of ``peers`` and of theirs
    that are on this host and whose program we may not look at).
    """
    found: dict[Endpoint, None] = {}
    unseen: dict[Endpoint, None] = {}
    here = {peer for peer in peers if is_own_address(peer[0])}
    for _ in range(MOST_RELAYS):
        further: set[Endpoint] = set()
        for endpoint in here:
            pid = _listener(endpoint)
            if pid is None:
                unseen[endpoint] = None
                continue
            called = _called_by(pid)
            nearby = {peer for peer in called if is_own_address(peer[0])}
            further |= nearby
            found.update((peer, None) for peer in called if peer not in nearby)
        here = further - here
    return tuple(found)[:MOST_BEHIND], tuple(unseen)


def is_made_by_a_child(local_port: int) -> bool:
    """True if a process that we have started has a TCP connection from this port."""
    return any(
        connection.laddr.port == local_port
        for process in _family(os.getpid())[1:]
        for connection in _connections_of(process)
        if connection.status in _LIVE
    )


def has_connection(pid: int) -> bool:
    """True if a process or one of its descendants has reached somebody by TCP."""
    return any(_peers_of(process, frozenset({psutil.CONN_ESTABLISHED})) for process in _family(pid))


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except (psutil.Error, OSError, RuntimeError):  # gone; out of descriptors; it changed meanwhile
        return []


def _peers_of(process: psutil.Process, statuses: frozenset[str] = _LIVE) -> list[Endpoint]:
    return [
        (connection.raddr.ip, connection.raddr.port)
        for connection in _connections_of(process)
        if connection.status in statuses and connection.raddr
    ]


def _connections_of(process: psutil.Process) -> list[Any]:
    try:
        # Renamed in psutil 6.
        list_connections = getattr(process, "net_connections", None) or process.connections
        return list(list_connections(kind="tcp"))
    except (psutil.Error, OSError, RuntimeError):
        return []


def _listener(endpoint: Endpoint) -> int | None:
    """The process that listens at (address, port), if it is one that we may look at."""
    address, port = endpoint
    anywhere = (address, "0.0.0.0", "::", f"::ffff:{address}")
    try:
        connections: list[Any] = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError, RuntimeError):
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if listens and connection.laddr.ip in anywhere and connection.pid is not None:
            return int(connection.pid)
    return None


def _called_by(pid: int) -> list[Endpoint]:
    """Whom a process and its descendants have connected to; not who has connected to them."""
    connections = [c for process in _family(pid) for c in _connections_of(process)]
    answered = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    called: dict[Endpoint, None] = {}
    for connection in connections:
        if connection.status in _LIVE and connection.laddr.port not in answered:
            called[connection.raddr.ip.removeprefix("::ffff:"), connection.raddr.port] = None
    return list(called)
