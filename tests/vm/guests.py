"""The guests: which Debian each is, and how its disk is made.

A guest is a Debian as people have it: Debian's own kernel, systemd, libnftables, OpenSSH and, where
it is new enough, Python. Its disk is a copy of a cached root, to which is added what would be there
if somebody had installed sshunt and an office had been built around the machine:

    /opt/sshunt          sshunt, installed with pip from a wheel of this checkout
    /opt/checks          what is run inside (``inside/``)
    root, ben, cai       people who start sshunt: ben may use sudo, cai with his password
    ada                  the login on the far side
    office.service       the far side in network namespaces: Debian's sshd, dnsmasq, a web server

bullseye's Python 3.9 is too old for the client. There the checks run under bookworm's Python 3.11
in a folder of its own, with bookworm's libc and libraries around it, as somebody who needs a newer
Python would have one; all else in the process, libnftables above all, is bullseye's.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.vm import roots

CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).parent / "inside"

#: The small flavour of Debian's kernel: the same source and netfilter modules, fewer drivers.
KERNEL = "linux-image-cloud-amd64"

_PACKAGES = (
    *(KERNEL, "systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "procps"),
    *("libnftables1", "nftables", "iproute2", "openssh-client", "openssh-server", "sudo", "curl"),
    *("python3", "python3-venv", "ca-certificates", "netbase", "dnsmasq-base", "e2fsprogs"),
)

#: Free space on the disk of a guest, over what its root takes.
_SPARE_MB = 700

#: cai's password in the guest.
PASSWORD = "sesame"

NEWER_PYTHON = "/opt/python3.11"


class Guest(NamedTuple):
    """One guest: its root, and the Python that sshunt is run with there."""

    name: str
    root: roots.Root
    python: str = "/usr/bin/python3"


def _root(suite: str, *more: str) -> roots.Root:
    return roots.Root(f"guest-{suite}", suite, (*_PACKAGES, *more))


GUESTS = {
    "bullseye": Guest("bullseye", _root("bullseye"), f"{NEWER_PYTHON}/bin/python3.11"),
    "bookworm": Guest("bookworm", _root("bookworm", "systemd-resolved")),
    "trixie": Guest("trixie", _root("trixie", "systemd-resolved")),
}


class Disk(NamedTuple):
    """What QEMU needs to start a guest."""

    image: Path
    kernel: Path
    initrd: Path


@contextmanager
def disk_of(guest: Guest, *, folder: Path, fresh: bool, only: Sequence[str]) -> Iterator[Disk]:
    """Make the disk of a guest with this checkout in it; it goes with the block.

    ``only`` names the checks that it is to run, if not all.
    """
    root = roots.make_root(guest.root, fresh=fresh)
    wheels = _wheels(folder / "wheels")
    image = folder / "disk.img"
    with roots.overlaid(root, within=folder / "overlay") as mounted:
        if guest.python.startswith(NEWER_PYTHON):
            newer = roots.make_root(GUESTS["bookworm"].root)
            _add_newer_python(newer, mounted.path)
        with roots.kernel_mounts(mounted.path):
            _install(mounted.path, guest.python, wheels)
        _furnish(mounted.path)
        _write(mounted.path / "opt/checks/only", " ".join(only))
        _pack(mounted.path, image)
    boot = root / "boot"
    try:
        yield Disk(image, _newest(boot, "vmlinuz-*"), _newest(boot, "initrd.img-*"))
    finally:
        image.unlink(missing_ok=True)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def _wheels(folder: Path) -> Path:
    """Make wheels of this checkout and of what it needs; any Python from 3.6 on can use them."""
    command = ["-m", "pip", "wheel", "-q", "--wheel-dir", str(folder), str(CHECKOUT)]
    subprocess.run([sys.executable, *command], check=True, stdin=subprocess.DEVNULL, timeout=600)
    return folder


def _install(root: Path, python: str, wheels: Path) -> None:
    inside = root / "root" / "wheels"
    shutil.copytree(wheels, inside)
    roots.run_in(root, [python, "-m", "venv", "/opt/sshunt"])
    pip = ["/opt/sshunt/bin/pip", "install", "-q", "--no-index", "--find-links=/root/wheels"]
    roots.run_in(root, [*pip, "sshunt"])
    shutil.rmtree(inside)
    (root / "usr/local/bin/sshunt").symlink_to("/opt/sshunt/bin/sshunt")
    shutil.copy(CHECKOUT / "README.md", root / "opt/README.md")


# --- bookworm's Python in bullseye -------------------------------------------------------------


def _add_newer_python(newer: Path, root: Path) -> None:
    """Copy a Python with all that it is linked with; see the head of this module."""
    prefix = root / NEWER_PYTHON.lstrip("/")
    libraries = prefix / "lib" / "private"
    libraries.mkdir(parents=True)
    shutil.copytree(newer / "usr/lib/python3.11", prefix / "lib/python3.11", symlinks=True)
    # Its venv wants its own pip, which Debian keeps outside of it.
    wheels = root / "usr/share/python-wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    shutil.copytree(newer / "usr/share/python-wheels", wheels)
    (prefix / "bin").mkdir()
    program = prefix / "bin/python3.11"
    shutil.copy(newer / "usr/bin/python3.11", program)
    for library in _linked_with(newer, "/usr/bin/python3.11", "/usr/lib/python3.11/lib-dynload"):
        shutil.copy(newer / library.lstrip("/"), libraries)
    inside = f"{NEWER_PYTHON}/lib/private"
    # An rpath of the old kind (not a runpath) is also searched for what libraries are linked with.
    change = ["--set-interpreter", f"{inside}/ld-linux-x86-64.so.2", "--force-rpath"]
    subprocess.run(["patchelf", *change, "--set-rpath", inside, str(program)], check=True)


def _linked_with(root: Path, program: str, modules: str) -> set[str]:
    """Return the libraries that a program and extension modules of a root are linked with."""
    files = [program, *(f"{modules}/{path.name}" for path in (root / f".{modules}").glob("*.so"))]
    lines = roots.run_in(root, ["ldd", *files]).stdout.splitlines()
    paths = [word for line in lines for word in line.split() if word.startswith("/")]
    found = {path for path in paths if ".so" in path and not path.endswith(":")}
    libc = next(path for path in found if path.endswith("/libc.so.6"))
    # The rest of glibc: libraries of older programs ask for them by name.
    others = ("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2")
    return found | {str(Path(libc).with_name(name)) for name in others}


# --- people, keys, services --------------------------------------------------------------------

_HOSTS = """\
127.0.0.1 localhost vm
::1 localhost
192.0.2.2 office
"""

_SSH_CONFIG = """\
Host office
    User ada
Host *
    IdentityFile /etc/ssh/key_%u
    IdentitiesOnly yes
    BatchMode yes
"""

_UNITS = {
    "office.service": """\
[Unit]
Description=An office that only its ssh server can reach
DefaultDependencies=no
After=local-fs.target systemd-sysctl.service
Before=network.target systemd-resolved.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /opt/checks/tests/vm/inside/office.sh

[Install]
WantedBy=multi-user.target
""",
    "office-program@.service": """\
[Unit]
Description=In the office: %i
After=office.service
Requires=office.service

[Service]
ExecStart=/bin/sh /opt/checks/tests/vm/inside/office.sh %i
KillMode=process

[Install]
WantedBy=multi-user.target
""",
    "console.service": """\
[Unit]
Description=A shell of root's on the console, for whoever keeps the guest
After=local-fs.target

[Service]
ExecStart=/bin/bash -i
# A shell at a prompt ignores SIGTERM; systemd would wait for it at each shutdown.
KillSignal=SIGHUP
Environment=HOME=/root TERM=vt220
WorkingDirectory=/root
TTYPath=/dev/ttyS0
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
Restart=always

[Install]
WantedBy=multi-user.target
""",
    "checks.service": """\
[Unit]
Description=The checks
After=office-program@sshd.service office-program@web.service office-program@names.service
After=office-program@names_at_home.service systemd-resolved.service ssh.service

[Service]
ExecStart=/opt/checks/run
Environment=HOME=/root LC_ALL=C.UTF-8
KillMode=process

[Install]
WantedBy=multi-user.target
""",
}

_PROGRAMS = ("sshd", "web", "names", "names_at_home")

_RUN = """\
#!/opt/sshunt/bin/python -B
import sys
from tests.vm.inside.main import main
main(sys.argv[1:])
"""


def _furnish(root: Path) -> None:
    """Add people, keys and services to a root that has sshunt."""
    inside = root / "opt/checks/tests/vm/inside"
    shutil.copytree(INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    _write(root / "opt/checks/run", _RUN, 0o755)
    for name in ("ada", "ben", "cai"):
        roots.run_in(root, ["useradd", "--create-home", "--shell", "/bin/bash", name])
    roots.run_in(root, ["chpasswd"], stdin=f"cai:{PASSWORD}\n")
    _write(root / "etc/sudoers.d/people", "ben ALL=(ALL) NOPASSWD: ALL\ncai ALL=(ALL) ALL\n", 0o440)
    _write(root / "etc/hosts", _HOSTS)
    _write(root / "etc/hostname", "vm\n")
    _make_keys(root)
    _write(root / "etc/systemd/resolved.conf.d/home.conf", "[Resolve]\nDNS=192.0.2.53\n")
    conf = root / "etc/resolv.conf"
    conf.unlink(missing_ok=True)
    conf.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for name, text in _UNITS.items():
        _write(root / "etc/systemd/system" / name, text)
    programs = [f"office-program@{name}" for name in _PROGRAMS]
    wanted = ["office", *programs, "checks", "console", "systemd-resolved", "ssh"]
    roots.run_in(root, ["systemctl", "enable", *wanted])
    # Nothing of these is looked at, and emulated they take long.
    unwanted = ["apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"]
    roots.run_in(root, ["systemctl", "mask", *unwanted, "e2scrub_reap.service", "dnsmasq.service"])
    roots.run_in(root, ["systemctl", "mask", "serial-getty@ttyS0.service"])


def _make_keys(root: Path) -> None:
    """One key for each who starts sshunt; each opens ada's account, root's the others', too."""
    keys = {}
    for name in ("root", "ben", "cai"):
        path = f"/etc/ssh/key_{name}"
        roots.run_in(root, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path])
        roots.run_in(root, ["chown", f"{name}:", path])
        keys[name] = (root / f"{path[1:]}.pub").read_text()
    for name, allowed in {"ada": keys, "ben": ["root"], "cai": ["root"]}.items():
        text = "".join(keys[who] for who in allowed)
        _write(root / f"home/{name}/.ssh/authorized_keys", text, 0o600)
        roots.run_in(root, ["chown", "-R", f"{name}:", f"/home/{name}/.ssh"])
        (root / f"home/{name}/.ssh").chmod(0o700)
    known = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    _write(root / "etc/ssh/ssh_known_hosts", f"* {known}")
    _write(root / "etc/ssh/ssh_config.d/people.conf", _SSH_CONFIG)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _pack(root: Path, image: Path) -> None:
    used = subprocess.run(["du", "-sxm", str(root)], capture_output=True, text=True, check=True)
    size = int(used.stdout.split()[0]) + _SPARE_MB
    command: Sequence[str] = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(image)]
    subprocess.run(
        [*command, f"{size}M"], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    )
