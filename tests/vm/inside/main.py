"""The program that runs in a guest at each boot: the checks, a reboot, the checks after it.

Its service runs it without a word. ``/opt/checks/run NAME...`` runs the checks with these names,
for somebody who is logged in on the console of a guest that was kept.
"""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from tests.vm.inside import checks
from tests.vm.inside.machine import FailedError, ImpossibleError
from tests.vm.inside.report import tell

#: The checks that are wanted, if not all.
_ONLY = Path("/opt/checks/only")

#: What is sent of a failed check's output.
_LOG_CHARACTERS = 6_000


def main(names: Sequence[str]) -> None:
    """Run the checks with these names; without names those that are wanted, a reboot among them."""
    if names:
        for check in (*checks.CHECKS, checks.rebooted):
            if check.__name__ in names:
                run(check)
        return
    tell("booted")
    wanted = _ONLY.read_text().split()
    if checks.REBOOTED.exists():
        run(checks.rebooted)
        tell("done")
        return
    tell("facts", facts=facts())
    for check in checks.CHECKS:
        if not wanted or check.__name__ in wanted:
            run(check)
    if not wanted or checks.rebooted.__name__ in wanted:
        reboot()
    else:
        tell("done")


def run(check: checks.Check) -> None:
    """Run one check and tell its result."""
    tell("begin", name=checks.title(check))
    begin = time.monotonic()
    log = StringIO()
    result, why = "ok", ""
    with redirect_stdout(log), redirect_stderr(log):
        try:
            why = check()
        except ImpossibleError as error:
            result, why = "can't", str(error)
        except (FailedError, OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            result, why = "failed", str(error) or type(error).__name__
            traceback.print_exc()
    tell(
        "check",
        name=checks.title(check),
        result=result,
        why=why,
        seconds=round(time.monotonic() - begin, 1),
        log="" if result == "ok" else log.getvalue()[-_LOG_CHARACTERS:],
    )


def reboot() -> None:
    """Reboot as a person would, with transfers on the way; tells when it began."""
    try:
        checks.start_transfer()
    except (FailedError, OSError, subprocess.SubprocessError) as error:
        name = "a transfer is on its way before the reboot"
        tell("check", name=name, result="failed", why=str(error), seconds=0, log="")
    tell("rebooting")
    checks.REBOOTED.write_text(str(time.time()))
    subprocess.run(["systemctl", "--no-block", "reboot"], check=True)


def facts() -> dict[str, str]:
    """Versions of what is tested here."""
    packages = {
        "libnftables": "libnftables1",
        "systemd": "systemd",
        "OpenSSH": "openssh-client",
        "sudo": "sudo",
    }
    found = {"kernel": os.uname().release}
    for name, package in packages.items():
        query = ["dpkg-query", "-W", "-f=${Version}", package]
        found[name] = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    found["Python"] = ".".join(map(str, sys.version_info[:3]))
    found["Debian"] = Path("/etc/debian_version").read_text().strip()
    return found
