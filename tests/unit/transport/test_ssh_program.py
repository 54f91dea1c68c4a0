"""Where the ssh program is looked for, and what is said if it can't be started."""

from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.transport.ssh_program import find_program, no_ssh
from tests.unit.transport.test_ssh import program


def test_a_program_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("ssh") == path


def test_what_is_not_on_the_path_is_looked_for_where_it_usually_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_program("ssh").endswith("/ssh")


def test_what_is_nowhere_is_said_so() -> None:
    with pytest.raises(UserError, match=r"no-such-ssh can't be started: there is no such program"):
        find_program("no-such-ssh")


def test_a_program_that_can_not_be_started_is_no_connection() -> None:
    error = no_ssh("ssh", "Permission denied")
    assert (error.message, error.exit_code) == (
        "ssh can't be started: Permission denied",
        ExitCode.CONNECT,
    )
