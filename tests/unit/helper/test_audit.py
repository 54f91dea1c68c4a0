"""The host's log hears who asked root for what, and nothing that could be another's line."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.helper.audit import Audit
from sshunt.helper.protocol import Done, Refusal, Refused


@pytest.fixture
def log(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.settimeout(5)
        yield sock


def test_a_line_says_who_asked_for_what_and_what_became_of_it(log: socket.socket) -> None:
    audit = Audit(1000, 4711, log.getsockname())
    audit.answered("feedface", "retain 192.0.2.7", Done())
    audit.answered("feedface", "guard", Refused(Refusal.WRONG_ORDER, "?"))
    audit.close()
    who = b"uid 1000, process 4711, session feedface: "
    assert log.recv(1000).partition(b"]: ")[2] == who + b"retain 192.0.2.7: done"
    line = log.recv(1000)
    assert line.startswith(b"<86>sshunt-helper[")
    assert line.endswith(who + b"guard: refused (wrong-order)")


def test_a_log_that_is_full_or_not_there_holds_nobody_up(log: socket.socket) -> None:
    audit = Audit(0, 0, log.getsockname())
    for _ in range(10_000):
        audit.answered("", "guard", Done())
    audit.close()
    audit.answered("", "guard", Done())
    Audit(0, 0, "/nonexistent").answered("", "guard", Done())


def test_a_line_is_one_line_and_not_a_long_one() -> None:
    line = Audit(0, 0, "/nonexistent").line("", "bypass " + "x\n\x1b[2J" * 1000, Done())
    assert line.isprintable()
    assert len(line) < 500
    assert line.startswith("uid 0, session none: bypass x??[2J")
