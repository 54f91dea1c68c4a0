"""Another command of this user is answered; whoever else calls, or says nonsense, harms nobody."""

import asyncio
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_network
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.errors import ExitCode, UserError
from sshunt.model import Action, Route
from sshunt.relay.accepting import STRANGER_PAUSE_S
from sshunt.tell import control
from sshunt.tell.control import (
    ANSWER_BYTES,
    CALLERS,
    MOST_ENDPOINTS,
    REQUEST_BYTES,
    ControlServer,
    MessageError,
    about,
    ask,
    decode_request_untrusted,
    sessions,
)
from sshunt.tell.report import (
    Event,
    PeersBypassed,
    RemoteConnected,
    RemoteLost,
    RemoteReconnected,
    Report,
)
from sshunt.tell.session_name import take

T = TypeVar("T")

RECONNECT = b'{"do": "reconnect"}\n'
SAYS = {"says": "gate.example: connecting again"}
PATIENCE_S = 10.0
NOBODY = 65534
DRIP = b" "

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")

Verbs = dict[str, Callable[[], Mapping[str, object]]]


def name_of(session: str) -> str:
    return f"\0sshunt/{os.geteuid()}/{session}"


class Session:
    """A server in an event loop that turns only when the test says so."""

    def __init__(self, undo: ExitStack) -> None:
        self.loop = asyncio.new_event_loop()
        undo.callback(self.loop.close)
        self.bugs: list[object] = []
        self.loop.set_exception_handler(lambda _, what: self.bugs.append(what.get("exception")))
        self.name = secrets.token_hex(4)
        self.verbs: Verbs = {"reconnect": lambda: SAYS}
        self.server = ControlServer(self.loop, take(self.name), lambda verb: self.verbs[verb]())
        undo.callback(self.server.close)
        self.undo = undo

    def run(self, story: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(story, PATIENCE_S))

    def meanwhile(self, call: Callable[[], T]) -> T:
        """The outcome of what blocks, in a thread of its own."""
        with ThreadPoolExecutor(1) as pool:
            return self.run(self.loop.run_in_executor(pool, call))

    def ask(self, verb: str) -> dict[str, object]:
        return self.meanwhile(lambda: ask(self.name, verb))

    def settle(self) -> None:
        """Let the server do what there is to do."""
        for _ in range(5):  # more turns than any step needs
            self.run(asyncio.sleep(0.001))

    def call(self, say: bytes = b"") -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        self.undo.callback(peer.close)
        peer.connect(name_of(self.name))
        peer.setblocking(False)
        peer.sendall(say)
        return peer

    def answer(self, peer: socket.socket) -> bytes:
        """All that the server says to ``peer``, until it hangs up."""

        async def listen() -> bytes:
            heard = b""
            try:
                while data := await self.loop.sock_recv(peer, ANSWER_BYTES):
                    heard += data
            except ConnectionResetError:
                pass  # it hung up before it had read all
            return heard

        return self.run(listen())


@pytest.fixture
def session() -> Iterator[Session]:
    before = descriptors()
    with ExitStack() as undo:
        yield Session(undo)
    assert descriptors() == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def as_nobody(program: str, name: str) -> list[str]:
    """The command that runs a Python program as another user, with ``NAME`` in it."""
    become = f"import os, socket, sys\nos.setuid({NOBODY})\nNAME = '\\0' + sys.argv[1]\n"
    return [sys.executable, "-c", become + program, name.removeprefix("\0")]


# --- asking and answering ---------------------------------------------------------------------


def test_what_is_asked_is_answered(session: Session) -> None:
    assert session.ask("reconnect") == {"ok": True, **SAYS}
    assert session.ask("reconnect") == {"ok": True, **SAYS}


def test_a_request_may_come_in_pieces(session: Session) -> None:
    peer = session.call(RECONNECT[:7])
    session.settle()
    peer.send(RECONNECT[7:])
    assert json.loads(session.answer(peer)) == {"ok": True, **SAYS}


def test_a_verb_that_it_does_not_know_is_refused(session: Session) -> None:
    with pytest.raises(UserError, match="does not know 'dance'") as caught:
        session.ask("dance")
    assert "another version" in caught.value.hint
    assert session.bugs == []


@pytest.mark.parametrize(
    ("bug", "kind"),
    [
        pytest.param(
            lambda: os.environ["NO SUCH"] and {}, KeyError, id="taken for an unknown verb"
        ),
        pytest.param(lambda: 1 // 0, ZeroDivisionError, id="an exception"),
        pytest.param(lambda: {"says": b""}, TypeError, id="no JSON"),
        pytest.param(lambda: {"says": "x" * ANSWER_BYTES}, ValueError, id="too long"),
    ],
)
def test_a_bug_in_an_answer_reaches_the_caller_and_the_loop_and_the_server_goes_on(
    session: Session, bug: Callable[[], Mapping[str, object]], kind: type[Exception]
) -> None:
    session.verbs["fail"] = bug
    with pytest.raises(UserError, match="refused"):
        session.ask("fail")
    assert [type(error) for error in session.bugs] == ([] if kind is KeyError else [kind])
    assert session.ask("reconnect")["ok"] is True


def test_the_longest_answer_arrives_whole(session: Session) -> None:
    room = ANSWER_BYTES - len('{"ok": true, "says": ""}\n')
    session.verbs["status"] = lambda: {"says": "x" * room}
    assert session.ask("status") == {"ok": True, "says": "x" * room}


def test_an_answer_may_close_the_server_and_still_be_heard(session: Session) -> None:
    session.verbs["stop"] = lambda: session.server.close() or {"says": "stopping"}  # type: ignore[func-returns-value]
    assert session.ask("stop") == {"ok": True, "says": "stopping"}
    with pytest.raises(UserError, match="no session"):
        session.ask("stop")


def test_closing_hangs_up_on_callers_and_may_be_repeated(session: Session) -> None:
    peer = session.call()
    session.settle()
    session.server.close()
    session.server.close()
    assert session.answer(peer) == b""
    assert session.name not in sessions()


def test_a_caller_that_does_not_wait_for_its_answer_harms_nobody(session: Session) -> None:
    session.call(RECONNECT).close()
    session.settle()
    assert session.ask("reconnect")["ok"] is True
    assert session.bugs == []


# --- callers that mean no good ----------------------------------------------------------------

NONSENSE = [
    pytest.param(b"\n", id="nothing"),
    pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="another protocol"),
    pytest.param(b"\xff\xfe\n", id="no UTF-8"),
    pytest.param(b'"reconnect"\n', id="no object"),
    pytest.param(b"{}\n", id="no verb"),
    pytest.param(b'{"do": ["reconnect"]}\n', id="a verb that is no text"),
    pytest.param(RECONNECT + RECONNECT, id="two lines"),
    pytest.param(b"[" * (REQUEST_BYTES - 1) + b"\n", id="a thousand brackets"),
    pytest.param(b"x" * (REQUEST_BYTES + 1), id="too long"),
    pytest.param(b" " * REQUEST_BYTES + RECONNECT, id="too long before it begins"),
    pytest.param(b"x" * 50_000, id="far too long"),
]


@pytest.mark.parametrize("said", NONSENSE)
def test_nonsense_is_answered_by_an_error(session: Session, said: bytes) -> None:
    assert list(json.loads(session.answer(session.call(said)))) == ["error"]
    assert session.bugs == []
    assert session.ask("reconnect")["ok"] is True


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode() + b"\n"))
def test_any_bytes_are_a_verb_or_an_error(said: bytes) -> None:
    try:
        assert isinstance(decode_request_untrusted(said), str)
    except MessageError:
        pass


@given(st.text(max_size=50))
def test_every_verb_that_is_encoded_is_decoded(verb: str) -> None:
    assert decode_request_untrusted(json.dumps({"do": verb}).encode() + b"\n") == verb


def test_a_caller_that_ends_in_the_middle_of_a_line_is_hung_up_on(session: Session) -> None:
    peer = session.call(RECONNECT[:7])
    peer.shutdown(socket.SHUT_WR)
    assert session.answer(peer) == b""


def test_a_caller_that_falls_silent_in_the_middle_of_a_line_is_hung_up_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "DEADLINE_S", 0.05)
    assert session.answer(session.call(RECONNECT[:7])) == b""
    assert session.answer(session.call()) == b""


def test_the_number_of_silent_callers_is_bounded_and_their_end_makes_room(session: Session) -> None:
    silent = [session.call() for _ in range(CALLERS)]
    session.run(asyncio.sleep(0.05))
    assert session.answer(session.call(RECONNECT)) == b""
    silent[0].close()
    session.settle()
    assert session.ask("reconnect")["ok"] is True
    silent[1].sendall(RECONNECT)
    assert json.loads(session.answer(silent[1]))["ok"] is True


def test_many_commands_at_once_are_all_answered(session: Session) -> None:
    peers = [session.call(RECONNECT) for _ in range(4 * CALLERS)]
    answers = {session.answer(peer) for peer in peers}
    assert [json.loads(answer) for answer in answers] == [{"ok": True, **SAYS}]


@contextmanager
def paused(session: Session) -> Iterator[socket.socket]:
    """A caller that waits because the server is out of descriptors, and has noticed."""
    peer = session.call(RECONNECT)
    listener = session.server._listener
    assert listener is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)  # the lowest free number
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        session.settle()
        assert session.loop.remove_reader(listener) is False  # it does not even look
        yield peer
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_out_of_descriptors_it_pauses_and_then_takes_who_waited(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ACCEPT_PAUSE_S", 0.2)
    with paused(session) as peer:
        pass
    assert json.loads(session.answer(peer))["ok"] is True


def test_closed_while_it_pauses_it_stays_closed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ACCEPT_PAUSE_S", 0.2)
    with paused(session) as peer:
        session.server.close()
    session.run(asyncio.sleep(0.3))
    assert session.answer(peer) == b""
    assert session.bugs == []


@as_root
def test_another_user_is_hung_up_on_without_a_word(session: Session) -> None:
    program = """
peer = socket.socket(socket.AF_UNIX)
peer.connect(NAME)
try:
    peer.send(b'{"do": "reconnect"}\\n')
    print(peer.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""
    command = as_nobody(program, name_of(session.name))
    said = session.meanwhile(lambda: subprocess.run(command, capture_output=True, check=True))
    assert said.stdout == b"b''\n"
    assert session.bugs == []


@as_root
def test_other_users_may_call_as_often_as_they_like_and_hold_up_nothing(session: Session) -> None:
    program = """
import time
called, end = 0, time.monotonic() + 1
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        try:
            peer.connect(NAME)
            called += 1
        except BlockingIOError:
            time.sleep(0.0001)
print(called)
"""
    command = as_nobody(program, name_of(session.name))
    said = session.meanwhile(lambda: subprocess.run(command, capture_output=True, check=True))
    assert int(said.stdout) <= 20 * control.BACKLOG  # not tens of thousands
    session.run(asyncio.sleep(2 * STRANGER_PAUSE_S))
    assert session.ask("reconnect") == {"ok": True, **SAYS}
    assert session.bugs == []


# --- sessions that mean no good ---------------------------------------------------------------


@as_root
def test_a_name_that_another_user_has_taken_is_told_nothing() -> None:
    program = """
listener = socket.socket(socket.AF_UNIX)
listener.bind(NAME)
listener.listen()
print("taken", flush=True)
peer, _ = listener.accept()
print(peer.recv(100), flush=True)
sys.stdin.read()
"""
    name = secrets.token_hex(4)
    command = as_nobody(program, name_of(name))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"taken\n"
        with pytest.raises(UserError, match="held by another user") as caught:
            ask(name, "reconnect")
        assert squatter.stdout.readline() == b"b''\n"
        loop = asyncio.new_event_loop()
        ControlServer(loop, take(name), lambda _: {}).close()  # the session does without
        loop.close()
        squatter.communicate()
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        pytest.param(b"", "hung up", id="hangs up"),
        pytest.param(DRIP, "does not answer", id="drips"),
        pytest.param(b'{"ok": true}', "does not answer", id="no end of line"),
        pytest.param(b"nonsense\n", "gave no answer", id="no JSON"),
        pytest.param(b"x" * (ANSWER_BYTES + 1), "gave no answer", id="too long"),
        pytest.param(b"{}\n", "refused", id="neither ok nor an error"),
        pytest.param(b'{"ok": true}\n{"ok": true}\n', "gave no answer", id="two lines"),
        pytest.param(b'{"error": "no\\u001b[2J\\nway"}\n', r"refused: no \[2J way", id="terminal"),
    ],
)
def test_a_bad_answer_is_an_error_of_two_lines(
    said: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "DEADLINE_S", 0.3 if problem == "does not answer" else PATIENCE_S)
    name = secrets.token_hex(4)
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(name_of(name))
        listener.listen()
        asking = pool.submit(ask, name, "reconnect")
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(REQUEST_BYTES) == RECONNECT
            if said:
                peer.sendall(said)
            else:
                peer.close()
            while said == DRIP and not asking.done():
                with suppress(BrokenPipeError, ConnectionResetError):
                    peer.sendall(said)
                time.sleep(0.05)
            with pytest.raises(UserError, match=problem) as caught:
                asking.result(PATIENCE_S)
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_session_too_busy_to_be_called_is_an_error_at_once() -> None:
    name = secrets.token_hex(4)
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(name_of(name))
        listener.listen(0)
        undo.enter_context(socket.socket(socket.AF_UNIX)).connect(name_of(name))
        with pytest.raises(UserError, match="gave no answer"):
            ask(name, "reconnect")


@pytest.mark.parametrize("name", ["00000000", "", "nonsense", "../etc", "0" * 200, "\udcff"])
def test_asking_a_session_that_does_not_run_says_which_do(session: Session, name: str) -> None:
    with pytest.raises(UserError, match="no session") as caught:
        session.meanwhile(lambda: ask(name, "reconnect"))
    assert session.name in caught.value.hint
    assert caught.value.exit_code == ExitCode.USAGE


def test_sessions_are_those_of_this_user_that_listen(session: Session) -> None:
    stranger, silent, longer, forged = (secrets.token_hex(4) for _ in range(4))
    with ExitStack() as undo:

        def bind(name: str, *, listen: bool = True) -> None:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(name)
            if listen:
                sock.listen()

        bind(f"\0sshunt/{os.geteuid() + 1}/{stranger}")
        bind(name_of(silent), listen=False)
        bind(name_of(f"{longer}x"))
        bind(name_of(f"\n{forged}"))
        session.call()
        session.settle()  # an accepted socket bears the name, too
        found = sessions()
    assert found.count(session.name) == 1
    assert not {stranger, silent, longer, forged} & set(found)
    assert found == sorted(found)


# --- what a session says of itself ----------------------------------------------------------------

GATE = "gate [0123abcd]"
OFFICE = Route(ip_network("10.0.0.0/8"), Action.REMOTE)
CONNECTED = RemoteConnected(GATE, "gate", 0.02, (OFFICE,), has_dns=True)


def said(*events: Event) -> Report:
    report = Report(lambda error: pytest.fail(str(error)))
    for event in events:
        report.say(event)
    return report


def test_a_session_that_is_up_says_so_and_whom_it_is_connected_to() -> None:
    ways = (("203.0.113.7", 22),)
    report = said(PeersBypassed(GATE, (("203.0.113.6", 22),)), CONNECTED, PeersBypassed(GATE, ways))
    assert about(report, GATE) == {
        "host": "gate",
        "says": "gate, 10.0.0.0/8, and DNS: connected",
        "ways": ways,
    }


def test_a_session_that_is_lost_names_nobody() -> None:
    report = said(
        PeersBypassed(GATE, (("203.0.113.7", 22),)),
        CONNECTED,
        RemoteLost(GATE, 0.0, "", 0, are_kept=True),
    )
    assert about(report, GATE)["says"] == "gate, 10.0.0.0/8, and DNS: connecting again"
    assert about(report, GATE)["ways"] == ()
    report.say(RemoteReconnected(GATE, 1.0, 0))
    assert about(report, GATE)["ways"] == (("203.0.113.7", 22),)


def test_a_session_names_no_more_endpoints_than_another_one_heeds() -> None:
    report = said(PeersBypassed(GATE, (("203.0.113.7", 22),) * (2 * MOST_ENDPOINTS)))
    assert about(report, GATE)["ways"] == (("203.0.113.7", 22),) * MOST_ENDPOINTS


def test_a_session_that_has_reported_nothing_still_has_a_name() -> None:
    assert about(said(), GATE) == {"host": GATE, "says": f"{GATE}: connected", "ways": ()}
