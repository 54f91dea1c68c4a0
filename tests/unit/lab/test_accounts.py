"""The lab's people: who they are, what is in their homes, and what is laid over /etc."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from sshunt.lab.accounts import PASSWORD, plan_accounts, uids_of, write_etc, write_homes


def test_everybody_has_a_home_and_a_shell_that_is_there(tmp_path: Path) -> None:
    accounts = plan_accounts(tmp_path, 0)
    assert {"root", "ada", "ben", "cai", "dan", "eva", "fil", "sh-sh"} <= set(accounts)
    for name, account in accounts.items():
        assert account.name == name
        assert account.home == tmp_path / name
        assert os.access(account.shell, os.X_OK)


def test_only_root_is_root_and_no_two_have_the_same_uid(tmp_path: Path) -> None:
    accounts = plan_accounts(tmp_path, 3)
    uids = [account.uid for account in accounts.values()]
    assert len(set(uids)) == len(uids)
    assert [name for name, account in accounts.items() if account.uid == 0] == ["root"]
    assert set(uids) - {0} <= set(uids_of(3))


def test_labs_that_are_up_at_once_share_no_uid() -> None:
    ranges = [uids_of(number) for number in range(50)]
    uids = [uid for each in ranges for uid in each]
    assert len(set(uids)) == len(uids)
    assert min(uids) >= 200_000


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A key of the users and one of the host."""
    key, host_key = tmp_path / "key", tmp_path / "host-key"
    for path in (key, host_key):
        path.write_text("private")
        path.with_suffix(".pub").write_text("ssh-ed25519 AAAA lab\n")
    return key, host_key


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_a_home_is_its_owner_s_alone(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    accounts = plan_accounts(tmp_path / "home", 1)
    write_homes(accounts.values(), key=keys[0], host_key=keys[1])
    for account in accounts.values():
        paths = [account.home, *account.home.rglob("*")]
        assert {path.stat().st_uid for path in paths} == {account.uid}
        assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths)
    ada = accounts["ada"].home / ".ssh"
    assert (ada / "known_hosts").read_text() == "* ssh-ed25519 AAAA lab\n"
    assert f"IdentityFile {ada}/id_ed25519" in (ada / "config").read_text()


def test_what_is_laid_over_etc_names_the_lab_s_people_and_hosts(tmp_path: Path) -> None:
    accounts = plan_accounts(tmp_path / "home", 0)
    written = write_etc(tmp_path / "etc", accounts.values(), {"192.0.2.2": "server"})
    texts = {path.name: path.read_text() for path in written}
    lines = dict(line.split(":", 1) for line in texts["passwd"].splitlines())
    for name, account in accounts.items():
        assert lines[name] == f"x:{account.uid}:{account.uid}:lab:{account.home}:{account.shell}"
    assert texts["hosts"] == "192.0.2.2 server\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in written}
    assert modes["shadow"] == 0o600
    assert modes["sudoers"] == 0o440


def test_the_machine_s_own_accounts_stay_and_root_is_there_once(tmp_path: Path) -> None:
    accounts = plan_accounts(tmp_path / "home", 0)
    write_etc(tmp_path / "etc", accounts.values(), {})
    names = [line.partition(":")[0] for line in Path("/etc/passwd").read_text().splitlines()]
    lines = (tmp_path / "etc" / "passwd").read_text().splitlines()
    now = [line.partition(":")[0] for line in lines]
    assert set(names) <= set(now)
    assert now.count("root") == 1


def test_only_cai_has_a_password_and_it_is_the_known_one(tmp_path: Path) -> None:
    accounts = plan_accounts(tmp_path / "home", 0)
    write_etc(tmp_path / "etc", accounts.values(), {})
    lines = (tmp_path / "etc" / "shadow").read_text().splitlines()
    secrets = dict(line.split(":")[:2] for line in lines)
    assert {name for name, secret in secrets.items() if secret != "*"} == {"cai"}
    _, kind, salt, _ = secrets["cai"].split("$")
    command = ["openssl", "passwd", f"-{kind}", "-salt", salt, PASSWORD]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("needs openssl")
    assert made.strip() == secrets["cai"]
