"""The stub: hands its pipes over to an agent, starts one, and waits until its lane is over."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.agent.rendezvous import GO, PROOF_BYTES, PROOF_MAGIC, Doorstep, meeting_name
from sshunt.agent.stub import (
    EXIT_AGENT_DIED,
    NotWelcomeError,
    hand_over,
    start_agent,
    write_all,
)
from sshunt.mux.hello import CLIENT, make_hello

TOKEN = bytes(range(32))
HELLO = make_hello(CLIENT, TOKEN, lane=3)

DEADLINE_S = 20.0

#: An agent that says who it is and what it has got, and ends when its stub has ended.
STARTS = """
import os, sys
from sshunt.agent.stub import start_agent, wait

def life(read_fd, write_fd, control):
    os.write(write_fd, b"%d %d " % (os.getpid(), os.getsid(0)))
    os.write(write_fd, os.read(read_fd, 100))
    control.sendall(b"for a person\\n")
    control.close()

sys.exit(wait(start_agent(life), bytes(32)))
"""

#: A stub whose agent's end of the control socket is closed at once.
WAITS = """
import socket, sys
from sshunt.agent.stub import wait
control, other = socket.socketpair()
other.close()
sys.exit(wait(control, bytes.fromhex(sys.argv[1])))
"""


def program(code: str, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_hand_over_proves_first_and_then_passes_stdin_and_stdout() -> None:
    stub, agent = socket.socketpair(socket.AF_UNIX)
    with stub, agent:
        agent.send(GO)
        hand_over(stub, HELLO)
        assert agent.recv(PROOF_BYTES) == PROOF_MAGIC + TOKEN
        data, fds, _flags, _address = socket.recv_fds(agent, 2000, 8)
        assert data == HELLO.encode()
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in (0, 1)]
        for fd in fds:
            os.close(fd)


def test_a_stub_that_is_not_welcome_keeps_its_descriptors() -> None:
    stub, agent = socket.socketpair(socket.AF_UNIX)
    with stub, agent:
        agent.shutdown(socket.SHUT_WR)
        with pytest.raises(NotWelcomeError):
            hand_over(stub, HELLO)
        assert agent.recv(100) == PROOF_MAGIC + TOKEN


def test_writing_to_nobody_is_no_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    write_all(write_fd, b"x" * 10)
    os.close(write_fd)


# --- programs -------------------------------------------------------------------------------------


def test_the_agent_has_the_pipes_and_a_session_of_its_own_and_its_words_reach_stderr() -> None:
    with program(STARTS) as stub:
        said, errors = stub.communicate(b"the lane", DEADLINE_S)
    pid, session, lane = said.split(b" ", 2)
    assert pid != session  # its go-between's, which has ended: no terminal can come back
    assert int(session) != os.getsid(0)
    assert lane == b"the lane"
    assert errors == b"for a person\n"
    assert stub.returncode == 0


def test_a_stub_that_waits_holds_none_of_ssh_s_pipes() -> None:
    code = """
import os, socket, sys
from sshunt.agent.stub import wait
control, other = socket.socketpair()
if os.fork() == 0:
    os.close(0)
    os.close(1)
    control.close()
    os.read(other.fileno(), 1)
    os._exit(0)
other.close()
sys.exit(wait(control, bytes(32)))
"""
    with program(code) as stub:
        assert stub.stdin is not None
        assert stub.stdout is not None
        assert stub.stdout.read() == b""  # nobody holds it any more
        with pytest.raises(BrokenPipeError):
            os.write(stub.stdin.fileno(), b"x")
        stub.kill()
        stub.stdin.close()


def test_a_stub_whose_agent_was_killed_says_so_by_its_status_and_tidies_up() -> None:
    token = os.urandom(32)
    Doorstep(meeting_name(token)).release()  # what a killed agent leaves
    with program(WAITS, token.hex()) as stub:
        stub.communicate(timeout=DEADLINE_S)
    assert stub.returncode == EXIT_AGENT_DIED
    assert not Path(f"/tmp/sshunt-{meeting_name(token)}").exists()


def test_a_stub_whose_agent_ended_in_order_ends_in_order() -> None:
    with program(WAITS, os.urandom(32).hex()) as stub:
        stub.communicate(timeout=DEADLINE_S)
    assert stub.returncode == 0


def test_without_a_process_for_the_agent_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_process() -> int:
        raise OSError("no more processes")

    monkeypatch.setattr(os, "fork", no_process)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no more processes"):
        start_agent(lambda *_: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_taken_leaves_nothing_at_its_old_numbers_and_is_inherited_by_nobody() -> None:
    code = """
import os
from sshunt.agent.stub import take_pipes
read_fd, write_fd = take_pipes()
null = os.stat(os.devnull).st_rdev
fine = os.fstat(0).st_rdev == os.fstat(1).st_rdev == null
fine = fine and not (os.get_inheritable(read_fd) or os.get_inheritable(write_fd))
os.write(write_fd, b"yes " + os.read(read_fd, 10) if fine else b"no")
"""
    with program(code) as stub:
        said, _ = stub.communicate(b"and it", DEADLINE_S)
    assert said == b"yes and it"
