"""Entering another network namespace: which words name one, and that we are back afterwards."""

import os
import socket
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.host import namespace
from sshunt.lab.world import Lab

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.mark.parametrize("word", ["", ".", "..", "../x", "a/b", "a b", "-x", "a" * 256])
def test_what_is_no_name_names_none(word: str) -> None:
    with pytest.raises(UserError) as raised:
        namespace.opened(word)
    assert raised.value.exit_code is ExitCode.USAGE


@needs_root
@pytest.mark.parametrize("word", ["no-such-namespace", "4194304"])
def test_one_that_is_not_there_is_said(word: str) -> None:
    with pytest.raises(UserError, match="No such file"):
        namespace.opened(word)


@needs_root
def test_a_file_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(namespace, "_NAMED", str(tmp_path))
    with pytest.raises(UserError, match="can't enter the network namespace file"):
        namespace.opened("file")


@needs_root
def test_inside_it_is_that_one_and_afterwards_ours_again(lab: Lab) -> None:
    path = namespace.opened(lab.client.netns)
    before = here()
    with namespace.entered(path):
        assert here() == os.stat(lab.client.netns_path).st_ino
        assert "to-server" in dict(map(reversed, socket.if_nameindex()))  # type: ignore[arg-type]
    assert here() == before
    with pytest.raises(ZeroDivisionError), namespace.entered(path):
        raise ZeroDivisionError
    assert here() == before
    os.close(int(Path(path).name))


def test_none_is_ours() -> None:
    before = os.stat("/proc/self/ns/net").st_ino
    with namespace.entered(""):
        assert os.stat("/proc/self/ns/net").st_ino == before


def test_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError) as raised:
        namespace.opened("anything")
    assert raised.value.exit_code is ExitCode.PRIVILEGE
