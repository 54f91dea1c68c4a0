"""The status line, from snapshots, on a terminal."""

import os
import pty

import pytest

from sshunt.tell.console import Console
from sshunt.tell.snapshot import Snapshot
from sshunt.tell.status import StatusLine

NOTHING = Snapshot(0, 0, 0, 0.0)


def shown(*snapshots: Snapshot, every_s: float = 1.0) -> list[str]:
    """What the line said after each; a line that stays as it is, is not drawn again."""
    seen, written = pty.openpty()
    with os.fdopen(seen, "rb", buffering=0) as screen, os.fdopen(written, "w") as stream:
        line = StatusLine(Console(0, stream), NOTHING, every_s)
        for snapshot in snapshots:
            line.show(snapshot)
        stream.write("\r\n")
        stream.flush()
        drawn = b""
        while not drawn.endswith(b"\n"):
            drawn += screen.read(1000)
    return [text.strip() for text in drawn.decode().split("\r\x1b[K")[1:]]


@pytest.fixture(autouse=True)
def an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def test_while_it_is_up_it_shows_connections_and_speed() -> None:
    assert shown(Snapshot(1, 125_000, 12_500, 0.0234)) == [
        "1 connection, down 1 Mbit/s, up 100 kbit/s, RTT 23.4 ms"
    ]


def test_speed_is_what_has_been_moved_since_the_last_one() -> None:
    first, second = Snapshot(2, 1000, 0, 0.01), Snapshot(2, 3000, 0, 0.01)
    assert shown(first, second, every_s=2.0) == [
        "2 connections, down 4 kbit/s, up 0 bit/s, RTT 10.0 ms",
        "2 connections, down 8 kbit/s, up 0 bit/s, RTT 10.0 ms",
    ]


def test_while_it_is_lost_it_shows_for_how_long_and_who_waits() -> None:
    lost = NOTHING._replace(connections=3, lost_for_s=4.4)
    assert shown(lost, lost._replace(lost_for_s=5.4, next_attempt_s=7.6)) == [
        "no connection for 4 s, 3 connections waiting, connecting",
        "no connection for 5 s, 3 connections waiting, next attempt in 8 s",
    ]


def test_an_outage_of_zero_seconds_is_shown_as_an_outage() -> None:
    assert shown(NOTHING._replace(connections=1, lost_for_s=0.0)) == [
        "no connection for 0 s, 1 connection waiting, connecting"
    ]
