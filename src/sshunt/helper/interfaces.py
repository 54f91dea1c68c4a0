"""Which addresses this host's interfaces have, and have had since we began to look. Linux.

The kernel tells of every change, and then all of them are asked for again: what one has missed, or
misread, of changes would be missing for ever. A retained address (addresses) is on no interface, so
it is not among them: what is retained is not thereby the host's own.

Not here: what may be done with such an address (apply).
"""

import socket
import struct
from ipaddress import ip_address

from sshunt.helper.netlink import Netlink, attributes
from sshunt.helper.protocol import KernelError, Refusal
from sshunt.model import Endpoint

# linux/rtnetlink.h, linux/if_addr.h
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTM_GETADDR = 22
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40  # another host's, or perhaps

#: Former addresses that are remembered. A host that is given a new one every minute forgets the
#: oldest after half a day.
_MOST_REMEMBERED = 1024


class Interfaces:
    """``links`` are the addresses that are there, and the names of their interfaces."""

    def __init__(self) -> None:
        """Look; raises OSError."""
        # Links, too, for the sake of who has made one (addresses).
        groups = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR
        self._news = Netlink(socket.NETLINK_ROUTE, groups)
        self._asking = Netlink(socket.NETLINK_ROUTE)
        self._had: dict[str, None] = {}  # the latest last
        self.links: dict[str, str] = {}
        self.look()

    def close(self) -> None:
        """Look no more."""
        self._news.close()
        self._asking.close()

    def fileno(self) -> int:
        """Readable when it is time to look again."""
        return self._news.fileno()

    def look(self) -> None:
        """Ask the kernel; raises OSError."""
        self._news.drain()  # first: what comes while we ask is looked at the next time
        found = {}
        for message in self._asking.dump(_RTM_GETADDR, bytes(_ADDRESS.size)):
            address, index = _address(message)
            if address:
                found[address] = index
        names = dict(socket.if_nameindex())
        self.links = {address: names.get(index, "") for address, index in found.items()}
        for address in self.links:
            self._had.pop(address, None)
            self._had[address] = None
        for address in list(self._had)[:-_MOST_REMEMBERED]:
            del self._had[address]

    def check_listener(self, listener: Endpoint) -> None:
        """Redirecting to another host would be a service that nobody asked us for: raises
        KernelError. An address that is only retained is another host's, and so is
        ::ffff:127.0.0.1, which leaves by a route: Python 3.13 calls it loopback.
        """
        address = ip_address(listener[0])
        is_mapped = address.version == 6 and address.ipv4_mapped is not None
        everywhere = not is_mapped and (address.is_loopback or address.is_unspecified)
        if not everywhere and str(address) not in self.links:
            raise KernelError(Refusal.LISTENER, f"{listener[0]} is not an address of this host")

    def had(self, address: str) -> bool:
        """True if the address is or was one of this host's."""
        return address in self._had


def _address(message: bytes) -> tuple[str, int]:
    """The address that a message tells of, and its interface; "" if it is not this host's yet."""
    family, _, flags, _, index = _ADDRESS.unpack_from(message)
    found = attributes(message[_ADDRESS.size :])
    if _IFA_FLAGS in found:
        (flags,) = struct.unpack("=I", found[_IFA_FLAGS])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE):
        return "", 0
    return socket.inet_ntop(family, packed), index
