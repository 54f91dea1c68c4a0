"""The meeting place and what stubs do there, as seen from inside one process."""

import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.agent import rendezvous
from sshunt.agent.main import read_hello
from sshunt.agent.rendezvous import (
    GO,
    PROOF_BYTES,
    PROOF_MAGIC,
    Rendezvous,
    open_locked,
    parent_is_safe,
    peer_uid,
    socket_name,
)
from sshunt.agent.stub import NotWelcomeError, hand_over, write_all
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import CLIENT, body_bytes_untrusted, make_hello

TOKEN = bytes(range(32))
HELLO = make_hello(CLIENT, TOKEN, lane=3)
NAME = socket_name(TOKEN)


def place(tmp_path: Path) -> Rendezvous:
    return open_locked(str(tmp_path / "sshunt"))


def test_the_place_is_made_private_and_goes_when_it_is_empty(tmp_path: Path) -> None:
    found = place(tmp_path)
    assert stat.S_IMODE(os.stat(found.path).st_mode) == 0o700
    found.release()
    assert not Path(found.path).exists()
    found.release()  # may be called twice


def test_nobody_else_is_in_the_place_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "LOCK_DEADLINE_S", 0.05)
    found = place(tmp_path)
    with pytest.raises(BlockingIOError):
        place(tmp_path)
    found.release()
    place(tmp_path).release()


def test_a_place_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("sshunt").mkdir(mode=0o750)
    with pytest.raises(PermissionError):
        place(tmp_path)


def test_a_link_is_refused_even_to_a_private_folder_of_ours(tmp_path: Path) -> None:
    tmp_path.joinpath("elsewhere").mkdir(mode=0o700)
    tmp_path.joinpath("sshunt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"symbolic|directory"):
        place(tmp_path)


@pytest.mark.parametrize(("mode", "safe"), [(0o700, True), (0o1777, True), (0o777, False)])
def test_a_parent_is_safe_unless_others_may_rename_in_it(
    tmp_path: Path, mode: int, safe: bool
) -> None:
    tmp_path.chmod(mode)
    assert parent_is_safe(str(tmp_path)) is safe
    assert not parent_is_safe(str(tmp_path / "nowhere"))


def test_a_live_agent_is_found_and_a_dead_ones_socket_is_removed(tmp_path: Path) -> None:
    found = place(tmp_path)
    with pytest.raises(FileNotFoundError):
        found.connect(NAME)
    listener = found.listen(NAME)
    with found.connect(NAME) as peer:
        assert peer_uid(peer) == os.geteuid()
    found.remove_dead(NAME)
    assert os.listdir(found.path) == [NAME]  # it lives
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        found.connect(NAME)
    found.remove_dead(NAME)
    assert os.listdir(found.path) == []
    found.release()


def test_a_start_sweeps_up_dead_agents_and_nothing_else(tmp_path: Path) -> None:
    found = place(tmp_path)
    found.listen("dead").close()
    Path(found.path, "a file").touch()
    alive = found.listen("alive")
    with found.listen(NAME):
        assert sorted(os.listdir(found.path)) == sorted(["a file", "alive", NAME])
    alive.close()
    found.release()
    assert Path(found.path, "a file").exists()


@pytest.mark.timeout(20)
def test_a_start_does_not_wait_for_agents_that_are_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ATTACH_BACKLOG", 0)
    found = place(tmp_path)
    with ExitStack() as undo:
        for name in ("one", "two", "three"):
            undo.enter_context(found.listen(name))
            fill_backlog(f"{found.path}/{name}", undo)
        with found.listen(NAME):
            assert len(os.listdir(found.path)) == 4  # they live
    found.release()


def fill_backlog(path: str, undo: ExitStack) -> None:
    """Call until nobody is let in any more."""
    while True:
        caller = undo.enter_context(socket.socket(socket.AF_UNIX))
        caller.setblocking(False)
        try:
            caller.connect(path)
        except BlockingIOError:
            return


def test_two_agents_can_not_listen_under_one_name(tmp_path: Path) -> None:
    found = place(tmp_path)
    with found.listen(NAME), pytest.raises(OSError, match="in use"):
        found.listen(NAME)
    found.release()


def test_the_hand_over_proves_first_and_then_passes_stdin_and_stdout() -> None:
    stub, agent = socket.socketpair(socket.AF_UNIX)
    with stub, agent:
        agent.send(GO)
        hand_over(stub, HELLO)
        assert agent.recv(PROOF_BYTES) == PROOF_MAGIC + TOKEN
        data, fds, _flags, _address = socket.recv_fds(agent, 2000, 8)
        assert data == HELLO.encode()
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in (0, 1)]
        for fd in fds:
            os.close(fd)


def test_a_stub_that_is_not_welcome_keeps_its_descriptors() -> None:
    stub, agent = socket.socketpair(socket.AF_UNIX)
    with stub, agent:
        agent.shutdown(socket.SHUT_WR)
        with pytest.raises(NotWelcomeError):
            hand_over(stub, HELLO)
        assert agent.recv(100) == PROOF_MAGIC + TOKEN


def test_exactly_the_hello_is_read_and_not_a_byte_more() -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, HELLO.encode() + b"the lane's own")
    assert read_hello(read_fd) == HELLO
    assert os.read(read_fd, 100) == b"the lane's own"
    os.close(write_fd)
    with pytest.raises(RemoteProtocolError, match="hung up"):
        read_hello(read_fd)
    os.close(read_fd)


@pytest.mark.parametrize("head", [b"", b"\xf5ssHUNT\n", b"\xf5ssHUNT\n\xff\xff", b"GET / HTTP"])
def test_what_does_not_begin_as_a_hello_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        body_bytes_untrusted(head)


def test_writing_to_nobody_is_no_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    write_all(write_fd, b"x" * 10)
    os.close(write_fd)
