"""Logins that ask nobody: when they are needed, and how ssh is kept from asking."""

import subprocess
from pathlib import Path

import pytest

from sshunt.config.remotes import RemoteSpec
from sshunt.transport import ssh_unattended
from sshunt.transport.ssh_choices import SshConfigQuery
from sshunt.transport.ssh_unattended import took_a_person


@pytest.mark.parametrize("rtt_s", [0.0, 0.001, 0.08, 0.3])
def test_half_a_second_beside_the_round_trips_is_a_persons(rtt_s: float) -> None:
    assert not took_a_person(9 * rtt_s + 0.3, rtt_s)
    assert took_a_person(12 * rtt_s + 0.6, rtt_s)


def configured(text: str, folder: Path, *more: str) -> dict[str, str]:
    """What a real ssh says it would do."""
    file = folder / "config"
    file.write_text(text)
    done = subprocess.run(
        ["ssh", "-F", str(file), *more, "-G", "gate"], capture_output=True, text=True, check=True
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "IdentityAgent ~/.1password/agent.sock\n",
        "PKCS11Provider /usr/lib/opensc-pkcs11.so\n",
        "PubkeyAcceptedKeyTypes +ssh-rsa\n",
    ],
)
def test_an_ssh_with_these_options_has_no_agent_no_card_and_no_security_key(
    text: str, tmp_path: Path
) -> None:
    before = configured(text, tmp_path)
    after = configured(text, tmp_path, *ssh_unattended.options(before))
    assert after.get("identityagent", "none") == "none"
    assert after.get("pkcs11provider", "none") == "none"
    name = "pubkeyacceptedalgorithms"
    assert [a for a in before[name].split(",") if "sk-" not in a] == after[name].split(",")


def test_options_that_this_ssh_does_not_know_are_not_set() -> None:
    assert ssh_unattended.options({"ciphers": "aes128-ctr"}) == []


def test_the_options_come_with_the_other_choices(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("IdentityAgent /run/agent\n")
    query = SshConfigQuery(RemoteSpec("gate", ssh_command=("ssh", "-F", str(file))))
    assert "IdentityAgent=none" in query.result().unattended


def test_the_environment_has_everything_but_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("LANG", "C")
    assert "SSH_AUTH_SOCK" not in ssh_unattended.environment()
    assert ssh_unattended.environment()["LANG"] == "C"
