"""An agent's life with its lanes: bad ones harm nobody, and its last words are heard."""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_NOT_PERMITTED, FlowTarget
from sshunt.mux.events import DatagramReceived, FlowEnded, GoodbyeReceived
from sshunt.mux.frames import Destination
from sshunt.mux.hello import ACCEPTED, REFUSED_OTHER
from sshunt.mux.limits import DEAD_LANES, INITIAL_WINDOW_BYTES
from sshunt.mux.payload import Payload
from sshunt.relay.tunnel import PROTOCOL_ERRORS
from sshunt.transport.bootstrap import upload
from sshunt.transport.bundle import agent_bundle
from tests.agent.far_side import DEADLINE_S, Lane, eventually, lane_hello, marked

#: More than a lane's pipe takes, so that something must wait in the agent.
STREAMS = 8

F_SETPIPE_SZ = 1031  # linux/fcntl.h; in fcntl since Python 3.10
SMALL_PIPE_BYTES = 16 * 1024


@pytest.fixture
def token() -> bytes:
    return os.urandom(32)


@pytest.fixture
def office() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        yield listener


def say_goodbye(lane: Lane) -> None:
    lane.write(lane.goodbye())
    assert lane.wait() == (0, "")
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_a_further_lane_that_died_on_its_way_leaves_the_others_alone(
    token: bytes, office: socket.socket
) -> None:
    lane = Lane(lane_hello(token))
    lane.greet()
    address = Destination(frames.TCP, "127.0.0.1", office.getsockname()[1])
    stream = lane.session.open(address)
    lane.write(lane.outgoing())
    with office.accept()[0] as host:
        host.settimeout(DEADLINE_S)
        dead = Lane(lane_hello(token, lane=2, create=False))
        if dead.process.stdout is not None:
            dead.process.stdout.close()  # its ssh has died; the stub has yet to notice
        dead.write(upload(agent_bundle(), dead.hello))
        assert dead.end()[0] == 0

        lane.session.write(stream, Payload(b"still there?"), 0.0)
        lane.write(lane.outgoing())
        assert host.recv(100) == b"still there?"
        host.sendall(b"yes")
        lane.exchange(until=lambda: lane.received() == b"yes")
    say_goodbye(lane)


def test_a_flow_of_a_network_that_the_agent_does_not_serve_is_ended_and_why(token: bytes) -> None:
    lane = Lane(lane_hello(token))
    lane.greet()
    datagrams = lane.session.datagrams
    flows = [
        datagrams.open(FlowTarget(network, "127.0.0.1", 9), 0.0)
        for network in (frames.TCP, 200, 255)
    ]
    for flow in flows:
        datagrams.send(flow, b"hello", 0.0)
    lane.write(lane.outgoing())
    lane.exchange(until=lambda: not datagrams.flows)
    ended = [event for event in lane.events if isinstance(event, FlowEnded)]
    assert ended == [FlowEnded(flow, FLOW_NOT_PERMITTED) for flow in flows]
    say_goodbye(lane)


def test_an_agent_that_is_asked_for_statistics_answers_and_that_is_the_end_of_the_flow(
    token: bytes,
) -> None:
    lane = Lane(lane_hello(token))
    lane.greet()
    datagrams = lane.session.datagrams
    for _ in range(2):
        datagrams.send(datagrams.open(FlowTarget(frames.STATISTICS, ".", 0), 0.0), b"", 0.0)
    lane.write(lane.outgoing())
    lane.exchange(until=lambda: not datagrams.flows)
    answers = [event.data for event in lane.events if isinstance(event, DatagramReceived)]
    assert [list(json.loads(answer)["lanes"]) for answer in answers] == [["1"], ["1"]]
    say_goodbye(lane)


def test_an_agent_whose_only_lane_died_on_its_way_ends_at_once(token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=3600))
    if lane.process.stdout is not None:
        lane.process.stdout.close()
    lane.write(upload(agent_bundle(), lane.hello))
    lane.end()
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_an_unconfirmed_session_ends_with_its_lane(token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=3600))
    assert lane.greet(confirm=False).grace_s == 3600
    lane.end()
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_a_confirmed_session_outlives_its_lane(token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=3600))
    lane.greet()
    [agent] = lane.agents()
    lane.end()
    time.sleep(0.3)
    assert marked(lane.mark) == [agent]
    other = Lane(lane_hello(token, lane=2, create=False))
    assert other.greet(confirm=False).status == ACCEPTED
    other.end()
    time.sleep(0.3)
    assert marked(lane.mark) == [agent]  # once is enough
    last = Lane(lane_hello(token, lane=3, create=False))
    last.greet()
    say_goodbye(last)


def test_an_unconfirmed_session_ends_after_a_minute(token: bytes) -> None:
    soon = "from sshunt.agent import server; server.CONFIRM_DEADLINE_S = 0.2; "
    with subprocess.Popen(
        [sys.executable, "-c", soon + SERVED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as agent:
        assert agent.wait(DEADLINE_S) == 0


def test_an_agent_that_meets_garbage_on_lane_after_lane_gives_up_the_session(token: bytes) -> None:
    first = Lane(lane_hello(token, grace_s=3600))
    first.greet()
    for number in range(2, 2 + PROTOCOL_ERRORS):
        assert marked(first.mark) != []
        lane = Lane(lane_hello(token, lane=number, create=False))
        lane.greet()
        lane.write(b"\xff" * 64)
        assert lane.wait()[0] == 0
    read_to_the_end(first)
    assert [event.code for event in first.events if isinstance(event, GoodbyeReceived)] == [
        frames.GOODBYE_PROTOCOL
    ]
    assert first.wait()[0] == 0
    eventually(lambda: marked(first.mark) == [], "the agent's end")


def test_a_refused_lane_is_told_its_own_number(token: bytes) -> None:
    lane = Lane(lane_hello(token, lane=7))
    assert lane.greet().status == ACCEPTED
    again = Lane(lane_hello(token, lane=7, create=False))
    answer = again.greet()
    assert (answer.status, answer.lane) == (REFUSED_OTHER, 7)
    assert again.wait()[0] == 0
    say_goodbye(lane)


def test_a_lane_given_up_before_it_arrived_is_refused(
    token: bytes,
) -> None:
    lane = Lane(lane_hello(token, lane=1))
    lane.greet()

    def give_up(numbers: range) -> None:
        for number in numbers:
            lane.session.tell_lane_gone(number)
        lane.write(lane.outgoing())
        lane.exchange(until=lambda: not lane.session.lanes[1].outstanding)

    give_up(range(5, 6))
    late = Lane(lane_hello(token, lane=5, create=False))
    answer = late.greet()
    assert (answer.status, answer.sentence) == (REFUSED_OTHER, "lane 5 is over")
    assert late.wait()[0] == 0
    other = Lane(lane_hello(token, lane=6, create=False))
    assert other.greet().status == ACCEPTED
    assert other.end()[0] == 0

    give_up(range(100, 100 + DEAD_LANES))
    again = Lane(lane_hello(token, lane=5, create=False))
    assert again.greet().status == ACCEPTED
    assert again.end()[0] == 0
    say_goodbye(lane)


def test_a_goodbye_behind_a_full_pipe_is_acknowledged(token: bytes, office: socket.socket) -> None:
    lane = Lane(lane_hello(token))
    lane.greet()
    assert lane.process.stdout is not None
    pipe = lane.process.stdout.fileno()
    # Less than an agent sends before it has heard anything of how fast the lane is.
    fcntl.fcntl(pipe, F_SETPIPE_SZ, SMALL_PIPE_BYTES)
    for _ in range(STREAMS):
        lane.session.open(Destination(frames.TCP, "127.0.0.1", office.getsockname()[1]))
    lane.write(lane.outgoing())
    hosts = [office.accept()[0] for _ in range(STREAMS)]
    for host in hosts:
        host.setblocking(False)
        # Whatever the kernel takes: nobody reads at the other end of the lane.
        host.send(bytes(INITIAL_WINDOW_BYTES))
    assert when_settled(pipe) > SMALL_PIPE_BYTES * 3 // 4
    lane.write(lane.goodbye())
    when_settled(pipe)  # it hears of it while its pipe is full
    read_to_the_end(lane)
    assert not lane.session.lanes[lane.hello.lane].outstanding
    assert lane.wait() == (0, "")
    for host in hosts:
        host.close()


def when_settled(fd: int) -> int:
    """How many bytes wait in a pipe, as soon as they have stopped growing."""
    seen = [-1]
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        time.sleep(0.03)
        seen.append(int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]))
    return seen[-1]


def read_to_the_end(lane: Lane) -> None:
    """Take in everything until the agent closes the lane."""
    if lane.process.stdout is None:
        raise AssertionError("no stdout")
    while data := os.read(lane.process.stdout.fileno(), 65536):
        lane.session.receive(lane.hello.lane, memoryview(data), 0.0)
        lane.events += lane.session.take_events()


SERVED = """
from sshunt.agent.attach import AttachedLane
from sshunt.agent.server import serve
from sshunt.mux.hello import CLIENT, make_hello
serve([AttachedLane(0, 1, make_hello(CLIENT, bytes(32)), None)], None, bytes(32))
"""

# A bug inside the pump can't be had to order; this is the agent's own serve() with one built in.
BROKEN = """
import os, sys
from sshunt.agent.attach import AttachedLane
from sshunt.agent.server import serve
from sshunt.mux.hello import CLIENT, make_hello
from sshunt.relay.tunnel import Tunnel

def broken(self):
    raise ZeroDivisionError("a bug")

Tunnel.pump = broken
serve([AttachedLane(0, 1, make_hello(CLIENT, bytes(32)), None)], None, bytes(32))
"""


def test_a_bug_while_saying_goodbye_still_ends_the_agent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BROKEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as agent:
        try:
            assert agent.stderr is not None
            assert agent.wait(DEADLINE_S) == 1
            assert b"ZeroDivisionError: a bug" in agent.stderr.read()
        finally:
            agent.kill()
