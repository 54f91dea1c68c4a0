"""An agent's life with one lane and no place to meet: who is answered what, and when it ends.

The agent is a program; the test is its client, by hand. With stubs and further lanes: tests/agent.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.agent import server
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_DONE, FlowTarget
from sshunt.mux.events import (
    DataReceived,
    Event,
    FinReceived,
    FlowEnded,
    GoodbyeReceived,
    StreamReset,
)
from sshunt.mux.frames import Destination
from sshunt.mux.hello import (
    ACCEPTED,
    AGENT,
    CLIENT,
    FEATURE_DETACHED,
    REFUSED_VERSION,
    VERSION_MAX,
    Hello,
    make_hello,
)
from sshunt.mux.limits import MAX_GRACE_S
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.transport.hello_search import HelloSearch

TOKEN = bytes(range(32))
HELLO = make_hello(CLIENT, TOKEN, lane=3, grace_s=2 * MAX_GRACE_S)

DEADLINE_S = 20.0

PROGRAM = """
import os
from sshunt.agent.attach import AttachedLane
from sshunt.agent.main import read_hello
from sshunt.agent.server import serve
hello = read_hello(0)
serve([AttachedLane(os.dup(0), os.dup(1), hello, None)], None, hello.token)
"""


class Agent:
    """The program, its answer, and the client's session with it. Nothing moves by itself.
    ``before``: what else it does, before all.
    """

    def __init__(self, hello: Hello, python: str = sys.executable, before: str = "") -> None:
        source = str(Path(server.__file__).parents[2])
        self.process = subprocess.Popen(
            [python, "-c", before + PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.lane = hello.lane
        self.session = Session(CLIENT)
        self.session.add_lane(self.lane, 0.0)
        self.events: list[Event] = []
        self.write(hello.encode())
        search, found = HelloSearch(), None
        while found is None:
            found = search.feed(self.read())
        self.answer: Hello = found
        self._receive(search.rest)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), data)

    def read(self) -> bytes:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert ready, "the agent says nothing"
        data = os.read(self.process.stdout.fileno(), 65536)
        assert data, "the agent has hung up"
        return data

    def until(self, is_so: Callable[[], bool]) -> None:
        """Talk until that is so."""
        while True:
            pieces = self.session.transmit(self.lane, 0.0)
            data = b"".join(p if isinstance(p, bytes) else bytes(p.view) for p in pieces)
            if data:
                self.write(data)
            elif is_so():
                return
            else:
                self._receive(self.read())

    def heard(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def hang_up(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def end(self) -> int:
        return self.process.wait(DEADLINE_S)

    def _receive(self, data: bytes) -> None:
        if data:
            self.session.receive(self.lane, memoryview(data), 0.0)
            self.events += self.session.take_events()


@contextmanager
def an_agent(
    hello: Hello = HELLO, python: str = sys.executable, before: str = ""
) -> Iterator[Agent]:
    agent = Agent(hello, python, before)
    try:
        yield agent
    finally:
        agent.hang_up()
        agent.process.kill()
        agent.process.wait()


@pytest.fixture
def agent() -> Iterator[Agent]:
    with an_agent() as agent:
        yield agent


def test_a_hello_is_answered_with_the_agent_s_own(agent: Agent) -> None:
    answer = agent.answer
    assert (answer.role, answer.status, answer.token) == (AGENT, ACCEPTED, TOKEN)
    assert answer.lane == HELLO.lane
    assert answer.host


def test_without_a_place_to_meet_a_session_promises_no_grace(agent: Agent) -> None:
    assert agent.answer.grace_s == 0
    assert not agent.answer.features & FEATURE_DETACHED


def test_a_client_that_speaks_no_version_of_ours_is_refused_and_the_agent_ends() -> None:
    later = HELLO._replace(version_min=VERSION_MAX + 1, version_max=VERSION_MAX + 1)
    with an_agent(later) as agent:
        assert agent.answer.status == REFUSED_VERSION
        assert agent.answer.host
        assert agent.end() == 0


def test_a_program_s_connection_is_made_and_carried_both_ways(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        stream = agent.session.open(Destination(frames.TCP, *listener.getsockname()))
        agent.session.write(stream, Payload(b"question"), 0.0)
        agent.until(lambda: stream.opened)
        with listener.accept()[0] as host:
            host.settimeout(DEADLINE_S)
            assert host.recv(100) == b"question"
            host.sendall(b"answer")
        agent.until(lambda: bool(agent.heard(FinReceived)))
    received = [e.payload for e in agent.events if isinstance(e, DataReceived)]
    assert b"".join(bytes(payload.view) for payload in received) == b"answer"


def test_a_connection_that_is_refused_is_told_so(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    stream = agent.session.open(Destination(frames.TCP, *address))
    agent.until(lambda: bool(agent.heard(StreamReset)))
    assert agent.heard(StreamReset) == [StreamReset(stream, frames.RESET_REFUSED)]


@pytest.mark.parametrize("network", [0, 99])
def test_what_is_no_network_is_reset_and_the_session_goes_on(agent: Agent, network: int) -> None:
    agent.session.open(Destination(network, "127.0.0.1", 1))
    agent.until(lambda: bool(agent.heard(StreamReset)))
    agent.session.ping(agent.lane)
    agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)


# --- the end --------------------------------------------------------------------------------------


def test_a_goodbye_is_acknowledged_and_ends_the_agent(agent: Agent) -> None:
    agent.session.say_goodbye(frames.GOODBYE_DONE, "")
    agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)
    assert agent.end() == 0


def test_a_goodbye_with_the_end_of_the_lane_right_behind_it_is_an_orderly_end(
    agent: Agent,
) -> None:
    agent.session.ping(agent.lane)
    agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)
    agent.process.send_signal(signal.SIGSTOP)  # so that it finds both at once
    agent.write(frames.encode_goodbye(frames.GOODBYE_DONE, ""))
    agent.hang_up()
    agent.process.send_signal(signal.SIGCONT)
    assert agent.end() == 0


def test_the_end_of_its_only_lane_ends_the_agent(agent: Agent) -> None:
    agent.session.ping(agent.lane)
    agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)
    agent.hang_up()
    assert agent.end() == 0


def test_a_client_that_never_said_more_than_its_hello_leaves_no_agent(agent: Agent) -> None:
    agent.hang_up()
    assert agent.end() == 0


@contextmanager
def connected(agent: Agent) -> Iterator[socket.socket]:
    """A host that the agent has connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        stream = agent.session.open(Destination(frames.TCP, *listener.getsockname()))
        agent.until(lambda: stream.opened)
        with listener.accept()[0] as host:
            host.settimeout(DEADLINE_S)
            yield host


def test_an_agent_that_ends_resets_what_it_has_connected(agent: Agent) -> None:
    with connected(agent) as host:
        agent.session.say_goodbye(frames.GOODBYE_DONE, "")
        agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)
        with pytest.raises(ConnectionResetError):
            host.recv(1)  # an orderly end would say that all had come


def test_an_agent_that_is_told_to_end_resets_what_it_has_connected(agent: Agent) -> None:
    with connected(agent) as host:
        agent.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            host.recv(1)
    assert agent.end() == 0


def test_a_client_that_breaks_the_protocol_loses_the_lane_and_with_it_the_agent(
    agent: Agent,
) -> None:
    agent.session.ping(agent.lane)
    agent.until(lambda: not agent.session.lanes[agent.lane].outstanding)
    agent.write(b"\xff" * 8)
    assert agent.end() == 0
    assert not agent.heard(GoodbyeReceived)  # there was no lane left to say it on


#: An agent that soon forgets flows.
FORGETFUL = """
from sshunt.agent import server
from sshunt.relay import incoming
server.END_IDLE_EVERY_S = incoming.IDLE_S = 0.1
"""


@pytest.mark.parametrize("network", [frames.UDP, frames.ECHO])
def test_a_flow_that_has_been_idle_for_too_long_is_forgotten_and_the_client_told(
    network: int,
) -> None:
    with an_agent(HELLO, before=FORGETFUL) as agent:
        flow = agent.session.datagrams.open(FlowTarget(network, "127.0.0.1", 9, 1), 0.0)
        agent.session.datagrams.send(flow, bytes(8), 0.0)
        agent.until(lambda: bool(agent.heard(FlowEnded)))
        assert agent.heard(FlowEnded)[0] == FlowEnded(flow, FLOW_DONE)
