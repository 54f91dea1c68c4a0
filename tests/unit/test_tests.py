"""The tests themselves leave nothing where they should not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
