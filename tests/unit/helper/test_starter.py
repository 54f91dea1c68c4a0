"""Whose helper it is, and that nobody is taken at another socket's word."""

import os
import pwd
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sshunt.helper import starter
from sshunt.helper.starter import (
    caller_of,
    is_accepted,
    is_of_another_network,
    is_one_of_a_pair,
    user_of,
)
from sshunt.lab.hosts import Host

_AS_ANOTHER = 1000
_NOBODY = pwd.getpwnam("nobody").pw_uid


def connected_to_a_name(folder: Path) -> tuple[socket.socket, ...]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "name"))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / "name"))
    return client, listener.accept()[0], listener


def connected_to_an_abstract_name(_: Path) -> tuple[socket.socket, ...]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # the kernel chooses one
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    return client, listener.accept()[0], listener


def named_after_it_was_made(folder: Path) -> tuple[socket.socket, ...]:
    pair = socket.socketpair()
    pair[0].bind(str(folder / "name"))
    return pair


def of_messages(_: Path) -> tuple[socket.socket, ...]:
    kinds = socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
    return tuple(end for kind in kinds for end in socket.socketpair(socket.AF_UNIX, kind))


def over_tcp(_: Path) -> tuple[socket.socket, ...]:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0], listener


def test_the_ends_of_a_socketpair_are_ends_of_a_pair() -> None:
    for end in socket.socketpair():
        with end:
            assert is_one_of_a_pair(end.fileno())


@pytest.mark.parametrize(
    "make",
    [
        connected_to_a_name,
        connected_to_an_abstract_name,
        named_after_it_was_made,
        of_messages,
        over_tcp,
    ],
)
def test_other_sockets_are_no_ends_of_a_pair(
    make: Callable[[Path], tuple[socket.socket, ...]], tmp_path: Path
) -> None:
    for sock in make(tmp_path):
        with sock:
            assert not is_one_of_a_pair(sock.fileno())


def test_files_and_closed_descriptors_are_no_ends_of_a_pair() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    assert not is_one_of_a_pair(read_end)
    os.close(read_end)
    assert not is_one_of_a_pair(read_end)


def test_a_pair_of_root_s_is_root_s_whoever_became_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert user_of(theirs, {"SUDO_UID": "1234"}) == 0


@pytest.mark.parametrize(
    ("environment", "user"),
    [
        ({"SUDO_UID": "1234"}, 1234),
        ({"DOAS_USER": pwd.getpwuid(0).pw_name}, _AS_ANOTHER),
        ({"SUDO_UID": "0"}, _AS_ANOTHER),  # kept by doas, and written by the user himself
        ({"SUDO_UID": "0", "DOAS_USER": "nobody"}, _AS_ANOTHER),
        ({"SUDO_UID": f"{_NOBODY}", "DOAS_USER": "nobody"}, _NOBODY),
        ({"DOAS_USER": "nobody has this name"}, _AS_ANOTHER),
        ({"SUDO_UID": "²"}, _AS_ANOTHER),
        ({}, _AS_ANOTHER),
    ],
)
def test_a_user_with_many_uids_is_the_one_whom_sudo_or_doas_served(
    environment: dict[str, str], user: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.seteuid(_AS_ANOTHER)
    try:
        ours, theirs = socket.socketpair()
    finally:
        os.seteuid(0)
    with ours, theirs:
        assert user_of(theirs, environment) == user


# --- started by the service manager ---------------------------------------------------------------


def test_of_a_connection_to_the_service_s_socket_only_the_accepted_end_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "SERVICE_SOCKET", str(tmp_path / "name"))
    client, accepted, listener = connected_to_a_name(tmp_path)
    with client, accepted, listener:
        assert is_accepted(accepted.fileno())
        assert not is_accepted(client.fileno())
        assert not is_accepted(listener.fileno())
        with socket.socket(socket.AF_UNIX) as named:
            named.bind(str(tmp_path / "caller"))  # whoever does that is no client of ours
            named.connect(str(tmp_path / "name"))
            with listener.accept()[0] as other:
                assert not is_accepted(other.fileno())


@pytest.mark.parametrize(
    "make", [connected_to_a_name, connected_to_an_abstract_name, of_messages, over_tcp]
)
def test_other_connections_and_pairs_are_not_the_service_s(
    make: Callable[[Path], tuple[socket.socket, ...]], tmp_path: Path
) -> None:
    for sock in make(tmp_path):
        with sock:
            assert not is_accepted(sock.fileno())
    for end in socket.socketpair():
        with end:
            assert not is_accepted(end.fileno())


def called_by(uid: int, gid: int, folder: Path) -> tuple[socket.socket, str]:
    """A connection of somebody's with this uid and group, as it was accepted."""
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        os.chown(path, 0, gid)
        listener.listen()
        folder.chmod(0o755)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([gid])
                os.setgid(gid)
                os.setuid(uid)
                socket.socket(socket.AF_UNIX).connect(path)
            finally:
                os._exit(0)
        accepted = listener.accept()[0]
        os.waitpid(child, 0)
    return accepted, path


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_a_caller_is_root_or_a_known_member_of_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        accepted, path = called_by(nobody.pw_uid, nobody.pw_gid, Path(folder))
        with accepted:
            assert caller_of(accepted, path) == nobody.pw_uid
            os.chown(path, 0, 0)
            assert caller_of(accepted, path) is None  # not by name, whatever groups it had then
            assert caller_of(accepted, "/nonexistent") is None
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        accepted, path = called_by(54_321, nobody.pw_gid, Path(folder))
        with accepted:
            assert caller_of(accepted, path) is None  # one of 65,536 that a user may have
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        accepted, path = called_by(0, 0, Path(folder))
        with accepted:
            assert caller_of(accepted, path) == 0


def test_a_socket_of_this_network_namespace_is_known_as_such() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not is_of_another_network(theirs)


def test_a_socket_of_another_network_namespace_is_known_as_such(host: Host) -> None:
    with host.entered():
        ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_of_another_network(theirs)
