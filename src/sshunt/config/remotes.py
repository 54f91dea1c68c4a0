"""Where the far side is: ``-r [user@]host[:port]``, ``-e`` and ``--python``, as they were typed.

What ssh takes, -r takes; ssh knows its configuration, and we don't.

Not here: where the ssh program is (transport.ssh_program), its command line (transport.ssh).
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sshunt.errors import ExitCode, UserError

_SCHEME = "ssh://"


@dataclass(frozen=True, slots=True)
class RemoteSpec:
    """Where the far side is, and how to get there: what was typed, not the far side itself."""

    host: str
    user: str | None = None
    port: int | None = None
    ssh_command: tuple[str, ...] = ("ssh",)
    python: str | None = None
    delimiter: bool = True  # put -- before the remote command

    @property
    def destination(self) -> str:
        """As ssh takes it; the port goes separately."""
        return f"{self.user}@{self.host}" if self.user else self.host


# --- [user@]host[:port] ---------------------------------------------------------------------------

# What ssh itself takes (ssh.c: valid_hostname, valid_ruser; strict since 9.6). No shell is involved
# here, but in a ProxyCommand with %h or %r one is. No word may pass for an option.
_HOST = re.compile(r"(?!-)[^\s\x00-\x1f\x7f'`\"$\\;&<>|(){}\[\]@]+")
_USER = re.compile(r"(?!-)(?!.*\s-)(?!.*\\$)[^\x00-\x1f\x7f'`\";&<>|(){}]+")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?")


def parse_remote(
    text: str,
    *,
    ssh_command: str = "ssh",
    python: str | None = None,
    delimiter: bool = True,
) -> RemoteSpec:
    """The RemoteSpec of ``-r [user@]host[:port]`` or ``-r ssh://...`` and ``-e``; IPv6 addresses
    may stand in brackets. Raises UserError.
    """
    is_uri = text.startswith(_SCHEME)
    user, at, place = _split_uri(text) if is_uri else text.rpartition("@")
    host, port = _split_port(place)
    if not _HOST.fullmatch(host) or (at and not _USER.fullmatch(user)):
        form = "ssh://[user@]host[:port]" if is_uri else "[user@]host[:port]"
        raise UserError(
            f"{text!r} is not {form}",
            "for example alice@gate.example:2222 or [2001:db8::1]:22",
            ExitCode.USAGE,
        )
    if python is not None:
        check_python(python)
    number = None if port is None else _parse_port(text, port)
    return RemoteSpec(host, user or None, number, _split_command(ssh_command), python, delimiter)


#: What may stand in --python: it is quoted twice, by the login shell and by sh.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+=.,:@%/~ ")


def check_python(python: str) -> None:
    """Raise UserError unless ``python`` can be quoted for every shell as a program's name."""
    if not python or not set(python) <= _PLAIN or python.startswith("-"):
        raise UserError(
            f"--python: {python!r} is not the name or path of a program",
            "give a name or path without quotes, such as python3.9 or /opt/bin/python3",
            ExitCode.USAGE,
        )


def _split_uri(text: str) -> tuple[str, str, str]:
    """(user, "@" or "", host[:port]) of ``ssh://``, as ssh reads it (misc.c): parameters behind the
    user are for nobody, a path is none, and what is none is left for the caller to refuse.
    """
    from urllib.parse import unquote  # it takes its time, and few write this

    user, at, place = text[len(_SCHEME) :].rpartition("@")
    host, bracket, port = place.removesuffix("/").rpartition("]")
    if not bracket:
        host, colon, number = port.partition(":")
        port = colon + number
    if "/" in host:  # as it is: a host of this name would be meant otherwise
        return "", "@", ""
    return unquote(user.partition(";")[0]), at, unquote(host) + bracket + port


def _split_port(place: str) -> tuple[str, str | None]:
    bracketed = _BRACKETED.fullmatch(place)
    if bracketed:
        return bracketed.group(1), bracketed.group(2)
    if place.count(":") != 1:
        return place, None  # a name, or an IPv6 address without brackets
    host, _, port = place.partition(":")
    return host, port


def _parse_port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise UserError(f"{text!r}: {port!r} is not a port", "ports are 1 to 65535", ExitCode.USAGE)
    return int(port)


def _split_command(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UserError(f"-e {command!r}: {error}", "close the quote", ExitCode.USAGE)
    if not words:
        raise UserError(
            "-e names no program", "give it one, for example: -e 'ssh -v'", ExitCode.USAGE
        )
    if os.path.basename(words[0]) == "ssh":
        for option in _options(words[1:]):
            _refuse_other_uses(option)
    return words


#: ssh's options that take an argument (ssh.c's getopt string, all versions).
_WITH_ARGUMENT = frozenset("bcDEeFIiJLlmOopQRSWwBP")

#: ssh's options with which it does not run a command, or not with our pipe as its stdin, and what
#: it does.
_OTHER_USES = {
    "n": "reads no standard input",
    "f": "goes into the background",
    "N": "runs no command",
    "s": "starts a subsystem instead of a command",
    "W": "forwards to another host instead of running a command",
    "O": "controls a connection that is there instead of making one",
    "Q": "only lists algorithms",
    "G": "only prints its configuration",
    "V": "only prints its version",
}
_OTHER_USES_BY_NAME = {
    "stdinnull": ("n", "no"),
    "forkafterauthentication": ("f", "no"),
    "sessiontype": ("N", "default"),
}


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(letter, argument) of each of ssh's options, up to the first other word."""
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "--":
            return
        letters = iter(word[1:])
        for letter in letters:
            if letter in _WITH_ARGUMENT:
                yield letter, "".join(letters) or next(left, "")
            else:
                yield letter, ""


def _refuse_other_uses(option: tuple[str, str]) -> None:
    """Raise UserError for an option that can't be undone by another behind it."""
    letter, argument = option
    shown = f"-{letter}"
    if letter == "o":
        name, _, value = re.sub(r"\s*=\s*|\s+", "=", argument.strip(), count=1).partition("=")
        letter, harmless = _OTHER_USES_BY_NAME.get(name.lower(), ("", ""))
        if value.lower() == harmless:
            return
        shown = f"-o {argument}"
    if letter in _OTHER_USES:
        raise UserError(
            f"-e: with {shown} ssh {_OTHER_USES[letter]}, and sshunt needs it to run a command",
            f"leave {shown} out",
            ExitCode.USAGE,
        )
