"""A helper is started: directly by root, by sudo, doas or run0 for others."""

import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.host import elevate
from sshunt.host.elevate import HelperProcess, helper_command, is_free

#: A sudo or doas that says what it was started with, on the socket that it was given.
_TOOL = """#!/bin/sh
for word in "$SUDO_PROMPT" "$(basename "$0")" "$@"; do printf '%s\\n' "$word"; done
exit 7
"""


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


Tools = Callable[..., None]


@pytest.fixture
def with_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Lets an ordinary user have these tools, and no others."""

    def install(*names: str, tool: str = _TOOL) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        for name in names:
            (tmp_path / name).write_text(tool.replace("basename", "/usr/bin/basename"))
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


#: One that asks for a password that nobody types.
_ASKING = """#!/bin/sh
exec /bin/sleep 1000
"""


def said(process: HelperProcess) -> list[str]:
    """What the tool says, until it ends."""
    with process.take() as ours:
        ours.setblocking(True)
        ours.settimeout(10)
        lines = ours.makefile().read().splitlines()
    process.close()
    return lines


def ended(process: HelperProcess) -> int:
    while (status := process.poll()) is None:
        pass
    return status


def test_what_runs_as_root_is_this_python_and_nothing_of_the_user_s() -> None:
    python, *options, program = helper_command()
    assert python == sys.executable
    assert options == ["-I", "-S", "-B"]
    assert program.endswith("/sshunt/helper/__main__.py")
    assert Path(program).is_file()


@pytest.mark.usefixtures("as_root")
def test_root_needs_no_tool_and_is_asked_for_nothing() -> None:
    assert is_free()
    process = HelperProcess()
    assert process.tool is None
    process.close()
    assert process.poll() is not None


@pytest.mark.parametrize("name", ["sudo", "doas"])
def test_a_tool_that_still_asks_is_ended(with_tools: Tools, name: str) -> None:
    with_tools(name, tool=_ASKING)
    process = HelperProcess()
    process.take().close()
    assert process.poll() is None
    process.end()
    assert process.poll() == -signal.SIGTERM
    process.end()


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (["sudo"], ["[sshunt] sudo password for %p: ", "sudo", "--"]),
        (["doas"], ["", "doas", "--"]),
        (["run0"], ["", "run0", "--pipe", "--background=", "--"]),
        (["run0", "doas"], ["", "doas", "--"]),
        (["run0", "sudo", "doas"], ["[sshunt] sudo password for %p: ", "sudo", "--"]),
    ],
)
def test_sudo_is_asked_before_doas_and_run0_and_each_for_exactly_this_command(
    with_tools: Tools,
    tools: list[str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(elevate, "_SYSTEMD", str(tmp_path))  # it runs here
    with_tools(*tools)
    assert not is_free()
    process = HelperProcess()
    assert process.tool == expected[1]
    assert said(process) == [*expected, *helper_command()]
    assert ended(process) == 7


#: sudo-rs before 0.2.5, as far as it matters: what it does not know is a usage error.
_SUDO_RS = """#!/bin/sh
[ "$1" = -- ] || { printf 'unrecognized option %s\\n' "$1"; exit 1; }
printf 'asked for %s\\n' "$2"
"""


def test_a_sudo_that_knows_no_prompt_is_given_none(with_tools: Tools) -> None:
    with_tools("sudo", tool=_SUDO_RS)
    process = HelperProcess()
    assert said(process) == [f"asked for {sys.executable}"]
    assert ended(process) == 0


def test_sudo_rs_is_given_a_word_that_it_shows_in_brackets_of_its_own(
    with_tools: Tools, tmp_path: Path
) -> None:
    with_tools("sudo-rs")
    (tmp_path / "sudo").symlink_to(tmp_path / "sudo-rs")
    process = HelperProcess()
    assert said(process) == ["sshunt", "sudo", "--", *helper_command()]
    ended(process)


def test_run0_is_no_way_where_systemd_is_not_the_first_process(
    with_tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(elevate, "_SYSTEMD", str(tmp_path / "none"))
    with_tools("run0")
    with pytest.raises(UserError, match="neither sudo nor doas"):
        HelperProcess()


def test_without_sudo_and_doas_it_is_an_error_of_privilege(with_tools: Tools) -> None:
    with_tools()
    with pytest.raises(UserError, match="neither sudo nor doas") as caught:
        HelperProcess()
    assert caught.value.exit_code == ExitCode.PRIVILEGE


def test_a_tool_that_can_not_be_run_is_told_by_its_name(with_tools: Tools, tmp_path: Path) -> None:
    with_tools("sudo")
    (tmp_path / "sudo").write_text("#!/no/such/program\n")
    with pytest.raises(UserError, match=r"can't start .*/sudo: No such file") as caught:
        HelperProcess()
    assert caught.value.exit_code == ExitCode.PRIVILEGE


@pytest.mark.usefixtures("as_root")
def test_its_socket_is_taken_once_and_is_one_of_a_pair_that_does_not_block() -> None:
    process = HelperProcess()
    with process.take() as ours:
        assert ours.family == socket.AF_UNIX
        assert not ours.getblocking()
        assert stat.S_ISSOCK(os.fstat(ours.fileno()).st_mode)
        with pytest.raises(ValueError, match="taken before"):
            process.take()
    ended(process)
    process.close()


# --- what root has installed for all --------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's")
def test_a_helper_for_all_is_started_if_it_is_root_s_alone(
    with_tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        os.chmod(folder, 0o755)
        launcher = Path(folder) / "helper"
        monkeypatch.setattr(elevate, "LAUNCHER", str(launcher))
        with_tools("sudo")
        own = helper_command()
        assert own[0] == sys.executable
        launcher.write_text("#!/bin/sh\n")
        assert helper_command() == [str(launcher)]
        os.chown(launcher, 12345, 0)
        assert helper_command() == own


@pytest.mark.usefixtures("as_root")
def test_root_starts_his_own_helper_whatever_is_installed_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elevate, "LAUNCHER", "/bin/true")
    assert helper_command()[0] == sys.executable
