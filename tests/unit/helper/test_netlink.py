"""Netlink's framing: what comes back from the kernel is what it is, anything else is an OSError."""

import errno
import os
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.helper.netlink import Netlink, attribute, attributes

GET_LINK, GET_ADDRESS = 18, 22


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
