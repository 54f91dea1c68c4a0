"""Which part of the program may import which: the table of ARCHITECTURE.md, held to syntax trees.

The table is a whitelist. A cell names layers, or single modules of one (`tell.report`); a module
may also import its own layer. Every form of import counts, wherever it stands: in a function, for
types only, ``from sshunt import x``, ``import_module``. Besides:

circles    no module imports itself by way of others
maps       a folder's docstring names its modules, one line each, and none that is not there
pages      ARCHITECTURE.md names files that exist
purity     mux has no I/O and no clock; capture and route run nothing
privilege  what runs as root, and what is shipped, needs the standard library only
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshunt
from sshunt.transport.bundle import ENTRY, agent_bundle, import_closure

ROOT = Path(sshunt.__file__).parent
PAGE = Path(__file__).parents[2] / "ARCHITECTURE.md"

#: Imports that the table does not allow and that still have to go. One that has gone must leave
#: this list, too.
NOT_YET: set[tuple[str, str]] = set()

#: The same for modules that import themselves by way of others.
CIRCLES_NOT_YET: set[frozenset[str]] = set()

#: Modules that the table speaks of before they are there.
ROOMS_NOT_YET: set[str] = set()

#: A row of the table: `layer` | what it is | what it may import.
_ROW = re.compile(r"\| `(\w+)/?` \| [^|]+ \|([^|]*)\|")

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
    "restorer.py": {"subprocess"},  # fixed programs, whose text is the helper's own
    "starter.py": {"fcntl"},  # whose network a socket is of; nothing is changed by it
}
OF_APPLY = {"nftables", "netlink", "changes", "guard", "cgroups", "sweeper", "processes"}
OF_APPLY |= {"privileges", "addresses", "blocks", "chains", "interfaces", "resolvers", "ruleset"}
OF_APPLY |= {"packets", "nflog", "held_syns", "echoes"}
OF_APPLY |= {"udp_flows", "conntrack", "in_their_name", "injected", "restorer", "traces"}
KERNEL = {f"helper.{name}" for name in OF_APPLY}
SHIPPED = ("mux", "relay", "direct", "agent")


# --- reading ------------------------------------------------------------------------------------


def name_of(path: Path) -> str:
    """Without the leading "sshunt."; a folder's own name for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py"))


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names of all that ``path`` imports: modules, and what is imported from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name_called(node) in ("import_module", "__import__"):
            assert isinstance(node.args[0], ast.Constant), f"{path}: what does it import?"
            yield str(node.args[0].value)


def _name_called(call: ast.Call) -> str:
    function = call.func
    return getattr(function, "attr", "") or getattr(function, "id", "")


def our_modules(path: Path) -> set[str]:
    """The modules of ours that ``path`` imports."""
    names = {name.partition(".")[2] for name in imported_names(path) if name.startswith("sshunt.")}
    found = {name for name in names if name in MODULES}
    return {name for name in found if MODULES[name].name != "__init__.py"}


def their_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)} - {"sshunt"}


def whitelist(page: str) -> dict[str, set[str]]:
    """Layer -> what it may import, from the page's table."""
    return {layer: set(re.findall(r"`([\w.]+)`", cell)) for layer, cell in _ROW.findall(page)}


def layer_of(module: str) -> str:
    return module.split(".")[0]


def forbidden(allowed: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports of ours that are not in the table: (who, whom)."""
    return {
        (module, other)
        for module, path in MODULES.items()
        if module
        for other in our_modules(path)
        if layer_of(other) != layer_of(module)
        and not {other, layer_of(other)} & allowed.get(layer_of(module), set())
    }


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of modules in which each imports itself by way of the others."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        ahead = list(imports[start])
        while ahead:
            module = ahead.pop()
            if module not in found:
                found.add(module)
                ahead += imports[module]
        return found

    reach = {module: reachable(module) for module in imports}
    rounds = {m: frozenset(o for o in reach[m] if m in reach[o]) for m in imports if m in reach[m]}
    return set(rounds.values())


# --- the table ----------------------------------------------------------------------------------


def test_every_import_is_one_that_the_table_allows() -> None:
    assert forbidden(whitelist(PAGE.read_text())) == NOT_YET


def test_the_table_has_a_row_for_each_layer_and_no_other() -> None:
    assert set(whitelist(PAGE.read_text())) == {layer_of(module) for module in MODULES if module}


def test_the_table_names_what_exists() -> None:
    for layer, allowed in whitelist(PAGE.read_text()).items():
        for name in allowed - ROOMS_NOT_YET:
            assert name in MODULES, f"{layer} may import {name}, which is not there"


def test_nothing_imports_in_a_circle() -> None:
    assert circles({m: our_modules(path) for m, path in MODULES.items()}) == CIRCLES_NOT_YET


def test_a_circle_is_found_and_a_way_there_is_not_one() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert circles(imports) == {frozenset("bc"), frozenset("d")}


@pytest.mark.parametrize(
    "line",
    [
        "import sshunt.cli",
        "import sshunt.cli as words",
        "from sshunt import cli",
        "from sshunt.cli import main",
        "def f():\n    from sshunt.cli import main",
        "if TYPE_CHECKING:\n    from sshunt.cli import main",
        "importlib.import_module('sshunt.cli')",
        "__import__('sshunt.cli')",
    ],
)
def test_every_form_of_import_is_seen(tmp_path: Path, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert our_modules(path) == {"cli"}


# --- maps and pages -----------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_s_docstring_is_a_map_of_its_modules(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = re.findall(r"^ {0,4}(\w+) {2,}\S", text, re.MULTILINE)
    assert sorted(named) == sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def test_a_package_imports_nothing() -> None:
    for path in ROOT.rglob("__init__.py"):
        assert list(imported_names(path)) == [], path


def test_the_files_that_the_page_names_exist() -> None:
    top = PAGE.parent
    for name in re.findall(r"`((?:\w+/)+[\w.]*|\w+\.(?:py|md))`", PAGE.read_text()):
        places = (top / name, ROOT / name, ROOT / f"{name}.py", top / "docs" / name)
        assert any(place.exists() for place in places), name


# --- purity and privilege -------------------------------------------------------------------------


def modules(folder: str) -> list[Path]:
    return sorted(ROOT.joinpath(folder).glob("*.py"))


@pytest.mark.parametrize("path", modules("mux"), ids=str)
def test_the_protocol_knows_no_input_no_output_and_no_clock(path: Path) -> None:
    assert not their_packages(path) & IMPURE


@pytest.mark.parametrize("path", [*modules("capture"), *modules("route")], ids=str)
def test_what_renders_and_decides_runs_nothing(path: Path) -> None:
    assert not their_packages(path) & RUNS_PROGRAMS


@pytest.mark.parametrize("folder", [*SHIPPED, "helper", "capture"])
def test_what_is_shipped_or_runs_as_root_needs_the_standard_library_only(folder: str) -> None:
    for path in modules(folder):
        assert their_packages(path) <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize("path", modules("helper"), ids=str)
def test_few_modules_of_the_helper_reach_the_kernel_past_the_standard_library(path: Path) -> None:
    touching = their_packages(path) & {*RUNS_PROGRAMS, "fcntl"}
    assert touching <= TOUCHES_THE_KERNEL.get(path.name, set())


def test_only_apply_and_its_own_modules_touch_the_kernel() -> None:
    knowing = {path.stem for path in MODULES.values() if KERNEL & our_modules(path)}
    assert knowing <= {"apply", "iptables", *OF_APPLY}


def test_what_is_shipped_is_what_the_agent_can_import() -> None:
    layers = {name.split(".")[1] for name in agent_bundle().modules if "." in name}
    assert layers == set(SHIPPED)
    assert set(agent_bundle().modules) == set(import_closure(ENTRY))


def test_nothing_lies_in_the_shipped_folders_that_is_not_shipped() -> None:
    lying = {f"sshunt.{folder}.{p.stem}" for folder in SHIPPED for p in modules(folder)}
    lying = {name.removesuffix(".__init__") for name in lying}
    assert lying <= set(agent_bundle().modules)
