"""``sshunt reconnect`` asks the sessions it should, and says what they do."""

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.commands.reconnect import reconnect
from sshunt.errors import ExitCode, UserError
from sshunt.tell.console import Console
from sshunt.tell.control import ControlServer, sessions
from sshunt.tell.session_name import take
from tests.unit.tell.test_control import SAYS, Session, as_nobody, as_root


@pytest.fixture
def session() -> Iterator[Session]:
    with ExitStack() as undo:
        yield Session(undo)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other sshunt of this user runs: it is another user, as far as names go."""
    uid = 1_000_000 + secrets.randbelow(1_000_000)
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_reconnect_says_what_the_named_session_does(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.meanwhile(lambda: reconnect([session.name], Console())) == ExitCode.OK
    assert capsys.readouterr().out == line_of(session)


@as_root  # whom every session trusts, whoever we seem to be
def test_reconnect_asks_all_sessions_even_if_some_fail(
    alone: None, session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(verb: str) -> Mapping[str, object]:
        raise KeyError(verb)

    for name in ("00000000", "ffffffff"):
        session.undo.callback(ControlServer(session.loop, take(name), refuse).close)
    stderr = tmp_path / "stderr"
    with stderr.open("w") as stream:
        with pytest.raises(UserError, match="session ffffffff refused"):
            session.meanwhile(lambda: reconnect([], Console(stream=stream)))
    assert stderr.read_text().startswith("sshunt: error: session 00000000 refused: ")
    assert len(stderr.read_text().splitlines()) == 2
    assert capsys.readouterr().out == line_of(session)


def squatters(names: list[str], uid: int) -> "subprocess.Popen[bytes]":
    """Another user who listens at these names of user ``uid``; half of them have no room."""
    program = """
held = []
for place, name in enumerate(sys.argv[2:]):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind(NAME + name)
    held[-1].listen(0 if place % 2 else 5)
    if place % 2:
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect(NAME + name)
print("taken", flush=True)
sys.stdin.read()
"""
    command = [*as_nobody(program, f"sshunt/{uid}/"), *names]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@as_root
def test_names_that_another_user_has_taken_are_passed_over(
    alone: None, session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number:08x}" for number in range(8)]
    with squatters(names, os.geteuid()) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"taken\n"
        assert set(names) < set(sessions())
        assert session.meanwhile(lambda: reconnect([], Console())) == ExitCode.OK
        assert capfd.readouterr() == (line_of(session), "")
        with pytest.raises(UserError, match="held by another user"):
            reconnect([names[0]], Console())
        squatter.communicate()


@as_root
def test_names_taken_by_other_users_count_as_no_session(alone: None) -> None:
    with squatters(["00000000"], os.geteuid()) as squatter:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        with pytest.raises(UserError, match="no sshunt of yours is running"):
            reconnect([], Console())
        squatter.communicate()


@as_root
def test_a_session_may_be_named_by_its_server(
    alone: None, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.verbs["about"] = lambda: {"host": "gate.example", "says": ""}
    other = ControlServer(
        session.loop, take("00000000"), lambda verb: {"host": "door", "says": "asked"}
    )
    session.undo.callback(other.close)
    asked = session.meanwhile(lambda: reconnect(["gate.example"], Console()))
    assert asked == ExitCode.OK
    assert capsys.readouterr().out == line_of(session)
    with pytest.raises(UserError, match="no session 'elsewhere'"):
        session.meanwhile(lambda: reconnect(["elsewhere"], Console()))


def line_of(session: Session) -> str:
    return f"session {session.name} (process {os.getpid()}): {SAYS['says']}\n"


def test_reconnect_without_a_session_needs_one_that_runs(alone: None) -> None:
    with pytest.raises(UserError, match="no sshunt of yours is running") as caught:
        reconnect([], Console())
    assert caught.value.hint.startswith("start one: ")
    with pytest.raises(UserError, match="no session '00000000'") as caught:
        reconnect(["00000000"], Console())
    assert "start one: " in caught.value.hint


def test_reconnect_has_a_help_text_and_refuses_extra_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        reconnect(["--help"], Console())
    assert re.search(r"all sessions\s+of yours", capsys.readouterr().out)
    with pytest.raises(UserError, match="unrecognized"):
        reconnect(["one", "two"], Console())
