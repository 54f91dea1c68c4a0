"""Retained addresses: those that this host has lost though connections still bear them.

A connection that we accepted has as its other end an address that the host had when the program
connected. When the host moves to another network that address goes, and the connection would stand
still; the helper can retain it (helper.addresses). The addresses of other hosts, whose connections
we accept as a router, are not ours to retain: only what was once seen on an interface here is.
"""

import socket
from collections.abc import Iterable

import psutil

from sshunt.helper.protocol import MAX_RETAINED, can_be_retained

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class RetainedAddresses:
    """Remembers the addresses of this host; begin it while they are all there."""

    def __init__(self) -> None:
        self._own = _present()

    def needed(self, used: Iterable[str]) -> tuple[str, ...]:
        """Those of the ``used`` addresses that were this host's and are not any more, sorted; no
        more than can be retained.
        """
        try:
            used, present = set(used), _present()
        except OSError:  # out of descriptors: nothing is known to be gone
            return ()
        self._own = present | (self._own & used)
        return tuple(sorted(a for a in self._own - present if can_be_retained(a)))[:MAX_RETAINED]


def link_of(address: str) -> str:
    """The name of the interface that has an address, "" if none has."""
    for name, found in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == address for a in found if a.family in _FAMILIES):
            return name
    return ""


def links_of_all() -> dict[str, str]:
    """All addresses of this host, and the interfaces that have them."""
    return {
        each.address.partition("%")[0]: name
        for name, found in psutil.net_if_addrs().items()
        for each in found
        if each.family in _FAMILIES
    }


def _present() -> set[str]:
    found = psutil.net_if_addrs().values()
    return {a.address.partition("%")[0] for each in found for a in each if a.family in _FAMILIES}
