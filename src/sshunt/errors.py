"""Errors that are meant for a person, and the exit code of each kind.

A ``UserError`` is everything a user can cause or meet: it is printed as one line that says what
happened and one that says what to do, never as a traceback. Errors of bytes from the other side
are not here: see ``sshunt.mux.errors``.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process' exit status means. Documented in ``sshunt --help``; never renumbered."""

    OK = 0
    INTERNAL = 1  # a bug of ours; the traceback is printed
    USAGE = 2  # the command line or a target does not parse
    NAME = 10  # a host name can't be resolved
    CONNECT = 11  # the ssh server can't be reached
    AUTH = 12  # the ssh server refused the login
    HOST_KEY = 13  # the ssh host key is unknown or changed
    NO_PYTHON = 14  # no usable Python on the far side
    REMOTE = 15  # the far side ended, or does not speak our protocol
    PRIVILEGE = 20  # no root here: no sudo, wrong password
    CAPTURE = 21  # the kernel's rules can't be made
    LISTEN = 22  # the listening port can't be had
    LOST = 23  # the session ended after it was up
    SIGNALLED = 128  # and the signal's number: asked to stop before it was up, as shells count it


class UserError(Exception):
    """Something a user can cause or meet: ``message`` says what, ``hint`` says what to do."""

    def __init__(self, message: str, hint: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
