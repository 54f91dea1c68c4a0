"""Plans as rule text for pf: macOS, FreeBSD and OpenBSD. Renders; never runs a program.

**Not run on those systems by our tests**, and not offered by ``--method`` yet: the text is held by
golden files, which can't prove that a pf takes it. It is what is known of pf, written down where
whoever brings sshunt there begins.

How a connection of this host's own is caught, which pf can't translate on its way out::

    macOS, FreeBSD   pass out ... route-to lo0     sends it to lo0 instead, where it comes in, and
                     rdr pass on lo0 ... -> L      translates it; where it led is asked by
                                                   DIOCNATLOOK (helper.natlook)
    OpenBSD          pass out ... route-to 127.0.0.1
                     pass in on lo0 ... divert-to L   leaves its destination as it is, and
                                                   getsockname(2) of the accepted socket tells it

**Order.** In translation rules the first match wins, in filter rules the last one, but for
``quick``: so each of ours is quick, and what is never captured stands first. What is captured are
the disjoint regions of the plan, as with nftables, so that their order means nothing.

**Replies** of the listener come by lo0, too. Those that belong to no state any more (a program that
has gone) could be translated as if they were new where a region holds this host's addresses:
``no rdr`` for what comes from the listener.

**Forwarded traffic** is translated on every link, but for what is meant for this host, and goes
through the administrator's filter rules (no ``pass``). On OpenBSD what keeps this host's own
connections out would have to be a ``pass`` of ours, past his rules: there it is not captured.

**Where rules live**: in an anchor of ours, never in the main ruleset, which others load anew as
they like; all that they do to it leaves ours alone. macOS evaluates ``com.apple/*`` already. Of
FreeBSD's and OpenBSD's /etc/pf.conf the administrator has to be asked for ``main_rules``: at the
place where they stand, since an earlier quick rule of his wins. With ``set skip on lo0``, as some
have it, nothing of this works.

Not here: a control group: pf knows none, so ssh is told by its peers (the plan's bypass) alone.

Open questions: whether macOS evaluates rdr in com.apple/* on each version; whether ``self`` may be
used behind ``no rdr`` on all three; whether a queue of a thousand regions is fast enough.
"""

from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, summarize_address_range

from sshunt.capture.plan import DNS_PORT, Plan, Region, check_session, remote_regions
from sshunt.model import Endpoint


class System(Enum):
    """Whose pf it is."""

    MACOS = "macOS"
    FREEBSD = "FreeBSD"
    OPENBSD = "OpenBSD"


_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_FAMILY = {4: "inet", 6: "inet6"}
_TCP, _UDP = "tcp", "udp"


def anchor(system: System, session: str) -> str:
    """Where the rules of this session live; raises ValueError for what is no session id."""
    check_session(session)
    return f"com.apple/sshunt-{session}" if system is System.MACOS else f"sshunt/{session}"


def main_rules(system: System) -> str:
    """What the main ruleset must have, in this order; nothing on macOS."""
    if system is System.MACOS:
        return ""
    translation = 'rdr-anchor "sshunt/*"\n' if system is System.FREEBSD else ""
    return f'{translation}anchor "sshunt/*"\n'


def render(plan: Plan, system: System) -> str:
    """The rules of the plan's anchor. Raises ValueError for too many pieces (``remote_regions``).

    Held SYNs, echo requests and the kill switch are left out: pf has nothing for the first two, and
    a block rule in an anchor goes with it.
    """
    flows = [flow for family in (4, 6) for flow in _flows(plan, family)]
    lines: list[str] = []
    if system is not System.OPENBSD:
        lines.extend(dict.fromkeys(line for flow in flows for line in _never_translated(flow)))
        lines.extend(line for flow in flows for line in _translated(flow))
    for family, protocol in dict.fromkeys((flow.family, flow.protocol) for flow in flows):
        lines.extend(_never_caught(plan, family, protocol))
    for flow in flows:
        lines.extend(_caught(flow, system))
    return "".join(f"{line}\n" for line in lines)


# --- parts --------------------------------------------------------------------------------------


class _Flow:
    """What goes by one protocol to some places, and where it arrives."""

    def __init__(self, family: int, protocol: str, listener: Endpoint, places: list[str]) -> None:
        self.family = family
        self.protocol = protocol
        address = ip_address(listener[0])
        #: pf translates to one address: at any of ours means at loopback's.
        self.address = _LOOPBACK[family] if address.is_unspecified else str(address)
        self.port = listener[1]
        self.is_forwarded_too = not address.is_loopback
        self.places = places

    @property
    def head(self) -> str:
        return f"{_FAMILY[self.family]} proto {self.protocol}"


def _flows(plan: Plan, family: int) -> Iterator[_Flow]:
    """Queries first: they are for one address each, which a region may hold, too."""
    dns, listener, datagrams = plan.dns(family), plan.listener(family), plan.datagrams(family)
    asked = [address for address in plan.resolvers if ip_address(address).version == family]
    if dns is not None and asked:
        places = [f"{address} port {DNS_PORT}" for address in asked]
        yield _Flow(family, _UDP, dns, places)
        yield _Flow(family, _TCP, dns, places)
    places = [_place(region, family) for region in remote_regions(plan.routes, family)]
    if listener is not None and places:
        yield _Flow(family, _TCP, listener, places)
    if datagrams is not None and places:
        yield _Flow(family, _UDP, datagrams, places)


def _never_translated(flow: _Flow) -> Iterator[str]:
    yield f"no rdr on lo0 {flow.head} from {flow.address} port {flow.port} to any"
    if flow.is_forwarded_too:
        yield f"no rdr {flow.head} from any to self"


def _translated(flow: _Flow) -> Iterator[str]:
    rdr = "rdr" if flow.is_forwarded_too else "rdr pass on lo0"
    for place in flow.places:
        yield f"{rdr} {flow.head} from any to {place} -> {flow.address} port {flow.port}"


def _never_caught(plan: Plan, family: int, protocol: str) -> Iterator[str]:
    head = f"pass out quick {_FAMILY[family]} proto {protocol} from any to"
    yield f"{head} self"
    if protocol == _TCP:
        for address, port in plan.bypass:
            if ip_address(address).version == family:
                yield f"{head} {address} port {port}"


def _caught(flow: _Flow, system: System) -> Iterator[str]:
    for place in flow.places:
        to = f"{flow.head} from any to {place}"
        if system is System.OPENBSD:
            yield f"pass in quick on lo0 {to} divert-to {flow.address} port {flow.port}"
            yield f"pass out quick {to} route-to {_LOOPBACK[flow.family]}"
        else:
            yield f"pass out quick route-to lo0 {to} keep state"


def _place(region: Region, family: int) -> str:
    first: IPv4Address | IPv6Address
    last: IPv4Address | IPv6Address
    if family == 4:
        first, last = IPv4Address(region.first_address), IPv4Address(region.last_address)
    else:
        first, last = IPv6Address(region.first_address), IPv6Address(region.last_address)
    networks = list(summarize_address_range(first, last))
    text = str(networks[0]) if len(networks) == 1 else f"{first} - {last}"
    if region.every_port:
        return text
    if region.first_port == region.last_port:
        return f"{text} port {region.first_port}"
    return f"{text} port {region.first_port}:{region.last_port}"
