"""The people who live in the lab, and how they come to exist only there.

A test of "an ordinary user with sudo" needs an ordinary user, and a test of login shells needs one
account per shell. Nobody wants them on his machine. So the lab writes its own passwd, shadow,
group, sudoers, doas.conf, hosts and nsswitch.conf and lays them over the machine's in a mount
namespace that only the lab's programs live in. /run is an empty tmpfs there: sshd finds its
/run/sshd, sudo has no remembered tickets, and what a program leaves in /run is easy to see.

    root   the tunnel's usual starter; home, ssh key and known_hosts of its own
    ada    the login on the far side: an ordinary user without any rights
    ben    an ordinary user of the client host who may use sudo without a password
    cai    ... with a password
    dan    ... who may not use sudo
    eva    ... without a password, and sudo gives her programs a terminal of their own (use_pty)
    fil    ... without a password, and sudo records what goes into his programs (log_input)
    sh-*   one account per login shell found on the machine, for the far side

Everybody's ssh key opens every account on every sshd of the lab, and everybody's ~/.ssh/config
names ``ada`` as the user, so that a plain "ssh server" works.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

#: cai's password, and its hash (openssl passwd -6): it opens nothing outside a lab.
PASSWORD = "sesame"
_PASSWORD_HASH = (
    "$6$sshuntlab$GvEM2eT3If7vNKDL1blKw39GDGbC3ONHRfF/XZdo5RwF8/"
    "aylIwz4XV4lCawk7pk7H2Q8C5y/Z0hTKncOxb0h."
)

LOGIN_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "tcsh", "csh")

#: The uids of the labs' users. They start above those of people, and each lab has some of its own:
#: an agent's directory in /tmp bears its user's uid, and labs that are up at once share /tmp.
_LOWEST_UID = 200_000
_UIDS_OF_A_LAB = 32
_LABS = 20_000

_SUDOERS = """\
Defaults env_reset
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Defaults passwd_tries=1
root ALL=(ALL:ALL) ALL
ben ALL=(ALL:ALL) NOPASSWD: ALL
cai ALL=(ALL:ALL) ALL
Defaults:eva use_pty
eva ALL=(ALL:ALL) NOPASSWD: ALL
Defaults:fil log_input, iolog_dir=/run/sudo-io
fil ALL=(ALL:ALL) NOPASSWD: ALL
"""

_DOAS_CONF = """\
permit nopass ben as root
permit cai as root
"""

# No DNS: a lab has none, and an unknown name must be unknown at once.
#: The server's resolv.conf: it asks the target, if a test starts a resolver there.
_RESOLV_CONF = """\
nameserver 10.55.0.2
nameserver fd00:55::2
"""

_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files
services: files
protocols: files
"""

_SSH_CONFIG = """\
Host *
    User ada
    IdentityFile {home}/.ssh/id_ed25519
    IdentitiesOnly yes
    UserKnownHostsFile {home}/.ssh/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
"""


class Account(NamedTuple):
    """One line of the lab's passwd."""

    name: str
    uid: int
    home: Path
    shell: str


def plan_accounts(homes: Path, number: int) -> dict[str, Account]:
    """Return everybody by name; nothing is written yet. ``number`` tells labs at work apart."""
    first_uid = uids_of(number).start
    bash = shutil.which("bash") or "/bin/sh"
    shells = {"root": bash, "ada": bash, "ben": bash, "cai": bash, "dan": bash}
    shells.update(eva=bash, fil=bash)
    for name in LOGIN_SHELLS:
        path = shutil.which(name)
        if path is not None:
            shells[f"sh-{name}"] = path
    return {
        name: Account(name, 0 if name == "root" else first_uid + place, homes / name, shell)
        for place, (name, shell) in enumerate(shells.items())
    }


def uids_of(number: int) -> range:
    """Return the uids that the accounts of lab ``number`` have, root's apart."""
    first = _LOWEST_UID + number % _LABS * _UIDS_OF_A_LAB
    return range(first, first + _UIDS_OF_A_LAB)


def write_homes(accounts: Iterable[Account], *, key: Path, host_key: Path) -> None:
    """Make everybody's home with the ssh key, the known host keys and the configuration in it."""
    for account in accounts:
        ssh = account.home / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(key, ssh / "id_ed25519")
        (ssh / "config").write_text(_SSH_CONFIG.format(home=account.home))
        # The pattern "*" stands for every host and port of the lab.
        (ssh / "known_hosts").write_text("* " + host_key.with_suffix(".pub").read_text())
        # zsh asks a newcomer questions unless there is a start-up file.
        (account.home / ".zshrc").touch()
        for path in (account.home, ssh, *ssh.iterdir(), account.home / ".zshrc"):
            os.chown(path, account.uid, account.uid)
            path.chmod(0o700 if path.is_dir() else 0o600)


def write_etc(folder: Path, accounts: Iterable[Account], names: Mapping[str, str]) -> list[Path]:
    """Write the files that are laid over those of /etc; ``names`` maps an address to host names."""
    accounts = list(accounts)
    folder.mkdir()
    lab_names = {account.name for account in accounts}
    texts = {
        "passwd": _system_lines("passwd", lab_names)
        + "".join(f"{a.name}:x:{a.uid}:{a.uid}:lab:{a.home}:{a.shell}\n" for a in accounts),
        "group": _system_lines("group", lab_names)
        + "".join(f"{a.name}:x:{a.uid}:\n" for a in accounts),
        "shadow": "".join(f"{a.name}:{_secret(a.name)}:19000:0:99999:7:::\n" for a in accounts),
        "sudoers": _SUDOERS,
        "doas.conf": _DOAS_CONF,
        "nsswitch.conf": _NSSWITCH,
        "hosts": "".join(f"{address} {name}\n" for address, name in names.items()),
        "resolv.conf": _RESOLV_CONF,
    }
    written = []
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        path.chmod({"shadow": 0o600, "sudoers": 0o440, "doas.conf": 0o400}.get(name, 0o644))
        written.append(path)
    return written


def _system_lines(file: str, without: Iterable[str]) -> str:
    """Return the machine's own entries (sshd's unprivileged user is one) less those we make."""
    lines = Path("/etc", file).read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.partition(":")[0] not in set(without))


def _secret(name: str) -> str:
    return _PASSWORD_HASH if name == "cai" else "*"
