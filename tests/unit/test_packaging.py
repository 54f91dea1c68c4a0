"""What is built from a checkout holds what it should, and leaves the checkout as it was."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Not of the checkout: what tools have left there.
LEFT = ("*cache*", ".venv*", ".git", ".hypothesis", ".coverage*", "*.egg-info", "build", "dist")

#: As pip calls the hooks: each in a process of its own.
HOOK = """
import sys
from hatchling import build
getattr(build, sys.argv[1])(*sys.argv[2:])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all that can be built from a copy of the checkout lies."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout, out = folder / "checkout", folder / "built"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*LEFT), symlinks=True)
    out.mkdir()
    before = tree(checkout)
    for hook in ("get_requires_for_build_wheel", "get_requires_for_build_sdist"):
        run(checkout, hook)
    editable = folder / "editable"
    for hook, where in (("build_wheel", out), ("build_editable", editable), ("build_sdist", out)):
        assert "Deprecat" not in run(checkout, hook, str(where))
    assert tree(checkout) == before
    return out


def run(checkout: Path, hook: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", HOOK, hook, *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_sdist_has_everything_that_its_readme_links_to_and_the_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    links = set(re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text()))
    assert links
    assert links <= names
    wanted = {"dev", "tests/conftest.py", "tests/golden/office.nft", ".ci/run", "bench/wan.py"}
    assert wanted | {"CHANGELOG.md", "LICENSE"} <= names
    assert not [name for name in names if "cache" in name]


def test_a_wheel_has_the_program_and_says_whose_it_is(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        says = HeaderParser().parsestr(archive.read(metadata).decode())
    sources = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert says["License-Expression"] == "MIT"
    assert says["Author"] == "the sshunt authors"
    assert says["Requires-Python"] == ">=3.10"
    assert "Operating System :: POSIX :: Linux" in says.get_all("Classifier", [])
