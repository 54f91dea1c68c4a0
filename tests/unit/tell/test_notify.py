"""A service manager is told when the tunnel is up; without one nothing happens."""

import os
import secrets
import socket
from pathlib import Path

import pytest

from sshunt.tell import notify as module
from sshunt.tell.notify import hear, notify
from sshunt.tell.report import RemoteConnected, RemoteLost, ShutdownStarted


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_gets_the_lines_at_a_path_or_an_abstract_name(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@sshunt-test-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=connected to gate")
        assert manager.recv(1000) == b"READY=1\nSTATUS=connected to gate"


@pytest.mark.parametrize(
    "name",
    ["", "relative", "/no/such/socket", "@nobody-listens-here", "/" + "x" * 500, "vsock:2:1"],
)
def test_nobody_to_tell_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")


def test_a_manager_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        full = 1 + int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(full + 3):
            notify("READY=1")
    assert len(os.listdir("/proc/self/fd")) < 100


def test_the_service_manager_is_told_of_start_and_stop_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(5)
        hear(RemoteConnected("gate", "gate", 0.0234, (), has_dns=True))
        hear(RemoteLost("gate", 0.0, "", 0, are_kept=True))
        hear(ShutdownStarted())
        assert manager.recv(1000) == b"READY=1\nSTATUS=connected to gate (RTT 23.4 ms): , and DNS"
        assert manager.recv(1000) == b"STOPPING=1"
