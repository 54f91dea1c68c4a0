"""The few types that several layers share. Values only: no I/O, no behaviour beyond themselves."""

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

#: (numeric address without scope, port)
Endpoint: TypeAlias = tuple[str, int]

#: An interface's name that may stand in a rule. The kernel takes any without a slash and blanks;
#: nft's quoted strings know no escapes, and end with an asterisk for many.
LINK_NAME = re.compile(r"[A-Za-z0-9_.:@=+-]{1,15}")

ANY_FIRST_PORT = 0
ANY_LAST_PORT = 65535


class Action(str, Enum):
    """What happens to a connection whose destination falls into a route."""

    REMOTE = "remote"  # captured, and made by the far side
    DIRECT = "direct"  # left alone


@dataclass(frozen=True, slots=True)
class Route:
    """One network with an inclusive port range and what to do with it.

    The default range 0..65535 means "every port".
    """

    network: Network
    action: Action
    first_port: int = ANY_FIRST_PORT
    last_port: int = ANY_LAST_PORT

    @property
    def every_port(self) -> bool:
        """True if the route does not look at the port."""
        return self.first_port == ANY_FIRST_PORT and self.last_port == ANY_LAST_PORT


def check_endpoint(endpoint: Endpoint) -> IPv4Address | IPv6Address:
    """The address of ``endpoint``; raises ValueError unless it and the port are good ones."""
    address, port = endpoint
    if "%" in address:
        raise ValueError("an address with a scope")
    if not 1 <= port <= ANY_LAST_PORT:
        raise ValueError(f"not a port: {port}")
    return ip_address(address)
