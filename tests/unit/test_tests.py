"""The tests themselves: each module has a test module of its own, and they leave nothing behind.

``src/sshunt/FOLDER/NAME.py`` is tested by ``tests/unit/FOLDER/test_NAME.py``, whatever else runs
it on the way. So who changes a module knows where to look, and who reads one sees its promises. Of
``__main__`` the underscores are left out. What has no function has nothing to test: an ``__init__``
is a docstring, and a few modules are nothing but names and numbers.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pure
from tests.unit.test_import_rules import MODULES, imported_names

TESTS = Path(__file__).parent

#: Modules that still have no test module. One that has got one must leave this list.
NOT_YET: set[str] = set()

#: What a test module that bears no module's name is about.
OF_NO_MODULE = {
    "mux.test_protocol_document": "docs/protocol.md, beside the code",
    "relay.test_endings": "sessions that end in the middle of something, over real sockets",
    "relay.test_whole_data_path": "all of relay at once, under everything that can go wrong",
    "test_documents": "the pages of docs",
    "test_glossary": "docs/glossary.md",
    "test_import_rules": "who may import whom",
    "test_packaging": "what is installed",
    "test_security_document": "docs/security.md, beside the tests",
    "test_tests": "the tests",
    "vm.test_what_readme_says": "what tests/vm reads out of README",
}

#: Test modules that do not import their module, and how they reach it.
WITHOUT_AN_IMPORT = {
    "direct.test_conversation": "between both ends (both_ends)",
    "helper.test_guard": "in a program of its own, whose child the sweeper is",
    "helper.test_apply": "in a helper, which does what it is asked",
    "helper.test_iptables": "in a helper, which does what it is asked",
    "helper.test_main": "as a program",
    "helper.test_packets": "in a helper, whose child it is",
    "helper.test_server": "in a helper, which does what it is asked",
    "host.test_parent": "in programs of its own, which end before their children",
    "host.test_terminal": "in a program of its own, which has a terminal",
    "relay.test_lane": "lanes are made by their tunnel",
    "test_main": "as a program",
}

PROPERTY = """\
from hypothesis import given, strategies as st

@given(st.text())
def test_that_fails_and_is_remembered(text: str) -> None:
    assert len(text) < 5
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which is the point")
def test_root_leaves_nothing_in_a_checkout_of_somebody_else(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_property.py").write_text(PROPERTY)
    (tmp_path / "pytest.ini").touch()
    os.chown(tmp_path, 65534, 65534)
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed" in done.stdout, done.stdout + done.stderr
    assert sorted(tmp_path.iterdir()) == before


# --- a test module for each module ----------------------------------------------------------------


def _tested_by(module: str) -> str:
    """The test module of a module; both without what all have in front."""
    folder, dot, name = module.rpartition(".")
    return f"{folder}{dot}test_{name.strip('_')}"


def _does_something(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))


OF_MODULES = {_tested_by(module): module for module in MODULES if module}
TO_TEST = {name for name, module in OF_MODULES.items() if _does_something(MODULES[module])}
TEST_MODULES = {
    ".".join(path.relative_to(TESTS).with_suffix("").parts): path
    for path in TESTS.rglob("test_*.py")
}


def test_each_module_has_a_test_module_of_its_own() -> None:
    assert {OF_MODULES[name] for name in TO_TEST - set(TEST_MODULES)} == NOT_YET


def test_each_test_module_bears_the_name_of_a_module_or_says_what_else_it_is_about() -> None:
    assert set(TEST_MODULES) - set(OF_MODULES) == set(OF_NO_MODULE)


def test_a_test_module_imports_the_module_whose_name_it_bears() -> None:
    others = {
        name
        for name, path in TEST_MODULES.items()
        if name in OF_MODULES and f"sshunt.{OF_MODULES[name]}" not in imported_names(path)
    }
    assert others == set(WITHOUT_AN_IMPORT)


@pytest.mark.timeout(300)
def test_pure_modules_are_covered_by_their_own_tests_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.pure"],
        cwd=pure.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
