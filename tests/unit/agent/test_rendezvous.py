"""The meeting place: who is found there, what is private, and what a dead agent leaves."""

import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.agent import rendezvous
from sshunt.agent.rendezvous import (
    Doorstep,
    find,
    host_id,
    meeting_name,
    open_locked,
    parent_is_safe,
    peer_uid,
    remove_dead,
    same_user,
)
from sshunt.mux.hello import HOST_BYTES


@pytest.fixture
def name() -> str:
    """Of a session that nobody else has."""
    return meeting_name(os.urandom(32))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory whose name leaves room for a socket's; ``tmp_path`` may be too deep."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def base(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only base directory."""
    monkeypatch.setattr(rendezvous, "_bases", lambda: [str(short_path)])
    return short_path


@pytest.fixture
def without_abstract_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_HAS_ABSTRACT", False)


def place(base: Path, name: str) -> Path:
    return base / f"sshunt-{name}"


def is_found(name: str) -> bool:
    try:
        with find(name) as peer:
            return peer_uid(peer) == os.geteuid()
    except OSError:
        return False


def test_the_place_is_private_and_goes_with_its_agent(base: Path, name: str) -> None:
    doorstep = Doorstep(name)
    assert stat.S_IMODE(place(base, name).stat().st_mode) == 0o700
    assert is_found(name)
    doorstep.remove()
    assert os.listdir(base) == []
    with pytest.raises(FileNotFoundError):
        find(name)
    doorstep.release()  # may be called twice


def test_a_locked_directory_can_not_be_entered_by_another_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "LOCK_DEADLINE_S", 0.05)
    fd = open_locked(str(tmp_path / "sshunt"))
    with pytest.raises(BlockingIOError):
        open_locked(str(tmp_path / "sshunt"))
    os.close(fd)
    os.close(open_locked(str(tmp_path / "sshunt")))


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_place_that_is_not_private_is_neither_used_nor_believed(
    base: Path, name: str, kind: str, without_abstract_names: None
) -> None:
    path = place(base, name)
    if kind == "a link":
        base.joinpath("elsewhere").mkdir(mode=0o700)
        path.symlink_to(base / "elsewhere")
    elif kind == "a file":
        path.touch()
    else:
        path.mkdir()
        path.chmod(0o755)
    with pytest.raises(OSError, match=r"symbolic|directory"):
        Doorstep(name)
    with socket.socket(socket.AF_UNIX) as somebody:
        if path.is_dir():
            somebody.bind(f"{path}/agent")
            somebody.listen()
        with pytest.raises(FileNotFoundError):
            find(name)


@pytest.mark.parametrize(("mode", "safe"), [(0o700, True), (0o1777, True), (0o777, False)])
def test_a_parent_is_safe_unless_others_may_rename_in_it(
    tmp_path: Path, mode: int, safe: bool
) -> None:
    tmp_path.chmod(mode)
    assert parent_is_safe(str(tmp_path)) is safe
    assert not parent_is_safe(str(tmp_path / "nowhere"))


def test_every_place_is_looked_at(
    short_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, without_abstract_names: None
) -> None:
    for folder in ("1", "2"):
        short_path.joinpath(folder).mkdir()
    monkeypatch.setattr(rendezvous, "_bases", lambda: [str(short_path / "2")])
    doorstep = Doorstep(name)
    both = [str(short_path / folder) for folder in ("1", "2")]
    monkeypatch.setattr(rendezvous, "_bases", lambda: both)
    assert is_found(name)
    doorstep.remove()


def test_a_directory_too_deep_for_a_socket_is_no_place(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, without_abstract_names: None
) -> None:
    deep = tmp_path / (40 * "d") / (40 * "e")
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    doorstep = Doorstep(name)
    assert is_found(name)
    doorstep.remove()
    assert os.listdir(deep) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract names are Linux'")
def test_an_agent_without_a_directory_is_found_by_its_abstract_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_bases", list)
    doorstep = Doorstep(name)
    assert is_found(name)
    doorstep.remove()
    assert not is_found(name)


def test_the_directory_of_a_dead_agent_is_removed(
    base: Path, name: str, without_abstract_names: None
) -> None:
    Doorstep(name).release()
    with pytest.raises(ConnectionRefusedError):
        find(name)
    remove_dead(name)
    assert os.listdir(base) == []


def test_a_living_agent_s_place_is_not_removed(base: Path, name: str) -> None:
    doorstep = Doorstep(name)
    remove_dead(name)
    assert is_found(name)
    doorstep.remove()


def test_a_start_sweeps_up_dead_agents_and_nothing_else(
    base: Path, name: str, without_abstract_names: None
) -> None:
    dead, alive, half_made = (meeting_name(bytes(32) + bytes([n])) for n in range(3))
    Doorstep(dead).release()
    living = Doorstep(alive)
    place(base, half_made).mkdir(mode=0o700)
    for other in ("sshunt-ssh-0123456789abcdef", "sshunt-1000", "a folder"):
        base.joinpath(other).mkdir()
    used = place(base, "f" * 32)
    used.mkdir(mode=0o700)
    used.joinpath("a file").touch()
    doorstep = Doorstep(name)
    left = {path.name for path in base.iterdir()}
    assert left == {
        *(f"sshunt-{each}" for each in (alive, name, "f" * 32)),
        *("sshunt-ssh-0123456789abcdef", "sshunt-1000", "a folder"),
    }
    living.remove()
    doorstep.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's directory needs root")
def test_a_hundred_directories_of_others_do_not_keep_ours_from_being_swept(
    base: Path, name: str, monkeypatch: pytest.MonkeyPatch, without_abstract_names: None
) -> None:
    monkeypatch.setattr(rendezvous, "SWEEP_PLACES", 1)
    for number in range(100):
        theirs = place(base, f"{number:032x}")
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 65534, 65534)
    dead = meeting_name(b"d" * 32)
    Doorstep(dead).release()
    doorstep = Doorstep(name)
    assert not place(base, dead).exists()
    assert len(list(base.iterdir())) == 101
    doorstep.remove()


@pytest.mark.timeout(20)
def test_a_start_does_not_wait_for_agents_that_are_busy(
    base: Path, name: str, monkeypatch: pytest.MonkeyPatch, without_abstract_names: None
) -> None:
    monkeypatch.setattr(rendezvous, "ATTACH_BACKLOG", 0)
    with ExitStack() as undo:
        for number in range(3):
            busy = meeting_name(bytes(32) + bytes([number]))
            undo.callback(Doorstep(busy).remove)
            fill_backlog(f"{place(base, busy)}/agent", undo)
        with pytest.raises(BlockingIOError):
            find(busy)
        undo.callback(Doorstep(name).remove)
        assert len(os.listdir(base)) == 4  # they live


def fill_backlog(path: str, undo: ExitStack) -> None:
    """Call until nobody is let in any more."""
    while True:
        caller = undo.enter_context(socket.socket(socket.AF_UNIX))
        caller.setblocking(False)
        try:
            caller.connect(path)
        except BlockingIOError:
            return


@pytest.mark.parametrize("has_abstract", [True, False])
def test_two_agents_can_not_listen_under_one_name(
    base: Path, name: str, monkeypatch: pytest.MonkeyPatch, has_abstract: bool
) -> None:
    monkeypatch.setattr(rendezvous, "_HAS_ABSTRACT", has_abstract)
    doorstep = Doorstep(name)
    with pytest.raises(FileExistsError):
        Doorstep(name)
    assert is_found(name)
    doorstep.remove()


def test_a_place_that_a_cleaner_has_removed_is_made_anew(
    base: Path, name: str, without_abstract_names: None
) -> None:
    doorstep = Doorstep(name)
    assert doorstep.refresh() == (None, None)
    old = doorstep.sockets
    shutil.rmtree(place(base, name))
    assert not is_found(name)
    lost, fresh = doorstep.refresh()
    assert [lost] == old
    assert [fresh] == doorstep.sockets
    assert is_found(name)
    if lost is not None:
        lost.close()
    doorstep.remove()
    assert os.listdir(base) == []


def test_a_directory_in_use_is_kept_fresh_for_cleaners(base: Path, name: str) -> None:
    doorstep = Doorstep(name)
    os.utime(place(base, name), (0, 0))
    doorstep.refresh()
    assert time.time() - place(base, name).stat().st_mtime < 60
    doorstep.remove()


def test_a_name_is_found_by_who_knows_the_token_and_tells_nobody_the_token() -> None:
    token = bytes(range(32))
    assert meeting_name(token) == meeting_name(token)
    assert meeting_name(token) != meeting_name(bytes(32))
    assert len(meeting_name(token)) == 32
    assert token.hex()[:8] not in meeting_name(token)


def test_a_machine_is_told_from_others_by_the_same_bytes_each_time() -> None:
    assert host_id() == host_id()
    assert len(host_id()) == HOST_BYTES


def test_who_calls_is_known_by_the_kernel_s_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()
        assert same_user(theirs)
