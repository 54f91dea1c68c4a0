"""The terminal's echo comes back, and nothing else about it changes."""

import os
import pty
import subprocess
import sys
import termios

#: Remembers the modes, has the echo turned off as ssh does, and restores them.
PROGRAM = """\
import termios
from sshunt.host.terminal import TerminalModes
modes = TerminalModes()
now = termios.tcgetattr(0)
now[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, now)
modes.restore()
"""


def echo_after(*before: str) -> bool:
    """Whether a terminal, whose echo is on, has it after the program."""
    ours, theirs = pty.openpty()
    command = [*before, sys.executable, "-c", PROGRAM]
    subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, check=True)
    echo = bool(termios.tcgetattr(theirs)[3] & termios.ECHO)
    os.close(theirs)
    os.close(ours)
    return echo


def test_the_echo_that_a_killed_ssh_left_off_is_turned_on_again() -> None:
    assert echo_after("setsid", "--wait", "--ctty")


def test_a_terminal_that_is_not_ours_is_left_alone() -> None:
    assert not echo_after("setsid", "--wait")
