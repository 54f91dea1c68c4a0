"""Events are shown as lines, to who asked for that much."""

import os
import pty
import re
import tempfile

import pytest

from sshunt.tell import printer
from sshunt.tell.console import Console
from sshunt.tell.printer import Printer
from sshunt.tell.report import (
    FIRST_LOGIN,
    FURTHER_LOGIN,
    LATER_LOGIN,
    Event,
    FrontPaused,
    FrontResumed,
    LaneOpened,
    LoginEnded,
    LoginStarted,
    RemoteReconnected,
    Report,
    SshSaid,
    StreamOpened,
)


def shown(verbosity: int, *events: Event) -> str:
    """What stands in a file of stderr; the times of details as TIME."""
    with tempfile.TemporaryFile("w+") as stream:
        bugs: list[Exception] = []
        report = Report(bugs.append)
        Printer(Console(verbosity, stream), report)
        for event in events:
            report.say(event)
        assert bugs == []
        stream.seek(0)
        return re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "TIME", stream.read())


def test_an_event_for_everybody_is_one_line() -> None:
    assert shown(0, RemoteReconnected("gate", 1.0, 0)) == (
        "sshunt: connected to gate again after 1.0 s\n"
    )


@pytest.mark.parametrize("event", [LaneOpened("gate", 2), StreamOpened("gate", 2, "10.0.0.1", 80)])
def test_details_are_shown_to_who_asked(event: Event) -> None:
    assert shown(0, event) == ""
    assert re.fullmatch(r"sshunt: TIME (lane|stream) 2.*\n", shown(1, event))


def test_the_first_login_s_lines_are_shown_as_they_are_and_later_ones_to_who_asked() -> None:
    logins = [SshSaid("gate", n, f"login {n}") for n in (FIRST_LOGIN, LATER_LOGIN, FURTHER_LOGIN)]
    assert shown(0, *logins) == "login 0\n"
    assert shown(1, *logins) == "login 0\nsshunt: TIME login 1\n"
    assert shown(2, *logins) == "login 0\nsshunt: TIME login 1\nsshunt: TIME login 2\n"


IPV4, IPV6 = FrontPaused("127.0.0.1 port 9", "spent"), FrontPaused("::1 port 9", "spent")
COMPLAINT = "sshunt: spent; new ones wait until one of the open ones ends\n"


def test_a_front_that_pauses_again_and_again_is_shown_once_in_a_while() -> None:
    assert shown(0, IPV4, IPV4, FrontResumed(IPV4.front), IPV4) == COMPLAINT


def test_each_front_complains_for_itself() -> None:
    assert shown(0, IPV4, IPV6, IPV4) == 2 * COMPLAINT


def test_after_a_while_a_front_may_complain_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printer, "COMPLAIN_EVERY_S", -1.0)
    assert shown(0, IPV4, IPV4) == 2 * COMPLAINT


def test_while_ssh_may_ask_there_is_no_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    seen, written = pty.openpty()
    with os.fdopen(seen, "rb", buffering=0) as screen, os.fdopen(written, "w") as stream:
        console = Console(0, stream)
        bugs: list[Exception] = []
        report = Report(bugs.append)
        Printer(console, report)
        report.say(LoginStarted("gate"))
        console.status("asked")
        report.say(LoginStarted("lab"))
        report.say(LoginEnded("gate"))
        console.status("asked still")
        report.say(LoginEnded("lab"))
        console.status("asked no more")
        assert screen.read(1000) == b"\r\x1b[Kasked no more"
    assert bugs == []
