"""The order of a conversation with the helper: what is allowed when, and how it ends."""

import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.plan import Plan, Redirect, What
from sshunt.helper.pace import BURST, PER_SECOND
from sshunt.helper.protocol import (
    VERSION,
    Applied,
    Apply,
    Bypass,
    Done,
    Guard,
    Guarded,
    Hello,
    Refusal,
    Refused,
    Reply,
    Request,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Undo,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from sshunt.model import Action, Route
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation

PLAN = Plan(
    SESSION,
    (Redirect(What.CONNECTIONS, ("127.0.0.1", 12300)),),
    (Route(ip_network("10.0.0.0/8"), Action.REMOTE),),
)

#: A request of each kind, and what answers it where it is allowed.
REQUESTS: dict[str, tuple[Request, type[Reply]]] = {
    "guard": (Guard(), Guarded),
    "apply": (Apply(PLAN), Applied),
    "bypass": (Bypass(()), Done),
    "resolvers": (Resolvers(()), Done),
    "retain": (Retain(()), Done),
    "suspects": (Suspects(), Suspected),
    "undo": (Undo(), Done),
}
ALLOWED = {
    "new": set(),
    "idle": {"guard", "apply", "undo"},
    "active": {"guard", "apply", "bypass", "resolvers", "retain", "suspects", "undo"},
}


@pytest.fixture
def helper(host: Host) -> Iterator[Conversation]:
    with Conversation(host) as helper:
        yield helper
    assert helper.tables() == []


def reach(helper: Conversation, state: str) -> None:
    if state != "new":
        helper.greet()
    if state == "active":
        assert isinstance(helper.ask(Apply(PLAN)), Applied)


@pytest.mark.parametrize("state", ALLOWED)
def test_what_a_state_does_not_list_is_refused_and_changes_nothing(
    helper: Conversation, state: str
) -> None:
    reach(helper, state)
    before = helper.tables()
    for name, (request, _) in REQUESTS.items():
        if name not in ALLOWED[state]:
            reply = helper.ask(request)
            assert isinstance(reply, Refused), name
            assert reply.kind is Refusal.WRONG_ORDER
    assert helper.tables() == before
    if state == "new":
        helper.greet()
    else:
        reply = helper.ask(Hello(VERSION, SESSION))
        assert isinstance(reply, Refused)
        assert reply.kind is Refusal.WRONG_ORDER


@pytest.mark.parametrize(
    ("state", "name"), [(state, name) for state, names in ALLOWED.items() for name in sorted(names)]
)
def test_what_a_state_lists_is_answered(helper: Conversation, state: str, name: str) -> None:
    reach(helper, state)
    request, answer = REQUESTS[name]
    assert isinstance(helper.ask(request), answer)


def test_a_session_can_be_undone_and_applied_again(helper: Conversation) -> None:
    helper.greet()
    for _ in range(2):
        assert isinstance(helper.ask(Apply(PLAN)), Applied)
        assert helper.tables() == [f"inet sshunt-{SESSION}"]
        assert helper.ask(Undo()) == Done()
        assert helper.tables() == []
        assert helper.ask(Undo()) == Done()


def test_another_version_is_told_which_one_is_spoken(helper: Conversation) -> None:
    reply = helper.ask(Hello(VERSION + 1, SESSION))
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.VERSION
    assert str(VERSION) in reply.message


def test_a_plan_of_another_session_is_refused(helper: Conversation) -> None:
    helper.greet("fedcba9876543210")
    reply = helper.ask(Apply(PLAN))
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.BAD_REQUEST


@pytest.mark.parametrize("line", [b"\n", b"null\n", b'{"request":"HELLO"}\n', b"\xff\n"])
def test_what_is_no_request_is_refused_and_ends_the_conversation(
    helper: Conversation, line: bytes
) -> None:
    reply = helper.say(line)
    assert isinstance(reply, Refused)
    assert reply.kind is Refusal.BAD_REQUEST
    assert helper.has_hung_up()


def test_a_session_has_one_helper(host: Host, helper: Conversation) -> None:
    helper.greet()
    with Conversation(host) as second:
        reply = second.ask(Hello(VERSION, SESSION))
        assert isinstance(reply, Refused)
        assert reply.kind is Refusal.WRONG_ORDER
        assert second.has_hung_up()
    assert isinstance(helper.ask(Apply(PLAN)), Applied)


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the client hangs up", "SIGTERM", "no request"])
def test_whatever_ends_the_conversation_everything_is_undone(host: Host, how: str) -> None:
    with Conversation(host) as helper:
        reach(helper, "active")
        assert helper.tables() != []
        if how == "SIGTERM":
            helper.process.send_signal(signal.SIGTERM)
        elif how == "no request":
            assert isinstance(helper.say(b"?\n"), Refused)
        else:
            helper.hang_up()
        assert helper.process.wait(DEADLINE_S) == 0
        assert helper.tables() == []


def test_sigterm_does_not_wait_for_requests_that_have_come_already(host: Host) -> None:
    with Conversation(host) as helper:
        helper.greet()
        helper.socket.sendall(300 * encode_request(Apply(PLAN)))
        assert isinstance(helper.say(b""), Applied)
        helper.process.send_signal(signal.SIGTERM)
        answered = 1
        while not helper.has_hung_up():
            answered += 1
        assert answered < 300
        assert helper.process.wait(DEADLINE_S) == 0
        assert helper.tables() == []


@pytest.mark.parametrize("heard", ["SIGTERM", "news"])
def test_a_client_that_takes_no_replies_keeps_the_helper_from_hearing_nothing(
    host: Host, heard: str
) -> None:
    if heard == "news" and not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")
    with Conversation(host, "patient") as helper:
        host.run(["ip", "address", "add", "192.0.2.9/32", "dev", "lo"])
        reach(helper, "active")
        assert helper.ask(Retain(("192.0.2.9",))) == Done()
        helper.socket.sendall(2000 * encode_request(Suspects()))
        until_no_more_replies_come(helper.socket)
        host.run(["ip", "address", "delete", "192.0.2.9/32", "dev", "lo"])
        if heard == "SIGTERM":
            helper.process.send_signal(signal.SIGTERM)
            assert helper.process.wait(DEADLINE_S) == 0
            assert helper.tables() == []
        else:
            deadline = time.monotonic() + DEADLINE_S
            while len(helper.tables()) == 1:  # and there are those that keep it from others
                assert time.monotonic() < deadline


def until_no_more_replies_come(sock: socket.socket) -> None:
    """Until what is there to be read has stayed the same for a while."""
    there, since = 0, time.monotonic()
    while time.monotonic() - since < 0.5:
        (now,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
        if now != there:
            there, since = now, time.monotonic()
        time.sleep(0.01)


def test_a_request_that_does_not_come_whole_in_time_ends_it_in_order(host: Host) -> None:
    with Conversation(host, "hasty") as helper:
        reach(helper, "active")
        helper.socket.sendall(encode_request(Undo())[:-1])
        assert helper.has_hung_up()
        assert helper.process.wait(DEADLINE_S) == 0
        assert helper.tables() == []


def test_several_requests_may_be_sent_at_once(helper: Conversation) -> None:
    helper.greet()
    helper.socket.sendall(encode_request(Bypass(())) + encode_request(Undo()))
    first = helper.say(b"")
    assert isinstance(first, Refused)  # BYPASS, before anything is applied
    assert helper.ask(Apply(PLAN)) == Done()  # UNDO's
    assert isinstance(helper.say(b""), Applied)


# --- lines ----------------------------------------------------------------------------------------


def test_who_asks_without_pause_waits_and_gets_no_more_than_his_share(host: Host) -> None:
    with Conversation(host) as helper:
        helper.greet()
        line = encode_request(Undo())
        answered = BURST + int(PER_SECOND)
        sender = threading.Thread(target=helper.socket.sendall, args=(line * answered,))
        begin = time.monotonic()
        sender.start()
        for _ in range(answered):
            assert decode_reply(helper.line()) == Done()
        took_s = time.monotonic() - begin
        sender.join()
        assert took_s > 0.9 * (answered - BURST) / PER_SECOND
        os.kill(helper.process.pid, signal.SIGTERM)
        assert helper.has_hung_up()
