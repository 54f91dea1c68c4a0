"""Two pages name the test that holds each promise; every one of them is there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGES = [TESTS.parent / "docs" / name for name in ("security.md", "attacks.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_promise_names_tests_that_exist(page: Path) -> None:
    lines = page.read_text().splitlines()
    promises = [line for line in lines if re.match(r"\| (?!what|he asks|-)", line)]
    assert len(promises) > 15
    for line in promises:
        named = re.findall(r"`(\w+/[\w/]+)(?:::(\w+))?`", line)
        assert named, line
        for module, test in named:
            source = (TESTS / f"{module}.py").read_text()
            assert not test or re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), test
