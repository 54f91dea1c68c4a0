"""The rules that keep a kept address between this host and itself. Renders; never runs a program.

A former address of this host that is kept (helper.addresses) means this host to its own programs,
and nothing to others: in the network that it is in now the address may be another host's. IPv6
answers neighbours for addresses of interfaces only. IPv4 answers ARP for all that is local, on
every link, and sends and asks in the name of any address that a socket has. So, for each kept
address that no interface has::

    arp input          a question for it ......... not heard
    ip postrouting     a packet from it, not to lo  dropped

What is dropped there are old connections that are not captured; the kernel itself sends nothing
from an address that is not local.

Tables of their own, since one table has one family, and few sessions ever keep an address. Plain
ones forget the addresses after ALIVE_S, unless they are named again: see nft.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from sshunt.capture.nft import ALIVE_S, render_delete, table_name

_CHAINS = {
    "ip": (
        "type filter hook postrouting priority 0; policy accept;",
        'oifname != "lo" ip saddr @kept drop',
    ),
    "arp": (
        "type filter hook input priority 0; policy accept;",
        "arp daddr ip @kept drop",
    ),
}


def render_kept(
    session: str, addresses: Iterable[str], *, owner: bool, instead: Iterable[str] = ()
) -> str:
    """The commands that make these tables, none if no address is IPv4, in one transaction.

    ``instead`` names the families whose tables are there now.
    """
    kept = sorted(address for address in addresses if ip_address(address).version == 4)
    commands = [render_delete(session, family) for family in instead]
    if kept:
        commands += [_table(session, family, kept, owner) for family in _CHAINS]
    return "".join(commands)


def _table(session: str, family: str, kept: list[str], owner: bool) -> str:
    hook, rule = _CHAINS[family]
    forgetting = "" if owner else f" flags timeout; timeout {ALIVE_S}s;"
    lines = [
        f"table {family} {table_name(session)} {{",
        *(["\tflags owner;"] if owner else []),
        "\tset kept {",
        f"\t\ttype ipv4_addr;{forgetting}",
        f"\t\telements = {{ {', '.join(kept)} }}",
        "\t}",
        "\tchain kept {",
        f"\t\t{hook}",
        f"\t\t{rule}",
        "\t}",
        "}",
    ]
    return "\n".join(lines) + "\n"
