"""Whom a process is really connected to.

The second way of not capturing ourselves: the addresses and ports that ssh's own connections have
in the kernel. Not what the configuration or a second name look-up says, which may differ from what
ssh did (round-robin names, Match blocks, ProxyCommand, ProxyJump); sshuttle trusted the name, and
that is where most reports of tunnels that swallow themselves come from.

Reads /proc through psutil; connects to nothing. Processes may come and go meanwhile: what has gone
has no peers.
"""

import psutil

from sshunt.model import Endpoint

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
    try:
        # Renamed in psutil 6.
        list_connections = getattr(process, "net_connections", None) or process.connections
        connections = list_connections(kind="tcp")
    except (psutil.Error, OSError, RuntimeError):
        return []
    return [
        (connection.raddr.ip, connection.raddr.port)
        for connection in connections
        if connection.status in statuses and connection.raddr
    ]
