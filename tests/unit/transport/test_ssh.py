"""What -r and -e mean, what ssh is asked for, and when the cipher is left alone."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sshunt.config.remotes import Remote
from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import is_alive
from sshunt.mux.hello import CLIENT, make_hello
from sshunt.transport.ssh import SshTransport, ssh_argv
from sshunt.transport.ssh_choices import NOTHING
from sshunt.transport.stderr import SPEAKER, STDERR_LINE_CHARACTERS
from tests.agent.far_side import eventually


def program(folder: Path, text: str, name: str = "ssh") -> str:
    """A program to stand in ssh's place."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_the_users_own_arguments_come_before_ours(tmp_path: Path) -> None:
    path = program(tmp_path, "exit 0")
    remote = Remote("gate", "alice", 2222, (path, "-o", "ControlMaster=yes"))
    argv = ssh_argv(remote, ["-o", "Extra=1"], "command")
    assert argv[:3] == [path, "-o", "ControlMaster=yes"]
    assert argv.index("ControlMaster=yes") < argv.index("ControlMaster=no")
    assert argv[3:5] == ["-o", "Extra=1"]
    assert argv[-5:] == ["-p", "2222", "alice@gate", "--", "command"]


def test_the_delimiter_before_the_command_can_be_left_out() -> None:
    assert ssh_argv(Remote("gate", delimiter=False), [], "command")[-2:] == ["gate", "command"]


def test_ssh_is_found_where_it_usually_is_when_the_path_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert ssh_argv(Remote("gate"), [], "command")[0].endswith("/ssh")


def test_an_ssh_that_is_not_there_is_said_so() -> None:
    with pytest.raises(UserError, match=r"no-such-ssh can't be started") as raised:
        ssh_argv(Remote("gate", ssh_command=("no-such-ssh",)), [], "command")
    assert raised.value.exit_code == ExitCode.CONNECT


# --- connecting, with programs that stand in ssh's place --------------------------------------


async def connect(
    remote: Remote, on_line: Callable[[str], None] = print, deadline_s: float = 20.0
) -> None:
    hello = make_hello(CLIENT, bytes(32))
    transport = SshTransport(remote, NOTHING)
    await transport.open(hello, on_line=on_line, on_silence=print, deadline_s=deadline_s)


def attempt(path: str, deadline_s: float = 20.0) -> tuple[UserError, list[str]]:
    """How ``connect`` fails, and what it showed on the way."""
    shown: list[str] = []

    async def run() -> UserError:
        remote = Remote("gate", ssh_command=(path,))
        with pytest.raises(UserError) as raised:
            await connect(remote, on_line=shown.append, deadline_s=deadline_s)
        return raised.value

    return asyncio.run(run()), shown


def test_lines_that_the_diagnosis_will_say_are_not_shown_twice(tmp_path: Path) -> None:
    said = "echo Welcome to the gate >&2; echo 'a@gate: Permission denied (publickey).' >&2"
    error, shown = attempt(program(tmp_path, said + "; exit 255"))
    assert shown == ["ssh: Welcome to the gate"]
    assert error.exit_code == ExitCode.AUTH


def test_what_the_far_side_writes_can_not_control_the_terminal(tmp_path: Path) -> None:
    _, shown = attempt(program(tmp_path, r"printf 'a\033[2Jb\r\n' >&2; exit 1"))
    assert shown == ["ssh: a [2Jb"]


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    _, shown = attempt(program(tmp_path, "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"))
    assert max(map(len, shown)) <= len(SPEAKER) + STDERR_LINE_CHARACTERS


def test_an_answer_that_never_comes_has_a_deadline(tmp_path: Path) -> None:
    error, _ = attempt(program(tmp_path, "exec sleep 60"), deadline_s=0.2)
    assert "did not answer" in error.message
    assert error.exit_code == ExitCode.REMOTE


def test_an_echo_of_the_upload_is_not_taken_for_the_agent(tmp_path: Path) -> None:
    error, _ = attempt(program(tmp_path, "exec cat"))
    assert "not the agent" in error.message


def test_a_grandchild_that_keeps_the_pipes_open_does_not_hold_the_failure_up(
    tmp_path: Path,
) -> None:
    pid_file = tmp_path / "pid"
    error, _ = attempt(program(tmp_path, f"sleep 60 & echo $! > {pid_file}; exit 255"))
    assert error.exit_code == ExitCode.CONNECT
    Path("/proc", pid_file.read_text().strip(), "comm").read_text()  # it lives
    asyncio.run(_kill(int(pid_file.read_text())))


async def _kill(pid: int) -> None:
    await (await asyncio.create_subprocess_exec("kill", str(pid))).wait()


def test_a_cancelled_start_leaves_no_ssh_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")

    async def run() -> None:
        remote = Remote("gate", ssh_command=(path,))
        starting = asyncio.ensure_future(connect(remote))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    assert not Path("/proc", pid_file.read_text().strip()).exists()


def test_a_start_that_is_cancelled_again_and_again_leaves_no_ssh_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")

    async def run() -> None:
        remote = Remote("gate", ssh_command=(path,))
        starting = asyncio.ensure_future(connect(remote))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        while not starting.done():
            starting.cancel()
            await asyncio.wait([starting], timeout=0.02)
        assert starting.cancelled()

    asyncio.run(run())
    assert not is_alive(int(pid_file.read_text()))


def test_children_of_ssh_end_with_a_cancelled_start(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"sleep 60 & echo $! > {pid_file}; wait")
    error, _ = attempt(path, deadline_s=0.5)
    assert "did not answer" in error.message
    sleep = int(pid_file.read_text())
    eventually(lambda: not is_alive(sleep), "the end of what ssh had started")


def test_a_start_leaks_no_descriptor_whenever_it_is_cancelled(tmp_path: Path) -> None:
    remote = Remote("gate", ssh_command=(program(tmp_path, "exec sleep 60"),))

    async def run() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()  # the loop's own descriptors
        before = len(os.listdir("/proc/self/fd"))
        for turns in range(1, 12):  # from before the pipes are made until ssh runs
            starting = asyncio.ensure_future(connect(remote))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert len(os.listdir("/proc/self/fd")) == before, turns

    asyncio.run(run())
