"""Keeps addresses this host's own after the network has taken them away. Root; Linux.

A program's connection bears the address that the host had when it was made. When the laptop goes
from Wi-Fi to phone, the address goes too, and the connection between the program and our listener
stands still although both ends are on this host: the kernel does not send from an IPv4 address that
is not its own, and of either family sends what is meant for a foreign one out by the default route.

What makes an address the host's own is not the interface that has it but a *local route*: with each
address of an interface the kernel makes one in the table "local". So we make such routes, and no
addresses, on a TUN device of our own::

    local 192.0.2.1 dev sshunt0 table local scope host metric 1024

* *A device of our own.* Its routes go with it, and it goes with the descriptor that only we hold:
  the kernel removes both when we die, SIGKILL included. Nothing is routed to it, for what is local
  is delivered by way of lo, and nobody reads it; it makes up no IPv6 address of its own, so it has
  nothing to ask of routers.
* *No addresses.* A new connection's source is chosen among the addresses of interfaces, so it is
  never a retained one; and no program that lists addresses sees it or takes it for a network.
* *Behind the real one.* The kernel's own local route has metric 0. While the address is on an
  interface, too, that one is used and ours makes no difference, whichever came first.
* *For IPv6 a second time, in the table "main".* Sockets remember routes. IPv4's forget them with
  any change; IPv6's only when something is added below the remembered route in the same table
  (fib6_update_sernum_upto_root), and that was the default route in "main". Otherwise they ask again
  after their third retransmission (tcp_retries1): 6.7 s were seen, instead of 0.8 s. The one in
  "local" is for hosts whose rules look elsewhere before "main".

Established connections then go on by themselves, at TCP's next retransmission: after a gap of t
seconds that is up to t seconds later, since the timer doubles; or after 3 s, where IPv6 was looking
for a neighbour of that address. Where it is retained before it goes there is no gap. They
still need some route to where they were made to, because the kernel looks for one before it
redirects.

What it costs while an address is retained: it means this host to its own programs, even where the
network that we are in now has given it to another one. IPv4 would also answer ARP for all that is
local, on every link (arp_ignore, ip-sysctl.rst); capture.retained has rules against that.

Rejected: addresses on the device, which for IPv6 have no scope of host and are chosen as a source
where there is no other; the same on lo, where they outlive us.

Invariants: ``retain`` that raises has changed nothing; no address, no device.

Not here: which addresses may be asked for (protocol, apply), which are needed, and when (the
client).
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from sshunt.helper.netlink import APPEND, CREATE, Netlink, attribute

# linux/if_tun.h
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_IFREQ = struct.Struct("16sH22x")
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_NAME = b"sshunt%d"  # the kernel counts

# linux/rtnetlink.h, linux/if_link.h
_RTM_NEWLINK, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 24, 25
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which flags
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, lengths, tos, table, protocol, scope, type; flags
_IFF_UP = 0x1
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 26, 8
_IN6_ADDR_GEN_MODE_NONE = 1
_RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 4, 6
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTPROT_STATIC = 4  # by an administrator: routing daemons leave it alone
_RT_SCOPE_HOST = 254
_RTN_LOCAL = 2

#: The routing tables in which an address is local, by family; see above.
_TABLES = {socket.AF_INET: (_RT_TABLE_LOCAL,), socket.AF_INET6: (_RT_TABLE_LOCAL, _RT_TABLE_MAIN)}

#: The metric of our routes: any but 0, the kernel's own. It is what IPv6 takes if none is named
#: (IP6_RT_PRIO_USER).
_METRIC = 1024


class RetainedAddresses:
    """The addresses that are retained, and the device on which they are. None at first."""

    def __init__(self) -> None:
        self._device: _Device | None = None
        self._addresses: frozenset[str] = frozenset()

    def retain(self, addresses: Iterable[str]) -> None:
        """Retain these and no others; raises OSError, and then nothing has changed."""
        wanted = frozenset(addresses)
        if not wanted:
            self.close()
            return
        device = self._device or _Device()
        added = []
        try:
            for address in wanted - self._addresses:
                added.append(address)
                device.add(address)
        except OSError:
            for address in added:
                device.remove(address)
            if device is not self._device:
                device.close()
            raise
        before = self._addresses
        self._device, self._addresses = device, wanted
        for address in before - wanted:
            device.remove(address)

    @property
    def is_lost(self) -> bool:
        """True if somebody else has removed the device."""
        return self._device is not None and not self._device.is_there()

    def close(self) -> None:
        """Retain none. May be called again."""
        if self._device is not None:
            self._device.close()
        self._device, self._addresses = None, frozenset()


class _Device:
    """A TUN device for local routes to belong to, and the socket to make them by."""

    def __init__(self) -> None:
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        try:
            self._netlink = Netlink(socket.NETLINK_ROUTE)
        except OSError:
            os.close(self._tun)
            raise
        try:
            request = _IFREQ.pack(_NAME, _IFF_TUN | _IFF_NO_PI)
            name, _ = _IFREQ.unpack(fcntl.ioctl(self._tun, _TUNSETIFF, request))
            self._index = socket.if_nametoindex(name.rstrip(b"\0").decode())
            self._silence()
            self._change_link(_IFF_UP)
        except OSError:
            self.close()
            raise

    def add(self, address: str) -> None:
        """Make the address local; raises OSError."""
        # Appended, neither exclusive nor a replacement: another session may retain the same one.
        for route in self._local_routes(address):
            self._netlink.ask(_RTM_NEWROUTE, route, CREATE | APPEND)

    def remove(self, address: str) -> None:
        """Undo ``add``, whole or in part, or by somebody else already; raises OSError."""
        for route in self._local_routes(address):
            try:
                self._netlink.ask(_RTM_DELROUTE, route)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise

    def is_there(self) -> bool:
        # (It can't be polled for: what wakes is that it is readable, which anybody can make it.)
        try:
            fcntl.ioctl(self._tun, _TUNGETIFF, bytes(_IFREQ.size))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._netlink.close()
        os.close(self._tun)

    def _silence(self) -> None:
        """No link-local address, and so nothing to say on the link."""
        mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
        inet6 = attribute(socket.AF_INET6, mode)
        try:
            self._change_link(0, attribute(_IFLA_AF_SPEC, inet6))
        except OSError:
            pass  # this host has no IPv6

    def _change_link(self, flags: int, attributes: bytes = b"") -> None:
        link = _LINK.pack(socket.AF_UNSPEC, 0, self._index, flags, flags)
        self._netlink.ask(_RTM_NEWLINK, link + attributes)

    def _local_routes(self, address: str) -> Iterator[bytes]:
        packed = ip_address(address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        lengths = (len(packed) * 8, 0)  # of destination and source, in bits
        attributes = (
            attribute(_RTA_DST, packed)
            + attribute(_RTA_OIF, struct.pack("=I", self._index))
            + attribute(_RTA_PRIORITY, struct.pack("=I", _METRIC))
        )
        for table in _TABLES[family]:
            kind = (table, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL)
            yield _ROUTE.pack(family, *lengths, 0, *kind, 0) + attributes
