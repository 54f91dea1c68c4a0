"""Files with one word a line: the command line's @FILE, and the lists of -s and -X.

Invariants: nothing is read without a limit, and whatever the file is, a device, a program, a table
of another century, what comes back is words or a ``UserError`` that names the file and, if there is
one, the line.

An @FILE stands for its words, whatever they are: options, other @FILEs. ``-e`` among them is a
command that is run, so such a file is as trusted as the command line itself. A list holds targets
only.

UTF-8, with or without a byte order mark; lines end as on any system.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sshunt.errors import ExitCode, UserError

#: A list of all countries' networks has 200,000 lines and 4 MB; more is not a list of targets.
FILE_BYTES = 16 * 1024 * 1024

#: @FILEs inside @FILEs. A file that names itself ends here.
NESTED_FILES = 8

#: Words in all @FILEs together, @FILEs included: files that name each other twice are many soon.
WORDS = 1_000_000

_LINE_END = re.compile(r"\r\n|\n|\r")

_LIST_HINT = "give a text file with one target a line"
_WORDS_HINT = "@FILE stands for the words of a text file, one a line"


def read_list(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number, word) of a list; ``#`` begins a comment. Raises UserError."""
    for number, line in _lines(path, _LIST_HINT):
        word = re.sub(r"(^|\s)#.*", "", line).strip()
        if word:
            yield number, word


def expand(words: Sequence[str]) -> list[str]:
    """``words`` with those of its files in the place of each @FILE; raises UserError."""
    return list(_expand(words, (), _Budget(WORDS)))


class _Budget:
    """What may still be read."""

    def __init__(self, words: int) -> None:
        self.words = words


def _expand(words: Sequence[str], inside: tuple[str, ...], budget: _Budget) -> Iterator[str]:
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        path = word[1:]
        if len(inside) == NESTED_FILES:
            chain = " in ".join(f"@{name}" for name in (path, *inside[:2]))
            raise UserError(
                f"files name files, more than {NESTED_FILES} deep: {chain}",
                "does one of them name itself?",
                ExitCode.USAGE,
            )
        more = [word for _, line in _lines(path, _WORDS_HINT) for word in _word(line)]
        budget.words -= len(more) + 1
        if budget.words < 0:
            raise UserError(
                f"@{path}: more than {WORDS} words in all",
                "do files name each other? for long lists of targets there is -s FILE",
                ExitCode.USAGE,
            )
        yield from _expand(more, (path, *inside), budget)


def _word(line: str) -> list[str]:
    """The word of a line; none if it begins with ``#``. Quotes around it, copied from a shell's
    command line, are dropped.
    """
    line = line.strip()
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1]
    return [line] if line and not line.startswith("#") else []


def _lines(path: str | Path, hint: str) -> Iterator[tuple[int, str]]:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        problem = getattr(error, "strerror", None) or str(error)
        raise UserError(f"can't read {str(path)!r}: {problem}", hint, ExitCode.USAGE)
    if len(data) > FILE_BYTES:
        raise UserError(
            f"{path} has more than {FILE_BYTES} bytes",
            "split it, or use wider networks",
            ExitCode.USAGE,
        )
    if b"\0" in data:
        number = _line_of(data, data.index(b"\0"))
        raise UserError(
            f"{path}, line {number}: not a text, there is a zero byte", hint, ExitCode.USAGE
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = _line_of(data, error.start)
        raise UserError(
            f"{path}, line {number}: not UTF-8 (a byte {data[error.start]:#04x})",
            f"write it in UTF-8; if it is in Latin-1: iconv -f LATIN1 -t UTF-8 {path}",
            ExitCode.USAGE,
        )
    return enumerate(_LINE_END.split(text), 1)


def _line_of(data: bytes, place: int) -> int:
    return len(_LINE_END.findall(data[:place].decode("latin-1"))) + 1
