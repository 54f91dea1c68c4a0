"""A real sshd in a host of the lab, with nothing of the machine's own ssh configuration.

It keeps the defaults that matter to the tunnel (channels, ciphers, how commands are run) and
changes only what makes a server of somebody's own: keys, port, no PAM, no limit on how many may
connect at once. ``options`` overrides any line, which is how tests make a server that refuses
things.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import Host

SSH_PORT = 22

#: The folders of programs that Debian does not have in an ordinary user's PATH.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class Sshd:
    """A running sshd. ``log`` is the file it writes its messages to."""

    def __init__(
        self, host: Host, port: int, process: "subprocess.Popen[bytes]", log: Path
    ) -> None:
        self.host = host
        self.port = port
        self.process = process
        self.log = log

    def stop(self) -> None:
        """End the server; connections that are open live on, as with any sshd."""
        self.process.terminate()
        self.process.wait()


def start_sshd(
    host: Host,
    *,
    folder: Path,
    host_key: Path,
    authorized_keys: Path,
    port: int = SSH_PORT,
    options: Mapping[str, str] | None = None,
    nofile: int | None = None,
) -> Sshd:
    """Start an sshd on every address of ``host`` and return when it answers."""
    settings = {
        "Port": str(port),
        "HostKey": str(host_key),
        "AuthorizedKeysFile": str(authorized_keys),
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "yes",
        # Many lanes, and benchmarks that start many connections at once.
        "MaxStartups": "500",
        "MaxSessions": "500",
        "LogLevel": "VERBOSE",
    }
    if _ssh_version() >= (9, 8):
        # Tests of refused logins would get their own address locked out for a while.
        settings["PerSourcePenalties"] = "no"
    settings.update(options or {})
    name = f"sshd-{host.name}-{port}"
    config = folder / f"{name}.conf"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        # sshd starts itself anew for each connection and therefore wants its absolute path.
        program = [sshd_path(), "-D", "-e", "-f", str(config)]
        process = host.popen(program, stderr=stderr, nofile=nofile)
    try:
        host.wait_for_port(host.v4, port)
    except TimeoutError:
        process.kill()
        raise RuntimeError(f"sshd did not start: {log.read_text()}")
    return Sshd(host, port, process, log)


def sshd_path() -> str:
    """Return where sshd is, or raise ``UserError``."""
    found = shutil.which("sshd") or shutil.which("sshd", path=_SBIN)
    if found is None:
        raise UserError(
            "sshd is not installed, and the lab needs a real one",
            "install it: apt-get install openssh-server (it does not have to run)",
            ExitCode.CAPTURE,
        )
    return found


def _ssh_version() -> tuple[int, int]:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)
