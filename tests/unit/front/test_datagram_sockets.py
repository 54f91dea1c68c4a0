"""The sockets of datagrams, by real ones of this host."""

import errno
import socket
from collections.abc import Iterator

import pytest

from sshunt.front.datagram_sockets import DatagramSocket, bind_datagrams
from sshunt.front.listener import CannotListen
from sshunt.helper.udp_messages import Key

SOL_UDP, UDP_SEGMENT = 17, 103
LOOPBACK = {"127.0.0.1": b"\x7f\0\0\1", "0.0.0.0": b"\x7f\0\0\1", "::1": bytes(15) + b"\1"}


@pytest.fixture(params=LOOPBACK)
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def listener(address: str) -> Iterator[DatagramSocket]:
    listener = bind_datagrams((address, 0))
    yield listener
    listener.close()
    listener.close()


@pytest.fixture
def program(listener: DatagramSocket) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if listener.family == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as program:
        program.settimeout(5.0)
        program.connect(("::1" if listener.family == 6 else "127.0.0.1", listener.endpoint[1]))
        yield program


def test_what_arrives_is_answered_from_where_it_arrived(
    listener: DatagramSocket, program: socket.socket, address: str
) -> None:
    program.send(b"hello")
    seen, data, segment_bytes = listener.receive()
    assert (data, segment_bytes) == (b"hello", 0)
    own = LOOPBACK[address]
    assert listener.key(seen) == Key(own, own, program.getsockname()[1])
    for answer in (b"", b"answer", bytes(60_000)):
        listener.send(seen, answer)
        assert program.recv(70_000) == answer
    with pytest.raises(BlockingIOError):
        listener.receive()


def test_a_batch_arrives_as_one_and_leaves_as_one(
    listener: DatagramSocket, program: socket.socket
) -> None:
    segment = (SOL_UDP, UDP_SEGMENT, (1200).to_bytes(2, "little"))
    program.sendmsg([bytes(40 * 1200 + 5)], [segment])
    seen, data, segment_bytes = listener.receive()
    assert (len(data), segment_bytes) == (40 * 1200 + 5, 1200)
    listener.send(seen, data, segment_bytes)
    assert [len(program.recv(2000)) for _ in range(41)] == [*[1200] * 40, 5]


def test_more_segments_than_the_kernel_takes_leave_as_several_batches(
    listener: DatagramSocket, program: socket.socket
) -> None:
    program.send(b"hello")
    seen, _, _ = listener.receive()
    listener.send(seen, bytes(range(200)), 1)
    assert b"".join(program.recv(10) for _ in range(200)) == bytes(range(200))


def test_a_port_that_is_taken_is_told() -> None:
    first = bind_datagrams(("127.0.0.1", 0))
    with pytest.raises(CannotListen) as caught:
        bind_datagrams(first.endpoint)
    assert caught.value.error_number == errno.EADDRINUSE
    assert "--no-udp" in caught.value.hint
    first.close()
