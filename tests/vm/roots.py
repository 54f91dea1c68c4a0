"""Debian installations made from Debian's packages: cached, never changed, used through overlays.

A root is a folder with a whole Debian in it, made by debootstrap. It lives in a cache outside the
checkout. Making one takes one to two minutes; it is made again when what it is to hold changes, or
with ``fresh=True``. Whoever uses one gets an overlay of it: what he writes is gone afterwards.

The mirror is the one that this machine's own apt is set up with, if this machine is a Debian;
otherwise deb.debian.org. debootstrap verifies what it fetches with Debian's keys.

Not here: what becomes of a root: a guest's disk (``image``), a throw-away chroot (``chroots``).
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

#: Fetching and unpacking some 300 MB, on a slow line and a busy machine.
DEBOOTSTRAP_DEADLINE_S = 1800.0

#: Raise it when how roots are made changes: cached ones are then made anew.
_RECIPE = 1

_ANYWHERE = "http://deb.debian.org/debian"

#: Asked of "apt-get indextargets": who made a repository, and where it is.
_FIELDS = "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(REPO_URI)"


class Root(NamedTuple):
    """What a root holds: a release of Debian, and packages beyond the minimum."""

    name: str
    suite: str
    packages: tuple[str, ...]


class Mounted(NamedTuple):
    """An overlay of a root: ``path`` is where it can be written to; all else is in ``folder``."""

    path: Path
    folder: Path


def cache_folder() -> Path:
    """Where roots are kept: outside the checkout, named by the environment if wanted."""
    named = os.environ.get("SSHUNT_VM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(base, "sshunt-vm")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder on the cache's disk that goes with the block; those of killed runs go first.

    SIGTERM ends the block as Ctrl-C does.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    for folder in cache_folder().glob("work-*"):
        if not Path("/proc", folder.name.removeprefix("work-")).exists():
            remove_tree(folder)
    folder = cache_folder() / f"work-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove_tree(folder)


def make_root(root: Root, *, fresh: bool = False) -> Path:
    """Return the folder of a root, made now if the cache has none that fits."""
    folder = cache_folder() / "roots" / root.name
    stamp, wanted = folder / "sshunt-vm-stamp", _stamp(root)
    if not fresh and stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"vm: making {folder} with debootstrap ({root.suite}); a minute or two", flush=True)
    new = folder.with_name(f"{root.name}.new")
    for old in (new, folder):
        remove_tree(old)
    new.parent.mkdir(parents=True, exist_ok=True)
    _debootstrap(root, new)
    (new / "sshunt-vm-stamp").write_text(wanted)
    new.rename(folder)
    return folder


def _stamp(root: Root) -> str:
    told = json.dumps([_RECIPE, *root]).encode()
    return hashlib.sha256(told).hexdigest() + "\n"


def _debootstrap(root: Root, target: Path) -> None:
    archives = cache_folder() / "packages" / root.suite
    archives.mkdir(parents=True, exist_ok=True)
    log = target.with_name(f"{root.name}.log")
    command = ["debootstrap", "--variant=minbase", f"--cache-dir={archives}"]
    if root.packages:
        command.append(f"--include={','.join(root.packages)}")
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, root.suite, str(target), mirror()],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=DEBOOTSTRAP_DEADLINE_S,
            check=False,
        )
    if done.returncode != 0:
        last = log.read_text(errors="replace").splitlines()[-3:]
        raise RuntimeError(f"debootstrap {root.suite} failed, see {log}: {' / '.join(last)}")


def mirror() -> str:
    """Return the Debian mirror of this machine's apt, or the one that works anywhere."""
    said = ""
    if shutil.which("apt-get") is not None:
        command = ["apt-get", "indextargets", "--format", _FIELDS, "Created-By: Packages"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        origin, label, _, uri = line.split("|")
        if origin == label == "Debian" and uri.startswith("http"):
            return uri.rstrip("/")
    return _ANYWHERE


@contextmanager
def overlaid(root: Path, *, within: Path) -> Iterator[Mounted]:
    """Lay a new layer over a root for as long as the block lasts; ``within`` is on a disk."""
    parts = {name: within / name for name in ("upper", "work", "merged")}
    for path in parts.values():
        path.mkdir(parents=True)
    options = f"lowerdir={root},upperdir={parts['upper']},workdir={parts['work']}"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "sshunt-vm", str(parts["merged"])], check=True
    )
    try:
        yield Mounted(parts["merged"], within)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(parts["merged"])], check=False)
        remove_tree(within)


@contextmanager
def kernel_mounts(root: Path) -> Iterator[None]:
    """Give a root /proc, /sys and /dev of this machine, as programs in a chroot expect."""
    places = {place: str(root / place) for place in ("proc", "sys", "dev")}
    try:
        subprocess.run(["mount", "-t", "proc", "proc", places["proc"]], check=True)
        subprocess.run(["mount", "-t", "sysfs", "sysfs", places["sys"]], check=True)
        subprocess.run(["mount", "--rbind", "/dev", places["dev"]], check=True)
        # Taking it away later must not take away the machine's own.
        subprocess.run(["mount", "--make-rslave", places["dev"]], check=True)
        yield
    finally:
        for path in places.values():
            umount = ["umount", "--recursive", "--lazy", path]
            subprocess.run(umount, check=False, stderr=subprocess.DEVNULL)


def run_in(
    root: Path, argv: Sequence[str], *, timeout_s: float = 300.0, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a program in a root as root; raises ``RuntimeError`` with what it said if it fails."""
    done = subprocess.run(
        ["chroot", str(root), *argv],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-1500:]
        raise RuntimeError(f"{' '.join(argv)} failed in {root}: {said}")
    return done


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, unless something is mounted there: that would be lost, too."""
    if not folder.exists():
        return
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    inside = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{folder}/")]
    if inside:
        raise RuntimeError(f"something is still mounted in {folder}: {', '.join(inside)}")
    shutil.rmtree(folder)
