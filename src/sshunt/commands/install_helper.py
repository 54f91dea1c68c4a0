"""``sshunt install-helper``: a copy of the helper that is root's alone, for all of this host.

A helper that a user may start without a password must be in files that only root can write. So the
helper's package and what it imports (nothing but ``capture`` and ``model``) are copied to a folder
of root's, with a launcher that names a Python of root's. Any sshunt of this host then starts that
one (host.elevate), also one in somebody's home (pipx). Client and helper speak the same version or
say that they don't: after an update of either, this is done again.

What is copied is what root trusts from then on: who runs this as root from files of a user's trusts
that user's files as they are at that moment, as with any program that he runs as root.

With --socket, the service manager starts it for the members of a group (helper.starter): no setuid
program is involved, each helper is in a service of its own, and its end is in the journal.

Invariants: whoever starts a helper meanwhile finds the old one, the new one or none, and never a
part of one: folders take their places by renaming.

Not here: what is safe to be started by root (host.trust), the units' text (units).
"""

import argparse
import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import sshunt
from sshunt.commands.units import GROUP, UNITS
from sshunt.errors import ExitCode, UserError
from sshunt.host.elevate import LAUNCHER, SERVICE
from sshunt.host.trust import problems
from sshunt.tell.console import Console

_HELP = """\
Copies sshunt's privileged helper to /usr/local/libexec/sshunt, where only root can change it, so
that users can be allowed to start it without a password, wherever their sshunt is installed.
To be run as root, and again after sshunt was updated. Then either

  sshunt sudoers --user NAME      prints the line for sudo that allows NAME this helper, or
  sshunt install-helper --socket  lets systemd start it for the members of the group sshunt
"""

#: What the helper consists of: files and folders of the package.
_PARTS = ("__init__.py", "model.py", "capture", "helper")

#: The Python of the launcher, and what it must be able to.
_PYTHON, _NEEDED = "/usr/bin/python3", (3, 10)

_LAUNCHER = """\
#!{python} -ISB
import sys

sys.path.append("{folder}")
from sshunt.helper.__main__ import main

sys.exit(main())
"""

_UNITS_FOLDER = "/etc/systemd/system"


def install_helper(argv: Sequence[str], console: Console) -> int:
    """The verb ``sshunt install-helper``; raises UserError."""
    words = _parser().parse_args(argv)
    if os.geteuid() != 0:
        raise UserError(
            "only root can install something that root runs",
            f"sudo {os.path.abspath(sys.argv[0])} install-helper",
            ExitCode.PRIVILEGE,
        )
    os.umask(0o022)
    if words.remove:
        _remove(words.root, console)
        return ExitCode.OK
    python = _trusted_python()
    launcher = Path(words.root + LAUNCHER)
    _copy(Path(words.root + os.path.dirname(LAUNCHER)), python)
    wrong = [] if words.root else problems([str(launcher), str(launcher.parent / "lib")])
    if wrong:
        shutil.rmtree(launcher.parent)
        raise UserError(
            f"{launcher.parent} can't be used: {wrong[0]}",
            "make it root's, writable by nobody else",
            ExitCode.PRIVILEGE,
        )
    console.line(f"{launcher} is installed")
    if words.socket:
        _install_units(words.root, console)
    return ExitCode.OK


def _copy(folder: Path, python: str) -> None:
    """Put the launcher and the modules into a new folder, and that into its place."""
    package = Path(sshunt.__path__[0])
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    lib = new / "lib" / "sshunt"
    lib.mkdir(parents=True)
    for part in _PARTS:
        for source in sorted((package / part).glob("*.py")) or [package / part]:
            copy = lib / source.relative_to(package)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(source.read_bytes())  # the owner is root, whoever has the source
    launcher = new / os.path.basename(LAUNCHER)
    launcher.write_text(_LAUNCHER.format(python=python, folder=f"{os.path.dirname(LAUNCHER)}/lib"))
    launcher.chmod(0o755)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _trusted_python() -> str:
    """A Python of root's that is new enough; raises UserError."""
    reasons = []
    for python in dict.fromkeys((_PYTHON, sys.executable)):
        wrong = problems([python])
        test = f"import sys; sys.exit(sys.version_info < {_NEEDED})"
        if wrong:
            reasons.append(wrong[0])
        elif subprocess.run([python, "-ISBc", test], env={}, check=False).returncode:
            reasons.append(f"{python} is older than {'.'.join(map(str, _NEEDED))}")
        else:
            return python
    raise UserError(
        f"there is no Python for root to run the helper with: {'; '.join(reasons)}",
        "install the system's python3, 3.10 or later",
        ExitCode.PRIVILEGE,
    )


def _install_units(root: str, console: Console) -> None:
    folder = Path(root + _UNITS_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in UNITS.items():
        (folder / name).write_text(text)
    if root:
        return
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        _run("groupadd", "--system", GROUP)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", "--now", f"{SERVICE}.socket")
    console.line(
        f"members of the group {GROUP} need no password from their next login on:"
        f" adduser NAME {GROUP}"
    )


def _remove(root: str, console: Console) -> None:
    units = [Path(root + _UNITS_FOLDER) / name for name in UNITS]
    if any(unit.exists() for unit in units):
        if not root:
            _run("systemctl", "disable", "--now", f"{SERVICE}.socket")
        for unit in units:
            unit.unlink(missing_ok=True)
        if not root:
            _run("systemctl", "daemon-reload")
    folder = Path(root + os.path.dirname(LAUNCHER))
    if folder.exists():
        shutil.rmtree(folder)
    console.line(f"{folder} is gone; the group {GROUP} stays, if there is one")


def _run(*command: str) -> None:
    """Raises UserError; what it says goes to our stderr."""
    try:
        status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    except OSError as error:
        raise UserError(
            f"can't run {command[0]}: {error.strerror}",
            "--socket needs systemd; without it the launcher and a line for sudo do",
            ExitCode.PRIVILEGE,
        )
    if status:
        raise UserError(
            f"`{' '.join(command)}` ended with status {status}",
            "its own message is above",
            ExitCode.PRIVILEGE,
        )


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as everybody else's: two lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "see: sshunt install-helper --help", ExitCode.USAGE)


def _parser() -> _Parser:
    parser = _Parser(
        prog="sshunt install-helper",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--socket", action="store_true", help="have systemd start it for the group sshunt")
    add("--remove", action="store_true", help="remove it all; the group stays")
    add(
        "--root",
        default="",
        metavar="DIR",
        help="put everything below DIR, and start nothing: for packages",
    )
    return parser
