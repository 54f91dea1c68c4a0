"""The sockets by which all packets leave that we make ourselves: they bear a mark. Root; Linux.

Not here: what they say (segments, echo_packets, in_their_name), which rules know the mark
(capture.nft_held).
"""

import socket

from sshunt.capture.nft_held import INJECTED_MARK

_SO_MARK = 36  # asm-generic/socket.h


def raw_socket(family: int, protocol: int) -> socket.socket:
    """A raw socket whose packets bear INJECTED_MARK; raises OSError."""
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, INJECTED_MARK)
    except OSError:
        sock.close()
        raise
    return sock
