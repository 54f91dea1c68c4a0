"""What is started before the rest is loaded ends with the command, whatever becomes of it."""

import subprocess
import sys
from pathlib import Path

from sshunt.commands import early
from sshunt.errors import ExitCode
from sshunt.lab.hosts import is_alive
from tests.agent.far_side import eventually
from tests.unit.transport.test_ssh import program

#: The collector, and what is imported, are the whole process' business: so it is one of its own.
_RUN = (
    "import sys; from sshunt.cli import main; status = main(sys.argv[1:]);"
    " import gc; print(gc.isenabled(), sys.modules.get('ssl'), file=sys.stderr); sys.exit(status)"
)


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-c", _RUN, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_an_ssh_that_is_asked_early_ends_although_the_targets_are_wrong(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    ssh = program(tmp_path, f"echo $$ >> {pids}; exec sleep 60")
    done = run("-e", ssh, "-r", "gate", "127.0.0.1")
    assert "is this host itself" in done.stderr
    assert done.returncode == ExitCode.USAGE
    asked = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    eventually(lambda: not any(map(is_alive, asked)), "the end of what was asked")


def test_nothing_is_started_to_say_what_would_be_done(tmp_path: Path) -> None:
    called = tmp_path / "called"
    ssh = program(tmp_path, f"touch {called}")
    done = run("-e", ssh, "-r", "gate", "--dry-run", "10.99.0.0/16")
    assert done.returncode == ExitCode.OK
    assert "10.99.0.0" in done.stdout
    assert not called.exists()


def test_start_up_collects_no_garbage_and_loads_no_tls(tmp_path: Path) -> None:
    done = run("-e", program(tmp_path, "exit 1"), "-r", "gate", "--dry-run", "10.99.0.0/16")
    assert done.stderr.splitlines()[-1] == "False None"


def test_the_first_step_loads_nothing_of_the_rest() -> None:
    code = f"import {early.__name__}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"asyncio", "psutil", "sshunt.commands.up"} & set(loaded.stdout.split())
