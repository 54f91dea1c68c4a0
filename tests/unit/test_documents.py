"""The pages for readers: they name what exists, and say what the source says is open."""

import re
from pathlib import Path

import pytest

import sshunt

SOURCE = Path(sshunt.__file__).parent
ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

#: [words](target), without what stands behind a "#".
_LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")

#: A module in a code span: folder, name, ending.
_MODULE = re.compile(r"`(?:src/sshunt/)?(\w+)/(\w+)(\.py)?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_open_question_of_the_source_is_on_the_page_of_limits() -> None:
    asking = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "Open question:" in path.read_text()
    ]
    page = (ROOT / "docs" / "limits.md").read_text()
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", page, re.MULTILINE)
    assert sorted(set(listed)) == sorted(asking)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    """In code spans: `mux/pacer.py`, or without its ending where the folder is one of ours."""
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    for folder, name, ending in _MODULE.findall(page.read_text()):
        if ending or folder in folders:
            path = f"{folder}/{name}.py"
            assert (SOURCE / path).exists() or (ROOT / path).exists(), path
