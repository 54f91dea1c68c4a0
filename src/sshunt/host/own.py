"""What this host is itself: addresses that are never captured, whether it has IPv6; and where we
are, of its control groups.

The rules leave alone what goes to this host's own addresses, 127.0.0.0/8 and ::1 among them. A
target that is nothing else would be captured never, and silently.

Not here: addresses that this host had (retained_addresses).
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from sshunt.model import Action, Route

#: IPv6 scopes in /proc/net/if_inet6 that don't lead beyond the link: IFA_HOST, IFA_LINK.
_NEAR = ("10", "20")

#: Any port: nothing is sent to it.
_PORT = 9


def own_routes(routes: Iterable[Route]) -> list[Route]:
    """Those that were to be captured and hold nothing but this host's own addresses."""
    return [route for route in routes if route.action is Action.REMOTE and _is_own(route)]


def is_own_address(address: str) -> bool:
    """True if this is an address of this host, loopback included."""
    parsed = ip_address(address)
    if parsed.is_loopback:
        return True
    if parsed.is_multicast:
        return False
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    # A datagram socket's connect(2) sends nothing: it looks the route up. Only what goes to this
    # host itself comes from the same address.
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        if parsed.version == 4:
            # Else what goes to the second of two addresses in one network comes from the first. And
            # bind(2) is not enough: with ip_nonlocal_bind any address can be bound, but no route
            # begins at one that is not ours.
            sock.bind((address, 0))
        sock.connect((address, _PORT))
        return str(sock.getsockname()[0]) == address
    return False


def has_ipv6() -> bool:
    """True if programs of this host can reach anything beyond its links over IPv6."""
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            _address, _index, _width, scope, _flags, _device = line.split()
            if scope not in _NEAR:
                return True
        for line in Path("/proc/net/ipv6_route").read_text().splitlines():
            words = line.split()
            if words[1] == "00" and words[-1] != "lo":  # a default route
                return True
    return False


def own_cgroup() -> str:
    """The control group (v2) that this process is in, as the kernel writes it; "": none."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return ""


def _is_own(route: Route) -> bool:
    network = route.network
    if network.is_loopback:
        return True
    if network.num_addresses > 1:
        return False
    return is_own_address(str(network.network_address))
