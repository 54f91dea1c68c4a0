"""``sshunt sudoers``: the line that spares a user the password, where that makes nobody root.

The line says that a user may run one command as root. Whoever can change a file that this command
reads is root by it. So the very interpreter is started with the very options and the helper's
modules, and says which files it has opened; these, all that lies in its libraries' folders and in
the package, and every folder on the way to each are looked at (host.trust). If one is not root's
alone there is no line, but what is wrong, and what to do.

What can't be checked from here: programs of root's that change such a file for a user who asks
them; what sudoers has besides; file systems that others serve.

Nothing is written, and no right is needed.
"""

import argparse
import getpass
import grp
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from sshunt.errors import ExitCode, UserError
from sshunt.host.elevate import LAUNCHER, helper_command
from sshunt.host.trust import below, problems
from sshunt.tell.console import Console

_HELP = """\
Prints the line for sudoers(5) that lets a user start the helper without a password, if this
installation is root's alone: the interpreter, its libraries, sshunt, and every folder above
them. Otherwise it says what is not, and prints no line, for it would make that user root.

  sshunt sudoers >line && sudo install -m 440 line /etc/sudoers.d/sshunt
"""

#: Problems that are told; the rest are counted.
_SHOWN = 5

#: The time for the interpreter to say what it reads.
_DEADLINE_S = 60.0

#: What the interpreter runs: all modules of the helper are loaded, and what it has opened is told.
_ASK = """
import json, os, sys
sys.path.append(sys.argv[1])
import ctypes, ctypes.util, importlib, pkgutil, sshunt.helper
for module in pkgutil.iter_modules(sshunt.helper.__path__):
    if module.name != "__main__":
        importlib.import_module("sshunt.helper." + module.name)
with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
    mapped = {line.rstrip("\\n").split(None, 5)[5] for line in maps if "/" in line}
files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
print(json.dumps({
    "folders": sys.path,
    "files": sorted(filter(None, files | {name for name in mapped if name.startswith("/")})),
    "prefixes": [sys.prefix, sys.base_prefix, sys.exec_prefix],
}))
"""


def sudoers(argv: Sequence[str], console: Console) -> int:
    """The verb ``sshunt sudoers``; raises UserError."""
    words = _parser().parse_args(argv)
    who = _checked(words.user or _whoever_asks())
    command = helper_command()
    _check_words(command)
    found = problems(_all_that_is_read(command))
    if found:
        for problem in found[:_SHOWN]:
            console.line(problem)
        if len(found) > _SHOWN:
            console.line(f"and {len(found) - _SHOWN} more")
        raise UserError(
            f"whoever can change what root runs is root: no line for {command[0]}",
            "have a copy that is root's alone: sudo"
            f" {os.path.abspath(sys.argv[0])} install-helper; or see docs/howto/passwordless.md",
            ExitCode.PRIVILEGE,
        )
    write = doas_line if words.doas else sudoers_line
    print(write(who, command))
    return ExitCode.OK


def sudoers_line(who: str, command: Sequence[str]) -> str:
    """As sudoers(5) has it: the command word for word; where it has no words, none may be given."""
    words = " ".join(_escaped(word) for word in command)
    return f"{who} ALL=(root) NOPASSWD: {words}" + ("" if len(command) > 1 else ' ""')


def doas_line(who: str, command: Sequence[str]) -> str:
    """As doas.conf(5) has it."""
    program, *arguments = [_quoted(word) for word in command]
    identity = who.replace("%", ":", 1)
    return " ".join(["permit nopass", identity, "as root cmd", program, "args", *arguments])


def _escaped(word: str) -> str:
    """sudoers(5): these have a meaning in a command."""
    return re.sub(r"([,:= ])", r"\\\1", word)


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w./+-]+", word) else f'"{word}"'


def _check_words(command: Sequence[str]) -> None:
    """Wildcards, quotes and the like mean something there, however they are written; raises
    UserError.
    """
    for word in command:
        if not re.fullmatch(r"[A-Za-z0-9_./+@~ ,:=-]+", word):
            raise UserError(
                f"{word!r} can't be written into such a line",
                "install sshunt into a folder with a plain name",
                ExitCode.USAGE,
            )


def _all_that_is_read(command: Sequence[str]) -> Iterator[str]:
    """Paths that matter when this command is run; raises UserError."""
    if command == [LAUNCHER]:
        python, *options = Path(LAUNCHER).read_text().splitlines()[0].removeprefix("#!").split()
        program = str(Path(LAUNCHER).parent / "lib/sshunt/helper/__main__.py")
        yield LAUNCHER
    else:
        python, *options, program = command
    package = Path(program).parents[1]
    done = subprocess.run(
        [python, *options, "-c", _ASK, str(package.parent)],
        capture_output=True,
        env={},
        check=False,
        timeout=_DEADLINE_S,
    )
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise UserError(
            "the helper's modules can't be loaded", "the lines above say why", ExitCode.PRIVILEGE
        )
    read = json.loads(done.stdout)
    yield from (python, program)
    yield from below(str(package))
    yield from read["files"]
    yield from read["prefixes"]
    # Where Python looks for it; where there is none, the folders are those on the way to python.
    places = (Path(python).parents[0] / "pyvenv.cfg", Path(python).parents[1] / "pyvenv.cfg")
    yield from (str(place) for place in places if os.path.lexists(place))
    for folder in read["folders"]:
        # What is found first in a folder is what is imported, so no new one may come, either.
        # Where nothing is, such as the archive of the library, nobody else may put something.
        if os.path.lexists(folder):
            if folder != str(package.parent):
                yield from below(folder, but=("site-packages", "dist-packages"))
            else:
                yield folder
        else:
            yield os.path.dirname(folder)


def _whoever_asks() -> str:
    if os.geteuid() == 0:
        return os.environ.get("SUDO_USER") or os.environ.get("DOAS_USER") or "root"
    return getpass.getuser()


def _checked(who: str) -> str:
    """A user, or %group, that is there, by a name that means nothing else in such a file; raises
    UserError.
    """
    name = who.removeprefix("%")
    try:
        _ = grp.getgrnam(name) if who.startswith("%") else pwd.getpwnam(name)
    except KeyError:
        kind = "group" if who.startswith("%") else "user"
        raise UserError(
            f"there is no {kind} {name!r} here", "give one: --user NAME, or %GROUP", ExitCode.USAGE
        )
    if who == "root":
        raise UserError(
            "root needs no such line", "say whom it is for: --user NAME", ExitCode.USAGE
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", name) or name == "ALL":
        raise UserError(
            f"the name {name!r} can't be written into such a line",
            "write one by hand, by number: #UID in sudoers",
            ExitCode.USAGE,
        )
    return who


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as everybody else's: two lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "see: sshunt sudoers --help", ExitCode.USAGE)


def _parser() -> _Parser:
    parser = _Parser(
        prog="sshunt sudoers",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--user", metavar="NAME", help="who may; %%GROUP for a group; default: who asks"
    )
    parser.add_argument("--doas", action="store_true", help="the line for doas.conf(5) instead")
    return parser
