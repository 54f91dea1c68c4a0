"""While the connection is lost: new connections wait, and stopping is possible.

Those that sshunt accepts at once (--connect fast, or their destination is known) wait with it; the
others wait for connect(2).

neighbour ------------- client ===== 200 Mbit/s, 4 ms ====== server ------------- target
                        sshunt, ssh                          sshd, stub, agent   web server, echo
"""

import errno
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from sshunt.remote.holding import LONGEST_WAIT_S
from tests.e2e.interruptions import Talk, another_address, lost, office, sshds_of, up
from tests.e2e.tunnels import Remains, Tunnel, fetch, kill, running

#: Programs that try while the connection is lost and give up, and how many at a time: more in all
#: than there are places, and each batch fits into the limit of descriptors of this test.
GIVING_UP, BATCH = 3000, 250

FAST = ("--connect", "fast")

#: sshunt itself, where new connections wait less long.
IMPATIENT = """\
import sys
from sshunt import cli
from sshunt.remote import holding
holding.LONGEST_WAIT_S = {}
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with office() as lab:
        yield lab


def asks(lab: Lab, *, stack: ExitStack) -> socket.socket:
    """A program that has connected to the web server and asked for its page."""
    sock = stack.enter_context(lab.client.connect(lab.target.v4, 80, timeout_s=30))
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return sock


def is_answered(sock: socket.socket) -> bool:
    said = b""
    while more := sock.recv(65536):
        said += more
    return b"Hello" in said


def give_up(sock: socket.socket, how: str) -> None:
    if how == "resets":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "asks and closes":
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    sock.close()


@pytest.mark.parametrize("how", ["resets", "closes", "asks and closes"])
def test_thousands_of_abandoned_connections_take_nobodys_place(lab: Lab, how: str) -> None:
    with up(lab, *FAST) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with lost(lab, tunnel):
            early = [asks(lab, stack=stack) for _ in range(3)]
            for _ in range(0, GIVING_UP, BATCH):
                batch = [lab.client.connect(lab.target.v4, 80) for _ in range(BATCH)]
                for sock in batch:
                    give_up(sock, how)
            late = [asks(lab, stack=stack) for _ in range(3)]
            half_closed = asks(lab, stack=stack)
            half_closed.shutdown(socket.SHUT_WR)
        assert [is_answered(sock) for sock in (*early, *late, half_closed)] == [True] * 7
        assert talk.says(b"after")
        assert "1 connection kept" in tunnel.said
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_a_connection_held_too_long_is_reset(lab: Lab) -> None:
    assert LONGEST_WAIT_S == 30
    patience_s = 6.0
    program = (sys.executable, "-c", IMPATIENT.format(patience_s))
    words = ("-r", "server", *FAST, OFFICE_V4)
    with running(lab, *words, program=program) as tunnel, ExitStack() as stack:
        with lost(lab, tunnel):
            sock = asks(lab, stack=stack)
            sock.settimeout(patience_s + 10)
            begin = time.monotonic()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            assert patience_s - 1 < time.monotonic() - begin < patience_s + 3
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_held_connections_are_served_by_the_next_session_if_this_one_is_lost(lab: Lab) -> None:
    with up(lab, *FAST) as tunnel, ExitStack() as stack:
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with lost(lab, tunnel):
            waiting = asks(lab, stack=stack)
            kill(tunnel.pids("agent"))
        assert is_answered(waiting)
        assert "1 connection reset" in tunnel.said
        with pytest.raises(ConnectionResetError):
            talk.near.recv(1)


def test_held_connections_keep_an_address_that_this_host_loses_meanwhile(lab: Lab) -> None:
    with up(lab, *FAST) as tunnel:
        sshds = len(sshds_of(lab))
        with ExitStack() as stack:
            with lost(lab, tunnel):
                waiting = asks(lab, stack=stack)
                stack.enter_context(another_address(lab))
                tunnel.wait_until(lambda: "addresses: ('192.0.2.1'" in tunnel.said)
            assert is_answered(waiting)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        tunnel.wait_until(lambda: len(sshds_of(lab)) == sshds)


def test_stopped_while_its_rules_are_gone_it_resets_open_connections_all_the_same(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", "--fail", "open", "--grace", "5", OFFICE_V4])
    tunnel.wait_until_connected()
    with ExitStack() as stack:
        talk = Talk(lab, stack)
        with lost(lab, tunnel):
            rules = ["nft", "list", "ruleset"]
            tunnel.wait_until(lambda: "redirect" not in lab.client.run(rules).stdout)
            assert tunnel.stop(signal.SIGINT) == 0
            with pytest.raises(ConnectionResetError):
                talk.near.recv(1)
    assert remains.left(within_s=15) == []


@pytest.mark.parametrize("lanes", ["a silent lane", "no lane"])
def test_stopped_while_disconnected_it_resets_held_connections_and_says_what_stays(
    lab: Lab, lanes: str
) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-r", "server", *FAST, "--grace", "5", OFFICE_V4])
    tunnel.wait_until_connected()
    with ExitStack() as stack:
        talk = Talk(lab, stack)
        with lost(lab, tunnel):
            if lanes == "no lane":
                kill(tunnel.pids("ssh"))
                time.sleep(0.5)
            waiting = asks(lab, stack=stack)
            assert tunnel.stop(signal.SIGINT) == 0
            for sock in (talk.near, waiting):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        assert "could not be told: it keeps the session for the grace time of 5 s" in tunnel.said
    assert remains.left(within_s=15) == []


def test_connects_that_wait_meanwhile_are_answered_by_the_next_session(lab: Lab) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        with lost(lab, tunnel):
            waiting = []
            for port in (80, 9):
                sock = stack.enter_context(lab.client.make_socket())
                sock.setblocking(False)
                assert sock.connect_ex((lab.target.v4, port)) == errno.EINPROGRESS
                waiting.append(sock)
            kill(tunnel.pids("agent"))
            assert select.select([], waiting, [], 1.5)[1] == []  # their kernel has tried again
        # Without waiting for the third try, which comes after three seconds.
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        for sock, error in zip(waiting, (0, errno.ECONNREFUSED), strict=True):
            assert select.select([], [sock], [], 0.5)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == error
