"""Who has started this helper, and whether what he gave us is a conversation with him. Root; Linux.

What our standard input is, is chosen by whoever may start us, and nothing that he says about it
counts. It must be one end of a **socketpair**: only then does SO_PEERCRED name who made it. Of a
socket that was connected it names who listens: a service of root's, for example, that sends back
what it was told would have asked us for whatever a user wishes, as root. A listening socket always
has a name, and with it both ends of each connection; the ends of a socketpair have none.

**Whose helper it is**, for the number that each user may have: whom sudo or doas say that they have
served, since a user may have many uids to make a socketpair with (newuidmap(1)). They set their
variables themselves. A socketpair of root's means that root's own client has started us, whatever
is in the environment: ``sudo sshunt`` has left it there.

Not here: which process asks (processes), how many helpers a user may have (marks, server).
"""

import os
import pwd
import socket
import struct
from collections.abc import Mapping

_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid


def is_one_of_a_pair(descriptor: int, type_: int = socket.SOCK_STREAM) -> bool:
    """True for one end of a socketpair(2) of this type."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            kind = sock.family, sock.type
            names = sock.getsockname(), sock.getpeername()
    except OSError:
        return False  # not a socket, or not connected
    return kind == (socket.AF_UNIX, type_) and names == ("", "")


def maker_of(client: socket.socket) -> tuple[int, int]:
    """(pid, uid) of who made a socketpair; the pid is 0 in a foreign process namespace.

    ``agent.rendezvous`` and ``tell.control`` ask the kernel the same of their sockets, each by
    itself: what root runs, what is shipped and the client have no module in common for it.
    """
    pid, uid, _gid = _UCRED.unpack(
        client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return pid, uid


def user_of(client: socket.socket, environment: Mapping[str, str]) -> int:
    """The uid of the user whose helper this is."""
    _, maker = maker_of(client)
    if maker == 0:
        return 0
    served = environment.get("SUDO_UID", "")
    if served.isascii() and served.isdecimal():
        return int(served)
    try:
        return pwd.getpwnam(environment["DOAS_USER"]).pw_uid
    except KeyError:
        return maker
