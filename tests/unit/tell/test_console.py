"""What a person sees, on a terminal and in a file, and that nobody who reads it can stop us."""

import fcntl
import os
import pty
import re
import select
import struct
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.tell.console import Console
from tests.e2e.terminals import Screen


@pytest.fixture(autouse=True)
def an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("XTERM_VERSION", "STY", "TMUX", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def file() -> Iterator[TextIO]:
    with tempfile.TemporaryFile("w+") as stream:
        yield stream


def content(stream: TextIO) -> str:
    stream.seek(0)
    return stream.read()


@contextmanager
def terminal() -> Iterator[tuple[TextIO, int]]:
    """A terminal (nobody's controlling one), and the descriptor of who looks at it."""
    seen, written = pty.openpty()
    with os.fdopen(written, "w") as stream:
        yield stream, seen
    os.close(seen)


def shown_up_to(text: str, seen: int) -> str:
    """What a terminal shows until ``text`` ends it: it comes there when the kernel gets to it."""
    shown = ""
    while not shown.endswith(text) and select.select([seen], [], [], 5)[0]:
        shown += os.read(seen, 1000).decode()
    return shown


def test_in_a_file_there_are_plain_lines_and_no_status() -> None:
    with file() as stream:
        console = Console(stream=stream)
        console.status("3 connections")
        console.line("connected")
        console.status("4 connections")
        assert content(stream) == "sshunt: connected\n"


def test_on_a_terminal_the_status_line_stays_below_the_lines() -> None:
    with terminal() as (stream, seen):
        console = Console(stream=stream)
        console.status("3 connections")
        console.line("something happened")
        expected = "\r\x1b[Ksshunt: something happened\r\n3 connections"
        assert shown_up_to(expected, seen).endswith(expected)


def test_the_status_line_is_not_redrawn_when_nothing_changed() -> None:
    with terminal() as (stream, seen):
        console = Console(stream=stream)
        console.status("idle")
        console.status("idle")
        console.status("busy")
        assert shown_up_to("busy", seen).count("idle") == 1


def test_an_error_is_two_lines() -> None:
    with file() as stream:
        Console(stream=stream).error(UserError("it broke", "mend it", ExitCode.LOST))
        assert content(stream) == "sshunt: error: it broke\nsshunt: hint: mend it\n"


def test_details_appear_only_with_v_and_carry_the_time() -> None:
    with file() as stream:
        console = Console(1, stream)
        console.detail(2, "very fine")
        console.detail(1, "fine")
        assert re.fullmatch(r"sshunt: \d\d:\d\d:\d\d\.\d{3} fine\n", content(stream))


def test_a_stopped_reader_of_the_output_delays_nobody_and_is_told_what_was_dropped() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        console = Console(stream=stream)
        for number in range(10_000):  # far more than a pipe holds
            console.line(f"line {number}")
        first = os.read(read_end, 1 << 20).decode()
        console.line("the last")
        second = os.read(read_end, 1 << 20).decode()
    os.close(read_end)
    shown = first.count("\n")
    assert 0 < shown < 10_000
    assert second == f"sshunt: ({10_000 - shown} lines were not shown)\nsshunt: the last\n"


def test_a_reader_that_went_away_ends_nothing() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        Console(stream=stream).line("nobody reads this")


def test_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "w") as stream:
        Console(stream=stream).line("nobody can keep this")


def test_a_closed_stderr_ends_nothing() -> None:
    with file() as stream:
        pass
    Console(stream=stream).line("there is nobody")


@contextmanager
def asked(stream: TextIO) -> Iterator[None]:
    """Somebody asks at the terminal, as ssh does for a password."""
    before = termios.tcgetattr(stream)
    now = termios.tcgetattr(stream)
    now[3] &= ~termios.ECHO
    termios.tcsetattr(stream, termios.TCSANOW, now)
    yield
    termios.tcsetattr(stream, termios.TCSANOW, before)


def test_a_line_that_comes_while_a_question_is_open_is_written_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal() as (stream, seen):
        console = Console(stream=stream)
        with asked(stream):
            os.write(stream.fileno(), b"password: ")
            console.raw("Permission denied, please try again.")
        screen = Screen(4, 80)
        screen.feed(shown_up_to("\x1b8\x1b[1B", seen))
        shown = [row.rstrip() for row in screen.rows]
        assert shown[:3] == ["Permission denied, please try again.", "password:", ""]
        assert (screen.row, screen.column) == (1, len("password: "))


def test_the_status_line_gives_way_while_ssh_may_ask() -> None:
    with terminal() as (stream, seen):
        console = Console(stream=stream)
        console.status("3 connections")
        console.give_way()
        console.status("4 connections")
        os.write(stream.fileno(), b"password: ")
        console.status("5 connections")
        console.take_back()
        console.status("6 connections")
        expected = "\r\x1b[K3 connections\r\x1b[Kpassword: \r\x1b[K6 connections"
        assert shown_up_to(expected, seen) == expected


def resize(stream: TextIO, columns: int) -> None:
    fcntl.ioctl(stream.fileno(), termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))


def test_a_status_line_that_a_narrower_window_has_wrapped_is_wiped_out_whole() -> None:
    with terminal() as (stream, seen):
        resize(stream, 80)
        console = Console(stream=stream)
        console.status("x" * 75)
        resize(stream, 40)
        console.status("x" * 75)  # nothing new but the width
        expected = "\x1b[A\r\x1b[J" + "x" * 39
        assert shown_up_to(expected, seen).endswith(expected)
        resize(stream, 20)
        console.line("news")
        expected = "\x1b[A\r\x1b[Jsshunt: news\r\n" + "x" * 39
        assert shown_up_to(expected, seen).endswith(expected)


@pytest.mark.parametrize("name", ["XTERM_VERSION", "STY"])
def test_a_terminal_that_cuts_lines_off_keeps_the_line_above(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with terminal() as (stream, seen):
        resize(stream, 80)
        console = Console(stream=stream)
        console.status("x" * 75)
        resize(stream, 40)
        console.status("done")
        assert shown_up_to("\r\x1b[Kdone", seen).endswith("\r\x1b[Kdone")


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_terminal_without_sequences_gets_none_and_no_status_line(
    term: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if term is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", term)
    with terminal() as (stream, seen):
        console = Console(stream=stream)
        console.status("3 connections")
        console.line("one")
        console.status("4 connections")
        console.status("")
        console.line("two")
        assert shown_up_to("two\r\n", seen) == "sshunt: one\r\nsshunt: two\r\n"
