"""A part of the packet process: what it says may be lost, and what it does not know ends it."""

import socket
from collections.abc import Iterator

import pytest

from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.part import Out, Part


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_what_is_said_arrives_as_one_message(ends: tuple[socket.socket, socket.socket]) -> None:
    assert Out(ends[0]).send(0x21, b"body")
    assert ends[1].recv(100) == b"\x21body"


def test_what_a_client_does_not_read_is_lost_at_once(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    out = Out(ends[0])
    while out.send(0x21, bytes(10_000)):
        pass
    ends[1].close()
    assert not out.send(0x21, b"body")


def test_a_part_that_serves_nothing_takes_no_message() -> None:
    part = Part()
    assert (list(part.kinds), list(part.descriptors()), part.group) == ([], [], 0)
    part.on_readable(0)
    part.on_plan(None)
    part.on_tick(0.0)
    with pytest.raises(PacketError):
        part.on_message(0x21, b"")
