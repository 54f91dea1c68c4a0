"""docs/security.md names the test that holds each promise; every one of them is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"


def test_every_promise_names_tests_that_exist() -> None:
    promises = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (?!what|-)", line)]
    assert len(promises) > 20
    for line in promises:
        named = re.findall(r"`(\w+/[\w/]+)(?:::(\w+))?`", line)
        assert named, line
        for module, test in named:
            source = (TESTS / f"{module}.py").read_text()
            assert not test or re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), test
