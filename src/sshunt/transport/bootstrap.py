"""Stage one: the command that ssh runs on the far side, and what is sent to its stdin.

    login shell   exec /bin/sh -c '...'                  any of sh, bash, dash, zsh, fish, csh, tcsh
    sh            tries python3, python and where systems keep theirs (or what --python names)
    stage one     one line of Python: is this one of use? then read the bundle, run stage two
    stage two     ``loader``: install the modules, run ``sshunt.agent.main``

    stdin:  6 digits, the bundle's length | bundle | HELLO | lane ...

The client sends everything up to the HELLO at once and waits for nothing, so the upload costs no
round trip. The command is the same for every bundle: it can be started while the bundle is made.

Why it looks as it does:
* The login shell is whatever the account has. All of them agree on a single-quoted word without
  quotes, newlines, ``!`` and backslashes in it; so the Python has no quotes at all.
* The first Python on PATH may be none: too old, built without zlib, a version manager's shim that
  finds nothing (126, 127), one that crashes while it starts. The next candidate can be tried as
  long as nobody has read from stdin. So stage one is sure of all it needs before it reads a byte,
  and from then on it never ends with a status that a Python could have ended with before: whatever
  goes wrong is EXIT_FAILED. Python 2 must be able to parse it, to say that it is too old.
* Reads are unbuffered and never for more than is missing: what follows belongs to somebody else.
* -S and -E: no site-packages, no PYTHON* variables, and a third less start-up time. -I would say
  more, but Python 2 does not know it, so the current directory, where a stray ``socket.py`` may
  lie, is taken from the path by hand before anything is imported.

Prior art: sshuttle and mitogen start the same way; mitogen forks where we count.
"""

from typing import TYPE_CHECKING

from sshunt.config.remotes import check_python

if TYPE_CHECKING:  # ssh is started before they are needed
    from sshunt.mux.hello import Hello
    from sshunt.transport.bundle import Bundle

#: Exit status of stage one: this Python lacks what the agent needs; nothing was read.
EXIT_LACKS_ZLIB = 94

#: Exit status: something failed after the first byte of the upload was read. (``agent.stub`` has
#: it, too.)
EXIT_FAILED = 95

#: Exit status: the stub's agent died, and nobody holds the session any more. (``agent.stub`` has
#: it, too.)
EXIT_AGENT_DIED = 99

#: Exit status: a start-up file has read the beginning of the upload.
EXIT_NO_UPLOAD = 96

#: Exit statuses of the sh code: no Python could be run; none is new enough.
EXIT_NO_PYTHON = 97
EXIT_OLD_PYTHON = 98

CANDIDATES: tuple[str, ...] = (
    "python3",
    "python",
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
)

#: The statuses behind which no other Python is tried: in order; those of the stub; Python could not
#: flush at its end (120); ended by HUP, INT, KILL, TERM. With any other, nothing has been read.
_FINAL = f"0|{EXIT_FAILED}|{EXIT_NO_UPLOAD}|{EXIT_AGENT_DIED}|120|129|130|137|143"

_LENGTH_DIGITS = 6

#: e: what prints a traceback; b: what was read so far; r(n): read until there are n bytes.
_STAGE_ONE = (
    "import sys;"
    f"sys.version_info<(3,6)and sys.exit({EXIT_NO_PYTHON});"
    "sys.path[:]=[p for p in sys.path if p];"
    "import os;"
    "e=sys.excepthook;"
    f"sys.excepthook=lambda*a:os._exit({EXIT_LACKS_ZLIB});"
    "import zlib;"
    f"sys.excepthook=lambda*a:(e(*a),sys.stderr.flush(),os._exit({EXIT_FAILED}));"
    "b=bytearray();"
    f"r=lambda n:[b.extend(os.read(0,n-len(b))or sys.exit({EXIT_FAILED}))"
    "for _ in iter(lambda:len(b)<n,False)];"
    f"r({_LENGTH_DIGITS});"
    f"b.isdigit()or sys.exit({EXIT_NO_UPLOAD});"
    f"r({_LENGTH_DIGITS}+int(b));"
    f"d=zlib.decompress(bytes(b[{_LENGTH_DIGITS}:])).split(bytes(1));"
    "exec(d[0]);"
    "start(d)"
)

#: o: the Pythons that are of no use, and why, for the sentence.
_SCRIPT = (
    "o=; "
    "for p in @CANDIDATES@; do "
    'command -v "$p" >/dev/null 2>&1 || continue; '
    f'"$p" -E -S -c "{_STAGE_ONE}"; '
    "r=$?; "
    "case $r in "
    f'{EXIT_NO_PYTHON}) o="$o $p is $("$p" -V 2>&1),";; '
    f'{EXIT_LACKS_ZLIB}) o="$o $p lacks zlib,";; '
    f"{_FINAL}) exit $r;; "
    '*) o="$o $p does not run (status $r),";; '
    "esac; "
    "done; "
    'if [ -n "$o" ]; then '
    'echo "sshunt:$o and Python 3.6 or newer is needed" >&2; '
    f"exit {EXIT_OLD_PYTHON}; "
    "fi; "
    'echo "sshunt: found no Python here (tried: @TRIED@)" >&2; '
    f"exit {EXIT_NO_PYTHON}"
)


def remote_command(python: str | None = None) -> str:
    """The command line for a login shell. ``python``: the only interpreter to try (--python).

    Raises UserError if that name can't be quoted for every shell.
    """
    return f"exec /bin/sh -c '{_script(python)}'"


def argv(python: str | None = None) -> list[str]:
    """The same for transports that take an argument list and no shell."""
    return ["/bin/sh", "-c", _script(python)]


def upload(bundle: "Bundle", hello: "Hello | None") -> bytes:
    """What to write to the command's stdin, all at once; without a HELLO, that has to follow."""
    head = b"%0*d" % (_LENGTH_DIGITS, len(bundle.data))
    return head + bundle.data + (hello.encode() if hello is not None else b"")


def _script(python: str | None) -> str:
    if python is None:
        words = tried = " ".join(CANDIDATES)
    else:
        check_python(python)
        home, slash, rest = python.partition("~/")
        words = f'"$HOME/{rest}"' if slash and not home else f'"{python}"'
        tried = python
    return _SCRIPT.replace("@CANDIDATES@", words).replace("@TRIED@", tried)
