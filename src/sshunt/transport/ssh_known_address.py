"""ssh to an address that is known already, while all else goes by the server's name.

``options`` makes ssh run this very file as its ProxyCommand, which connects and passes the socket
on (ProxyUseFdpass): ssh then owns the connection as if it had made it. HostName would do it as
well, but it is more than an address: Match blocks, %h in the user's configuration and the name
under which the host key is known all follow it. So the same key is asked for, and the same login
made.

Not here: when that is a good idea (remote.attempts), which address (peers).
"""

import array
import shlex
import socket
import sys


def options(address: str, port: int, *, deadline_s: float) -> tuple[str, ...]:
    """What ssh is given. It then takes no name look-up, and no connection that is shared."""
    words = [sys.executable, "-I", "-S", __file__, address, str(port), f"{deadline_s:.0f}"]
    command = " ".join(shlex.quote(word) for word in words).replace("%", "%%")
    return "-S", "none", "-o", f"ProxyCommand={command}", "-o", "ProxyUseFdpass=yes"


def main() -> None:
    """Connect, and pass the socket to ssh, whose end of a socket pair is our standard output."""
    address, port, deadline_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    try:
        peer = socket.create_connection((address, port), deadline_s)
    except OSError as error:
        # As ssh itself says it.
        sys.stderr.write(f"ssh: connect to host {address} port {port}: {error.strerror or error}\n")
        sys.exit(1)
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # ssh's TCPKeepAlive
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rights = array.array("i", [peer.fileno()]).tobytes()
    with socket.socket(fileno=1) as ssh:
        ssh.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


if __name__ == "__main__":
    main()
