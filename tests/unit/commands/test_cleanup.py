"""``sshunt cleanup``: its words. What it removes: test_blocks, tests/e2e."""

import pytest

from sshunt.commands import cleanup
from sshunt.errors import ExitCode, UserError
from sshunt.tell.console import Console


def test_it_takes_no_words() -> None:
    with pytest.raises(UserError) as raised:
        cleanup.cleanup(["everything"], Console())
    assert raised.value.exit_code is ExitCode.USAGE


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cleanup.cleanup(["--help"], Console())
    assert raised.value.code == 0
    assert "Sessions that live are left alone" in capsys.readouterr().out
