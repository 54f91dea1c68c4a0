"""How every sshunt begins: whatever it inherits, wherever it stands, whenever Ctrl-C is pressed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sshunt
from sshunt.errors import ExitCode
from sshunt.lab.hosts import python

ROOT = Path(sshunt.__file__).parent
BY_PATH = [sys.executable, "-I", "-B", str(ROOT / "__main__.py")]
AS_MODULE = [sys.executable, "-m", "sshunt"]
INSTALLED = [str(Path(sys.executable).with_name("sshunt"))]

#: Names that sshunt, or what it imports, looks for; anybody can leave such files anywhere.
PLANTED = ("shlex", "socket", "sshunt", "runpy", "psutil", "asyncio", "signal", "sitecustomize")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that other users reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def hostile(open_to_all: Path) -> Path:
    """A directory with modules of somebody else's, each of which leaves a mark when it is run."""
    for name in PLANTED:
        mark = open_to_all / f"{name}-was-run"
        text = f"open({str(mark)!r}, 'w')\nraise SystemExit(77)\n"
        (open_to_all / f"{name}.py").write_text(text)
    return open_to_all


def unprivileged() -> list[str]:
    """What stands before a command that must not run as root."""
    ids = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return ids if os.geteuid() == 0 else []


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*-was-run"))


# --- what is imported ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", [BY_PATH, INSTALLED, python("sshunt")], ids=str)
def test_nothing_of_the_current_directory_is_imported(command: list[str], hostile: Path) -> None:
    done = subprocess.run([*command, "--version"], cwd=hostile, capture_output=True, check=False)
    assert (done.returncode, marks(hostile)) == (0, [])
    assert done.stdout.startswith(b"sshunt ")


@pytest.mark.parametrize("command", [BY_PATH, python("sshunt")], ids=str)
def test_what_root_runs_imports_nothing_that_the_environment_names(
    command: list[str], hostile: Path
) -> None:
    env = {"PYTHONPATH": str(hostile), "PYTHONSTARTUP": str(hostile / "sshunt.py")}
    done = subprocess.run([*command, "--version"], env=env, capture_output=True, check=False)
    assert (done.returncode, marks(hostile)) == (0, [])


def test_the_demo_asks_sudo_for_nothing_that_imports_from_the_current_directory(
    hostile: Path,
) -> None:
    # Not the real sudo, because the real demo would follow: what it is asked to run, run as ours.
    sudo = hostile / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\nexec "$@" --help\n')
    sudo.chmod(0o755)
    done = subprocess.run(
        [*unprivileged(), *INSTALLED, "demo"],
        cwd=hostile,
        env={"PATH": f"{sudo.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert marks(hostile) == []
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: sshunt demo")


def test_dev_finds_its_checkout_and_nothing_else(hostile: Path) -> None:
    dev = ROOT.parent.parent / "dev"
    if not (dev.parent / ".venv" / "bin" / "python").exists():
        pytest.skip("dev has made no virtual environment here")
    (hostile / dev.parent.name).mkdir()
    done = subprocess.run(
        ["sh", f"{dev.parent.name}/dev", "demo", "--help"],
        cwd=dev.parent.parent,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(hostile),
            "CDPATH": str(hostile),
            "DEV_NO_APT": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, marks(hostile)) == (0, []), done.stderr
    assert done.stdout.startswith("usage: sshunt demo")


# --- standard output ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 20_000], ids=["short", "long"])
def test_a_reader_who_has_enough_is_no_bug(tmp_path: Path, size: int) -> None:
    """What is long does not fit into the pipe, what is short is written at the end."""
    targets = tmp_path / "targets"
    targets.write_text("".join(f"10.{n >> 8}.{n & 255}.7\n" for n in range(size)))
    with subprocess.Popen(
        [*BY_PATH, "--dry-run", "-r", "gate", "-s", str(targets)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0


# --- which Python -------------------------------------------------------------------------------


def old_pythons() -> list[str]:
    found = Path("/root/.pyenv/versions").glob("3.[6789]*/bin/python3")
    return [str(path) for path in sorted(found) if os.access(path, os.X_OK)]


@pytest.mark.parametrize("old", old_pythons())
def test_a_python_that_is_too_old_is_told_in_two_lines(old: str) -> None:
    done = subprocess.run(
        [old, "-B", "-m", "sshunt", "-r", "gate", "10.0.0.0/8"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    what, hint = done.stderr.splitlines()
    assert what.startswith("sshunt: error: this is Python 3.")
    assert "3.10 or newer" in what
    assert hint.startswith("sshunt: hint: ")
    assert done.returncode == ExitCode.USAGE


# --- what is inherited --------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors_are_open_in_what_is_started(
    closed: tuple[int, ...], open_to_all: Path
) -> None:
    # sudo is what is started first, with stderr as we have it. This one tells what that is.
    seen = open_to_all / "seen"
    sudo = open_to_all / "sudo"
    sudo.write_text(f"#!/bin/sh\nreadlink /proc/$$/fd/2 >>{seen} || echo closed >>{seen}\nexit 3\n")
    sudo.chmod(0o755)
    redirections = " ".join(f"{number}>&-" for number in closed)
    words = [*BY_PATH, "-r", "gate", "10.0.0.0/8"]
    done = subprocess.run(
        [*unprivileged(), "sh", "-c", f'exec "$@" {redirections}', "sh", *words],
        env={"PATH": f"{open_to_all}:/usr/bin:/bin"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == ExitCode.PRIVILEGE
    assert seen.read_text().startswith("/dev/null" if 2 in closed else "pipe:")


@pytest.mark.parametrize("words", [["--help"], ["-r"], ["demo", "--help"], ["reconnect", "-h"]])
def test_output_to_closed_descriptors_is_no_traceback(words: list[str], tmp_path: Path) -> None:
    status = subprocess.run(
        ["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", *BY_PATH, *words], check=False
    ).returncode
    assert status in (0, ExitCode.USAGE)


# --- Ctrl-C -------------------------------------------------------------------------------------


def takes_ctrl_c(process: "subprocess.Popen[bytes]") -> bool | None:
    """Whether it has a handler for SIGINT now; None when it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return None
    mask = status.partition("SigCgt:")[2].split()[0]
    return bool(int(mask, 16) & 1 << (signal.SIGINT - 1))


@pytest.mark.parametrize("command", [BY_PATH, AS_MODULE, INSTALLED], ids=str)
def test_ctrl_c_at_any_moment_of_loading_ends_it_without_a_word(command: list[str]) -> None:
    words = [*command, "-e", "/bin/sleep 60 ||", "-r", "gate", "10.0.0.0/8"]
    for delay_ms in (*range(0, 60, 7), *range(60, 300, 30)):
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        # Python takes the signal first, and what it says to it is Python's affair. Then we give it
        # back.
        for taken in (True, False):
            while process.poll() is None and takes_ctrl_c(process) is not taken:
                time.sleep(0.0005)
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert "Traceback" not in said, f"{delay_ms} ms: {said}"
        assert "never awaited" not in said, f"{delay_ms} ms: {said}"
        status = process.wait(20)
        process.stderr.close()
        assert status == -signal.SIGINT or "sshunt: error" in said, f"{delay_ms} ms: {said}"
