"""The emulated link, as the program that it is: between two sockets that keep packets apart."""

import array
import fcntl
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sshunt.lab.hosts import python
from sshunt.lab.link import Link, Shape

DEADLINE_S = 20.0
FAST = Shape()


class Heard(Link):
    """A link whose changes are known to be in force when they return: the program reads a command
    and does what it says before it looks at another packet.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", up: Shape, down: Shape) -> None:
        super().__init__(process, up, down)
        self._commands = process.stdin

    def change(self, *, up: Shape | None = None, down: Shape | None = None) -> None:
        super().change(up=up, down=down)
        self._until_read()

    def cut(self) -> None:
        super().cut()
        self._until_read()

    def _until_read(self) -> None:
        assert self._commands is not None
        deadline = time.monotonic() + DEADLINE_S
        waiting = array.array("i", [1])
        while waiting[0]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            fcntl.ioctl(self._commands.fileno(), termios.FIONREAD, waiting)


@contextmanager
def joined(up: Shape, down: Shape) -> Iterator[tuple[socket.socket, socket.socket, Link]]:
    """Two ends and the link between them; what is sent at one is a packet."""
    kind = socket.SOCK_DGRAM
    one, one_inside = socket.socketpair(socket.AF_UNIX, kind)
    other, other_inside = socket.socketpair(socket.AF_UNIX, kind)
    fds = (one_inside.fileno(), other_inside.fileno())
    for sock in (one_inside, other_inside):
        sock.setblocking(False)  # as a device would be
    with one, other:
        with one_inside, other_inside:
            process = subprocess.Popen(
                python("sshunt.lab.link", *map(str, fds)), stdin=subprocess.PIPE, pass_fds=fds
            )
        with process:
            link = Heard(process, up, down)
            link.change()
            for sock in (one, other):
                sock.settimeout(DEADLINE_S)
            yield one, other, link
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE_S) == 0


def _drain(sock: socket.socket) -> list[bytes]:
    """What arrives until nothing has for a while."""
    sock.settimeout(0.3)
    found = []
    try:
        while True:
            found.append(sock.recv(65536))
    except TimeoutError:
        return found


def test_packets_arrive_in_order_both_ways() -> None:
    with joined(FAST, FAST) as (one, other, _):
        for sender, receiver in ((one, other), (other, one)):
            sent = [b"packet %d" % number for number in range(20)]
            for packet in sent:
                sender.sendall(packet)
            assert [receiver.recv(100) for _ in sent] == sent


def test_a_packet_takes_at_least_the_delay_of_its_direction() -> None:
    delay_s = 0.15
    with joined(Shape(delay_s=delay_s), FAST) as (one, other, _):
        begin = time.monotonic()
        one.sendall(b"x")
        other.recv(100)
        assert time.monotonic() - begin >= delay_s


def test_a_packet_takes_at_least_its_time_on_the_link() -> None:
    with joined(Shape(rate_bit_s=80_000), FAST) as (one, other, _):
        begin = time.monotonic()
        for _ in range(3):
            one.sendall(bytes(1000))  # a tenth of a second each
        for _ in range(3):
            other.recv(2000)
        assert time.monotonic() - begin >= 0.3


def test_what_finds_the_queue_full_is_lost() -> None:
    with joined(Shape(rate_bit_s=80_000, queue_bytes=1500), FAST) as (one, other, _):
        for number in range(8):
            one.sendall(bytes((number,)) * 1000)
        arrived = [packet[0] for packet in _drain(other)]
        assert arrived == sorted(arrived)
        assert arrived[0] == 0
        assert 1 <= len(arrived) < 8


def test_a_link_that_is_cut_drops_everything_and_one_that_is_mended_carries_again() -> None:
    with joined(FAST, FAST) as (one, other, link):
        link.cut()
        one.sendall(b"lost")
        other.sendall(b"lost")
        assert _drain(other) == _drain(one) == []
        link.mend()
        for sender, receiver in ((one, other), (other, one)):
            receiver.settimeout(DEADLINE_S)
            sender.sendall(b"carried")
            assert receiver.recv(100) == b"carried"


def test_a_change_of_one_direction_leaves_the_other_as_it_is() -> None:
    with joined(FAST, FAST) as (one, other, link):
        link.change(up=Shape(loss=1.0))
        one.sendall(b"lost")
        other.sendall(b"carried")
        assert one.recv(100) == b"carried"
        assert _drain(other) == []
        assert link.down == FAST


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_loss_is_a_probability(loss: float) -> None:
    with joined(FAST, FAST) as (one, other, link):
        link.change(up=Shape(loss=loss))
        for _ in range(20):
            one.sendall(b"x")
        assert len(_drain(other)) == (0 if loss else 20)


def test_a_link_without_its_input_can_not_be_changed() -> None:
    with subprocess.Popen(["true"], stdin=subprocess.DEVNULL) as process:
        with pytest.raises(RuntimeError, match="standard input"):
            Link(process, FAST, FAST).cut()
