"""The control socket of our own: where it lies, whose it may be, and what is left of it."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.transport import ssh_sharing
from sshunt.transport.ssh_sharing import ControlSocket

#: Somebody else: nobody(5)'s uid on every distribution.
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path, which everybody may enter; in the end it must be empty."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o1777)
        yield place
        assert list(place.iterdir()) == []


@pytest.fixture(autouse=True)
def shared_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands in /tmp's place."""
    monkeypatch.setattr(ssh_sharing, "_SHARED_PLACE", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def path_of(control: ControlSocket) -> Path:
    """The path that ssh is told."""
    (option,) = (word for word in control.options if word.startswith("ControlPath="))
    return Path(option.partition("=")[2].replace("%%", "%"))


def bind(path: Path) -> socket.socket:
    """Do what ssh does."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_the_socket_lies_in_a_new_directory_that_only_its_user_may_enter(
    shared_place: Path,
) -> None:
    control = ControlSocket()
    made = path_of(control).parent
    assert made.parent == shared_place
    assert made.stat().st_mode & 0o7777 == 0o700
    assert made.stat().st_uid == os.geteuid()
    control.close()


def test_nobody_else_can_bind_the_path_first() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    control = ControlSocket()
    program = f"import socket; socket.socket(socket.AF_UNIX).bind({str(path_of(control))!r})"
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*become, sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in done.stderr
    control.close()


def test_when_the_lane_is_up_the_socket_is_held_and_no_name_is_left(shared_place: Path) -> None:
    control = ControlSocket()
    assert not control.is_bound
    listener = bind(path_of(control))
    assert control.is_bound
    control.hold()
    assert list(shared_place.iterdir()) == []
    assert control.channel_options is not None
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(control.channel_options[1].partition("=")[2])
    caller.close()
    listener.close()
    control.close()


def test_what_is_no_socket_or_somebody_elses_is_not_held() -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    theirs, plain, link = ControlSocket(), ControlSocket(), ControlSocket()
    listener = bind(path_of(theirs))
    os.chown(path_of(theirs), NOBODY, NOBODY)
    path_of(plain).touch()
    other = ControlSocket()
    other_listener = bind(path_of(other))
    path_of(link).symlink_to(path_of(other))
    for control in (theirs, plain, link):
        assert not control.is_bound
        control.hold()
        assert control.channel_options is None
        control.close()
    other.close()
    listener.close()
    other_listener.close()


@pytest.mark.parametrize(
    ("mode", "owner", "is_used"),
    [(0o700, 0, True), (0o755, 0, False), (0o770, 0, False), (0o700, NOBODY, False)],
)
def test_the_runtime_directory_is_used_only_if_it_is_the_users_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, is_used: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a directory away needs root")
    runtime = folder / "run"
    runtime.mkdir()
    runtime.chmod(mode)
    os.chown(runtime, owner, owner)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    control = ControlSocket()
    assert (path_of(control).parent.parent == runtime) is is_used
    control.close()
    runtime.rmdir()


def test_a_runtime_directory_with_a_long_path_or_behind_a_link_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(long)
    for runtime in (long, link):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert ssh_sharing.private_place() is None


@pytest.mark.parametrize(
    "name", ["run", "a b", "a\tb", 'a"b', "a'b", "a\\b", "${HOME}", "50%", "#"]
)
def test_ssh_understands_the_path_whatever_the_runtime_directory_is_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runtime = folder / name
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    control = ControlSocket()
    argv = ["ssh", "-F", "none", *control.options, "-G", "gate", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (told,) = re.findall(r"^controlpath (.*)$", done.stdout, re.MULTILINE)
    assert Path(told.replace("%%", "%")) == path_of(control)
    control.close()
    runtime.rmdir()


def test_the_next_start_removes_what_a_killed_one_left_and_leaves_living_ones(
    shared_place: Path,
) -> None:
    program = (
        "import os, socket; from sshunt.transport import ssh_sharing;"
        f" ssh_sharing._SHARED_PLACE = {str(shared_place)!r};"
        " control = ssh_sharing.ControlSocket();"
        " socket.socket(socket.AF_UNIX).bind(f'{control._folder}/s');"
        " os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (left,) = shared_place.iterdir()
    living = ControlSocket()
    assert not left.exists()
    again = ControlSocket()
    assert path_of(living).parent.exists()
    living.close()
    again.close()


def test_directories_of_other_users_are_left_alone(shared_place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a directory away needs root")
    theirs, link = (shared_place / f"sshunt-ssh-{digit * 16}" for digit in "ab")
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    link.symlink_to(theirs)
    ControlSocket().close()
    assert theirs.exists()
    assert link.is_symlink()
    link.unlink()
    theirs.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's directory needs root")
def test_thousands_of_directories_of_others_are_not_opened(
    shared_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [shared_place / f"sshunt-ssh-{number:016x}" for number in range(100)]
    for path in theirs:
        path.mkdir(mode=0o700)
        os.chown(path, NOBODY, NOBODY)
    left = shared_place / "sshunt-ssh-ffffffffffffffff"
    left.mkdir(mode=0o700)
    monkeypatch.setattr(ssh_sharing, "_MOST_LEFTOVERS", 1)
    opened: list[str] = []
    open_folder = ssh_sharing._open_folder

    def note_and_open(path: str) -> int:
        opened.append(path)
        return open_folder(path)

    monkeypatch.setattr(ssh_sharing, "_open_folder", note_and_open)
    ssh_sharing.remove_leftovers(str(shared_place))
    assert opened == [str(left)]
    assert not left.exists()
    for path in theirs:
        path.rmdir()


def test_the_number_of_names_read_at_a_start_is_bounded(
    shared_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [shared_place / f"sshunt-ssh-{number:016x}" for number in range(10)]
    for path in left:
        path.mkdir(mode=0o700)
    monkeypatch.setattr(ssh_sharing, "_MOST_NAMES", 4)
    for still_there in (6, 2, 0):
        ssh_sharing.remove_leftovers(str(shared_place))
        assert len(list(shared_place.iterdir())) == still_there
