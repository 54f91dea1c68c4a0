"""Whose connections are captured besides this host's own: those that it would forward anyway.

Rules for forwarded packets come before routing, so they see whatever somebody on any link sends to
us, whether or not we are a router for him: without this, ``-l 0.0.0.0`` would serve the stranger in
the same café. What the kernel would not forward is not captured:

    listener            from which links
    loopback            none
    0.0.0.0, ::         those that the kernel forwards from (ip-sysctl.rst)
    another address     the link that has it, if the kernel forwards from that

Where links are named (``--from``): those of them that the kernel forwards from, whatever the
address; one that is not there yet may come. Networks that somebody has shut in (docker's
``--internal``) stay so: what is captured of them would get out past the rules that drop it where it
is forwarded.

    net.ipv4.conf.{all,LINK}.forwarding     from any link, from one
    net.ipv6.conf.all.forwarding            from any link
    net.ipv6.conf.LINK.force_forwarding     from one (Linux 6.17)

Looked at once, when the rules are made. Not here: who of those that are forwarded may use it; that
is a firewall's, which sees their connections go to the listener's port (README).
"""

import os
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import TypeAlias

from sshunt.capture.plan import Plan
from sshunt.model import LINK_NAME

#: Names of links; None means any.
Links: TypeAlias = tuple[str, ...] | None

_OF_ONE_LINK = {4: "forwarding", 6: "force_forwarding"}
_SYSCTL = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_ON = b"1"


def open_proc() -> int:
    """A descriptor of /proc, for ``served``."""
    return os.open("/proc", os.O_PATH | os.O_DIRECTORY)


def served(plan: Plan, proc: int, link_of: Callable[[str], str]) -> dict[int, Links]:
    """From which links forwarded connections of either family are captured.

    ``link_of`` names the link that has an address, or says "".
    """
    return {family: _served(plan, family, proc, link_of) for family in (4, 6)}


def addresses_of(served: Mapping[int, Links], link_of: Mapping[str, str]) -> dict[int, str]:
    """An address of this host in each family, as other hosts know it: of a link that is served, if
    one has any. Nothing for a family without one. ``link_of`` has all addresses and their links.
    """
    found = {}
    for family, links in served.items():
        candidates = [
            address
            for address in link_of
            if (":" in address) == (family == 6)
            and not ip_address(address).is_loopback
            and not ip_address(address).is_link_local
        ]
        candidates.sort(key=lambda address: links is not None and link_of[address] not in links)
        if candidates:
            found[family] = candidates[0]
    return found


def refusal(plan: Plan, family: int, served: Links) -> str:
    """What to say where other hosts are not served though the listener could; else ""."""
    listener = plan.listener(family)
    if listener is None or not plan.forwards(family) or served != ():
        return ""
    where = "" if ip_address(listener[0]).is_unspecified else f" from the link of {listener[0]}"
    if plan.links:
        where = f" from {', '.join(plan.links)}"
    return (
        f"this host does not forward IPv{family}{where}, so only its own connections are captured"
        f" ({_SYSCTL[family]}=1 turns it on)"
    )


def _served(plan: Plan, family: int, proc: int, link_of: Callable[[str], str]) -> Links:
    listener = plan.listener(family)
    if listener is None or not plan.forwards(family):
        return ()
    forwarding = _forwarding(family, proc)
    if plan.links:
        return tuple(link for link in plan.links if forwarding is None or link in forwarding)
    if ip_address(listener[0]).is_unspecified:
        return forwarding
    link = link_of(str(ip_address(listener[0])))
    ours = forwarding is None or link in forwarding
    return (link,) if ours and LINK_NAME.fullmatch(link) else ()


def _forwarding(family: int, proc: int) -> Links:
    """From which links the kernel forwards."""
    place = f"sys/net/ipv{family}/conf"
    if _read(f"{place}/all/forwarding", proc) == _ON:
        return None
    try:
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    except OSError:
        return ()  # no such family
    try:
        names = sorted(set(os.listdir(folder)) - {"all", "default"})
    finally:
        os.close(folder)
    harmless = [name for name in names if LINK_NAME.fullmatch(name)]
    knob = _OF_ONE_LINK[family]
    return tuple(name for name in harmless if _read(f"{place}/{name}/{knob}", proc) == _ON)


def _read(path: str, proc: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY, dir_fd=proc)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 16).strip()
    finally:
        os.close(descriptor)
