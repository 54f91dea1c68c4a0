"""The rules that keep a kept address between this host and itself. Renders; never runs a program.

A former address of this host that is kept (helper.addresses) means this host to its own programs,
and nothing to others: in the network that it is in now the address may be another host's. IPv4
answers ARP for all that is local, on every link, and sends and asks in the name of any address that
a socket has; IPv6 answers neighbours for addresses of interfaces only. But where this host is a
router, those behind it send what is meant for that other host to us in either family, and we would
take it for ours. So, for each kept address that no interface has::

    arp input             a question for it ............. not heard
    ip, ip6 input         a packet to it, not from lo ... dropped
    ip, ip6 postrouting   a packet from it, not to lo ... dropped

What is dropped there are old connections that are not captured; the kernel itself sends nothing
from an address that is not local.

Tables of their own, since one table has one family, and few sessions ever keep an address. Plain
ones forget the addresses after ALIVE_S, unless they are named again: see nft.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from sshunt.capture.nft import ALIVE_S, render_delete, table_name

_OF_PACKETS = (
    ("input", "type filter hook input priority 0; policy accept;", 'iifname != "lo" {0} daddr'),
    (
        "postrouting",
        "type filter hook postrouting priority 0; policy accept;",
        'oifname != "lo" {0} saddr',
    ),
)
_OF_QUESTIONS = (("input", "type filter hook input priority 0; policy accept;", "arp daddr ip"),)

#: IP version, chains (name, hook, what is compared) of each table.
_TABLES = {"ip": (4, _OF_PACKETS), "ip6": (6, _OF_PACKETS), "arp": (4, _OF_QUESTIONS)}


def render_kept(
    session: str, addresses: Iterable[str], *, owner: bool, instead: Iterable[str] = ()
) -> str:
    """The commands that make these tables, none if there is no address, in one transaction.

    ``instead`` names the families whose tables are there now.
    """
    parsed = sorted((ip_address(address) for address in set(addresses)), key=int)
    commands = [render_delete(session, family) for family in instead]
    for family, (version, _) in _TABLES.items():
        kept = [str(address) for address in parsed if address.version == version]
        commands += [_table(session, family, kept, owner)] if kept else []
    return "".join(commands)


def _table(session: str, family: str, kept: list[str], owner: bool) -> str:
    version, chains = _TABLES[family]
    forgetting = "" if owner else f" flags timeout; timeout {ALIVE_S}s;"
    lines = [
        f"table {family} {table_name(session)} {{",
        *(["\tflags owner;"] if owner else []),
        "\tset kept {",
        f"\t\ttype ipv{version}_addr;{forgetting}",
        f"\t\telements = {{ {', '.join(kept)} }}",
        "\t}",
    ]
    for name, hook, compared in chains:
        rule = f"{compared.format(family)} @kept drop"
        lines += [f"\tchain {name} {{", f"\t\t{hook}", f"\t\t{rule}", "\t}"]
    return "\n".join([*lines, "}"]) + "\n"
