"""The rules that keep a retained address between a host and itself. Renders; runs no program.

A former address that this host retains (helper.addresses) means this host to its own programs, and
nothing to others: in the network that it is in now the address may be another host's. IPv4
answers ARP for all that is local, on every link, and sends and asks in the name of any address that
a socket has; IPv6 answers neighbours for addresses of interfaces only. But where this host is a
router, those behind it send what is meant for that other host to us in either family, and we would
take it for ours. So, for each retained address that no interface has::

    arp input             a question for it ............. not heard
    ip, ip6 input         a packet to it, not from lo ... dropped
    ip, ip6 postrouting   a packet from it, not to lo ... dropped

What is dropped there are old connections that are not captured; the kernel itself sends nothing
from an address that is not local.

Tables of their own, since one table has one family, and few sessions ever retain an address. Plain
ones forget the addresses after ALIVE_S, unless they are named again: see nft.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from sshunt.capture.nft import ALIVE_S, Address, table_name

#: The name of the set in each of the tables.
RETAINED_SET = "retained"

_OF_PACKETS = (
    ("input", "type filter hook input priority 0; policy accept;", 'iifname != "lo" {0} daddr'),
    (
        "postrouting",
        "type filter hook postrouting priority 0; policy accept;",
        'oifname != "lo" {0} saddr',
    ),
)
_OF_QUESTIONS = (("input", "type filter hook input priority 0; policy accept;", "arp daddr ip"),)

#: For each table its IP version and its chains (name, hook, what is compared).
_TABLES = {"ip": (4, _OF_PACKETS), "ip6": (6, _OF_PACKETS), "arp": (4, _OF_QUESTIONS)}


def retained_in_families(addresses: Iterable[str]) -> dict[str, list[Address]]:
    """What the set of each family's table holds; families without any have no table."""
    parsed = sorted({ip_address(address) for address in addresses}, key=int)
    families = {
        family: [address for address in parsed if address.version == version]
        for family, (version, _) in _TABLES.items()
    }
    return {family: found for family, found in families.items() if found}


def render_retained(session: str, family: str, addresses: Iterable[Address], *, owner: bool) -> str:
    """The table of one family; see ``as_commands``."""
    version, chains = _TABLES[family]
    forgetting = "" if owner else f" flags timeout; timeout {ALIVE_S}s;"
    lines = [
        f"table {family} {table_name(session)} {{",
        *(["\tflags owner;"] if owner else []),
        f"\tset {RETAINED_SET} {{",
        f"\t\ttype ipv{version}_addr;{forgetting}",
        f"\t\telements = {{ {', '.join(map(str, addresses))} }}",
        "\t}",
    ]
    for name, hook, compared in chains:
        rule = f"{compared.format(family)} @{RETAINED_SET} drop"
        lines += [f"\tchain {name} {{", f"\t\t{hook}", f"\t\t{rule}", "\t}"]
    return "\n".join([*lines, "}"]) + "\n"
