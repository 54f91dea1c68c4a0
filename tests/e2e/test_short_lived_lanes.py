"""Logins that succeed and lanes that end at once: they are further and further apart."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.interruptions import Talk, sshds_of
from tests.e2e.tunnels import Remains, Tunnel, kill

WATCHED_S = 3.0

#: The first, one at once, then after 0.5 and 1 s, each less up to a quarter; where a session is
#: said to be gone or is given up, the next one may be asked for at once.
MOST_LOGINS = 7


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(sshd=False) as lab:
        folder = lab.folder / "logins"
        folder.mkdir()
        folder.chmod(0o777)
        program = Path(__file__).with_name("short_lived.py")
        command = f"{sys.executable} {program} {folder}"
        lab.sshd(lab.server, options={"ForceCommand": command})
        yield lab


def begun(lab: Lab, what: str, *words: str) -> Tunnel:
    """A tunnel whose first lane is a real one."""
    folder = lab.folder / "logins"
    deadline = time.monotonic() + 10
    while sshds_of(lab):  # a login of the test before
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for file in folder.glob("login-*"):
        file.unlink()
    (folder / "what").write_text(what)
    tunnel = Tunnel(lab, ["-v", "-r", "server", "--lanes", "1", *words, OFFICE_V4])
    tunnel.wait_until_connected()
    return tunnel


def lost(lab: Lab, what: str, *words: str) -> Tunnel:
    """The same, and its ssh has just been killed."""
    tunnel = begun(lab, what, *words)
    kill(tunnel.pids("ssh"))
    return tunnel


@contextmanager
def fallen_silent(lab: Lab) -> Iterator[None]:
    """Nothing comes through the ssh connections that there are; new ones can be made."""
    rule = "tcp dport 22 ct mark != 7 drop"
    lines = [
        "table inet silent {",
        "chain in {",
        "type filter hook input priority 0",
        "tcp dport 22 tcp flags & (syn | ack) == syn ct mark set 7",
        rule,
        "}",
        "}",
    ]
    lab.server.run(["nft", "-f", "-"], stdin="\n".join([*lines, ""]))
    try:
        yield
    finally:
        lab.server.run(["nft", "delete", "table", "inet", "silent"])


def test_gone_is_not_believed_while_the_old_lane_may_yet_answer(lab: Lab) -> None:
    tunnel = begun(lab, "gone")
    with ExitStack() as stack:
        stack.callback(tunnel.stop)
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with fallen_silent(lab):
            talk.near.sendall(b"in the silence")
            tunnel.wait_until(lambda: "attempt 2 failed: the far side refused" in tunnel.said)
        assert talk.far.recv(14, socket.MSG_WAITALL) == b"in the silence"
        assert talk.says(b"after")
        tunnel.wait_until(lambda: "1 connection kept" in tunnel.said)
        assert tunnel.stop() == 0


def test_another_machine_under_the_servers_name_is_asked_a_few_times(lab: Lab) -> None:
    tunnel = lost(lab, "gone elsewhere")
    tunnel.wait_until(lambda: "lost the session" in tunnel.said)
    assert tunnel.said.count("another machine answers as server") == 1
    assert "attempt 4 failed" in tunnel.said
    assert tunnel.stop() == 0


@pytest.mark.parametrize("what", ["goodbye", "nothing", "gone"])
def test_a_far_side_whose_lanes_end_at_once_is_not_hammered_with_logins(
    lab: Lab, what: str
) -> None:
    tunnel = lost(lab, what)
    time.sleep(WATCHED_S)
    logins = len(list((lab.folder / "logins").glob("login-*")))
    assert tunnel.process.poll() is None
    assert tunnel.stop() == 0
    assert 3 <= logins <= MOST_LOGINS
    assert "Traceback" not in tunnel.said


def test_lanes_that_end_at_once_count_as_attempts(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = lost(lab, "nothing", "--max-retries", "2", "--grace", "2")
    assert tunnel.process.wait(20) == ExitCode.LOST
    assert "3 attempts failed: it ended soon after it was made" in tunnel.said
    assert remains.left() == []


def test_a_session_in_which_the_protocol_is_broken_again_and_again_is_ended(lab: Lab) -> None:
    tunnel = lost(lab, "garbage")
    tunnel.wait_until(lambda: "it broke the protocol on one ssh connection after" in tunnel.said)
    assert tunnel.said.count("ended: the other side broke the protocol") == 3
    assert len(list((lab.folder / "logins").glob("login-*"))) <= MOST_LOGINS
    assert tunnel.stop() == 0
    assert not sshds_of(lab)
