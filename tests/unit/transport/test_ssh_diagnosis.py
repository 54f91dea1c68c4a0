"""What ssh says becomes one line of what and one line of what to do."""

import time

import pytest

from sshunt.errors import ExitCode
from sshunt.transport.ssh_diagnosis import (
    diagnose,
    endless_noise,
    is_diagnosed,
    quote_untrusted,
    silence,
    silence_after_login,
)

#: Real lines of OpenSSH 7.4 to 9.9, and the kind of failure they mean.
SAID = [
    ("ssh: Could not resolve hostname gate: Name or service not known", ExitCode.NAME, "gate"),
    (
        "ssh: connect to host gate port 22: Connection refused",
        ExitCode.CONNECT,
        "nothing listens on gate port 22",
    ),
    ("ssh: connect to host gate port 22: Connection timed out", ExitCode.CONNECT, "timed out"),
    ("ssh: connect to host 10.1.2.3 port 22: No route to host", ExitCode.CONNECT, "No route"),
    ("ssh: connect to host ::1 port 22: Network is unreachable", ExitCode.CONNECT, "unreachable"),
    ("alice@gate: Permission denied (publickey,password).", ExitCode.AUTH, "alice@gate"),
    (
        "Received disconnect from 192.0.2.2 port 22:2: Too many authentication failures",
        ExitCode.AUTH,
        "too many keys",
    ),
    ("Host key verification failed.", ExitCode.HOST_KEY, "not known"),
    (
        "No ED25519 host key is known for [gate]:22 and you have requested strict checking.",
        ExitCode.HOST_KEY,
        "not known",
    ),
    (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
        ExitCode.HOST_KEY,
        "has changed",
    ),
    (
        "Unable to negotiate with 192.0.2.2 port 22: no matching host key type found. "
        "Their offer: ssh-rsa",
        ExitCode.CONNECT,
        "ssh-rsa",
    ),
    ("Bad owner or permissions on /home/a/.ssh/config", ExitCode.USAGE, "/home/a/.ssh/config"),
    (
        "command-line: line 0: Bad configuration option: nosuch",
        ExitCode.USAGE,
        "Bad configuration option: nosuch",
    ),
    (
        "usage: ssh [-46AaCfGgKkMNnqsTtVvXxYy] [-B bind_interface]",
        ExitCode.USAGE,
        "does not understand",
    ),
    ("unknown option -- Z", ExitCode.USAGE, ""),
    (
        "kex_exchange_identification: Connection closed by remote host",
        ExitCode.CONNECT,
        "did not greet",
    ),
    ("Connection closed by 192.0.2.2 port 22", ExitCode.CONNECT, "Connection closed"),
    ("Connection closed by UNKNOWN port 65535", ExitCode.CONNECT, "ProxyCommand"),
    ("rbash: line 1: /bin/sh: restricted: cannot specify `/'", ExitCode.REMOTE, "restricted"),
    ("rbash: line 1: exec: restricted", ExitCode.REMOTE, "restricted"),
    ("ModuleNotFoundError: No module named 'asyncio'", ExitCode.NO_PYTHON, "asyncio"),
]


@pytest.mark.parametrize(("line", "exit_code", "fragment"), SAID)
def test_what_ssh_says_has_its_kind_and_its_advice(
    line: str, exit_code: ExitCode, fragment: str
) -> None:
    error = diagnose(255, ["a banner", line, "debug1: noise"], b"")
    assert error.exit_code == exit_code
    assert fragment in error.message
    assert error.hint
    assert "\n" not in error.message + error.hint


def nasty_lines() -> list[str]:
    """What makes patterns of these words try most: words of theirs repeated, alone and in pairs."""
    words = {word for line, _, _ in SAID for word in (line, *line.split())}
    ends = ("x", ": ", ":", " ", "sh: ", "(", "port 22: ", "line 0: ")
    return [(word + end) * (1000 // len(word + end)) for word in sorted(words) for end in ends]


def test_no_line_costs_more_than_a_bounded_time_whatever_is_in_it() -> None:
    lines = nasty_lines() + [line * (1000 // len(line)) for line, _, _ in SAID]
    begin = time.process_time()
    for line in lines:
        is_diagnosed(line)
    for first in range(0, 450, 30):
        diagnose(255, lines[first : first + 30], b"")
    # 450 of them are what a server may send in one period. They take milliseconds; where patterns
    # try everything, minutes.
    assert time.process_time() - begin < 2.0 * len(lines) / 450


def test_only_the_beginning_of_a_line_is_judged() -> None:
    assert not is_diagnosed("At noon: Connection refused by ssh: connect to host gate port 22")
    assert is_diagnosed("ssh: connect to host gate port 22: Connection refused" + "x" * 1000)


def test_a_changed_key_is_told_before_the_failed_verification() -> None:
    lines = ["WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!", "Host key verification failed."]
    assert "changed" in diagnose(255, lines, b"").message


def test_every_line_about_a_host_key_is_shown_in_full() -> None:
    assert not is_diagnosed("@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @")
    assert is_diagnosed("alice@gate: Permission denied (publickey).")
    assert is_diagnosed("sshunt: found no Python here (tried: python3)")
    assert not is_diagnosed("Welcome to the gate")


def test_the_far_sides_python_has_its_own_kind() -> None:
    none = diagnose(97, ["sshunt: found no Python here (tried: python3)"], b"")
    old = diagnose(98, ["sshunt: python is Python 2.7.18, and Python 3.6 or newer is needed"], b"")
    assert (none.exit_code, old.exit_code) == (ExitCode.NO_PYTHON, ExitCode.NO_PYTHON)
    assert "python3" in none.message
    assert "2.7.18" in old.message
    assert "--python" in none.hint
    assert "--python" in old.hint


@pytest.mark.parametrize(
    ("status", "exit_code", "fragment"),
    [
        (-9, ExitCode.CONNECT, "SIGKILL"),
        (-250, ExitCode.CONNECT, "signal 250"),
        (255, ExitCode.CONNECT, "ssh failed"),
        (127, ExitCode.REMOTE, "could not run"),
        (96, ExitCode.REMOTE, "standard input"),
        (126, ExitCode.REMOTE, "could not run"),
        (0, ExitCode.REMOTE, "status 0"),
        (1, ExitCode.REMOTE, "not currently available"),
    ],
)
def test_without_a_known_line_the_exit_status_decides(
    status: int, exit_code: ExitCode, fragment: str
) -> None:
    error = diagnose(status, [], b"This account is not currently available.\n")
    assert error.exit_code == exit_code
    assert fragment in error.message


def test_a_login_shells_output_is_quoted_whatever_is_on_stderr() -> None:
    lines = ["Warning: Permanently added 'gate' (ED25519) to the list of known hosts."]
    error = diagnose(1, lines, b"This account is currently not available.\n")
    assert "This account is currently not available." in error.message
    assert "status 1" in error.message
    assert "Warning: Permanently" in error.message


def test_what_the_far_side_printed_is_quoted_printable_and_short() -> None:
    quoted = quote_untrusted(b"\x1b[2J\xff" + b"noise " * 1000)
    assert quoted.isprintable()
    assert len(quoted) < 200
    assert "65536 bytes" in endless_noise(b"x" * 65536).message


def test_kinds_of_silence_are_told_apart() -> None:
    said = [silence(30.0, b""), silence(30.0, b"wait\x07"), silence_after_login(90.0)]
    assert [error.message for error in said] == [
        "the far side did not answer within 30 s",
        "the far side did not answer within 30 s; it printed 'wait '",
        "logged in, but the far side's shell did not start sshunt's program within 90 s",
    ]
    assert {error.exit_code for error in said} == {ExitCode.REMOTE}


def test_a_silent_failure_hints_at_loglevel_quiet() -> None:
    assert "LogLevel QUIET" in diagnose(255, [], b"").hint
    assert "LogLevel" not in diagnose(255, ["something else"], b"").hint
