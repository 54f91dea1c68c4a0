"""A guest at work in QEMU: started, listened to, ended.

The guest tells what it does on its second serial port (``inside/report.py``), which QEMU writes
into a file; the first is its console, kept in another. Nothing is sent to it. With KVM if a kernel
really boots so, which is tried (a machine may have a /dev/kvm that does not work), else emulated.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm.guests import Disk

MEMORY_MB = 2048

#: How long a kernel may take to say its first words with KVM: it takes a second.
KVM_TRIAL_S = 20.0

#: The longest that a guest may say nothing. The slowest thing that it does alone is the demo.
SILENCE_S = 900.0

#: The longest that a guest may live.
LIFE_S = 3600.0


class GuestError(Exception):
    """The guest did not come to its end; the message says why."""


#: Told to the kernel. Its messages go to the console: what holds up a shutdown is told nowhere else
_KERNEL_WORDS = "root=/dev/vda rw console=ttyS0"
_SILENTLY = "systemd.show_status=no"


def _command(disk: Disk, accelerator: str, folder: Path, words: str = _SILENTLY) -> list[str]:
    console = f"socket,id=console,path={folder}/console.socket,server=on,wait=off"
    return [
        "qemu-system-x86_64",
        *("-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MB)),
        *("-nodefaults", "-display", "none", "-nic", "none"),
        *("-chardev", f"{console},logfile={folder}/console.log", "-serial", "chardev:console"),
        *("-chardev", f"file,id=report,path={folder}/report", "-serial", "chardev:report"),
        *("-drive", f"file={disk.image},format=raw,if=virtio,cache=unsafe"),
        *("-device", "virtio-rng-pci"),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd)),
        *("-append", f"{_KERNEL_WORDS} {words}"),
    ]


def accelerator(disk: Disk, folder: Path) -> str:
    """Return "kvm" if the guest's kernel boots with it here, otherwise "tcg"."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    folder.mkdir()
    command = [*_command(disk, "kvm", folder, words=""), "-snapshot", "-no-reboot"]
    log = folder / "console.log"
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as trial:
        deadline = time.monotonic() + KVM_TRIAL_S
        booted = False
        while not booted and trial.poll() is None and time.monotonic() < deadline:
            booted = log.exists() and b"Linux version" in log.read_bytes()
            time.sleep(0.1)
        trial.kill()
    return "kvm" if booted else "tcg"


class Running:
    """A guest that runs; ``events`` yields what it tells until it is done."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield each event as it comes, the last is "done"; raises ``GuestError``."""
        begin = heard = time.monotonic()
        with (self._folder / "report").open(errors="replace") as report:
            rest = ""
            while True:
                new = report.read()
                rest += new
                *lines, rest = rest.split("\n")
                for line in lines:
                    event = _decode(line)
                    if event is not None:
                        yield event
                        if event["event"] == "done":
                            return
                if new:
                    heard = time.monotonic()
                self._must_be_well(begin, heard)
                time.sleep(0.1)

    def _must_be_well(self, begin: float, heard: float) -> None:
        now = time.monotonic()
        if self._process.poll() is not None:
            raise GuestError(f"QEMU ended with {self._process.returncode}")
        if now - heard > SILENCE_S:
            raise GuestError(f"it said nothing for {SILENCE_S:.0f} s")
        if now - begin > LIFE_S:
            raise GuestError(f"it was not done after {LIFE_S:.0f} s")
        if b"Kernel panic" in self.console():
            raise GuestError("its kernel panicked")

    def console(self) -> bytes:
        """Return all that was printed on the console up to now."""
        log = self._folder / "console.log"
        return log.read_bytes() if log.exists() else b""


def _decode(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # of the firmware, or cut off by a reboot
    return event if isinstance(event, dict) and "event" in event else None


@contextmanager
def running(disk: Disk, accelerator: str, folder: Path) -> Iterator[Running]:
    """Start a guest; it is killed with the block, and with us."""
    folder.mkdir(exist_ok=True)
    (folder / "report").touch()
    said = folder / "qemu.log"
    die_with_us = ["setpriv", "--pdeathsig", "KILL"]
    with said.open("wb") as output:
        process = subprocess.Popen(
            [*die_with_us, *_command(disk, accelerator, folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Running(process, folder)
    finally:
        process.kill()
        process.wait()
