"""The agent takes in lanes from callers who prove themselves, and hangs up on all others."""

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.agent import attach
from sshunt.agent.attach import PENDING_ATTACHES, AttachedLane, AttachListener
from sshunt.agent.rendezvous import GO, PROOF_MAGIC
from sshunt.mux.hello import CLIENT, make_hello

TOKEN = bytes(range(32))
HELLO = make_hello(CLIENT, TOKEN, lane=3)

DEADLINE_S = 10.0


class Agent:
    """A listener in an event loop that turns only when the test says so."""

    def __init__(self, path: Path, undo: ExitStack) -> None:
        self.loop = asyncio.new_event_loop()
        undo.callback(self.loop.close)
        self.path = str(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(64)
        self.listener = listener
        self.lanes: list[AttachedLane] = []
        self.attach = AttachListener(self.loop, [listener], TOKEN, self.lanes.append)
        undo.callback(self.close)
        self.undo = undo

    def close(self) -> None:
        self.attach.close()
        for lane in self.lanes:
            os.close(lane.read_fd)
            os.close(lane.write_fd)
            if lane.control is not None:
                lane.control.close()
        self.lanes.clear()

    def turn(self, until: Callable[[], bool]) -> None:
        """Run the loop until the condition holds."""

        async def wait() -> None:
            while not until():
                await asyncio.sleep(0.005)

        self.loop.run_until_complete(asyncio.wait_for(wait(), DEADLINE_S))

    def settle(self) -> None:
        """Let the agent do what there is to do."""
        for _ in range(5):  # more turns than any step needs
            self.loop.run_until_complete(asyncio.sleep(0.001))

    def call(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        self.undo.callback(peer.close)
        peer.connect(self.path)
        peer.setblocking(False)
        return peer

    def heard(self, peer: socket.socket) -> bytes | None:
        """What the agent said: b"" when it hung up, None while it is silent."""
        try:
            return peer.recv(100)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def answer(self, peer: socket.socket) -> bytes:
        said: list[bytes] = []

        def has_answered() -> bool:
            heard = self.heard(peer)
            if heard is not None:
                said.append(heard)
            return heard is not None

        self.turn(has_answered)
        return said[0]

    def proven(self) -> socket.socket:
        peer = self.call()
        peer.sendall(PROOF_MAGIC + TOKEN)
        assert self.answer(peer) == GO
        return peer


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    before = descriptors()
    with ExitStack() as undo:
        yield Agent(tmp_path / "agent", undo)
    assert descriptors() == before  # nothing that anybody brought is still open


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_proven_caller_brings_a_lane_with_its_descriptors(
    agent: Agent, pipe: tuple[int, int]
) -> None:
    stub = agent.proven()
    socket.send_fds(stub, [HELLO.encode()], list(pipe))
    agent.turn(lambda: len(agent.lanes) == 1)
    [lane] = agent.lanes
    assert lane.hello == HELLO
    os.write(lane.write_fd, b"through the pipe")
    assert os.read(lane.read_fd, 100) == b"through the pipe"
    assert not os.get_blocking(lane.read_fd)
    assert not os.get_inheritable(lane.read_fd)


def test_closing_the_control_socket_tells_the_stub_that_the_lane_is_over(
    agent: Agent, pipe: tuple[int, int]
) -> None:
    stub = agent.proven()
    socket.send_fds(stub, [HELLO.encode()], list(pipe))
    agent.turn(lambda: len(agent.lanes) == 1)
    assert agent.heard(stub) is None
    control = agent.lanes[0].control
    assert control is not None
    control.close()
    assert agent.heard(stub) == b""


def test_a_hello_may_come_in_pieces(agent: Agent, pipe: tuple[int, int]) -> None:
    stub = agent.proven()
    message = HELLO.encode()
    socket.send_fds(stub, [message[:5]], list(pipe))
    for start in range(5, len(message), 7):
        agent.settle()
        stub.send(message[start : start + 7])
    agent.turn(lambda: len(agent.lanes) == 1)
    assert agent.lanes[0].hello == HELLO


@pytest.mark.parametrize(
    "proof",
    [
        PROOF_MAGIC + bytes(32),
        PROOF_MAGIC + TOKEN[:-1] + b"\xff",
        b"sshATT9\n" + TOKEN,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: 12345",
    ],
)
def test_whoever_does_not_know_the_token_is_hung_up_on(agent: Agent, proof: bytes) -> None:
    peer = agent.call()
    peer.send(proof)
    assert agent.answer(peer) == b""


def test_descriptors_of_an_unproved_caller_never_enter_the_agent(
    agent: Agent, pipe: tuple[int, int]
) -> None:
    peer = agent.call()
    agent.settle()
    before = descriptors()
    socket.send_fds(peer, [PROOF_MAGIC], list(pipe))
    agent.settle()
    assert descriptors() == before


def wrong_lanes() -> dict[str, tuple[bytes, int]]:
    """{what is wrong: (message, how many descriptors go with it)}."""
    good = HELLO.encode()
    return {
        "no descriptors": (good, 0),
        "one descriptor": (good, 1),
        "three descriptors": (good, 3),
        "ten descriptors": (good, 10),
        "no hello": (b"x" * len(good), 2),
        "a hello of another session": (HELLO._replace(token=bytes(32)).encode(), 2),
        "a senseless hello": (HELLO._replace(role=7).encode(), 2),
        "a hello that is too long": (good[:8] + b"\xff\xff" + good[10:], 2),
        "bytes behind the hello": (good + b"x", 2),
    }


@pytest.mark.parametrize("wrong", wrong_lanes())
def test_a_lane_that_is_not_one_is_hung_up_on(
    agent: Agent, pipe: tuple[int, int], wrong: str
) -> None:
    message, count = wrong_lanes()[wrong]
    stub = agent.proven()
    socket.send_fds(stub, [message], [pipe[0]] * count)
    assert agent.answer(stub) == b""
    assert agent.lanes == []


def test_silence_has_a_deadline(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "ATTACH_DEADLINE_S", 0.05)
    assert agent.answer(agent.call()) == b""
    assert agent.answer(agent.proven()) == b""


def test_callers_beyond_the_limit_are_hung_up_on_at_once(agent: Agent) -> None:
    waiting = [agent.call() for _ in range(PENDING_ATTACHES)]
    agent.settle()
    for peer in waiting:
        peer.send(PROOF_MAGIC)
    agent.settle()
    assert agent.answer(agent.call()) == b""
    assert [agent.heard(peer) for peer in waiting] == [None] * PENDING_ATTACHES


def test_closing_hangs_up_on_everybody_who_is_no_lane_yet(agent: Agent) -> None:
    unproven, proven = agent.call(), agent.proven()
    agent.attach.close()
    agent.attach.close()  # may be called twice
    assert agent.heard(unproven) == b""
    assert agent.heard(proven) == b""


def test_an_error_of_accepting_neither_ends_the_agent_nor_makes_it_spin(agent: Agent) -> None:
    bugs: list[object] = []
    agent.loop.set_exception_handler(lambda _loop, context: bugs.append(context))
    no_listener, other = socket.socketpair()  # accept(2) fails on it with EINVAL
    with other:
        attach = AttachListener(agent.loop, [no_listener], TOKEN, agent.lanes.append)
        other.send(b"x")
        agent.settle()
        assert bugs == []
        assert agent.loop.remove_reader(no_listener.fileno()) is False  # it does not even look
        attach.close()


def test_out_of_descriptors_accepting_pauses_and_goes_on(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "ACCEPT_PAUSE_S", 0.05)
    peer = agent.call()
    peer.send(PROOF_MAGIC + TOKEN)
    listening = agent.listener.fileno()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)  # the lowest free number
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        agent.settle()
        assert agent.loop.remove_reader(listening) is False  # it does not even look
        assert agent.heard(peer) is None  # the caller waits in the backlog
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert agent.answer(peer) == GO
