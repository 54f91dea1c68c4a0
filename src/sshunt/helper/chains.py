"""Which chains of others may stop what we redirect. Root; Linux.

Those of nftables that drop by default, and those that see a packet before it is tracked. Asked of
the kernel itself, as text for a person, when something has been lost (see ``front.arrival``). Rules
are not looked at, and the tables of the old iptables (legacy) are not visible here.
"""

import struct
from collections.abc import Iterator

from sshunt.helper.netlink import Netlink, attributes
from sshunt.helper.nftables import TABLE_NAME

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter.h
_NETLINK_NETFILTER = 12
_GET_CHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_TABLE, _NAME, _HOOK, _POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_NUMBER, _SIGNED = struct.Struct("!I"), struct.Struct("!i")
_HOOKS = {1: "input", 3: "output"}
_DROP = 0

#: The priority of connection tracking (NF_IP_PRI_CONNTRACK): lower ones come before it.
_BEFORE_TRACKING = -200

#: The most chains that are told, and the most of each name: more would help nobody.
MOST_CHAINS = 8
MOST_NAME_CHARACTERS = 64


def suspects() -> tuple[str, ...]:
    """Descriptions of those chains, at most MOST_CHAINS; raises OSError."""
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        messages = netlink.dump(_GET_CHAIN, _NFGENMSG.pack(0, 0, 0))
    finally:
        netlink.close()
    return tuple(dict.fromkeys(_suspects(messages)))[:MOST_CHAINS]


def _suspects(messages: list[bytes]) -> Iterator[str]:
    for message in messages:
        family = _FAMILIES.get(message[0]) if message else None
        chain = attributes(message[_NFGENMSG.size :])
        table, name = _text(chain.get(_TABLE, b"")), _text(chain.get(_NAME, b""))
        if family is None or _HOOK not in chain or TABLE_NAME.fullmatch(table):
            continue
        hook = attributes(chain[_HOOK])
        number = _unpacked(_NUMBER, hook.get(_HOOK_NUMBER))
        priority = _unpacked(_SIGNED, hook.get(_HOOK_PRIORITY)) or 0
        where = f"table {family} {table}, chain {name}"
        if number in _HOOKS and _unpacked(_NUMBER, chain.get(_POLICY)) == _DROP:
            yield f"{where} ({_HOOKS[number]}: drops by default)"
        elif number in _HOOKS and priority < _BEFORE_TRACKING:
            yield f"{where} ({_HOOKS[number]}: before connections are tracked)"


def _unpacked(number: struct.Struct, data: bytes | None) -> int | None:
    return int(number.unpack(data)[0]) if data is not None and len(data) == number.size else None


def _text(data: bytes) -> str:
    text = data.rstrip(b"\0").decode("utf-8", "replace")[:MOST_NAME_CHARACTERS]
    return "".join(c if c.isprintable() else "?" for c in text)
