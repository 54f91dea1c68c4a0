"""Whose the listener of a plan's datagrams is. Root; Linux.

The packet process tells a client about flows whose answers come from the listener of his plan. He
may write into a plan what he likes, another user's listener, too, and would then be told of that
one's flows, and could answer in their peers' names. So a listener counts only while its socket is
his: the kernel lists sockets with the user who made them (/proc/net/udp). Whoever else has bound
that port at that address, or at all of them, makes it not his alone.

Root's clients are not asked.

Not here: what is told (udp_flows).
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from sshunt.capture.plan import Plan, What
from sshunt.model import Endpoint


def with_own_listeners(plan: Plan, uid: int, proc: int) -> Plan:
    """The plan without the listeners of datagrams that are not this user's. ``proc`` is a
    descriptor of /proc.
    """
    if uid == 0 or not any(what is What.DATAGRAMS for what, _ in plan.redirects):
        return plan
    kept = tuple(
        redirect
        for redirect in plan.redirects
        if redirect.what is not What.DATAGRAMS or owners(redirect.endpoint, proc) == {uid}
    )
    return plan if kept == plan.redirects else replace(plan, redirects=kept)


def owners(endpoint: Endpoint, proc: int) -> set[int]:
    """The users whose sockets for UDP may receive what comes to ``endpoint``; none if that can't be
    known.
    """
    address, port = ip_address(endpoint[0]), endpoint[1]
    found: set[int] = set()
    for name in ("udp", "udp6"):
        try:
            descriptor = os.open(f"self/net/{name}", os.O_RDONLY, dir_fd=proc)
        except OSError:
            continue  # a kernel without IPv6
        with open(descriptor, encoding="utf-8") as file:  # no other is loaded
            found |= owners_in(file, address.packed, port)
    return found


def owners_in(lines: Iterable[str], address: bytes, port: int) -> set[int]:
    """The same, of one list as /proc/net/udp and udp6 have it."""
    any_port = f":{port:04X}"
    found = set()
    for line in lines:
        words = line.split(None, 8)
        if len(words) > 8 and words[1].endswith(any_port):
            local = _unpacked(words[1].partition(":")[0])
            if not any(local) or not any(address) or _same(local, address):
                found.add(int(words[7]))
    return found


def _unpacked(text: str) -> bytes:
    """An address as it is listed: 32-bit numbers of the host's byte order."""
    numbers = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    return b"".join(struct.pack("=I", number) for number in numbers)


def _same(local: bytes, address: bytes) -> bool:
    """Also where one is IPv4 as an IPv6 socket sees it."""
    return local[-len(address) :] == address if len(address) == 4 else local == address
