"""A session's name: eight digits, and the abstract socket (unix(7)) by which it can be found.

Everybody can read the digits as soon as the helper has made a control group that bears them
(/proc/PID/cgroup), and an abstract name belongs to whoever takes it first. So it is taken together
with the digits, before anything else bears them.

Not here: listening there, and who is answered (control).
"""

import os
import secrets
import socket
import sys

#: Draws before a session does without. Digits that somebody has got are drawn again; nobody has got
#: all of them.
_ATTEMPTS = 8


def draw() -> tuple[str, socket.socket | None]:
    """New digits, and the socket that has their name; None where there are no such sockets."""
    for _ in range(_ATTEMPTS):
        session = secrets.token_hex(4)
        taken = take(session)
        if taken is not None:
            return session, taken
    return secrets.token_hex(4), None


def take(session: str) -> socket.socket | None:
    """The socket that has the name of ``session``; None if that can't be had."""
    if sys.platform != "linux":
        return None
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(abstract_name(session))
    except OSError:
        sock.close()
        return None
    return sock


def abstract_name(session: str) -> str:
    """The name of this user's ``session``."""
    return f"\0sshunt/{os.geteuid()}/{session}"
