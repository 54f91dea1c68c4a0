"""The pages for readers: they link to what exists, and say what the source says is open."""

import re
from pathlib import Path

import pytest

import sshunt

SOURCE = Path(sshunt.__file__).parent
ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

#: [words](target), without what stands behind a "#".
_LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")


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
