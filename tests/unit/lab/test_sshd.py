"""A real sshd in a host of the lab: it answers, keeps a log, refuses what its options refuse."""

import shutil
import time
from collections.abc import Iterator

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.lab import sshd
from sshunt.lab.sshd import Sshd, sshd_path
from sshunt.lab.world import Lab

PORT = 2222


@pytest.fixture
def server(lab: Lab) -> Iterator[Sshd]:
    server = lab.sshd(lab.server, port=PORT, options={"AllowUsers": "ada"})
    yield server
    server.stop()


def login(lab: Lab, user: str) -> str:
    command = ["ssh", "-p", str(PORT), f"{user}@server", "id -un"]
    return lab.client.run(command, check=False).stdout


def test_it_lets_in_whom_its_options_allow_and_writes_down_whom_not(lab: Lab, server: Sshd) -> None:
    assert login(lab, "ada") == "ada\n"
    assert login(lab, "ben") == ""
    assert "ben" in server.log.read_text()


def test_when_it_has_stopped_nobody_answers(lab: Lab) -> None:
    server = lab.sshd(lab.server, port=PORT)
    server.stop()
    deadline = time.monotonic() + 20.0
    while answers(lab):  # whom it has just let in may still have its socket
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(lab: Lab) -> bool:
    try:
        lab.client.connect(lab.server.v4, PORT).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_server_that_does_not_start_says_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_port(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(type(lab.server), "wait_for_port", no_port)
    with pytest.raises(RuntimeError, match="sshd did not start"):
        lab.sshd(lab.server, port=PORT, options={"NoSuchOption": "yes"})


def test_without_sshd_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sshd, "_SBIN", "/nowhere")
    with pytest.raises(UserError, match="sshd is not installed") as caught:
        sshd_path()
    assert caught.value.exit_code is ExitCode.CAPTURE


def test_sshd_is_found_where_debian_hides_it_from_ordinary_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = shutil.which("sshd", path="/usr/local/sbin:/usr/sbin:/sbin")
    monkeypatch.setenv("PATH", "/nowhere")
    assert sshd_path() == found
