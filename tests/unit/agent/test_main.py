"""The remote program's entry: what it reads, and what it answers where there is no agent."""

import os
import subprocess
import sys

import pytest

from sshunt.agent.main import read_hello
from sshunt.agent.stub import EXIT_FAILED
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import (
    AGENT,
    CLIENT,
    REFUSED_SESSION_GONE,
    REFUSED_VERSION,
    VERSION_MAX,
    Hello,
    body_bytes_untrusted,
    make_hello,
)
from sshunt.transport.hello_search import HelloSearch

TOKEN = bytes(range(32))
HELLO = make_hello(CLIENT, TOKEN, lane=3)

DEADLINE_S = 20.0

COMMAND = [sys.executable, "-c", "from sshunt.agent.main import main; main()"]


def test_exactly_the_hello_is_read_and_not_a_byte_more() -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, HELLO.encode() + b"the lane's own")
    assert read_hello(read_fd) == HELLO
    assert os.read(read_fd, 100) == b"the lane's own"
    os.close(write_fd)
    with pytest.raises(RemoteProtocolError, match="hung up"):
        read_hello(read_fd)
    os.close(read_fd)


@pytest.mark.parametrize("head", [b"", b"\xf5ssHUNT\n", b"\xf5ssHUNT\n\xff\xff", b"GET / HTTP"])
def test_what_does_not_begin_as_a_hello_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        body_bytes_untrusted(head)


def test_a_hello_is_read_in_the_pieces_in_which_it_comes() -> None:
    code = "import os, sys\nfor b in sys.stdin.buffer.read(): os.write(1, bytes((b,)))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pieces:
        assert pieces.stdin is not None
        assert pieces.stdout is not None
        pieces.stdin.write(HELLO.encode())
        pieces.stdin.close()
        assert read_hello(pieces.stdout.fileno()) == HELLO


# --- the program ----------------------------------------------------------------------------------


def answer(hello: Hello) -> Hello:
    """What the program says to a lane that begins with this; it then ends in order."""
    done = subprocess.run(
        COMMAND, input=hello.encode(), capture_output=True, timeout=DEADLINE_S, check=True
    )
    assert done.stderr == b""
    found = HelloSearch().feed(done.stdout)
    assert found is not None
    assert (found.role, found.token, found.lane) == (AGENT, hello.token, hello.lane)
    return found


def test_a_lane_whose_agent_is_not_there_is_told_that_its_session_is_gone() -> None:
    refused = answer(make_hello(CLIENT, os.urandom(32), lane=7))
    assert refused.status == REFUSED_SESSION_GONE
    assert "gone" in refused.sentence
    assert refused.host  # another machine of this name would have another one


def test_a_client_that_speaks_no_version_of_ours_is_told_which_there_are() -> None:
    later = HELLO._replace(version_min=VERSION_MAX + 1, version_max=VERSION_MAX + 2)
    refused = answer(later)
    assert refused.status == REFUSED_VERSION
    assert f"to {VERSION_MAX}, the client {VERSION_MAX + 1}" in refused.sentence


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", HELLO.encode()[:-1]])
def test_who_does_not_introduce_himself_is_told_so_and_the_status_says_it(said: bytes) -> None:
    done = subprocess.run(COMMAND, input=said, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == EXIT_FAILED
    assert done.stdout == b""
    assert done.stderr.startswith(b"sshunt: the client did not introduce itself: ")


def test_a_closed_stderr_disturbs_nobody() -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND]
    hello = make_hello(CLIENT, os.urandom(32), lane=7)
    done = subprocess.run(
        command, input=hello.encode(), capture_output=True, timeout=DEADLINE_S, check=True
    )
    found = HelloSearch().feed(done.stdout)
    assert found is not None
    assert found.status == REFUSED_SESSION_GONE
