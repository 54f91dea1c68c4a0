"""Connection tracking on a host of the lab, as conntrack(8) speaks to it."""

import errno
import socket

from sshunt.lab.hosts import Host


def flush(host: Host) -> None:
    """Forget everything, as ``conntrack -F`` does (IPCTNL_MSG_CT_DELETE)."""
    with host.entered():
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with netlink:
        body = bytes(4)
        head = (16 + len(body)).to_bytes(4, "little") + (1 << 8 | 2).to_bytes(2, "little")
        netlink.sendto(head + (0x5).to_bytes(2, "little") + bytes(8) + body, (0, 0))
        answer = netlink.recv(1000)
        assert int.from_bytes(answer[16:20], "little", signed=True) in (0, -errno.ENOENT)
