"""Where a connection led before pf translated it: DIOCNATLOOK of /dev/pf, as bytes. Pure.

    struct pfioc_natlook         FreeBSD   macOS
    four addresses of 16 bytes   64        64      source, destination; then what is answered
    four ports                   8         16      macOS has unions of 4 bytes; in network order
    family, protocol,            4         4
    variant, direction
                                 76        84

The question is asked with **PF_OUT**: of the state as the listener's replies see it, from the
listener to the program. What comes back in the second pair is where the program meant to go.
OpenBSD needs none of this: divert-to leaves the destination at the socket (capture.pf).

Not run on those systems by our tests: the sizes are those of their headers as they are known, and
the ioctl's number holds the size, so another layout is refused by the kernel (ENOTTY) instead of
being misread.
"""

import struct
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address

from sshunt.model import Endpoint


class Layout(Enum):
    """How a system lays the structure out: its ports, and its number for IPv6."""

    FREEBSD = ("HHHH", 28)
    MACOS = ("HxxHxxHxxHxx", 30)

    @property
    def _struct(self) -> struct.Struct:
        return struct.Struct(f"!16s16s16s16s{self.value[0]}BBBB")

    @property
    def request(self) -> int:
        """The ioctl's number: _IOWR('D', 23, struct pfioc_natlook)."""
        return _IOC_INOUT | self._struct.size << 16 | ord("D") << 8 | 23

    def question(self, protocol: int, program: Endpoint, listener: Endpoint) -> bytes:
        """Where did the program at this address and port mean to go, whose connection or datagram
        has come to the listener?
        """
        source, destination = ip_address(program[0]), ip_address(listener[0])
        if source.version != destination.version:
            raise ValueError("ends of two families")
        family = _AF_INET if source.version == 4 else self.value[1]
        nothing = bytes(16)
        return self._struct.pack(
            *(_padded(source), _padded(destination), nothing, nothing),
            *(program[1], listener[1], 0, 0),
            *(family, protocol, 0, _PF_OUT),
        )

    def answer(self, data: bytes) -> Endpoint:
        """What the kernel has written over the question; raises ValueError for what is none."""
        if len(data) != self._struct.size:
            raise ValueError(f"{len(data)} bytes where {self._struct.size} belong")
        _, _, _, address, _, _, _, port, family, _, _, _ = self._struct.unpack(data)
        if family == _AF_INET:
            return str(IPv4Address(address[:4])), port
        if family == self.value[1]:
            return str(IPv6Address(address)), port
        raise ValueError(f"of family {family}")


_IOC_INOUT = 0xC0000000
_AF_INET = 2
_PF_OUT = 2  # net/pfvar.h: PF_INOUT, PF_IN, PF_OUT


def _padded(address: IPv4Address | IPv6Address) -> bytes:
    """As in the union pf_addr, of which IPv4 takes the first bytes."""
    return address.packed.ljust(16, b"\0")
