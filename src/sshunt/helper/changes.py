"""Changes of nftables as the kernel's own messages (linux/netfilter/nf_tables.h): tables, elements.

They are what libnftables can't do everywhere (nftables). Each is for one batch, ``Netlink.change``,
over the socket that owns the table: the kernel lets no other change it, or what is in it.

A set's elements are replaced as a whole: removed (a removal that names none is of all) and added.
A **key** is an element as the kernel compares it: in network byte order, and where it has several
parts, each of them is filled up to four bytes. Sets of ranges have other elements, and none of
those is changed in place.

Not here: sending (netlink), what a key is in rule text and which sets there are (capture.nft).
"""

import struct
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

from sshunt.helper.netlink import CREATE, EXCLUSIVE, Change, attribute

#: NFPROTO_*, of those tables that we make.
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "ip6": 10}

_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _DELETE_TABLE = _NFTABLES | 0, _NFTABLES | 2
_NEW_ELEMENTS, _DELETE_ELEMENTS = _NFTABLES | 12, _NFTABLES | 14
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_NUMBER = struct.Struct("!I")
_NESTED = 0x8000  # NLA_F_NESTED

_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS = 1, 2
_OWNER, _PERSISTS = 0x2, 0x4  # NFT_TABLE_F_*
_NFTA_SET_ELEM_LIST_TABLE, _NFTA_SET_ELEM_LIST_SET, _NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
_NFTA_LIST_ELEM = 1
_NFTA_SET_ELEM_KEY = 1
_NFTA_DATA_VALUE = 1

_PART = 4  # bytes


def new_table(family: str, name: str, *, owner: bool, persists: bool = False) -> Change:
    """Make an empty table; an error if there is one. With ``persists`` it outlives its owner."""
    flags = (_OWNER if owner else 0) | (_PERSISTS if persists else 0)
    body = _head(family) + _text(_NFTA_TABLE_NAME, name)
    body += attribute(_NFTA_TABLE_FLAGS, _NUMBER.pack(flags))
    return Change(_NEW_TABLE, body, EXCLUSIVE | CREATE)


def delete_table(family: str, name: str) -> Change:
    """Remove a table and what is in it; an error if there is none."""
    return Change(_DELETE_TABLE, _head(family) + _text(_NFTA_TABLE_NAME, name))


def replace_elements(family: str, table: str, name: str, keys: Collection[bytes]) -> list[Change]:
    """Put these in the place of what is in a set; they live as long as the set says from now on."""
    place = _head(family) + _text(_NFTA_SET_ELEM_LIST_TABLE, table)
    place += _text(_NFTA_SET_ELEM_LIST_SET, name)
    changes = [Change(_DELETE_ELEMENTS, place)]
    if keys:
        elements = _nest(_NFTA_SET_ELEM_LIST_ELEMENTS, b"".join(map(_element, keys)))
        changes.append(Change(_NEW_ELEMENTS, place + elements, CREATE))
    return changes


def address_key(address: IPv4Address | IPv6Address) -> bytes:
    """In a set of ``ipv4_addr`` or ``ipv6_addr``."""
    return address.packed


def endpoint_key(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """In a set of ``ipv4_addr . inet_service`` or ``ipv6_addr . inet_service``."""
    return address.packed + port.to_bytes(2, "big").ljust(_PART, b"\0")


def protocol_key(protocol: int) -> bytes:
    """In a set of ``inet_proto``."""
    return bytes([protocol])


def _element(key: bytes) -> bytes:
    value = _nest(_NFTA_SET_ELEM_KEY, attribute(_NFTA_DATA_VALUE, key))
    return _nest(_NFTA_LIST_ELEM, value)


def _head(family: str) -> bytes:
    return _NFGENMSG.pack(FAMILIES[family], 0, 0)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode("ascii") + b"\0")


def _nest(kind: int, body: bytes) -> bytes:
    return attribute(_NESTED | kind, body)
