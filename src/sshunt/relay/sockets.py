"""What every relayed socket has in common: options, a hard close, and what its errors mean."""

import errno
import resource
import socket
import struct
import sys

from sshunt.mux import frames

#: Idle seconds before the kernel asks whether the peer still lives, seconds between two questions,
#: unanswered questions until it is given up: dead hosts are noticed after three minutes, and idle
#: connections stay known to NATs and firewalls, whose shortest common limit is five minutes.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 30
KEEPALIVE_PROBES = 4

#: SO_LINGER with zero seconds: close() sends a RST and drops what is unsent.
_LINGER_RESET = struct.pack("ii", 1, 0)

#: The priority of the far side's sockets until they are connected; 0 is everybody's. An sshunt on
#: the same host captures no connection that is begun with it: without that, one which tunnels what
#: its own far side connects to would send each connection round and round. Anybody may set 0 to 6,
#: no type of service means 3 (rt_tos2priority), and no packet carries it to another host.
DIALED_PRIORITY = 3
_SO_PRIORITY = 12  # asm-generic/socket.h; Python knows it from 3.12 on

_CODE_OF_ERRNO = {
    errno.ECONNREFUSED: frames.RESET_REFUSED,
    errno.EHOSTUNREACH: frames.RESET_HOST_UNREACHABLE,
    errno.EHOSTDOWN: frames.RESET_HOST_UNREACHABLE,
    errno.ENETUNREACH: frames.RESET_NET_UNREACHABLE,
    errno.ENETDOWN: frames.RESET_NET_UNREACHABLE,
    errno.EADDRNOTAVAIL: frames.RESET_NET_UNREACHABLE,
    errno.EAFNOSUPPORT: frames.RESET_NET_UNREACHABLE,
    errno.ETIMEDOUT: frames.RESET_TIMED_OUT,
    errno.ECONNRESET: frames.RESET_ABORTED,
    errno.EPIPE: frames.RESET_ABORTED,
    errno.ENOTCONN: frames.RESET_ABORTED,  # shutdown(2): it was reset meanwhile
    errno.EMFILE: frames.RESET_NO_RESOURCES,
    errno.ENFILE: frames.RESET_NO_RESOURCES,
    errno.ENOBUFS: frames.RESET_NO_RESOURCES,
    errno.ENOMEM: frames.RESET_NO_RESOURCES,
    errno.ENOSPC: frames.RESET_NO_RESOURCES,  # epoll_ctl(2)
    errno.EAGAIN: frames.RESET_NO_RESOURCES,  # connect(2): no free local port
    errno.EACCES: frames.RESET_NOT_PERMITTED,
    errno.EPERM: frames.RESET_NOT_PERMITTED,
}

#: Free memory that may stay in the heap, about what a lane has in flight on a fast LAN.
KEPT_HEAP_BYTES = 8 * 1024 * 1024

#: The errors of being out of something that comes back: wait, don't die.
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: How many of this process' descriptors are kept for its own needs: the client's
#: next ssh (three pipes, what starting a process takes, four probes: a dozen, and there may be
#: several lanes), the agent's next lanes (three each) and its look-ups of names.
RESERVED_DESCRIPTORS = 32


def reset_code(error_number: int) -> int:
    """The reset code that tells the other end what ``error_number`` told us."""
    return _CODE_OF_ERRNO.get(error_number, frames.RESET_OTHER)


def error_of(sock: socket.socket) -> int:
    """The error number that the kernel holds for ``sock``, once; 0 if there is none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def without_delay(sock: socket.socket) -> None:
    """What comes from ``sock`` or goes to it keeps its order and waits for nothing: no Nagle, for
    the far program's writes are already whole; and urgent bytes (tcp(7), MSG_OOB) stay in the
    stream, where telnet and its kin have their place. Accepted sockets inherit both.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask whether the peer still lives. Accepted sockets inherit it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    except OSError:
        pass  # it has just died, which BSD says here; its owner will hear of it


def set_priority(sock: socket.socket, priority: int) -> None:
    """Have the kernel give this priority (socket(7), SO_PRIORITY) to what is sent from now on."""
    if sys.platform == "linux":
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, priority)
        except OSError:
            pass  # a sandbox that is not quite Linux


def close_with_reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset, not an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        pass  # already reset by the peer
    sock.close()


def raise_descriptor_limit() -> None:
    """Raise this process' limit of descriptors to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            pass  # some systems have a lower limit than they say


def is_reserved(number: int) -> bool:
    """True if no more than the reserve was left when this descriptor was made: POSIX says that its
    number is the lowest that was free.
    """
    left = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - number
    return 0 < left <= RESERVED_DESCRIPTORS  # "no limit" is a negative number


#: Objects made since the collector last ran before it runs again. It looks at all of them again and
#: again while thousands of connections come, and none is garbage: our objects form no cycles that
#: matter.
GC_THRESHOLD = 100000


def keep_heap() -> None:
    """Have the C library keep freed buffers instead of returning them to the kernel each time.

    Reads make and free buffers of 256 KiB all the time. glibc gives memory back when 128 KiB are
    free at the heap's end, so every read would fault in 64 fresh pages, zeroed by the kernel. Its
    threshold adapts: freeing one mapped block raises it to twice that block's size (mallopt(3),
    M_MMAP_THRESHOLD). The block is never touched, so it costs nothing. Elsewhere: no effect.
    """
    block = bytes(KEPT_HEAP_BYTES // 2)
    del block
