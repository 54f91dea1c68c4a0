"""``sshunt demo`` is the first thing a newcomer sees: it must work, and clean up after itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.demo import Proof, _show
from sshunt.errors import ExitCode

DEMO = [sys.executable, "-m", "sshunt", "demo"]


def labs() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("sshunt-lab-*")}


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_every_proof_of_the_demo_holds_and_nothing_is_left() -> None:
    before = labs()
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        printed, progress = demo.communicate(timeout=100)
        assert demo.returncode == 0, printed + progress
    assert "FAILED" not in printed
    for proof in (
        "nothing is installed on the server",
        "curl http://10.55.0.2/",
        "IPv6",
        "byte for byte",
        "ssh -L",
        "kill -9",
        "none on the server",
        "Nothing is left behind.",
    ):
        assert proof in printed
    assert "Traceback" not in progress
    assert not [name for name in labs() - before if f"sshunt-lab-{demo.pid}-" in name]


def test_a_proof_that_failed_is_not_followed_by_a_reassurance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _show([Proof("one", True, "seen"), Proof("other", False, "not seen")], 1.0)
    printed = capsys.readouterr().out
    assert "FAILED  other" in printed
    assert "1 of 2 proofs held" in printed
    assert "Nothing is left behind" not in printed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_without_root_and_without_sudo_the_demo_ends_with_two_lines() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=2000000001", "--regid=2000000001", "--clear-groups", *DEMO],
        env={"PATH": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        executable=shutil.which("setpriv"),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    what, hint = done.stderr.splitlines()
    assert what.startswith("sshunt: error: ")
    assert "sudo" in what
    assert hint.startswith("sshunt: hint: ")
    assert done.returncode == ExitCode.PRIVILEGE


def test_the_demo_explains_itself_when_asked() -> None:
    done = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, check=True)
    assert "root" in done.stdout
    done = subprocess.run([*DEMO, "something"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
