"""Telling the service manager how we are, as sd_notify(3) does.

systemd starts a service of ``Type=notify`` with the name of a datagram socket in NOTIFY_SOCKET: a
path, or an abstract name that is written with ``@`` for its first byte, NUL. It takes the service
for started when READY=1 comes, and ends what stays silent for 90 s.

Not told: that the connection is lost, for the service runs all the same.

Without such a name nobody is told. Nobody who does not listen keeps the tunnel from its work.
"""

import os
import socket
from contextlib import suppress

from sshunt.tell.report import Event, RemoteConnected, ShutdownStarted
from sshunt.tell.sentences import connected

#: The time for one message, should a service manager have more to do than to read its socket.
DEADLINE_S = 1.0


def notify(*lines: str) -> None:
    """Send these assignments, such as READY=1, in one message."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = f"\0{name[1:]}" if name.startswith("@") else name
    # ValueError: a path with a zero byte in it.
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.sendto("\n".join(lines).encode(), address)


def hear(event: Event) -> None:
    """Tell of what matters to whoever started us."""
    if isinstance(event, RemoteConnected):
        notify("READY=1", f"STATUS={connected(event)}")
    elif isinstance(event, ShutdownStarted):
        notify("STOPPING=1")
