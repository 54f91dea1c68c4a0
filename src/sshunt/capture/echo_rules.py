"""Rules for echo requests (ping, traceroute): logged for the packet process, swallowed. Renders.

    output, -290, type route    this host's, into a region .. logged, and sent to loopback instead
    prerouting, -290            those, on lo ................ dropped
                                forwarded, into a region .... logged, and dropped
    postrouting                 those that leave by another interface than lo ... dropped
    output, prerouting          what answers them ........... not tracked

Why a way round by loopback: who drops a packet in output has its sender told (EPERM), and ping
would say so for each. What arrives and is dropped then is lost, and no error.

Nothing is translated for that: the address is written over as in a packet of no connection, and a
chain of type route has the kernel look for the route again. With nat the kernel would go on doing
so for as long as a program pings on, even when the rules are gone, and the loopback address would
answer in the name of the host that was meant. So the next request after our end takes its own way.

What was sent round bears INJECTED_MARK, by which it is known on lo: IPv6 has one loopback address,
and people ping that, too. Of a socket that is bound to an interface (SO_BINDTODEVICE) what is sent
leaves by that interface all the same. It is stopped there, and its program told (EPERM); ping -I
only asks for a route, and is served.

A request that came from another host and may not be passed on is left alone: the kernel says so to
whoever sent it, and this host is a hop of traceroute's, as it is one.

A region that holds only some ports says nothing about echo requests, which have none: they are left
alone there. Multicast and broadcast addresses are, too. More than RATE a second are not logged, but
swallowed: they are lost, as in a network.

Not here: which packets of this host's are ours (nft), what becomes of what was logged
(helper.echoes).
"""

from collections.abc import Mapping, Sequence

#: The NFLOG groups of which the first free one is taken: ulogd and its kin use small numbers, and
#: held SYNs those before.
GROUPS = range(20_064, 20_128)

#: Before connection tracking (-200), so that it never sees what is swallowed; after it has put
#: fragments together (-400).
_PRIORITY = -290

#: Requests a second of all programs and hosts together.
RATE = 2000

#: An address of this host's own that nobody uses, in the place of the one that was meant.
_AWAY = {4: "127.115.104.117", 6: "::1"}

_PROTOCOL = {4: "ip", 6: "ip6"}
_IS_REQUEST = {4: "icmp type echo-request", 6: "icmpv6 type echo-request"}
_MAY_GO_ON = {4: "ip ttl > 1", 6: "ip6 hoplimit > 1"}
# By their numbers: a host may have no names of protocols (/etc/protocols).
_NOT_ICMP = "meta l4proto != { 1, 58 }"


def echo_chains(
    group: int,
    mark: int,
    families: Sequence[int],
    forwarded: Mapping[int, str],
    alive: Sequence[str],
    ours: Sequence[str],
) -> list[str]:
    """The chains, for the table that has the sets of regions.

    ``group`` is NFLOG's, ``mark`` INJECTED_MARK; ``forwarded`` has for each family of which other
    hosts' requests are captured the match for the links that they come by. ``alive`` are rules that
    return where nothing must be captured, ``ours`` those for packets of this host's that mustn't.
    """
    injected = f"meta mark & {mark:#010x} != 0"
    left_alone = [
        "\t\tfib daddr type { local, broadcast, multicast, anycast } return",
        *(["\t\tip6 daddr fe80::/10 return"] if 6 in families else []),
    ]
    lines = []
    log = f"\t\tlimit rate {RATE}/second burst {RATE} packets log group {group}"
    for family in families:
        away = f"{_PROTOCOL[family]} daddr set {_AWAY[family]}"
        lines += [
            f"\tchain echo_away{family} {{",
            log,
            f"\t\tnotrack meta mark set meta mark | {mark:#010x} {away}",
            "\t}",
        ]
    lines += [
        "\tchain echo_output {",
        f"\t\ttype route hook output priority {_PRIORITY}; policy accept;",
        f"\t\t{_NOT_ICMP} return",
        f"\t\t{injected} notrack return",
        *alive,
        *ours,
        *left_alone,
        *(
            f"\t\t{_IS_REQUEST[family]} {_PROTOCOL[family]} daddr @remote{family}"
            f" goto echo_away{family}"
            for family in families
        ),
        "\t}",
        "\tchain echo_stray {",
        f"\t\ttype filter hook postrouting priority {_PRIORITY}; policy accept;",
        '\t\toifname "lo" return',
        *(f"\t\t{injected} {_IS_REQUEST[family]} drop" for family in families),
        "\t}",
    ]
    if forwarded:
        lines += ["\tchain echo_gone {", log, "\t\tdrop", "\t}"]
    lines += [
        "\tchain echo_prerouting {",
        f"\t\ttype filter hook prerouting priority {_PRIORITY}; policy accept;",
        f"\t\t{_NOT_ICMP} return",
        *(f'\t\tiifname "lo" {injected} {_IS_REQUEST[family]} drop' for family in families),
        f'\t\tiifname "lo" {injected} notrack return',
    ]
    if forwarded:
        lines += [
            *alive,
            *left_alone,
            *(
                f"\t\t{_IS_REQUEST[family]}{links} {_MAY_GO_ON[family]}"
                f" {_PROTOCOL[family]} daddr @remote{family} goto echo_gone"
                for family, links in forwarded.items()
            ),
        ]
    return [*lines, "\t}"]
