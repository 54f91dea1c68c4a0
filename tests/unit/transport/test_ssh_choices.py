"""What is chosen for ssh where the user did not, by real ``ssh -G``."""

from pathlib import Path

import pytest

from sshunt.config.remotes import RemoteSpec
from sshunt.transport import ssh_choices
from sshunt.transport.ssh_choices import Choices, Sharing, SshConfigQuery
from tests.unit.transport.test_ssh import program

FAST = ["-o", "Ciphers=^aes128-gcm@openssh.com"]


def choose(remote: RemoteSpec) -> Choices:
    query = SshConfigQuery(remote)
    try:
        return query.result()
    finally:
        query.close()


def asked(remote: RemoteSpec) -> list[str]:
    return choose(remote).cipher


@pytest.fixture
def fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_choices, "_has_aes_instructions", lambda: True)


@pytest.mark.usefixtures("fast_machine")
def test_the_fast_cipher_comes_first_unless_the_user_chose(tmp_path: Path) -> None:
    nothing, chosen = tmp_path / "nothing", tmp_path / "chosen"
    nothing.write_text("Host *\n  Compression no\n")
    chosen.write_text("Host gate\n  Ciphers aes256-ctr\n")
    assert asked(RemoteSpec("gate", ssh_command=("ssh", "-F", str(nothing)))) == FAST
    assert asked(RemoteSpec("gate", ssh_command=("ssh", "-F", str(chosen)))) == []
    assert asked(RemoteSpec("other", ssh_command=("ssh", "-F", str(chosen)))) == FAST
    assert asked(RemoteSpec("gate", ssh_command=("ssh", "-c", "aes256-ctr", "-F", "none"))) == []


def test_a_connection_is_shared_our_way_unless_the_user_has_one(tmp_path: Path) -> None:
    nothing, chosen = tmp_path / "nothing", tmp_path / "chosen"
    nothing.write_text("Host *\n  Compression no\n")
    chosen.write_text("Host gate\n  ControlPath ~/.ssh/%C\n")

    def shared(file: Path, host: str) -> Sharing:
        return choose(RemoteSpec(host, ssh_command=("ssh", "-F", str(file)))).sharing

    assert shared(nothing, "gate") is Sharing.OURS
    assert shared(chosen, "gate") is Sharing.THEIRS
    assert shared(chosen, "other") is Sharing.OURS


def test_a_machine_without_aes_instructions_keeps_its_cipher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ssh_choices, "_has_aes_instructions", lambda: False)
    assert asked(RemoteSpec("gate", ssh_command=("ssh", "-F", "none"))) == []


@pytest.mark.usefixtures("fast_machine")
@pytest.mark.parametrize(
    "behaviour",
    [
        "exit 1",
        "exit 0",
        "echo ciphers aes256-ctr",
        "echo ciphers; exit 0",
        "head -c 99999 /dev/zero",
    ],
)
def test_an_ssh_that_does_not_answer_as_expected_is_left_alone(
    tmp_path: Path, behaviour: str
) -> None:
    assert asked(RemoteSpec("gate", ssh_command=(program(tmp_path, behaviour),))) == []


@pytest.mark.usefixtures("fast_machine")
def test_an_ssh_that_does_not_answer_at_all_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_choices, "ASK_DEADLINE_S", 0.1)
    assert asked(RemoteSpec("gate", ssh_command=(program(tmp_path, "exec sleep 60"),))) == []


@pytest.mark.usefixtures("fast_machine")
def test_another_program_than_ssh_is_not_asked(tmp_path: Path) -> None:
    path = program(tmp_path, f"touch {tmp_path}/asked", name="plink")
    assert asked(RemoteSpec("gate", ssh_command=(path,))) == []
    assert not (tmp_path / "asked").exists()


def test_only_what_the_configuration_changed_of_our_session_is_undone(tmp_path: Path) -> None:
    nothing, changed = tmp_path / "nothing", tmp_path / "changed"
    nothing.write_text("Host *\n  Compression no\n")
    changed.write_text(
        "StdinNull yes\nSessionType none\nForkAfterAuthentication yes\nRemoteCommand tmux\n"
    )
    forked = tmp_path / "forked"
    forked.write_text("ForkAfterAuthentication yes\n")

    def session(file: Path) -> list[str]:
        return list(choose(RemoteSpec("gate", ssh_command=("ssh", "-F", str(file)))).session)

    assert session(nothing) == []
    assert session(forked)[1::2] == ["ForkAfterAuthentication=no"]
    assert session(changed)[1::2] == [
        "StdinNull=no",
        "ForkAfterAuthentication=no",
        "SessionType=default",
    ]
