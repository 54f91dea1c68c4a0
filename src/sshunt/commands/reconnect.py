"""``sshunt reconnect [SESSION]``: asks running sessions to try again now.

Not here: how they are found and asked (tell.control).
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from sshunt.errors import ExitCode, UserError
from sshunt.tell.console import Console
from sshunt.tell.control import (
    START_ONE,
    NotCalledError,
    UnknownPeerError,
    ask,
    ask_whom,
    sentence_untrusted,
    sessions,
)

_HELP = """\
Makes a running sshunt that has lost its server try to connect again now, instead of at its next
attempt: when you know that the network is back. One that thinks it is connected makes sure of it.
Connections in the tunnel live on.

Without SESSION, all sessions of yours are asked. One line each says which it is (its digits, its
process, its server, its targets) and what it does about it.
"""


def reconnect(argv: Sequence[str], console: Console) -> int:
    """The verb ``sshunt reconnect [SESSION]``; raises UserError. When several sessions are asked,
    one that fails does not keep the others from being asked.
    """
    named = _parser().parse_args(argv).session
    running = sessions()
    if named is None:
        wanted = running
    elif named in running or not (wanted := [s for s in running if _host_of(s) == named]):
        wanted = [named]
    answered = False
    failures: list[UserError] = []
    strangers: list[UserError] = []
    for session in wanted:
        try:
            answer, pid = ask_whom(session, "reconnect")
        except UnknownPeerError as error:
            strangers.append(error)
        except UserError as error:
            failures.append(error)
        else:
            answered = True
            process = f" (process {pid})" if pid else ""
            says = sentence_untrusted(answer.get("says", "reconnecting"))
            print(f"session {session}{process}: {says}")
    if not answered and not failures:
        told = UnknownPeerError if named is not None else NotCalledError
        failures = [error for error in strangers if isinstance(error, told)]
        if not failures:
            raise UserError("no sshunt of yours is running", START_ONE, ExitCode.USAGE)
    for failure in failures[:-1]:
        console.error(failure)
    if failures:
        raise failures[-1]
    return ExitCode.OK


def _host_of(session: str) -> str:
    """The server of a session as it was given to it; nothing if it does not say."""
    try:
        return sentence_untrusted(ask(session, "about").get("host", ""))
    except UserError:
        return ""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as everybody else's: two lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "see: sshunt reconnect --help", ExitCode.USAGE)


def _parser() -> _Parser:
    parser = _Parser(
        prog="sshunt reconnect",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "session",
        nargs="?",
        metavar="SESSION",
        help="its eight digits, as `sshunt reconnect` shows them, or its server as given to -r",
    )
    return parser
