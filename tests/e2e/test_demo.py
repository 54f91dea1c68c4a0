"""``sshunt demo`` is the first thing a newcomer sees: it must work, and clean up after itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    for proof in ("curl http://10.55.0.2/", "IPv6", "byte for byte", "ssh -L", "kill -9"):
        assert proof in printed
    assert not [name for name in labs() - before if f"sshunt-lab-{demo.pid}-" in name]


def test_the_demo_explains_itself_when_asked() -> None:
    done = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, check=True)
    assert "root" in done.stdout
    done = subprocess.run([*DEMO, "something"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
