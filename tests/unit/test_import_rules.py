"""Which part of the program may import which: the layers of the design, read from syntax trees.

mux        nothing of ours, and nothing that could do I/O or tell the time
relay      mux
agent      relay, mux
capture    renders rule text; never runs a program
helper     never the client's side; only helper/apply.py and the modules that serve it alone touch
           the kernel
packages   an __init__ is a docstring: it maps its folder and imports nothing
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshunt
from sshunt.transport.bundle import ENTRY, agent_bundle, import_closure

ROOT = Path(sshunt.__file__).parent

IMPURE = {
    "socket",
    "select",
    "selectors",
    "time",
    "random",
    "os",
    "asyncio",
    "logging",
    "threading",
}
RUNS_PROGRAMS = {"subprocess", "pty", "ctypes", "multiprocessing"}
TOUCHES_THE_KERNEL = {
    "nftables.py": {"ctypes"},
    "privileges.py": {"ctypes"},
    "marks.py": {"fcntl"},  # the server's, too: a slot is taken before anything is asked
    "addresses.py": {"fcntl"},
}
OF_APPLY = {"nftables", "netlink", "changes", "guard", "cgroups", "sweeper", "processes"}
OF_APPLY |= {"privileges", "addresses", "chains", "interfaces", "resolvers"}
KERNEL = {f"sshunt.helper.{name}" for name in OF_APPLY}
SHIPPED = ("mux", "relay", "agent")


def modules(folder: str) -> list[Path]:
    return sorted(ROOT.joinpath(folder).glob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that ``path`` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def our_layers(path: Path) -> set[str]:
    """The parts of sshunt that ``path`` imports: "mux", "client" ..."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("sshunt.")}


def their_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path) if name.split(".")[0] != "sshunt"}


@pytest.mark.parametrize("path", modules("mux"), ids=str)
def test_the_protocol_knows_no_input_no_output_and_no_clock(path: Path) -> None:
    assert our_layers(path) <= {"mux"}
    assert not their_packages(path) & IMPURE


@pytest.mark.parametrize("path", modules("relay"), ids=str)
def test_the_relay_knows_only_the_protocol(path: Path) -> None:
    assert our_layers(path) <= {"mux", "relay"}


@pytest.mark.parametrize("path", modules("agent"), ids=str)
def test_the_agent_knows_only_the_relay_and_the_protocol(path: Path) -> None:
    assert our_layers(path) <= {"mux", "relay", "agent"}


@pytest.mark.parametrize("folder", SHIPPED)
def test_what_is_shipped_needs_the_standard_library_only(folder: str) -> None:
    for path in modules(folder):
        assert their_packages(path) <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize("path", modules("capture"), ids=str)
def test_capture_renders_and_runs_nothing(path: Path) -> None:
    assert not their_packages(path) & RUNS_PROGRAMS
    assert not our_layers(path) & {"helper", "transport", "relay", "agent", "client", "cli"}


@pytest.mark.parametrize("path", modules("helper"), ids=str)
def test_the_privileged_helper_knows_nothing_of_the_client(path: Path) -> None:
    assert not our_layers(path) & {"mux", "relay", "transport", "agent", "client", "cli"}
    assert their_packages(path) <= set(sys.stdlib_module_names)
    touching = their_packages(path) & {*RUNS_PROGRAMS, "fcntl"}
    assert touching <= TOUCHES_THE_KERNEL.get(path.name, set())


def test_only_apply_and_its_own_modules_touch_the_kernel() -> None:
    knowing = {path.stem for path in ROOT.rglob("*.py") if KERNEL & set(imports(path))}
    assert knowing <= {"apply", *OF_APPLY}


def test_a_package_is_a_docstring_and_imports_nothing() -> None:
    for path in ROOT.rglob("__init__.py"):
        assert list(imports(path)) == [], path
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_what_is_shipped_is_what_the_agent_can_import() -> None:
    layers = {name.split(".")[1] for name in agent_bundle().modules if "." in name}
    assert layers == set(SHIPPED)
    assert set(agent_bundle().modules) == set(import_closure(ENTRY))


def test_nothing_lies_in_the_shipped_folders_that_is_not_shipped() -> None:
    lying = {f"sshunt.{folder}.{p.stem}" for folder in SHIPPED for p in modules(folder)}
    lying = {name.removesuffix(".__init__") for name in lying}
    assert lying <= set(agent_bundle().modules)
