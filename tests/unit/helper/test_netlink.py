"""Netlink's framing: what comes back from the kernel is what it is, anything else is an OSError."""

import errno
import os
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.helper.changes import delete_table, new_table
from sshunt.helper.netlink import Netlink, attribute, attributes
from sshunt.lab.hosts import Host

GET_LINK, GET_ADDRESS = 18, 22
GET_TABLE = 10 << 8 | 1
NETLINK_NETFILTER = 12


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=20), max_size=5))
def test_attributes_come_back_as_they_were_packed(wanted: dict[int, bytes]) -> None:
    packed = b"".join(attribute(kind, body) for kind, body in wanted.items())
    assert len(packed) % 4 == 0
    assert attributes(packed) == wanted


@given(st.binary(max_size=60))
def test_any_bytes_are_attributes_or_an_error(data: bytes) -> None:
    with suppress(OSError):
        assert sum(map(len, attributes(data).values())) <= len(data)


def test_a_dump_has_every_link_and_a_second_one_is_not_mixed_with_it() -> None:
    netlink = Netlink(socket.NETLINK_ROUTE)
    for _ in range(2):
        links = netlink.dump(GET_LINK, bytes(16))
        indices = {struct.unpack_from("=4xi", link)[0] for link in links}
        assert indices == {index for index, _ in socket.if_nameindex()}
    netlink.close()


def test_what_the_kernel_refuses_is_its_own_error() -> None:
    netlink = Netlink(socket.NETLINK_ROUTE)
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        netlink.ask(GET_LINK, struct.pack("=BxHiII", 0, 0, 2**31 - 1, 0, 0))
    assert netlink.dump(GET_LINK, bytes(16))  # and the conversation goes on
    netlink.close()


def test_a_protocol_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EPROTONOSUPPORT)):
        Netlink(31)


def test_an_answer_to_somebody_else_with_the_same_socket_is_not_taken_for_ours(host: Host) -> None:
    with host.entered():
        shared = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    netlink = Netlink(NETLINK_NETFILTER, sock=shared)
    name = "of-a-test"
    missing = delete_table("inet", name)
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        netlink.change([missing])
    for sequence in range(1, 5):  # he has begun at 1, too, and was ended before he heard
        head = struct.pack("=IHHII", 16 + 4, GET_TABLE, 0x5, sequence, 0)
        shared.sendto(head + bytes(4), (0, 0))
    netlink.change([new_table("inet", name, owner=False)])
    netlink.change([missing])
    netlink.close()
