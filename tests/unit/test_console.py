"""What a person sees, on a terminal and in a file."""

import io
from contextlib import suppress

from sshunt.console import Console
from sshunt.errors import ExitCode, UserError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_file_there_are_plain_lines_and_no_status() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.status("3 connections")
    console.line("connected")
    console.status("4 connections")
    assert stream.getvalue() == "sshunt: connected\n"


def test_on_a_terminal_the_status_line_stays_below_the_lines() -> None:
    stream = Terminal()
    console = Console(stream=stream)
    console.status("3 connections")
    console.line("something happened")
    assert stream.getvalue().endswith("\r\x1b[Ksshunt: something happened\n3 connections")


def test_the_status_line_is_not_redrawn_when_nothing_changed() -> None:
    stream = Terminal()
    console = Console(stream=stream)
    console.status("idle")
    before = stream.getvalue()
    console.status("idle")
    assert stream.getvalue() == before


def test_an_error_is_two_lines() -> None:
    stream = io.StringIO()
    Console(stream=stream).error(UserError("it broke", "mend it", ExitCode.LOST))
    assert stream.getvalue() == "sshunt: error: it broke\nsshunt: hint: mend it\n"


def test_details_are_for_who_asked() -> None:
    stream = io.StringIO()
    console = Console(1, stream)
    console.detail(2, "very fine")
    console.detail(1, "fine")
    assert stream.getvalue().endswith(" fine\n")
    assert "very" not in stream.getvalue()


def test_a_reader_that_went_away_does_not_end_the_tunnel() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    stream.close()
    console.line("nobody reads this")


def test_a_full_disk_does_not_end_the_tunnel() -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115 (closing it fails, too)
    console = Console(stream=stream)
    console.line("nobody can keep this")
    console.line("nor this")
    with suppress(OSError):
        stream.close()
