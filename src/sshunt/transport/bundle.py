"""The agent as one blob: the import closure of ``sshunt.agent.main``, minified and deflated.

The closure is read from syntax trees, imports inside functions included, so what is shipped is what
can be imported there and nothing else. Minified means: no comments, no docstrings, no annotations
in functions, one blank per level of indentation. Not renamed and not joined: every token that
stays, stays on its line, so tracebacks from the far side point into the source tree.

    blob = deflate( loader \\0 file name \\0 source \\0 file name \\0 source ... )

The minifier is one regular expression over tokens plus a syntax tree for the positions of
docstrings and annotations: several times faster than the tokenize module, and this runs at every
start of a client. It relies on shipped code being plain: spaces for indentation, no form feeds,
strings that end where Python 3.6 would end them. ``tests/unit/transport/test_bundle.py`` proves for
every shipped module that the syntax tree is unchanged but for what was meant to go.
"""

import ast
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ENTRY = "sshunt.agent.main"
PACKAGE = "sshunt"
SOURCE_ROOT = Path(__file__).resolve().parents[2]
LOADER = Path(__file__).with_name("loader.py")
SEPARATOR = b"\0"

#: The largest bundle. With the HELLO it fits into an ordinary pipe (64 KiB) at once, and it takes
#: 0.5 s at 1 Mbit/s. Three flights of TCP's initial window hold 98 KiB, so that a few KiB more or
#: less are no further round trip. Whoever adds to what is shipped takes as much off elsewhere.
BUNDLE_BYTES = 56 * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """The blob, and what went into it."""

    data: bytes  # deflated
    modules: tuple[str, ...]  # in the order shipped
    source_bytes: int  # before minifying and deflating


@lru_cache(maxsize=1)
def agent_bundle() -> Bundle:
    """The bundle of this installation's agent. Built once per process."""
    closure = import_closure(ENTRY)
    parts = [minify(LOADER.read_text(encoding="utf-8")).encode()]
    source_bytes = 0
    for module in sorted(closure):
        path, source, tree = closure[module]
        source_bytes += len(source)
        file_name = path.relative_to(SOURCE_ROOT).as_posix()
        parts += [file_name.encode(), minify(source, tree).encode()]
    data = zlib.compress(SEPARATOR.join(parts), 9)
    return Bundle(data, tuple(sorted(closure)), source_bytes)


class Module(NamedTuple):
    """One file of the closure."""

    path: Path
    source: str
    tree: ast.Module


def import_closure(entry: str) -> dict[str, Module]:
    """Every module of ours that ``entry`` can come to import, itself and packages included."""
    found: dict[str, Module] = {}
    wanted = [entry]
    while wanted:
        module = wanted.pop()
        path = _path_of(module)
        if module in found or path is None:
            continue  # seen already, or ``from module import name`` where the name is no module
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found[module] = Module(path, source, tree)
        wanted += _packages_above(module)
        wanted += imported_names(tree)
    return found


def imported_names(tree: ast.Module) -> list[str]:
    """Dotted names of ours that this module imports anywhere; some may be names within modules."""
    names: list[str] = []
    for node, _ in _statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("a shipped module uses a relative import")
            names.append(str(node.module))
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == PACKAGE]


def _statements(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """The module and every statement in it, with whether it stands inside a function.

    Not the expressions, which are nine nodes in ten: nothing we look for is in them.
    """
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, in_function = waiting.pop()
        yield node, in_function
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in ("body", "orelse", "finalbody", "handlers"):
            waiting += [(child, inside) for child in getattr(node, field, ())]


def _path_of(module: str) -> Path | None:
    stem = SOURCE_ROOT.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _packages_above(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


# --- the minifier -------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
      (?P<plain>   [^ "'\#()\[\]{}\n]+ )     # words, operators, the letters in front of a string
    | (?P<string>  \"{3}(?:[^\\]|\\.)*?\"{3} | '{3}(?:[^\\]|\\.)*?'{3}
                   | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
    | (?P<comment> [ ]*\#[^\n]* )
    | (?P<indent>  (?<=\n)[ ]+ (?=[^ \n\#]) )
    | (?P<blank>   [ ]+ )
    | (?P<other>   [^ ] )                # a bracket, the end of a line
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"\w")
_TYPING = re.compile(r"^from typing import(?:\(([^)]*)\)| ([^\n(]*))$", re.MULTILINE)


def minify(source: str, tree: ast.Module | None = None) -> str:
    """``source`` without what the interpreter does not need, unused names of ``typing`` included;
    lines keep their numbers.

    ``tree``: its syntax tree, if that is known already.
    """
    return _without_unused(_squeeze(_cut(source, ast.parse(source) if tree is None else tree)))


def _cut(source: str, tree: ast.Module) -> str:
    """Without docstrings and annotations, newlines kept."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = bytearray(source.encode())
    cuts = _cuts(tree, starts, bytes(text))
    for first, last, instead in sorted(cuts, reverse=True):
        text[first:last] = instead + b"\n" * text.count(b"\n", first, last)
    return text.decode()


def _cuts(tree: ast.Module, starts: list[int], text: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Byte ranges to cut and what to leave in their place. ``starts``: where lines begin."""

    def begin(node: ast.expr | ast.stmt | ast.arg) -> int:
        return starts[node.lineno - 1] + node.col_offset

    def end(node: ast.expr | ast.stmt | ast.arg) -> int:
        last_line, last_column = node.end_lineno, node.end_col_offset
        if last_line is None or last_column is None:
            raise ValueError("ast.parse gives every node an end")
        return starts[last_line - 1] + last_column

    for node, in_function in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and _is_string(first.value):
                yield begin(first), end(first), b"" if len(node.body) > 1 else b"0"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.returns is not None:
                yield text.rindex(b"->", 0, begin(node.returns)), end(node.returns), b""
            for argument in _arguments(node.args):
                if argument.annotation is not None:
                    name_end = begin(argument) + len(argument.arg.encode())
                    yield name_end, end(argument.annotation), b""
        if isinstance(node, ast.AnnAssign) and not in_function:
            yield begin(node.annotation), end(node.annotation), b"int"  # NamedTuple needs some
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield end(node.target), end(node.annotation), b""


def _without_unused(source: str) -> str:
    """Without names of ``typing`` that were there for the annotations alone."""

    def used(found: "re.Match[str]") -> str:
        names = re.findall(r"\w+", found[1] or found[2])
        left = [name for name in names if len(re.findall(rf"\b{name}\b", source)) > 1]
        instead = "from typing import " + ",".join(left) if left else ""
        return instead + "\n" * found[0].count("\n")

    return _TYPING.sub(used, source)


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return several + [one for one in (arguments.vararg, arguments.kwarg) if one is not None]


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _squeeze(source: str) -> str:
    """Without comments and needless blanks; four columns of indentation become one."""
    out: list[str] = []
    depth = 0  # of brackets: inside them, indentation means nothing
    blank = False
    for match in _TOKEN.finditer(source):
        kind, token = match.lastgroup, match.group()
        if kind == "comment":
            continue
        if kind == "blank" or (kind == "indent" and depth):
            blank = True
            continue
        if kind == "indent":
            out.append(" " * (len(token) // 4))
            continue
        if blank and out and _WORD.match(token) and _WORD.match(out[-1][-1]):
            out.append(" ")
        blank = False
        depth += (token in "([{") - (token in ")]}")
        out.append(token)
    return "".join(out)
