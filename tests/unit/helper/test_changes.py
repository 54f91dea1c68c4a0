"""Our own messages to nf_tables: what the kernel makes of them is what nft lists."""

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from sshunt.helper.changes import (
    address_key,
    delete_table,
    endpoint_key,
    new_table,
    protocol_key,
    replace_elements,
)
from sshunt.helper.netlink import CREATE, EXCLUSIVE, Change, Netlink, attribute
from sshunt.lab.hosts import Host

NETFILTER = 12
TABLE = "ours"

PORTS = (1, 22, 255, 256, 0x1234, 65535)
ADDRESSES = {
    4: [ip_address(text) for text in ("0.0.0.1", "192.0.2.9", "255.255.255.254")],
    6: [ip_address(text) for text in ("::1", "2001:db8::9", "fe80::ffff:1")],
}

#: Type of a set, its keys, and how nft writes them.
SETS = {
    "addresses4": ("ipv4_addr", [(address_key(a), str(a)) for a in ADDRESSES[4]]),
    "addresses6": ("ipv6_addr", [(address_key(a), str(a)) for a in ADDRESSES[6]]),
    "protocols": ("inet_proto", [(protocol_key(6), "tcp"), (protocol_key(17), "udp")]),
    **{
        f"endpoints{family}": (
            f"ipv{family}_addr . inet_service",
            [(endpoint_key(a, port), f"{a} . {port}") for a in addresses for port in PORTS],
        )
        for family, addresses in ADDRESSES.items()
    },
}

#: NFT_MSG_NEWSET of nft's "set protocols { type inet_proto; }": table, name, type, length, id.
SET_OF_PROTOCOLS = Change(
    10 << 8 | 9,
    struct.pack("!BBH", 1, 0, 0)
    + attribute(1, TABLE.encode() + b"\0")
    + attribute(2, b"protocols\0")
    + b"".join(attribute(k, struct.pack("!I", value)) for k, value in ((4, 12), (5, 1), (10, 1))),
    CREATE,
)


@pytest.fixture
def netlink(host: Host) -> Iterator[Netlink]:
    """Has made a table with an empty set of each of SETS."""
    with host.entered():
        netlink = Netlink(NETFILTER)
    netlink.change([new_table("inet", TABLE, owner=False)])
    for name, (key_type, _) in SETS.items():
        host.run(["nft", f"add set inet {TABLE} {name} {{ type {key_type}; }}"])
    yield netlink
    netlink.change([delete_table("inet", TABLE)])
    netlink.close()
    assert host.run(["nft", "list", "tables"]).stdout == ""


def listed(host: Host, name: str) -> list[str]:
    """The elements as nft writes them."""
    listing = host.run(["nft", "list", "set", "inet", TABLE, name]).stdout
    _, found, rest = listing.partition("elements = {")
    return sorted(" ".join(each.split()) for each in rest.partition("}")[0].split(",") if found)


def replaced(name: str, keys: list[bytes]) -> list[Change]:
    return replace_elements("inet", TABLE, name, keys)


@pytest.mark.parametrize("name", SETS)
def test_keys_are_what_nft_lists(host: Host, netlink: Netlink, name: str) -> None:
    _, elements = SETS[name]
    netlink.change(replaced(name, [key for key, _ in elements]))
    assert listed(host, name) == sorted(text for _, text in elements)


@pytest.mark.parametrize("name", SETS)
def test_keys_are_those_that_nft_makes(host: Host, netlink: Netlink, name: str) -> None:
    _, elements = SETS[name]
    host.run(["nft", f"add element inet {TABLE} {name} {{ {elements[0][1]} }}"])
    _, added = replaced(name, [elements[0][0]])
    with pytest.raises(FileExistsError):
        netlink.change([added._replace(flags=added.flags | EXCLUSIVE)])
    assert listed(host, name) == [elements[0][1]]


def test_a_set_is_replaced_also_by_a_part_of_itself_or_by_nothing(
    host: Host, netlink: Netlink
) -> None:
    first, second, third = (key for key, _ in SETS["addresses4"][1])
    for keys, shown in (
        ([first, second], ["0.0.0.1", "192.0.2.9"]),
        ([second, third], ["192.0.2.9", "255.255.255.254"]),
        ([second, third], ["192.0.2.9", "255.255.255.254"]),
        ([], []),
        ([], []),
    ):
        netlink.change(replaced("addresses4", keys))
        assert listed(host, "addresses4") == shown


def test_several_changes_are_made_all_or_none(host: Host, netlink: Netlink) -> None:
    (key, shown), *_ = SETS["addresses4"][1]
    netlink.change(replaced("addresses4", [key]))
    for refused in (replaced("nowhere", [key]), replaced("addresses6", [key])):
        for changes in (
            [*replaced("addresses4", []), *refused],
            [*refused, *replaced("addresses4", [])],
        ):
            with pytest.raises(OSError, match=r"No such file|Invalid argument"):
                netlink.change(changes)
            assert listed(host, "addresses4") == [shown]


def test_hundreds_of_elements_go_into_one_message(host: Host, netlink: Netlink) -> None:
    keys = [endpoint_key(ADDRESSES[6][1], port) for port in range(1, 257)]
    netlink.change(replaced("endpoints6", keys))
    assert len(listed(host, "endpoints6")) == 256


def test_an_element_that_expires_gets_all_of_its_time_again(host: Host, netlink: Netlink) -> None:
    timed = "type inet_proto; flags timeout; timeout 1h;"
    host.run(["nft", f"add set inet {TABLE} alive {{ {timed} }}"])
    host.run(["nft", f"add element inet {TABLE} alive {{ tcp expires 60s }}"])
    netlink.change(replaced("alive", [protocol_key(6)]))
    (shown,) = listed(host, "alive")
    assert shown.startswith(("tcp expires 59m59s", "tcp expires 1h"))


def test_what_is_in_an_owned_table_is_changed_by_its_owner_alone(host: Host) -> None:
    with host.entered():
        owner, other = Netlink(NETFILTER), Netlink(NETFILTER)
    owner.change([new_table("inet", TABLE, owner=True), SET_OF_PROTOCOLS])
    change = replaced("protocols", [protocol_key(6)])
    with pytest.raises(PermissionError):
        other.change(change)
    assert listed(host, "protocols") == []
    owner.change(change)
    assert listed(host, "protocols") == ["tcp"]
    other.close()
    owner.close()  # and the kernel removes the table
    assert host.run(["nft", "list", "tables"]).stdout == ""
