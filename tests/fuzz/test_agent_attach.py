"""Whatever callers say to the agent's socket, whatever descriptors they bring: it takes in who
proves himself, holds a bounded number of descriptors, and goes on.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.agent.attach import PENDING_ATTACHES
from sshunt.agent.rendezvous import PROOF_MAGIC
from sshunt.relay import accepting
from tests.unit.agent.test_attach import HELLO, TOKEN, Agent, descriptors

pytestmark = pytest.mark.fuzz

NOBODY = 65534
PROOF = PROOF_MAGIC + TOKEN
LANE = HELLO.encode()


def mutated(data: bytes, at: int, value: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([value]) + data[at + 1 :]


def part(data: bytes, begin: int, end: int) -> bytes:
    return data[begin:end]


messages = st.one_of(
    st.sampled_from([PROOF, PROOF, PROOF, LANE, LANE, PROOF + LANE]),
    st.builds(
        part, st.sampled_from([PROOF, LANE]), st.sampled_from([0, 1, 20]), st.integers(2, 50)
    ),
    st.builds(mutated, st.sampled_from([PROOF, LANE]), st.integers(0, 1000), st.integers(0, 255)),
    st.binary(min_size=1, max_size=2000),
)
steps = st.one_of(
    st.just(("call", 0, b"", 0)),
    st.tuples(st.just("say"), st.integers(0, 40), messages, st.sampled_from([0, 0, 1, 2, 2, 3, 9])),
    st.tuples(
        st.sampled_from(["hang up", "say no more"]), st.integers(0, 40), st.none(), st.none()
    ),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, max_size=40))
def test_no_caller_harms_the_agent_or_the_next_caller(
    attack: list[tuple[str, int, bytes, int]],
) -> None:
    before = descriptors()
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        agent = Agent(folder / "agent", undo)
        bugs: list[object] = []
        agent.loop.set_exception_handler(lambda _, what: bugs.append(what))
        pipe = os.pipe()
        for fd in pipe:
            undo.callback(os.close, fd)
        own = descriptors()
        callers: list[socket.socket] = []
        for act, who, said, count in attack:
            if act == "call":
                callers.append(agent.call())
            elif callers:
                caller = callers[who % len(callers)]
                with suppress(OSError):
                    if act == "say":
                        socket.send_fds(caller, [said], [pipe[0]] * count)
                    elif act == "hang up":
                        caller.close()
                    else:
                        caller.shutdown(socket.SHUT_WR)
            agent.settle()
            assert len(agent.attach._pending) <= PENDING_ATTACHES
            most = own + len(callers) + 3 * (len(agent.attach._pending) + len(agent.lanes))
            assert descriptors() <= most
        for caller in callers:
            caller.close()
        agent.settle()
        lanes = len(agent.lanes)
        stub = agent.proven()
        socket.send_fds(stub, [LANE], list(pipe))
        agent.turn(lambda: len(agent.lanes) > lanes)
        assert bugs == []
    assert descriptors() == before


_STRANGER = """
import os, random, socket, sys
os.setgroups([])
os.setuid(NOBODY)
rng = random.Random(int(sys.argv[2]))
proof = bytes.fromhex(sys.argv[3])
for _ in range(20):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(sys.argv[1])
    said = rng.choice([proof, proof[:9], rng.randbytes(rng.randint(1, 100))])
    try:
        socket.send_fds(peer, [said], [0] * rng.choice([0, 1, 2, 5]))
        heard = peer.recv(100)
    except OSError:
        heard = b""
    if heard:
        sys.exit("it was answered")
""".replace("NOBODY", str(NOBODY))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")
@settings(deadline=None, max_examples=2)
@given(st.integers(0, 2**32))
def test_another_user_is_told_nothing_even_with_the_token(seed: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        with ExitStack() as undo:
            patch = undo.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(accepting, "STRANGER_PAUSE_S", 0.01)
            agent = Agent(folder / "agent", undo)
            (folder / "agent").chmod(0o777)
            argv = [sys.executable, "-c", _STRANGER, agent.path, str(seed), PROOF.hex()]
            stranger = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
            agent.turn(lambda: stranger.poll() is not None)
            assert stranger.communicate()[1] == ""
            assert stranger.returncode == 0
            assert agent.lanes == []
            agent.proven()
    finally:
        shutil.rmtree(folder)


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 2**32))
def test_hundreds_of_callers_are_turned_away_and_forgotten(seed: int) -> None:
    rng = random.Random(seed)
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        agent = Agent(folder / "agent", undo)
        own = descriptors()
        for _ in range(20):
            callers = [agent.call() for _ in range(20)]
            for caller in callers:
                with suppress(OSError):
                    caller.send(rng.choice([PROOF, PROOF_MAGIC, rng.randbytes(40)]))
            agent.settle()
            for caller in callers:
                caller.close()
            for _ in range(10):  # all are accepted, or the backlog fills and the next call waits
                agent.settle()
        assert (descriptors(), agent.attach._pending) == (own, {})
        agent.proven()
