"""What iptables leaves of itself: the variant that writes nf_tables makes a table for its own, and
does not remove it again, nor the kernel's chains in it. Root; Linux.

What was not there before is removed when nothing is in it any more: all of it in one batch that the
kernel refuses if there is a rule of anybody's. What was there stays, empty or not.

Not here: rules (restorer).
"""

import struct
from contextlib import suppress

from sshunt.helper.changes import FAMILIES
from sshunt.helper.netlink import Change, Netlink, attribute, attributes

_NETLINK_NETFILTER = 12
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _DELETE_TABLE = _NFTABLES | 1, _NFTABLES | 2
_GET_CHAIN, _DELETE_CHAIN = _NFTABLES | 4, _NFTABLES | 5
_NFGENMSG = struct.Struct("!BBH")
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3

#: Nothing that something is in (NLM_F_NONREC).
_IF_EMPTY = 0x100

_TABLE = b"nat\0"
_OF = {4: FAMILIES["ip"], 6: FAMILIES["ip6"]}


class Traces:
    """Make it before iptables is used."""

    def __init__(self) -> None:
        self._before = {family: _chains(family) for family in _OF.values()}

    def remove(self) -> None:
        """Remove what was not there, if nobody has anything in it."""
        for family, before in self._before.items():
            with suppress(OSError):
                _remove(family, _chains(family) - before, _is_there(family) and not before)


def _remove(family: int, chains: set[bytes], with_table: bool) -> None:
    """All of these, or nothing; raises OSError."""
    head, table = _NFGENMSG.pack(family, 0, 0), attribute(_CHAIN_TABLE, _TABLE)
    bodies = [head + table + attribute(_CHAIN_NAME, name) for name in sorted(chains)]
    changes = [Change(_DELETE_CHAIN, body, _IF_EMPTY) for body in bodies]
    if with_table:
        body = head + attribute(_TABLE_NAME, _TABLE)
        changes.append(Change(_DELETE_TABLE, body, _IF_EMPTY))
    if not changes:
        return
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        netlink.change(changes)
    finally:
        netlink.close()


def _chains(family: int) -> set[bytes]:
    """The table's; none if there is no table, or no nf_tables."""
    try:
        messages = _listed(_GET_CHAIN, family)
    except OSError:
        return set()
    chains = [attributes(message[_NFGENMSG.size :]) for message in messages]
    return {chain[_CHAIN_NAME] for chain in chains if chain.get(_CHAIN_TABLE) == _TABLE}


def _is_there(family: int) -> bool:
    tables = [attributes(m[_NFGENMSG.size :]) for m in _listed(_GET_TABLE, family)]
    return any(table.get(_TABLE_NAME) == _TABLE for table in tables)


def _listed(kind: int, family: int) -> list[bytes]:
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        messages = netlink.dump(kind, _NFGENMSG.pack(family, 0, 0))
    finally:
        netlink.close()
    return [message for message in messages if message and message[0] == family]
