"""The packet process: started once, with a socketpair that rides on the request, and its end."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshunt.capture.plan import Plan
from sshunt.helper.protocol import Apply, Guard, Packeted, Packets, Refusal, Refused, Reply, Undo
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation


@pytest.fixture
def helper(host: Host) -> Iterator[Conversation]:
    with Conversation(host) as helper:
        helper.greet()
        yield helper
    assert helper.tables() == []


@pytest.fixture
def channel(helper: Conversation) -> Iterator[socket.socket]:
    """Our end of the conversation with its packet process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    with ours:
        assert isinstance(ask_with(helper, theirs), Packeted)
        theirs.close()
        yield ours


def ask_with(helper: Conversation, *riders: socket.socket) -> Reply:
    line = encode_request(Packets())
    socket.send_fds(helper.socket, [line], [rider.fileno() for rider in riders])
    return decode_reply(helper.line())


def has_ended(channel: socket.socket) -> bool:
    try:
        return channel.recv(1) == b""
    except ConnectionError:
        return True


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pid_behind(helper: Conversation) -> int:
    """The packet process': the helper's child that is not a sweeper."""
    parent = helper.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (pid,) = [
        int(child)
        for child in children
        if Path(f"/proc/{child}/comm").read_text().strip() != "sweeper"
    ]
    return pid


def test_it_lives_beside_plans_and_ends_with_the_helper(
    helper: Conversation, channel: socket.socket
) -> None:
    helper.ask(Apply(Plan(SESSION, (), ())))
    helper.ask(Undo())
    pid = pid_behind(helper)
    helper.hang_up()
    assert has_ended(channel)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_it_has_two_capabilities_and_the_helper_none_for_raw_sockets(
    helper: Conversation, channel: socket.socket
) -> None:
    def effective(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("CapEff:")[1].split()[0], 16)

    assert effective(pid_behind(helper)) == 1 << 12 | 1 << 13
    assert effective(helper.process.pid) == 1 << 1 | 1 << 12


def test_a_message_that_is_none_ends_it_and_the_helper(
    helper: Conversation, channel: socket.socket
) -> None:
    channel.send(b"\xff")
    assert has_ended(channel)
    assert helper.has_hung_up()


def test_killed_it_takes_the_helper_along(helper: Conversation, channel: socket.socket) -> None:
    os.kill(pid_behind(helper), signal.SIGKILL)
    assert has_ended(channel)
    assert helper.has_hung_up()


def test_if_the_helper_is_killed_so_is_it(host: Host) -> None:
    with Conversation(host) as helper:
        helper.greet()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE_S)
        with ours, theirs:
            assert isinstance(ask_with(helper, theirs), Packeted)
            theirs.close()
            helper.process.kill()
            assert has_ended(ours)


def test_a_second_one_is_refused(helper: Conversation, channel: socket.socket) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        answer = ask_with(helper, theirs)
    assert isinstance(answer, Refused)
    assert answer.kind is Refusal.NO_CHANNEL


@pytest.mark.parametrize("what", ["nothing", "a file", "a stream", "a connection"])
def test_what_is_no_socketpair_of_packets_is_refused(
    helper: Conversation, what: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        if what == "nothing":
            answer = helper.ask(Packets())
        elif what == "a file":
            with (tmp_path / "file").open("wb") as file:
                line = encode_request(Packets())
                socket.send_fds(helper.socket, [line], [file.fileno()])
                answer = decode_reply(helper.line())
        elif what == "a stream":
            ours, theirs = socket.socketpair()
            with ours, theirs:
                answer = ask_with(helper, theirs)
        else:
            listener.bind(str(tmp_path / "service"))
            listener.listen()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
                connected.connect(str(tmp_path / "service"))
                answer = ask_with(helper, connected)
    assert isinstance(answer, Refused)
    assert answer.kind is Refusal.NO_CHANNEL
    assert not isinstance(helper.ask(Guard()), Refused)


def test_riders_that_nobody_asked_for_do_no_harm(helper: Conversation) -> None:
    before = len(os.listdir(f"/proc/{helper.process.pid}/fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(50):
            socket.send_fds(helper.socket, [encode_request(Undo())], [theirs.fileno()] * 10)
            assert not isinstance(decode_reply(helper.line()), Refused)
    assert len(os.listdir(f"/proc/{helper.process.pid}/fd")) <= before + 4
