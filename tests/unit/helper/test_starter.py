"""Whose helper it is, and that nobody is taken at another socket's word."""

import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sshunt.helper.starter import is_one_of_a_pair, user_of

_AS_ANOTHER = 1000


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
        ({"DOAS_USER": pwd.getpwuid(0).pw_name}, 0),
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
