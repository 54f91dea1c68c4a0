"""A connection through the tunnel behaves like one without: what one end does, the other end sees.

Every test holds both ends: ``ours``, the program's socket on the client host, and ``theirs``, the
server's socket on the target. Nothing in between is looked at.
"""

import hashlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from sshunt.lab.world import Lab
from tests.e2e.tunnels import OFFICE, Tunnel, running

BIG_BYTES = 20_000_000


class Ends(NamedTuple):
    ours: socket.socket
    theirs: socket.socket


@pytest.fixture(scope="module")
def tunnel(lab: Lab) -> Iterator[Tunnel]:
    """A tunnel that also routes a network which the server can't reach."""
    with running(lab, "-r", "server", *OFFICE, "10.66.0.0/24") as tunnel:
        yield tunnel


@contextmanager
def connected(lab: Lab, address: str) -> Iterator[Ends]:
    with lab.target.listen(address) as listener:
        with lab.client.connect(address, listener.getsockname()[1]) as ours:
            theirs = listener.accept()[0]
            theirs.settimeout(10)
            with theirs:
                yield Ends(ours, theirs)


@pytest.fixture(params=[4, 6])
def ends(lab: Lab, tunnel: Tunnel, request: pytest.FixtureRequest) -> Iterator[Ends]:
    with connected(lab, lab.target.v4 if request.param == 4 else lab.target.v6) as ends:
        yield ends


def read_to_the_end(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def close_with_reset(sock: socket.socket) -> None:
    # SO_LINGER with time 0: close sends RST (socket(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_in_thread(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


# --- the end of a connection -------------------------------------------------------------------


def test_our_half_close_reaches_them_and_they_can_still_answer(ends: Ends) -> None:
    ends.ours.sendall(b"question")
    ends.ours.shutdown(socket.SHUT_WR)
    assert read_to_the_end(ends.theirs) == b"question"
    ends.theirs.sendall(b"answer")
    ends.theirs.close()
    assert read_to_the_end(ends.ours) == b"answer"


def test_their_half_close_reaches_us_and_we_can_still_answer(ends: Ends) -> None:
    ends.theirs.sendall(b"greeting")
    ends.theirs.shutdown(socket.SHUT_WR)
    assert read_to_the_end(ends.ours) == b"greeting"
    ends.ours.sendall(b"answer")
    ends.ours.shutdown(socket.SHUT_WR)
    assert read_to_the_end(ends.theirs) == b"answer"


def test_a_half_closed_connection_stays_open_for_the_other_direction(ends: Ends) -> None:
    ends.ours.shutdown(socket.SHUT_WR)
    assert ends.theirs.recv(1) == b""
    for _ in range(3):
        time.sleep(0.1)
        ends.theirs.sendall(b"tick")
        assert ends.ours.recv(4) == b"tick"


def test_our_reset_reaches_them_as_a_reset(ends: Ends) -> None:
    ends.ours.sendall(b"x")
    assert ends.theirs.recv(1) == b"x"
    close_with_reset(ends.ours)
    with pytest.raises(ConnectionResetError):
        ends.theirs.recv(1)


def test_their_reset_reaches_us_as_a_reset(ends: Ends) -> None:
    ends.theirs.sendall(b"x")
    assert ends.ours.recv(1) == b"x"
    close_with_reset(ends.theirs)
    with pytest.raises(ConnectionResetError):
        ends.ours.recv(1)


def test_a_reset_behind_a_half_close_still_arrives(ends: Ends) -> None:
    ends.ours.shutdown(socket.SHUT_WR)
    assert ends.theirs.recv(1) == b""
    close_with_reset(ends.theirs)
    with pytest.raises(ConnectionResetError):
        ends.ours.recv(1)


def test_a_server_that_closes_while_we_send_breaks_our_sending(ends: Ends) -> None:
    ends.theirs.close()

    def send_on_and_on() -> None:
        for _ in range(1000):
            ends.ours.sendall(b"into the void" * 1000)
            time.sleep(0.001)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_on_and_on()


def test_everything_sent_before_a_close_arrives(ends: Ends) -> None:
    data = os.urandom(BIG_BYTES)

    def send_and_close() -> None:
        ends.theirs.sendall(data)
        ends.theirs.close()

    sender = threading.Thread(target=send_and_close)
    sender.start()
    assert hashlib.sha256(read_to_the_end(ends.ours)).digest() == hashlib.sha256(data).digest()
    sender.join()


# --- connections that fail (see test_honest_connect for how) -------------------------------------


def test_many_failures_do_no_harm_to_a_connection_that_works(lab: Lab, ends: Ends) -> None:
    for _ in range(50):
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(lab.target.v4, 9)
    ends.ours.sendall(b"still here")
    assert ends.theirs.recv(100) == b"still here"


# --- data ---------------------------------------------------------------------------------------


def test_a_server_may_speak_first(ends: Ends) -> None:
    ends.theirs.sendall(b"220 ready\r\n")
    assert ends.ours.recv(100) == b"220 ready\r\n"


def test_small_messages_are_passed_on_at_once_each(ends: Ends) -> None:
    for number in range(100):
        message = b"%d\n" % number
        ends.ours.sendall(message)
        assert ends.theirs.recv(100) == message
        ends.theirs.sendall(message)
        assert ends.ours.recv(100) == message


def test_both_directions_run_at_the_same_time(ends: Ends) -> None:
    there, back = os.urandom(BIG_BYTES), os.urandom(BIG_BYTES)
    senders = [send_in_thread(ends.ours, there), send_in_thread(ends.theirs, back)]
    got = {ends.ours: bytearray(), ends.theirs: bytearray()}
    while len(got[ends.ours]) < len(back) or len(got[ends.theirs]) < len(there):
        ready = select.select([ends.ours, ends.theirs], [], [], 10)[0]
        assert ready, "nothing arrives any more"
        for sock in ready:
            got[sock] += sock.recv(1 << 20)
    for sender in senders:
        sender.join()
    assert got[ends.theirs] == there
    assert got[ends.ours] == back


def test_a_reader_that_pauses_and_goes_on_gets_every_byte(ends: Ends) -> None:
    data = os.urandom(BIG_BYTES)
    sender = send_in_thread(ends.theirs, data)
    got = bytearray()
    chance = random.Random(4)
    while len(got) < len(data):
        if chance.random() < 0.02:
            time.sleep(0.05)
        got += ends.ours.recv(chance.choice([1, 1000, 100_000, 1 << 20]))
    sender.join()
    assert got == data


def test_a_reader_that_has_stopped_stops_nobody_else(lab: Lab, ends: Ends) -> None:
    ends.theirs.setblocking(False)
    block = bytes(1 << 20)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.3:  # until nobody on the way takes anything more
        try:
            ends.theirs.send(block)
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    with connected(lab, lab.target.v4) as others:
        data = os.urandom(BIG_BYTES)
        sender = send_in_thread(others.theirs, data)
        got = bytearray()
        while len(got) < len(data):
            got += others.ours.recv(1 << 20)
        sender.join()
        assert got == data


def test_hundreds_of_connections_at_once_each_get_their_own_answer(
    lab: Lab, tunnel: Tunnel
) -> None:
    with lab.target.listen(lab.target.v4) as listener:
        port = listener.getsockname()[1]
        ours = [lab.client.connect(lab.target.v4, port) for _ in range(300)]
        theirs = [listener.accept()[0] for _ in ours]
        for number, sock in enumerate(ours):
            sock.sendall(b"number %d" % number)
        for sock in theirs:
            sock.settimeout(10)
            sock.sendall(b"hello " + sock.recv(100))
        for number, sock in enumerate(ours):
            assert sock.recv(100) == b"hello number %d" % number
        for sock in ours + theirs:
            sock.close()


def test_both_ends_keep_idle_connections_alive(lab: Lab, ends: Ends) -> None:
    # ss shows the timer of a socket with SO_KEEPALIVE. sshunt's end of our connection is the one
    # that sends to our port; the agent's end of theirs is the one that sends to their port, and has
    # it once it has lived for a second or two.
    for host, sock in ((lab.client, ends.ours), (lab.server, ends.theirs)):
        deadline = time.monotonic() + 10
        lines = ""
        while "keepalive" not in lines:
            assert time.monotonic() < deadline, lines
            time.sleep(0.1)
            lines = host.run(["ss", "-Htno", f"( dport = :{sock.getsockname()[1]} )"]).stdout


def test_closed_connections_are_forgotten_on_both_sides(lab: Lab, tunnel: Tunnel) -> None:
    def descriptors() -> list[int]:
        pids = tunnel.pids("client") + tunnel.pids("agent")
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    def grown() -> bool:
        return any(now > then for now, then in zip(descriptors(), before, strict=True))

    before = descriptors()
    for _ in range(30):
        with connected(lab, lab.target.v4) as pair:
            pair.ours.sendall(b"x")
            assert pair.theirs.recv(1) == b"x"
    deadline = time.monotonic() + 5
    while grown() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not grown()  # fewer there may be: an earlier test's connections were just ending
