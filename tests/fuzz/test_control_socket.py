"""Whatever programs of this user say to a session's control socket: it answers or hangs up, holds
a bounded number of descriptors, and goes on. Another user is told nothing.
"""

import json
import os
import random
import socket
import subprocess
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.tell.control import CALLERS
from tests.unit.tell.test_control import RECONNECT, SAYS, Session, as_nobody, descriptors, name_of

pytestmark = pytest.mark.fuzz

lines = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode() + b"\n")

messages = st.one_of(
    lines,
    st.sampled_from([RECONNECT, RECONNECT[:5], RECONNECT[5:], b"\n", b'{"do": 7}\n', b"[" * 900]),
    st.sampled_from([b'{"do": "\\ud800"}\n', b'{"do": "stop"}\n', b"\xff\xfe\n"]),
    st.binary(min_size=1, max_size=3000),
)
steps = st.one_of(
    st.just(("call", 0, b"", 0)),
    st.tuples(st.just("say"), st.integers(0, 40), messages, st.sampled_from([0, 0, 0, 1, 5])),
    st.tuples(
        st.sampled_from(["hang up", "say no more"]), st.integers(0, 40), st.none(), st.none()
    ),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, max_size=40))
def test_no_caller_harms_the_session_or_the_next_caller(
    attack: list[tuple[str, int, bytes, int]],
) -> None:
    before = descriptors()
    with ExitStack() as undo:
        session = Session(undo)
        own = descriptors()
        callers: list[socket.socket] = []
        for act, who, said, count in attack:
            if act == "call":
                callers.append(session.call())
            elif callers:
                caller = callers[who % len(callers)]
                with suppress(OSError):
                    if act == "say":
                        socket.send_fds(caller, [said], [0] * count)
                    elif act == "hang up":
                        caller.close()
                    else:
                        caller.shutdown(socket.SHUT_WR)
            session.settle()
            assert len(session.server._callers) <= CALLERS
            assert descriptors() <= own + len(callers) + CALLERS
        for caller in callers:
            caller.close()
        session.settle()
        assert session.ask("reconnect") == {"ok": True, **SAYS}
        assert session.bugs == []
    assert descriptors() == before


_STRANGER = """
import random
rng = random.Random(%d)
for _ in range(20):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(NAME)
    try:
        peer.sendall(rng.choice([b'{"do": "reconnect"}\\n', rng.randbytes(rng.randint(1, 2000))]))
        heard = peer.recv(100)
    except OSError:
        heard = b""
    if heard:
        sys.exit("it was answered")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")
@settings(deadline=None, max_examples=2)
@given(st.integers(0, 2**32))
def test_another_user_is_told_nothing(seed: int) -> None:
    with ExitStack() as undo:
        session = Session(undo)
        argv = as_nobody(_STRANGER % seed, name_of(session.name))
        done = session.meanwhile(
            lambda: subprocess.run(argv, check=False, capture_output=True, text=True)
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert session.ask("reconnect") == {"ok": True, **SAYS}


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 2**32))
def test_hundreds_of_callers_are_turned_away_and_forgotten(seed: int) -> None:
    rng = random.Random(seed)
    with ExitStack() as undo:
        session = Session(undo)
        own = descriptors()
        for _ in range(20):
            callers = [session.call() for _ in range(20)]
            for caller in callers:
                with suppress(OSError):
                    caller.send(rng.choice([RECONNECT, RECONNECT[:9], rng.randbytes(40)]))
            session.settle()
            for caller in callers:
                caller.close()
            for _ in range(10):  # all are accepted, or the backlog fills and the next call waits
                session.settle()
        assert (descriptors(), session.server._callers) == (own, {})
        assert session.ask("reconnect") == {"ok": True, **SAYS}
