"""Who has started this helper, and whether what he gave us is a conversation with him. Root; Linux.

What our standard input is, is chosen by whoever may start us, and nothing that he says about it
counts. It must be one end of a **socketpair**: only then does SO_PEERCRED name who made it. Of a
socket that was connected it names who listens: a service of root's, for example, that sends back
what it was told would have asked us for whatever a user wishes, as root. A listening socket always
has a name, and with it both ends of each connection; the ends of a socketpair have none.

**Started by the service manager** (contrib/systemd) our input is a connection that it has accepted.
Of the *accepted* end SO_PEERCRED names the other side: who called connect(2), and what he was then.
That is as good as a socketpair's, if three things hold:

1. The service manager has started us. It says so by a word on our command line (ACCEPTED_WORD).
   A rule of sudo or doas names the command word for word, without it, so who may start us by such a
   rule can't say it.
2. It is the accepted end, of the socket that is root's: its own name is SERVICE_SOCKET, and the
   other end has none. (Somebody in a mount namespace of his own can give that name to a socket of
   his: that is what 1 is for.)
3. He who connected is in the group that may: the socket's mode says so, but to whoever has the
   group, and in a user namespace (newuidmap(1)) somebody has it under 65,536 uids, each with limits
   of its own. So the uid must be a user's that this host knows, and he a member by name.

Such a helper is in the host's network namespace, as one that run0 has started, and the one who
calls may be in another one, a container with the socket in it. He would change what he does not
see: he is refused (``is_of_another_network``).

**Started by run0** we are in a service that ends with the process that was started, and all that is
in its control group with it; what run0 asks of PAM allows no other way (systemd.kill(5)). So who is
to live on is put into the client's control group, in which sudo would have left it (``join``).

**Whose helper it is**, for the number that each user may have: whom sudo, doas or run0 say that
they have served, since a user may have many uids to make a socketpair with. They set their
variables themselves. A socketpair of root's means that root's own client has started us, whatever
is in the environment: ``sudo sshunt`` has left it there. For the service manager it is who has
connected.

Not here: which process asks (processes), how many helpers a user may have (marks, server).
"""

import fcntl
import os
import pwd
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

from sshunt.helper.service import SERVICE_SOCKET

_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid

_SIOCGSKNS = 0x894C  # linux/sockios.h: a descriptor of the network namespace of a socket


def is_one_of_a_pair(descriptor: int, type_: int = socket.SOCK_STREAM) -> bool:
    """True for one end of a socketpair(2) of this type."""
    return _is_connected(descriptor, type_, ("", ""))


def is_accepted(descriptor: int) -> bool:
    """True for a connection that the service manager's socket has accepted. Only for who was
    started by it.
    """
    return _is_connected(descriptor, socket.SOCK_STREAM, (SERVICE_SOCKET, ""))


def _is_connected(descriptor: int, type_: int, names: tuple[str, str]) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            kind = sock.family, sock.type
            found = sock.getsockname(), sock.getpeername()
    except OSError:
        return False  # not a socket, or not connected
    return kind == (socket.AF_UNIX, type_) and found == names


def maker_of(client: socket.socket) -> tuple[int, int]:
    """(pid, uid) of who made a socketpair, or has connected where that was accepted; the pid is 0
    in a foreign process namespace.

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
    served = {_number(environment.get("SUDO_UID", "")), _uid(environment.get("DOAS_USER", ""))}
    served.discard(None)
    if len(served) == 1 and 0 not in served:
        return served.pop() or maker
    return maker


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def caller_of(client: socket.socket, path: str = SERVICE_SOCKET) -> int | None:
    """The uid of the user who has connected, if he may: root, or a member by name of the group
    that the socket at ``path`` is for. None for others.
    """
    _, uid = maker_of(client)
    if uid == 0:
        return 0
    try:
        user = pwd.getpwuid(uid)
        group = os.stat(path).st_gid
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return None
    return uid if group in groups else None


def is_of_another_network(client: socket.socket) -> bool:
    """True if the client's end was made in another network namespace than ours; False also where
    the kernel does not say.
    """
    try:
        its = fcntl.ioctl(client, _SIOCGSKNS)
    except OSError:
        return False
    try:
        return os.fstat(its).st_ino != os.stat("/proc/self/ns/net").st_ino
    finally:
        os.close(its)


def join(client: socket.socket, child: int) -> None:
    """Put a child into the client's control group, if that can be had: systemd's, as it is mounted
    wherever there is run0.
    """
    pid, _ = maker_of(client)
    with suppress(OSError):
        with open(f"/proc/{pid}/cgroup", newline="\n") as file:
            paths = [line[3:].rstrip("\n") for line in file if line.startswith("0::")]
        for path in paths:
            with open(f"/sys/fs/cgroup{path}/cgroup.procs", "w") as file:
                file.write(str(child))
