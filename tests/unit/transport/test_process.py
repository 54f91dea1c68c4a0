"""A channel's program: what it hears of signals and terminals, and what ends with it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from sshunt.lab.hosts import is_alive
from sshunt.transport import process as process_module
from sshunt.transport.process import Pipes, Signals, kill, spawn
from tests.agent.far_side import eventually

NOBODY = 65534

ASKED_TO_END = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT}

#: Says which signals it ignores, which it blocks, and in which session it is.
CONFESSION = """\
import os, re
status = open("/proc/self/status").read()
print(*re.findall("^Sig(?:Ign|Blk):\\t(.*)", status, re.M), os.getsid(0), flush=True)
"""


def close(pipes: Pipes) -> None:
    os.close(pipes.read_fd)
    os.close(pipes.write_fd)
    pipes.stderr.close()


def confess(signals: Signals) -> tuple[set[int], set[int], bool]:
    """The signals that ssh ignores, those that it blocks, and whether it is in our session."""

    async def run() -> bytes:
        argv = [sys.executable, "-c", CONFESSION]
        process, pipes = await spawn(argv, print, None, signals=signals)
        await process.wait()
        said = os.read(pipes.read_fd, 1000)
        close(pipes)
        return said

    blocked, ignored, session = asyncio.run(run()).split()
    return members(ignored), members(blocked), int(session) == os.getsid(0)


def members(mask: bytes) -> set[int]:
    return {number for number in range(1, 64) if int(mask, 16) >> (number - 1) & 1}


def test_ssh_ignores_signals_that_ask_a_whole_process_group_to_end() -> None:
    ignored, blocked, is_with_us = confess(Signals.IGNORED)
    assert ignored >= ASKED_TO_END
    assert not blocked & ASKED_TO_END  # a password prompt must return on Ctrl-C
    assert is_with_us  # or it could not ask at the terminal


def test_an_ssh_that_can_ask_nobody_hears_none_of_it_and_has_no_terminal() -> None:
    ignored, blocked, is_with_us = confess(Signals.BLOCKED)
    assert ignored & blocked >= ASKED_TO_END
    assert not is_with_us


def test_an_agent_of_this_host_hears_every_signal_and_has_no_terminal() -> None:
    ours = {number for number in ASKED_TO_END if signal.getsignal(number) is signal.SIG_IGN}
    ignored, blocked, is_with_us = confess(Signals.UNCHANGED)
    assert ignored & ASKED_TO_END == ours
    assert not blocked & ASKED_TO_END
    assert not is_with_us


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a while")
def test_a_program_that_we_may_not_kill_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "LEAVE_DEADLINE_S", 0.1)

    async def run() -> None:
        process, pipes = await spawn(["sleep", "60"], print, None, signals=Signals.IGNORED)
        ended = asyncio.ensure_future(process.wait())
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            await kill(process, ended)
        finally:
            os.setresuid(0, 0, 0)
        assert not ended.done()
        close(pipes)
        await kill(process, ended)

    asyncio.run(run())


@pytest.mark.parametrize("signals", list(Signals))
def test_a_killed_ssh_takes_its_children_along(tmp_path: Path, signals: Signals) -> None:
    pid_file = tmp_path / "pid"

    async def run() -> None:
        argv = ["/bin/sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"]
        process, pipes = await spawn(argv, print, None, signals=signals)
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        ended = asyncio.ensure_future(process.wait())
        await kill(process, ended)
        assert ended.result() == (
            -signal.SIGTERM if signals is Signals.UNCHANGED else -signal.SIGKILL
        )
        close(pipes)

    asyncio.run(run())
    sleep = int(pid_file.read_text())
    eventually(lambda: not is_alive(sleep), "the end of what it had started")
