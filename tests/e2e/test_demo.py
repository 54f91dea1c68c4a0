"""``sshunt demo`` is the first thing a newcomer sees: it must work, and clean up after itself."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sshunt.errors import ExitCode

DEMO = [sys.executable, "-m", "sshunt", "demo"]


def labs() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("sshunt-lab-*")}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@as_root
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
    assert [line for line in (printed + progress).splitlines() if len(line) > 79] == []
    assert not [name for name in labs() - before if f"sshunt-lab-{demo.pid}-" in name]


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
    done = subprocess.run([*DEMO, "--foo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("sshunt: error: the demo takes no words, not '--foo'")


@as_root
@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "building a remote office"),
        (signal.SIGINT, "starting:"),
        (signal.SIGINT, "moving data"),
        (signal.SIGTERM, "starting:"),
        (signal.SIGHUP, "moving data"),
    ],
)
def test_asked_to_stop_the_demo_takes_the_office_down(number: int, after: str) -> None:
    before = labs()
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        while after not in demo.stderr.readline():
            assert demo.poll() is None
        demo.send_signal(number)
        printed, progress = demo.communicate(timeout=60)
    assert demo.returncode in (-number, 128 + number)
    assert "Traceback" not in progress
    assert ("the office is gone" in progress) == (number == signal.SIGINT)
    assert "proofs held" not in printed
    assert not [name for name in labs() - before if f"sshunt-lab-{demo.pid}-" in name]
    assert not list(Path("/tmp").glob(f"sshunt-lab-{demo.pid}-*"))


@as_root
def test_in_a_chroot_that_is_no_mount_the_demo_ends_with_two_lines(tmp_path: Path) -> None:
    script = f"""
mount -t tmpfs tmpfs {tmp_path}
mkdir {tmp_path}/root
for path in /*; do
    if [ -L "$path" ]; then cp -d "$path" {tmp_path}/root; continue; fi
    [ -d "$path" ] && [ "$path" != /tmp ] || continue
    mkdir {tmp_path}/root"$path"
    mount --rbind "$path" {tmp_path}/root"$path"
done
mkdir {tmp_path}/root/tmp
exec chroot {tmp_path}/root "$@"
"""
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
    done = subprocess.run([*unshare, *DEMO], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CAPTURE, done.stderr
    *_, what, hint = done.stderr.splitlines()
    assert what.startswith("sshunt: error: the lab can't be built here: ")
    assert "a chroot's / must be a mount" in hint
    assert "Traceback" not in done.stderr


def test_without_root_or_sudo_dev_says_so_before_it_makes_anything() -> None:
    dev = Path(__file__).parents[2] / "dev"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(dev, folder)
        for program in ("sh", "id", "dirname", "env"):
            (folder / program).symlink_to(str(shutil.which(program)))
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        words = [str(folder / "sh"), str(folder / "dev"), "demo"]
        done = subprocess.run(
            [*become, *words] if os.geteuid() == 0 else words,
            env={"PATH": str(folder)},
            executable=shutil.which("setpriv") if os.geteuid() == 0 else None,
            capture_output=True,
            text=True,
            check=False,
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "dev",
            "dirname",
            "env",
            "id",
            "sh",
        ]
    assert done.returncode == 1
    assert f"as root:  {folder}/dev demo" in done.stderr
