"""README's installation, word for word, on freshly installed Debians, as each kind of person.

The commands are not written here but taken from README.md, and typed on a terminal: by root, by
somebody with sudo, by somebody whose sudo asks for a password, and by root where there is no sudo.
Then the tunnel is started as README says and used in the lab (``sshunt.lab.world``).

A chroot is a Debian just as far as files go: no systemd, and this machine's kernel.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sshunt.lab.world import OFFICE_V4, Lab
from tests.vm import results, roots
from tests.vm.guests import CHECKOUT, PASSWORD
from tests.vm.terminal import SilentError, Terminal

#: Fetching and installing packages, on a slow line.
LINE_DEADLINE_S = 600.0
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0

_COMMAND = "/usr/local/bin/sshunt"

_ASKS_TO_CONTINUE = {r"\[Y/n\] ?$": "y\n"}
_ASKS_PASSWORD = {r"password for cai: ?$": f"{PASSWORD}\n"}

#: A fresh Debian; its installer adds what speaks HTTPS, and here it is done by name.
RELEASES = {
    "Debian 11": roots.Root("fresh-bullseye", "bullseye", ("ca-certificates",)),
    "Debian 12": roots.Root("fresh-bookworm", "bookworm", ("ca-certificates",)),
    "Debian 13": roots.Root("fresh-trixie", "trixie", ("ca-certificates",)),
}


def readme() -> str:
    """Return README.md."""
    return (CHECKOUT / "README.md").read_text()


def install_commands() -> list[str]:
    """Return the commands of README's section about installing, in order."""
    section = re.split(r"(?m)^## Install$", readme())[1].partition("\n## ")[0]
    lines = [line[4:].strip() for line in section.splitlines() if line.startswith("    ")]
    commands = [line for line in lines if line]
    if not any("pip install" in line for line in commands):
        raise RuntimeError("README's section about installing has no command with pip install")
    return commands


Way = Callable[["Fresh"], str]


def as_root(fresh: "Fresh") -> str:
    """README's installation as root, and a tunnel"""
    fresh.have_sudo()
    fresh.install("root")
    return fresh.use("root")


def with_sudo(fresh: "Fresh") -> str:
    """... by a user with sudo"""
    fresh.have_sudo()
    fresh.install("ben")
    return fresh.use("ben")


def with_password(fresh: "Fresh") -> str:
    """... by a user whose sudo asks for a password"""
    fresh.have_sudo()
    fresh.install("cai")
    return fresh.use("cai")


def with_sudo_rs(fresh: "Fresh") -> str:
    """... by a user with sudo, who then has sudo-rs in its place"""
    fresh.have_sudo()
    fresh.install("ben")
    roots.run_in(fresh.root, ["apt-get", "install", "-q", "-y", "sudo-rs"])
    link = fresh.root / "usr/local/bin/sudo"
    link.symlink_to("/usr/lib/cargo/bin/sudo")
    try:
        return fresh.use("ben")
    finally:
        link.unlink()


def without_sudo(fresh: "Fresh") -> str:
    """... by root where there is no sudo: the first line without that word"""
    if (fresh.root / "usr/bin/sudo").exists():
        raise SilentError("this root has a sudo already")
    fresh.install("root", first_without_sudo=True)
    return fresh.use("root")


def old_python(fresh: "Fresh") -> str:
    """where Python is too old: a sentence names the one that is needed"""
    fresh.have_sudo()
    try:
        fresh.install("root")
    except SilentError as error:
        said = str(error)
    else:
        raise SilentError("it was installed")
    sentence = re.search(r"ERROR: .*(3\.10).*", said)
    if sentence is None or "Traceback" in said:
        raise SilentError(f"what is needed is not said: {said[-300:]}")
    return sentence[0]


WAYS: dict[str, tuple[Way, ...]] = {
    "Debian 11": (old_python,),
    "Debian 12": (as_root, with_sudo, with_password, without_sudo),
    "Debian 13": (as_root, with_sudo, with_sudo_rs, with_password, without_sudo),
}


class Fresh:
    """A fresh Debian in a chroot, with people and a checkout in it."""

    def __init__(self, root: Path, lab: Lab) -> None:
        self.root = root
        self._lab = lab
        self._connect_with_registries()
        roots.run_in(root, ["apt-get", "update", "-q"])
        for name in ("ben", "cai"):
            roots.run_in(root, ["useradd", "--create-home", "--shell", "/bin/bash", name])
        roots.run_in(root, ["chpasswd"], stdin=f"cai:{PASSWORD}\n")
        for home in self._homes():
            self._furnish(home)

    def _homes(self) -> list[Path]:
        return [self.root / "root", self.root / "home/ben", self.root / "home/cai"]

    def _connect_with_registries(self) -> None:
        """As this machine reaches Debian's packages and PyPI, so does the root."""
        for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(f"/{name}", self.root / name)
        index = subprocess.run(
            ["python3", "-m", "pip", "config", "get", "global.index-url"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
        lines += [f"index-url = {index}"] if index else []
        (self.root / "etc/pip.conf").write_text("\n".join(lines) + "\n")

    def _furnish(self, home: Path) -> None:
        """Give somebody a key, who the server is, and a checkout."""
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self._lab.key, ssh / "id_ed25519")
        key = self._lab.host_key.with_suffix(".pub").read_text()
        (ssh / "known_hosts").write_text(f"* {key}")
        files = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        for name in filter(None, files):
            target = home / "sshunt" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, target)
        inside = f"/{home.relative_to(self.root)}"
        roots.run_in(self.root, ["chown", "-R", f"{home.name}:", inside])

    def have_sudo(self) -> None:
        """Install sudo beforehand, with ben and cai in its group; ben need not give a password."""
        roots.run_in(self.root, ["apt-get", "install", "-q", "-y", "sudo"])
        for name in ("ben", "cai"):
            roots.run_in(self.root, ["usermod", "-a", "-G", "sudo", name])
        rule = self.root / "etc/sudoers.d/ben"
        rule.write_text("ben ALL=(ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)

    def install(self, user: str, *, first_without_sudo: bool = False) -> None:
        """Type README's commands in the checkout."""
        for number, command in enumerate(install_commands()):
            line = command
            if first_without_sudo and number == 0:
                line = command.removeprefix("sudo ")
            terminal = Terminal(
                self._login(user, f"cd sshunt && {line}"),
                answers={**_ASKS_TO_CONTINUE, **_ASKS_PASSWORD},
            )
            try:
                status = terminal.wait(within_s=LINE_DEADLINE_S)
            finally:
                terminal.close()
            if status != 0:
                raise SilentError(f"{line}: status {status}: {terminal.said.strip()[-600:]}")

    def _login(self, user: str, line: str) -> list[str]:
        """A command line that runs a line of shell as if it were typed after a login."""
        home = "/root" if user == "root" else f"/home/{user}"
        sbin = "/usr/local/sbin:/usr/sbin:" if user == "root" else ""
        environment = {
            "PATH": f"{sbin}/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        chroot = ["chroot", f"--userspec={user}:{user}", str(self.root), "env", "-i", *words]
        # A profile would set PATH anew, as Debian's does.
        return [*chroot, "bash", "-c", f"cd && {line}"]

    def use(self, user: str) -> str:
        """Start the tunnel by its name, fetch a page through it, and stop it with Ctrl-C."""
        server = self._lab.server.v4
        line = f"sshunt -r ada@{server} {OFFICE_V4}"
        enter = ["nsenter", f"--net={self._lab.client.netns_path}"]
        terminal = Terminal([*enter, *self._login(user, line)], answers=_ASKS_PASSWORD)
        try:
            terminal.wait_for(r"^\S*\s*sshunt: connected", within_s=START_DEADLINE_S)
            page = ["curl", "-sS", "-m", "20", f"http://{self._lab.target.v4}/"]
            if "Hello" not in self._lab.client.run(page).stdout:
                raise SilentError("another page came")
            terminal.press("\x03")
            status = terminal.wait(within_s=STOP_DEADLINE_S)
        finally:
            terminal.close()
        rules = self._lab.client.run(["nft", "list", "ruleset"]).stdout.strip()
        if rules:
            raise SilentError(f"rules are left: {rules[:200]}")
        return f"a page came; stopped with status {status}"


@contextmanager
def fresh_debian(root: Path, folder: Path, archives: Path, lab: Lab) -> Iterator[Fresh]:
    """A fresh Debian that is thrown away after the block."""
    with roots.overlaid(root, within=folder) as mounted, roots.kernel_mounts(mounted.path):
        inside = mounted.path / "var/cache/apt/archives"
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(archives), str(inside)], check=True)
        yield Fresh(mounted.path, lab)


def try_all(release: str, folder: Path, lab: Lab, *, renew: bool) -> results.Column:
    """Try all ways of one release."""
    wanted = RELEASES[release]
    root = roots.make_root(wanted, fresh=renew)
    archives = roots.cache_folder() / "packages" / wanted.suite
    found = []
    for number, way in enumerate(WAYS[release]):
        begin = time.monotonic()
        try:
            with fresh_debian(root, folder / f"fresh-{number}", archives, lab) as fresh:
                result, why = results.OK, way(fresh)
        except (SilentError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            result, why = results.FAILED, str(error)
        name = (way.__doc__ or way.__name__).partition("\n")[0]
        found.append(results.Result(name, result, why, time.monotonic() - begin))
        results.show(found[-1])
    facts = {"Debian": (root / "etc/debian_version").read_text().strip()}
    return results.Column(release, facts, found)
