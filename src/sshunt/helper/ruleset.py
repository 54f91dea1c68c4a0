"""Hears of it when somebody else removes or alters a table of ours. Root; Linux.

A table that the kernel owns for us is safe from everybody. A plain one goes with a firewall's
reload, with ``nft flush ruleset``, or rule by rule. The kernel tells of each change of nftables who
asks (NFNLGRP_NFTABLES), with the netlink port that it came from: ours or another. So nothing is
looked at again and again, and our own changes are no news. What was missed, because there was too
much of it, counts as touched: the rules are made again once more than they had to be.

What packets do to a set (dynamic ones), and what goes by its time-out, is no change of anybody's,
and nothing is told of it.

Not here: what is done about it (apply), by whom it is put back (host.rules).
"""

import errno
from collections.abc import Collection

from sshunt.helper.netlink import Netlink, attributes

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER = 12
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES, as bind(2) takes it
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_GENERATION = 15  # NFT_MSG_NEWGEN: the end of a transaction; it names no table
_NFGENMSG_BYTES = 4
_TABLE = 1  # the first attribute of what belongs to a table, whatever that is


class RulesetNews:
    """News of tables; none is missed from the moment on in which this is made."""

    def __init__(self, our_port: int) -> None:
        """``our_port`` is the netlink port of what we change ourselves. Raises OSError."""
        self._netlink = Netlink(_NETLINK_NETFILTER, _GROUP)
        self._our_port = our_port

    def close(self) -> None:
        """Hear no more."""
        self._netlink.close()

    def fileno(self) -> int:
        """Readable when there are news."""
        return self._netlink.fileno()

    def touched(self, tables: Collection[str]) -> set[str]:
        """Those of the tables that somebody else has changed since the last call, or may have;
        raises OSError.
        """
        found = set()
        try:
            for kind, port, body in self._netlink.heard():
                if port != self._our_port and kind >> 8 == _SUBSYSTEM:
                    found.add(_table(kind & 0xFF, body))
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.EBADMSG):
                raise
            self._netlink.drain()
            return set(tables)
        return found.intersection(tables)


def _table(kind: int, body: bytes) -> str:
    if kind == _NEW_GENERATION:
        return ""
    name = attributes(body[_NFGENMSG_BYTES:]).get(_TABLE, b"")
    return name.rstrip(b"\0").decode("latin-1")
