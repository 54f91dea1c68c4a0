"""Why there is no lane: what ssh said and how it ended become a line of what and one of what to do.

ssh tells all it knows in English sentences on stderr and one exit status, 255. They are not an
interface, but they have been stable for twenty years; each pattern below was taken from a real run
or ssh's source, and ``tests/e2e/test_bootstrap.py`` provokes most. What matches none is quoted.

The lines may be the server's own (a banner), and nobody is logged in yet: a pattern is looked for
at the beginning of a line only, in its first JUDGED_CHARACTERS, and repeats nothing that repeats.
So what a line costs is bounded, whatever is in it.

Not here: the reasons an agent gives itself; those come as sentences in its HELLO.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sshunt.errors import ExitCode, UserError
from sshunt.mux.text import printable
from sshunt.transport.bootstrap import EXIT_NO_PYTHON, EXIT_NO_UPLOAD, EXIT_OLD_PYTHON

#: How our own sh code begins a sentence on stderr.
OUR_PREFIX = "sshunt: "

#: How much of the far side's chatter a message quotes.
QUOTED_CHARACTERS = 120

#: How much of a line's beginning the patterns see. ssh's own sentences are shorter.
JUDGED_CHARACTERS = 300

_EXIT_SSH_FAILED = 255
_EXIT_CANNOT_EXECUTE = (126, 127)


@dataclass(frozen=True, slots=True)
class _Saying:
    """One thing ssh says. ``{0}`` in the message is the pattern's first group.

    ``pattern`` is for ``match``: it begins where the line does.
    """

    pattern: re.Pattern[str]
    message: str
    hint: str
    exit_code: ExitCode


def _saying(pattern: str, message: str, hint: str, exit_code: ExitCode) -> _Saying:
    return _Saying(re.compile(pattern), message, hint, exit_code)


#: What is said when the login is through and the far side is silent, while that can still change.
NO_WORD_AFTER_LOGIN = (
    "logged in, but the far side's shell has not started sshunt's program yet; a start-up file"
    " there that waits (sleep, exec fish, a home directory that hangs) would explain it"
)

_TRY_SSH = "try the same with ssh alone, and look at your ssh configuration"

#: What ssh or a shell puts in front of some sentences: who is speaking.
_WHO = r"(?:[\w./-]{1,40}: )?"

#: What ssh says, what kind of error that is, and what to do: in order of precedence. The first
#: pattern found in any line wins.
_SAYINGS = (
    _saying(
        r"@* *WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the ssh server's host key has changed",
        "if that was expected, remove the old key with ssh-keygen -R HOST; otherwise do not go on",
        ExitCode.HOST_KEY,
    ),
    _saying(
        r"No \S+ host key is known for \S+ and you have requested strict checking|"
        r"Host key verification failed",
        "the ssh server's host key is not known here",
        "log in once with ssh and check the key's fingerprint",
        ExitCode.HOST_KEY,
    ),
    _saying(
        _WHO + r"Could not resolve hostname (\S+): ",
        "the name {0} can't be resolved",
        "check the spelling, your network, and HostName in your ssh configuration",
        ExitCode.NAME,
    ),
    _saying(
        _WHO + r"connect to (?:host|address) (\S+ port \d+): Connection refused",
        "nothing listens on {0}: connection refused",
        "check the port (HOST:PORT), and that the ssh server runs",
        ExitCode.CONNECT,
    ),
    _saying(
        _WHO + r"connect to (?:host|address) (\S+ port \d+: .*)",
        "the ssh server can't be reached: {0}",
        "check your network, the address, and firewalls between here and there",
        ExitCode.CONNECT,
    ),
    _saying(
        _WHO + r"(?:Received disconnect from \S+ .{0,60})?Too many authentication failures",
        "the ssh server refused the login: too many keys were offered",
        "name the right key with IdentityFile and IdentitiesOnly in your ssh configuration",
        ExitCode.AUTH,
    ),
    _saying(
        r"(.{1,200}: Permission denied \([^)]*\))",
        "the ssh server refused the login: {0}",
        "check the user name and the key; the same login must work with ssh alone",
        ExitCode.AUTH,
    ),
    _saying(
        _WHO + r"Unable to negotiate with (.*)",
        "ssh and the server have no algorithm in common: {0}",
        _TRY_SSH,
        ExitCode.CONNECT,
    ),
    _saying(
        _WHO + r"Bad owner or permissions on (\S+)",
        "ssh does not accept its configuration: bad owner or permissions on {0}",
        "make the file yours, and writable by nobody else",
        ExitCode.USAGE,
    ),
    _saying(
        r"(.{1,200}line \d+: (?:Bad configuration option|[Bb]ad [^:]{1,40} spec).*)",
        "ssh does not accept its configuration: {0}",
        "correct that line; -e and your ssh configuration are passed on as they are",
        ExitCode.USAGE,
    ),
    _saying(
        _WHO + r"(?:unknown option|usage: ssh|(?:illegal|invalid) option)",
        "the ssh command does not understand its options",
        "check -e: it must behave like OpenSSH's ssh",
        ExitCode.USAGE,
    ),
    _saying(
        r"channel \d+: open failed: administratively prohibited|stdio forwarding failed|"
        r"Connection closed by UNKNOWN|.*: Exec format error$",
        "the way to the ssh server (ProxyJump or ProxyCommand) does not work",
        _TRY_SSH,
        ExitCode.CONNECT,
    ),
    _saying(
        r"((?:kex_exchange_identification|banner exchange|ssh_exchange_identification): .*)",
        "what listens there did not greet as an ssh server: {0}",
        "check the port; a server that is overloaded or bans this address does the same",
        ExitCode.CONNECT,
    ),
    _saying(
        r"(?:ModuleNotFoundError|ImportError): (.*)",
        "the far side's Python is not whole: {0}",
        "install its whole standard library (python3 rather than python3-minimal), or name another"
        " one with --python",
        ExitCode.NO_PYTHON,
    ),
    _saying(
        r"(.*: restricted\b.*)",
        "the far side's login shell is restricted: {0}",
        "sshunt needs a login that may run /bin/sh and a Python",
        ExitCode.REMOTE,
    ),
    _saying(
        _WHO + r"((?:Connection (?:closed|reset) by|Received disconnect from|Read from remote host|"
        r"Connection to \S+ closed by|Timeout, server|client_loop: send disconnect).*)",
        "the ssh connection ended while it was being made: {0}",
        "try again; if it stays so, ask the server's log",
        ExitCode.CONNECT,
    ),
)


def is_diagnosed(line: str) -> bool:
    """True if the diagnosis will say what ``line`` says, so that it need not be shown as well."""
    if line.startswith(OUR_PREFIX):
        return True
    begin = line[:JUDGED_CHARACTERS]
    return any(s.pattern.match(begin) for s in _SAYINGS if s.exit_code != ExitCode.HOST_KEY)


def diagnose(exit_status: int, stderr_lines: Sequence[str], noise: bytes) -> UserError:
    """What to tell when ssh ended, with ``exit_status``, before the far side's HELLO.

    ``exit_status`` as subprocess gives it: negative is a signal. ``noise`` is what came on stdout.
    """
    if exit_status == EXIT_NO_PYTHON:
        return UserError(
            f"there is no Python on the far side: {_ours(stderr_lines, 'nothing found')}",
            "install Python 3.6 or newer there, or name one with --python",
            ExitCode.NO_PYTHON,
        )
    if exit_status == EXIT_OLD_PYTHON:
        return UserError(
            f"no Python on the far side is of use: {_ours(stderr_lines, 'all are too old')}",
            "name a Python 3.6 or newer with --python",
            ExitCode.NO_PYTHON,
        )
    if exit_status == EXIT_NO_UPLOAD:
        return UserError(
            "the far side's login scripts read what was sent to the agent on standard input",
            "make them leave it alone when there is no terminal: [ -t 0 ] || return",
            ExitCode.REMOTE,
        )
    for saying in _SAYINGS:
        for line in stderr_lines:
            found = saying.pattern.match(line[:JUDGED_CHARACTERS])
            if found:
                message = saying.message.format((found.group(1) or "") if found.groups() else "")
                return UserError(message, saying.hint, saying.exit_code)
    return _by_status(exit_status, stderr_lines, noise)


def endless_noise(noise: bytes) -> UserError:
    """The far side prints and prints, and no HELLO is in it."""
    return UserError(
        f"the far side printed {len(noise)} bytes and no agent answered: {quote_untrusted(noise)}",
        "its login scripts must end and leave standard output alone when there is no terminal",
        ExitCode.REMOTE,
    )


def silence(waited_s: float, noise: bytes) -> UserError:
    """ssh lives, and nobody answers."""
    printed = f"; it printed {quote_untrusted(noise)}" if noise else ""
    return UserError(
        f"the far side did not answer within {waited_s:.0f} s{printed}",
        "log in with ssh HOST true: does that return?",
        ExitCode.REMOTE,
    )


def silence_after_login(waited_s: float) -> UserError:
    """ssh has logged in, and the far side's shell does not come to our command."""
    return UserError(
        "logged in, but the far side's shell did not start sshunt's program"
        f" within {waited_s:.0f} s",
        "a start-up file there that waits keeps it from doing so: ssh HOST true must return",
        ExitCode.REMOTE,
    )


def quote_untrusted(data: bytes) -> str:
    """The beginning of ``data``, printable, for a message."""
    text = data.decode("utf-8", "replace").strip()
    plain = printable(text)
    cut = plain[:QUOTED_CHARACTERS]
    return repr(cut) + ("..." if len(cut) < len(plain) else "")


def _ours(lines: Sequence[str], otherwise: str) -> str:
    """What our own sh code said, without its name in front."""
    said = [line[len(OUR_PREFIX) :] for line in lines if line.startswith(OUR_PREFIX)]
    return said[-1] if said else otherwise


def _by_status(exit_status: int, stderr_lines: Sequence[str], noise: bytes) -> UserError:
    said = next((line for line in reversed(stderr_lines) if line.strip()), "")
    printed = quote_untrusted(noise) if noise.strip() else ""
    because = f": {said or printed}" if said or printed else ""
    if exit_status < 0:
        return UserError(
            f"ssh was killed by {_signal_name(-exit_status)} before the far side answered",
            "start again; something on this machine ended it",
            ExitCode.CONNECT,
        )
    if exit_status == _EXIT_SSH_FAILED:
        hidden = "" if because else "; LogLevel QUIET there would hide the reason"
        return UserError(f"ssh failed{because}", _TRY_SSH + hidden, ExitCode.CONNECT)
    if exit_status in _EXIT_CANNOT_EXECUTE:
        return UserError(
            f"the far side could not run our command{because}",
            "sshunt needs a login that may run /bin/sh and a Python",
            ExitCode.REMOTE,
        )
    # What a login shell that takes no commands has to say is on stdout (nologin(8)); what is on
    # stderr may be of no importance.
    both = f": it printed {printed}{f', and {said}' if said else ''}" if printed else ""
    return UserError(
        f"the far side's shell ended (status {exit_status}) and no agent answered{both or because}",
        "the login must be allowed to run commands: ssh HOST true must work and print nothing",
        ExitCode.REMOTE,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
