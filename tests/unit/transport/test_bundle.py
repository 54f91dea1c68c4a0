"""The agent as one blob: complete, small, and the same program as the source tree."""

import ast
import textwrap
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.transport.bundle import (
    BUNDLE_BYTES,
    ENTRY,
    LOADER,
    agent_bundle,
    import_closure,
    imported_names,
    minify,
)

SHIPPED = [module.path for module in import_closure(ENTRY).values()] + [LOADER]

AWKWARD = '''\
"""A docstring
over lines."""
import os  # a comment with "quotes" and (brackets
from typing import NamedTuple, Optional

NAME = 'it is # no comment'; OTHER = "nor \\" # this"


class Point(NamedTuple):
    """Documented."""

    x: int
    y: int = 3


class Empty(Exception):
    """Only a docstring."""


def documented_only(a: int, *rest: "int", b: Optional[int] = None, **more: int) -> "Optional[str]":
    """Nothing else."""


def area(
    width: int = 3,  # in metres
    height: int = (
        4
    ),
) -> int:
    """One line."""
    total: int = width * height
    if total > 1 and not (
        total
        # a comment inside brackets
        in (2, 3)
    ):
        return total if total else 0 or 1
    text = b"raw" + rb"\\d" + b"" \\
        b"continued"
    return len(text) + len("""a # string
    with lines""") + len(f"{total!r:>4}")


async def later(x: float = 1.5e3) -> None:
    def inner(y: int) -> int: return y
    value = [lambda z: z if z else -z for _ in range(2)]
    assert value is not None and inner(1) == 1

result = (area(), area(2), Point(1), documented_only(1), NAME, OTHER, Empty.__name__, os.sep)
'''


def stripped(source: str) -> ast.Module:
    """The syntax tree less what the minifier is meant to take away."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _is_from_typing(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            if not node.body or ast.unparse(node.body[0]) == "0":
                node.body = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            node.body = [_without_annotation(statement) for statement in node.body]
            for inner in ast.walk(node):
                for field in ("body", "orelse", "finalbody"):
                    if isinstance(getattr(inner, field, None), list):
                        statements = getattr(inner, field)
                        setattr(inner, field, [_without_annotation(s) for s in statements])
        if isinstance(node, ast.arg):
            node.annotation = None
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):  # in a class or a module: there are some, of any kind
            node.annotation = ast.copy_location(ast.Name("int", ast.Load()), node.annotation)
    return tree


def _is_from_typing(node: ast.stmt) -> bool:
    """Of what it imports the minifier leaves what is in use: running the result shows it."""
    return isinstance(node, ast.ImportFrom) and node.module == "typing"


def _without_annotation(node: ast.stmt) -> ast.stmt:
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        assign = ast.Assign(targets=[node.target], value=node.value)
        return ast.copy_location(assign, node)
    return node


def shape(source: str) -> list[tuple[str, int]]:
    """Every node with the line it begins on: what a traceback would show."""
    return [
        (type(node).__name__, node.lineno)
        for node in ast.walk(stripped(source))
        if isinstance(node, ast.expr | ast.stmt)
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_minified_module_is_the_same_program_on_the_same_lines(path: Path) -> None:
    source = path.read_text()
    assert ast.dump(stripped(minify(source))) == ast.dump(stripped(source))
    assert shape(minify(source)) == shape(source)


def test_an_awkward_module_is_the_same_program_on_the_same_lines() -> None:
    small = minify(AWKWARD)
    assert ast.dump(stripped(small)) == ast.dump(stripped(AWKWARD))
    assert shape(small) == shape(AWKWARD)
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    exec(AWKWARD, before)
    exec(small, after)
    assert repr(after["result"]) == repr(before["result"])


def test_a_minified_module_has_no_comments_no_docstrings_no_annotations() -> None:
    small = minify(AWKWARD)
    for gone in ("A docstring", "in metres", "a comment", "Documented", "Optional[str]", "total:"):
        assert gone not in small
    assert "x:int" in small  # a NamedTuple's fields are no annotations to lose


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\x0c"), max_size=40))
def test_any_text_in_a_string_survives(text: str) -> None:
    source = f"x = {text!r}  # {text!a}\ny = [ {text!r}, 1 ]\n"
    values: dict[str, object] = {}
    exec(minify(source), values)
    assert values["x"] == text
    assert values["y"] == [text, 1]


def test_names_of_typing_go_where_only_annotations_had_them_and_lines_keep_their_numbers() -> None:
    source = (
        "from typing import (\n    Dict,\n    List,\n)\nfrom typing import Optional, Tuple\n"
        "Pair = Tuple[int, int]\ndef f(x: Dict[int, List[int]]) -> Optional[int]:\n    return 1\n"
    )
    assert minify(source) == (
        "\n\n\n\nfrom typing import Tuple\nPair=Tuple[int,int]\ndef f(x):\n return 1\n"
    )


def test_the_bundle_is_within_its_budget() -> None:
    assert len(agent_bundle().data) <= BUNDLE_BYTES


def test_the_bundle_holds_the_loader_and_every_module_by_its_file_name() -> None:
    parts = zlib.decompress(agent_bundle().data).split(b"\0")
    names = [name.decode() for name in parts[1::2]]
    assert b"def start(" in parts[0]
    assert len(names) == len(agent_bundle().modules) == len(parts[2::2])
    assert "sshunt/__init__.py" in names
    assert "sshunt/agent/main.py" in names
    assert agent_bundle().source_bytes > 4 * len(agent_bundle().data)


def test_the_closure_has_what_functions_import_and_the_packages_above() -> None:
    closure = import_closure(ENTRY)
    assert "sshunt.agent.server" in closure  # imported inside a function
    assert {"sshunt", "sshunt.agent", "sshunt.mux"} <= set(closure)
    assert not [name for name in closure if name.startswith("sshunt.transport")]


def test_a_name_from_a_module_is_not_taken_for_a_module() -> None:
    tree = ast.parse("from sshunt.mux.hello import Hello\nimport os, sshunt.errors\n")
    names = {"sshunt.mux.hello", "sshunt.mux.hello.Hello", "sshunt.errors"}
    assert set(imported_names(tree)) == names  # candidates; the closure looks for files


def test_relative_imports_are_not_shipped() -> None:
    with pytest.raises(ValueError, match="relative"):
        imported_names(ast.parse(textwrap.dedent("from . import hello")))


def test_a_package_that_is_only_a_docstring_costs_nothing() -> None:
    closure = import_closure(ENTRY)
    for name in ("sshunt.mux", "sshunt.agent", "sshunt.relay"):
        compiled = compile(minify(closure[name].source), name, "exec")
        assert compiled.co_names == ()
