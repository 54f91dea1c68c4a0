"""The part of the nftables method that captures UDP: chains and timeouts for ``nft``'s table.

UDP is redirected as connections are, to one socket of a family; what else a flow needs is
connection tracking's: it remembers where the program meant (the client asks, through the packet
process), gives each destination of one socket a source port of its own, and turns answers back.
What a datagram meets that begins a flow::

    of a packet that we have made .......... left alone, and not tracked either (INJECTED_MARK)
    made by an agent, in our own cgroup .... left alone   (this host's own only)
    to a bypassed endpoint ................. left alone   (this host's own only)
    bearing the mark of a VPN's own ........ left alone   (this host's own only)
    of DHCP ................................ left alone: a lease is renewed by unicast
    link-local, multicast, broadcast ....... left alone: they mean this link, and nothing beyond it
    to an address of this host ............. left alone
    into a region .......................... redirected to the listener of datagrams

* *Not tracked.* A datagram that we send in the name of a stranger (helper.udp_flows) would begin a
  flow in the wrong direction; what the program answers would then count as its answer, and leave
  past the tunnel. An ICMP error of ours would be translated where there is nothing to translate.
* *Timeouts.* A mapping must outlive what the client knows of it. The kernel's own, 30 s for a flow
  that had no answer, is too short for an answer that comes after a minute; so flows of ours get
  longer ones, by an object in the same table. A kernel without them (CONFIG_NF_CONNTRACK_TIMEOUT)
  has the table without them.
* *Strays.* Where the kernel has forgotten a flow (somebody flushes the table, or it is full), an
  answer would leave as what it is, from our listener. It is dropped, which our socket is told as
  EPERM: so the client knows that it has to look the flow up again when there is one.
* *Bound to an interface* (SO_BINDTODEVICE). Such a datagram would leave by it, to our listener's
  address; it is dropped, which the program is told as EPERM.
* *Marks of VPNs.* What wg-quick, Tailscale, Mullvad and Cilium send themselves must not go through
  what goes through them. Marks that mean something else, a user's own, are no reason.

A flow that is older than the rules goes on as it was: nat's chains see the first datagram only. If
nobody has answered it, though, it is forgotten when the rules are made (helper.conntrack).
What this host answers to others is such a flow, where its beginning was tracked.

Not here: the rest of the table (nft), listeners that may go (nft, for both protocols).
"""

from collections.abc import Iterable, Mapping

from sshunt.capture.nft_held import INJECTED_MARK
from sshunt.model import Endpoint

#: The kernel's memory of a flow of ours, in seconds: of one that had no answer, and of one that
#: had. Longer than the client's (front.datagrams), for it is the client who ends flows.
UNREPLIED_S = 150
REPLIED_S = 330

#: DHCP's ports, and DHCPv6's.
_DHCP_PORTS = "{ 67, 68, 546, 547 }"

#: Marks of what others send for themselves: wg-quick's first, Mullvad's; Tailscale's, Cilium's,
#: Kubernetes', which share theirs with others' bits.
_MARKS_OF_VPNS = (
    "meta mark { 0xca6c, 0x6d6f6c65 }",
    "meta mark & 0x00ff0000 == 0x00080000",
    "meta mark & 0x00000f00 == 0x00000200",
    "meta mark & 0x0000c000 != 0",
)

#: Priorities: before connection tracking (-200), and just behind it.
_RAW_PRIORITY = -300
_TRACKED_PRIORITY = -199

#: ICMP and ICMPv6 by number: nft has their names from /etc/protocols, which the helper does not
#: see.
_ICMP, _ICMP6 = 1, 58

_IS_INJECTED = f"meta mark & {INJECTED_MARK:#010x} != 0"

_PROTOCOL = {4: "ip", 6: "ip6"}
_LINK_LOCAL = {4: "169.254.0.0/16", 6: "fe80::/10"}


def timeouts(families: Iterable[int]) -> list[str]:
    """How long the kernel remembers flows that are redirected."""
    lines = []
    for family in families:
        lines += [
            f"\tct timeout datagrams{family} {{",
            "\t\tprotocol udp;",
            f"\t\tl3proto {_PROTOCOL[family]};",
            f"\t\tpolicy = {{ unreplied : {UNREPLIED_S}, replied : {REPLIED_S} }};",
            "\t}",
        ]
    return lines


def untracked() -> list[str]:
    """What the packet process makes is not tracked."""
    rule = f"\t\t{_IS_INJECTED} meta l4proto {{ udp, {_ICMP}, {_ICMP6} }} notrack"
    lines = []
    for hook in ("output", "prerouting"):
        lines += [
            f"\tchain untracked_{hook} {{",
            f"\t\ttype filter hook {hook} priority {_RAW_PRIORITY}; policy accept;",
            rule,
            "\t}",
        ]
    return lines


def chains(verdicts: Mapping[int, str], not_ours: Iterable[str], *, timed: bool) -> list[str]:
    """The chains ``datagrams``, for all that may be captured, and ``datagrams_output``, for this
    host's own, which is looked at for ``not_ours``, too. ``verdicts``: what redirects a family's;
    ``timed``: there are ``timeouts``.
    """
    lines = [
        "\tchain datagrams {",
        f"\t\t{_IS_INJECTED} return",
        f"\t\tudp dport {_DHCP_PORTS} return",
        *(f"\t\t{_PROTOCOL[family]} daddr {_LINK_LOCAL[family]} return" for family in verdicts),
        "\t\tfib daddr type { local, broadcast, multicast, anycast } return",
    ]
    for family, verdict in verdicts.items():
        protocol = _PROTOCOL[family]
        remembered = f'ct timeout set "datagrams{family}" ' if timed else ""
        lines += [
            f"\t\tmeta l4proto udp {protocol} daddr @remote{family} {remembered}{verdict}",
            f"\t\t{protocol} daddr . udp dport @remote{family}_ports {remembered}{verdict}",
        ]
    lines += [
        "\t}",
        "\tchain datagrams_output {",
        *(f"\t\t{match} return" for match in (*not_ours, *_MARKS_OF_VPNS)),
        *(
            f"\t\t{_PROTOCOL[family]} daddr . udp dport @bypass{family} return"
            for family in verdicts
        ),
        "\t\tgoto datagrams",
        "\t}",
    ]
    return lines


def strays(listeners: Mapping[int, Endpoint], *, any_address: Iterable[int]) -> list[str]:
    """The end of answers whose flow the kernel has forgotten. ``any_address``: the families whose
    listener is at all addresses.
    """
    lines = [
        "\tchain strays {",
        f"\t\ttype filter hook output priority {_TRACKED_PRIORITY}; policy accept;",
    ]
    for family, (address, port) in listeners.items():
        place = f"meta nfproto ipv{family}"
        if family not in any_address:
            place = f"{_PROTOCOL[family]} saddr {address}"
        lines.append(f"\t\t{place} udp sport {port} ct direction original drop")
    return [*lines, "\t}"]


def bound(listeners: Mapping[int, Endpoint]) -> list[str]:
    """The end of datagrams that would leave by an interface; for a chain behind nat that does not
    see lo.
    """
    return [
        f"\t\t{_PROTOCOL[family]} daddr {address} udp dport {port} ct status dnat drop"
        for family, (address, port) in listeners.items()
    ]
