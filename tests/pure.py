"""How much of each pure module its own test module covers: python -m tests.pure [NAME ...]

A pure module decides; it does nothing. Whatever it can do, a test can have it do, without a
network and without root, so nothing excuses a branch that no test takes. What counts is what
``tests/unit/FOLDER/test_NAME.py`` alone takes of ``src/sshunt/FOLDER/NAME.py``: a branch that is
only passed on the way to something else has nobody to say what it should do.

All test modules run in one process, which takes a fraction of the time of a process each; coverage
writes down in a context of its own what each of them ran. What runs when modules are imported
happens once and counts for all. Tests that do one thing over and over to reach a limit (marked
many) are left out: they take nearly all of the time, and what they take others take, too.

It prints a line for each module, and below it what was never run and which branches were never
taken; its status is 1 if that is too much (of those that are named, or of all).

Not here: whether each module has a test module at all (``tests/unit/test_tests.py``).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/sshunt"
TESTS = ROOT / "tests/unit"

#: Folders of which every module is pure, and the pure ones of other folders.
FOLDERS = ("mux", "route", "config", "capture")
SINGLE = (
    *("model", "remote/keeper", "remote/attempts", "remote/demand", "host/wanted"),
    *(
        "helper/protocol",
        "helper/segments",
        "helper/syn_messages",
        "helper/echo_messages",
        "helper/echo_packets",
        "front/echo_datagrams",
        "helper/wire",
        "helper/udp_messages",
        "helper/pace",
        "helper/natlook",
        "transport/ssh_ways",
        "transport/ssh_diagnosis",
        "transport/hello_search",
    ),
    *("tell/report", "tell/sentences", "tell/figures"),
)

#: The share of its branches that a pure module's own tests must take. What is left are branches
#: that only a mistake in the module itself could take.
WANTED = 0.95

#: Modules whose tests do not yet take that share. One that has got them must leave this list.
NOT_YET: set[str] = set()


class Measured(NamedTuple):
    """What a module's own test module takes of it."""

    name: str
    branches: int
    missing: list[tuple[int, int]]
    lines: list[int]

    @property
    def share(self) -> float:
        return 1 - len(self.missing) / self.branches if self.branches else 1.0

    @property
    def is_enough(self) -> bool:
        return self.share >= WANTED

    def __str__(self) -> str:
        text = f"{self.name}: {self.share:.1%} of {self.branches} branches"
        if self.missing:
            text += "\n    never taken: " + ", ".join(f"{a} -> {_end(b)}" for a, b in self.missing)
        if self.lines:
            text += f"\n    never run: {_ranges(self.lines)}"
        return text


def pure_modules() -> list[str]:
    """Names like "mux/frames": every pure module that is there."""
    inside = [p for folder in FOLDERS for p in sorted(SOURCE.joinpath(folder).glob("*.py"))]
    single = [SOURCE / f"{name}.py" for name in SINGLE]
    found = [p for p in [*inside, *single] if p.exists() and p.stem != "__init__"]
    return [str(p.relative_to(SOURCE).with_suffix("")) for p in found]


def tests_of(name: str) -> Path:
    """Where the tests of the module ``name`` are."""
    folder, _, stem = name.rpartition("/")
    return TESTS / folder / f"test_{stem}.py"


def measure(names: list[str]) -> list[Measured]:
    """Run the test modules of ``names``; those without one are as if they had an empty one."""
    measuring = coverage.Coverage(
        data_file=None,
        config_file=False,
        branch=True,
        include=[str(SOURCE / f"{name}.py") for name in names],
    )
    measuring.start()
    try:
        _run([path for name in names if (path := tests_of(name)).exists()], measuring)
    finally:
        measuring.stop()
    return [_measured(measuring, name) for name in names]


class _Contexts:
    """A part of pytest: tells coverage whose tests run."""

    def __init__(self, measuring: coverage.Coverage) -> None:
        self._measuring = measuring

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, location: tuple[str, int | None, str]) -> None:
        path = (ROOT / location[0]).relative_to(TESTS)
        self._measuring.switch_context(str(path.with_name(path.stem.removeprefix("test_"))))


def _run(paths: list[Path], measuring: coverage.Coverage) -> None:
    options = ["-qq", "-m", "not many", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    ended = pytest.main([*options, *map(str, paths)], plugins=[_Contexts(measuring)])
    if ended != pytest.ExitCode.OK:
        raise SystemExit("the tests fail, so what they cover says nothing")


def _measured(measuring: coverage.Coverage, name: str) -> Measured:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        contexts = [f"^{name}$", "^$"]
        path = str(SOURCE / f"{name}.py")
        try:
            measuring.json_report(morfs=[path], outfile=report.name, contexts=contexts)
        except coverage.exceptions.NoDataError:
            return Measured(name, 1, [(1, 1)], [])
        (file,) = json.loads(Path(report.name).read_text())["files"].values()
    missing = [(start, end) for start, end in file["missing_branches"]]
    return Measured(name, file["summary"]["num_branches"], missing, file["missing_lines"])


def _end(line: int) -> str:
    return str(line) if line > 0 else "the end"


def _ranges(lines: list[int]) -> str:
    """3-5, 9: the lines 3, 4, 5 and 9."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def main() -> int:
    """Print the figures of all pure modules, or of those that are named; the exit status."""
    all_enough = True
    names = sys.argv[1:] or pure_modules()
    for name in names:
        if not (SOURCE / f"{name}.py").is_file():
            raise SystemExit(f"there is no module {name!r}; names are like mux/frames")
    for measured in measure(names):
        print(measured)
        if measured.is_enough == (measured.name in NOT_YET):
            known = "which is enough: it must leave NOT_YET" if measured.is_enough else "too few"
            print(f"    {known}")
            all_enough = False
    return 0 if all_enough else 1


if __name__ == "__main__":
    sys.exit(main())
