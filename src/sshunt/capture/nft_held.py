"""The rules that hold SYNs back until the far side has connected, for the nft method. Pure.

A connection is redirected only when somebody over there has answered: its SYN is logged (NFLOG) as
it was made, goes its way through nat and this host's firewall, and is logged once more and dropped
where it would have arrived. Whoever reads the group has the far side connect, sends that very SYN
again, marked, or says that there is nobody::

    output, prerouting (only what would be redirected)           -290, before tracking (-200)
        marked: a SYN .......... its destination is known for KNOWN_S from now on; goes on
        marked: a FIN .......... its destination is not known any more
        marked: anything else .. goes on, untracked
        claimed ................ goes on
        a SYN into a region, to a known destination (--connect auto), or with --connect fast
                                 claimed; goes on
        a SYN into a region .... logged, claimed, marked as held; goes on
    output                                                       -280
        marked: a FIN .......... dropped
    output, nat                                                  -110
        marked ................. redirected, whoever it comes from
        anything else .......... as ever (nft)
    output, input                                                300, behind filters
        held, redirected to us . logged, dropped

* *The same traffic.* What is held is exactly what would be redirected, or programs would hang: the
  lines that leave connections alone are made once, and are in the chains of both kinds; so are the
  regions.
* *The firewall's word.* What is sent again comes from root and arrives by lo, which firewalls let
  through. So theirs is asked with the SYN itself: one that an output chain drops because of its
  user, or an input chain because of its link, is never heard of (README: "Who is served").
  Rejected: dropping it before connection tracking, where all it costs is one look.
* *Before tracking* it is logged, since nat would change it. Tracking forgets what is dropped before
  its end: the SYN that is sent again is new to the nat chains.
* *The mark* is a bit that only root can set, and the packet process re-sends only what was logged.
* *Known destinations* cost no round trip: the kernel puts them into a set itself, when the marked
  SYN passes, and takes them out again after KNOWN_S. The one that has failed meanwhile is taken out
  by a word in the form of a packet, a FIN that goes nowhere. Rejected: a request to the helper,
  which has the only socket that may alter our table, for it may be busy with thousands of routes. A
  full set takes no more, and such destinations are asked for each time.
* *Forwarded.* A marked SYN leaves from this host, whoever's it is. ``redirect`` would then mean
  127.0.0.1, whose answer can't leave by a wire; so where the listener has no address of its own,
  one of this host's is named.
* *Other sessions.* Of two whose networks overlap the kernel calls the chains of that one first
  which was added last, here as in nat. What it would redirect at once it claims, by another bit,
  or the other session would hold it and ask its own far side.

Not here: who reads the group (helper.held_syns), the rest of the table (nft).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

#: The mark of packets that the packet process makes: a bit that neither container networks nor
#: VPNs use. What bears it is neither tracked nor captured, but where a rule says so.
INJECTED_MARK = 0x04000000

#: The mark of a SYN that one session redirects at once, for the others that would hold it.
CLAIMED_MARK = 0x08000000

#: The mark of a SYN that is held, on its way through this host.
HELD_MARK = 0x10000000

#: The groups in which SYNs are logged; each session has one.
GROUPS = range(20_000, 20_064)

#: The time for which a destination that has answered is taken to be there.
KNOWN_S = 30

#: The most destinations that are known: some 100 bytes of the kernel's memory each.
MOST_KNOWN = 65536

#: The bytes of a packet that are logged: helper.segments' SNAP_BYTES.
SNAP_BYTES = 256

#: A priority before connection tracking (-200), behind its defragmentation (-400).
_HOLDING_PRIORITY = -290

#: A priority behind that, by which all sessions have seen what is said to them.
_SAID_PRIORITY = -280

#: A priority behind all filters, and before tracking takes down what has arrived.
_LAST_PRIORITY = 300

_SYN_FLAGS = "tcp flags & (fin | syn | rst | ack)"
NOT_A_SYN = f"{_SYN_FLAGS} != syn"

_IS_INJECTED = f"meta mark & {INJECTED_MARK:#010x} != 0"
_IS_CLAIMED = f"meta mark & {CLAIMED_MARK:#010x} != 0"

_TYPE = {4: "ipv4_addr . inet_service", 6: "ipv6_addr . inet_service"}
_DESTINATION = {4: "ip daddr . tcp dport", 6: "ip6 daddr . tcp dport"}


class Holding(NamedTuple):
    """What the rules have to know."""

    group: int  # in which somebody reads the SYNs; 0: all are let go at once
    ports: Mapping[int, int]  # of the listeners, by their family: 4, 6
    knows: bool  # destinations that have answered are redirected at once


def known_sets(holding: Holding) -> list[str]:
    """The sets of known destinations."""
    if not holding.knows:
        return []
    lines = []
    for family in holding.ports:
        lines += [
            f"\tset known{family} {{",
            f"\t\ttype {_TYPE[family]}; flags dynamic,timeout; timeout {KNOWN_S}s;"
            f" size {MOST_KNOWN};",
            "\t}",
        ]
    return lines


def held_chains(
    holding: Holding,
    output: list[str],
    prerouting: list[str],
    regions: Callable[[str, int, str], list[str]],
) -> list[str]:
    """The chains that log and drop. ``output`` and ``prerouting`` are the lines that leave alone
    what is not captured, and end in ``goto hold4`` and ``goto hold6``; ``regions`` makes the chain
    of a name, family and verdict for what is.
    """
    lines = [
        "\tchain claimed {",
        f"\t\tmeta mark set meta mark | {CLAIMED_MARK:#010x}",
        "\t}",
    ]
    for family in holding.ports:
        lines += _held(holding, family)
        lines += regions(f"hold{family}", family, f"goto held{family}")
    lines += _injected(holding)
    lines += _dropping(holding, ["output", "input"] if prerouting else ["output"])
    lines += [
        "\tchain hold_output {",
        f"\t\ttype filter hook output priority {_HOLDING_PRIORITY}; policy accept;",
        f"\t\t{_IS_INJECTED} goto injected",
        f"\t\t{_IS_CLAIMED} return",
        *output,
        "\t}",
        "\tchain said {",
        f"\t\ttype filter hook output priority {_SAID_PRIORITY}; policy accept;",
        f"\t\t{_IS_INJECTED} {_SYN_FLAGS} == fin drop",
        "\t}",
    ]
    if prerouting:
        lines += [
            "\tchain hold_prerouting {",
            f"\t\ttype filter hook prerouting priority {_HOLDING_PRIORITY}; policy accept;",
            f"\t\t{_IS_CLAIMED} return",
            *prerouting,
            "\t}",
        ]
    return lines


def _held(holding: Holding, family: int) -> list[str]:
    """The chain for what is in a region."""
    lines = [f"\tchain held{family} {{"]
    if holding.knows:
        lines.append(f"\t\t{_DESTINATION[family]} @known{family} goto claimed")
    if not holding.group:
        return [*lines, "\t\tgoto claimed", "\t}"]
    marks = CLAIMED_MARK | HELD_MARK
    return [*lines, _logging(holding), f"\t\tmeta mark set meta mark | {marks:#010x}", "\t}"]


def _dropping(holding: Holding, hooks: list[str]) -> list[str]:
    """The chains that drop what has come through."""
    if not holding.group:
        return []
    lines = ["\tchain held {", _logging(holding), "\t\tdrop", "\t}"]
    for hook in hooks:
        lines += [
            f"\tchain held_{hook} {{",
            f"\t\ttype filter hook {hook} priority {_LAST_PRIORITY}; policy accept;",
            *(
                f"\t\tmeta mark & {HELD_MARK:#010x} != 0 ct status dnat"
                f" meta nfproto ipv{family} tcp dport {port} goto held"
                for family, port in holding.ports.items()
            ),
            "\t}",
        ]
    return lines


def _logging(holding: Holding) -> str:
    return f"\t\tlog group {holding.group} snaplen {SNAP_BYTES}"


def _injected(holding: Holding) -> list[str]:
    """The chain for what the packet process has made."""
    of_each = [f"@known{f} {{ {_DESTINATION[f]} }}" for f in holding.ports if holding.knows]
    return [
        "\tchain injected {",
        "\t\tmeta l4proto != tcp notrack return",
        *(f"\t\t{_SYN_FLAGS} == fin delete {each}" for each in of_each),
        f"\t\t{NOT_A_SYN} notrack return",
        *(f"\t\tupdate {each}" for each in of_each),
        "\t}",
    ]


def injected_chains(
    holding: Holding,
    forwarded_to: Mapping[int, str],
    regions: Callable[[str, int, str], list[str]],
) -> tuple[list[str], str]:
    """The chains of nat for what was held, and the rule that leads there.

    ``forwarded_to`` are the statements that send a forwarded connection to the listener, where that
    is another than for this host's own.
    """
    chains, lines = [], []
    for family in holding.ports:
        of_family = f"\t\tmeta nfproto ipv{family}"
        if family in forwarded_to:
            chains += regions(f"capture{family}_far", family, forwarded_to[family])
            lines.append(f"{of_family} fib saddr type != local goto capture{family}_far")
        lines.append(f"{of_family} goto capture{family}")
    chains += ["\tchain captured_held {", *lines, "\t}"]
    return chains, f"\t\t{_IS_INJECTED} goto captured_held"
