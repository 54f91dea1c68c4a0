"""What a tunnel costs, by role: CPU time and memory of its processes, read from /proc.

A role is where a process runs and what it is: ``ssh`` and ``sshd`` are everybody's, a Python on the
client host is the client or its helper, a Python on the server host is the agent or a stub. Only
processes that live in the lab's namespaces are looked at, so other labs and other work don't count.
"""

import os
from collections import defaultdict
from pathlib import Path

from sshunt.lab.world import Lab

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

ROLES = ("client", "helper", "agent", "stub", "ssh", "sshd")


def roles(lab: Lab) -> dict[int, str]:
    """Return pid -> role for every process of a tunnel that runs in the lab now."""
    found = {}
    for host in (lab.client, lab.server):
        for pid in host.pids():
            argv = _argv(pid)
            name = Path(argv[0]).name if argv else ""
            role = _role(name, argv, pid, on_client=host is lab.client)
            if role is not None:
                found[pid] = role
    return found


def cpu_seconds(pids: dict[int, str]) -> dict[str, float]:
    """Return the CPU time that the processes of each role have used up to now."""
    used: dict[str, float] = defaultdict(float)
    for pid, role in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        used[role] += (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    return dict(used)


def memory_bytes(pids: dict[int, str]) -> dict[str, int]:
    """Return the proportional set size of each role: its own memory and its share of the rest."""
    used: dict[str, int] = defaultdict(int)
    for pid, role in pids.items():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        used[role] += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return dict(used)


def _role(name: str, argv: list[str], pid: int, *, on_client: bool) -> str | None:
    if name.startswith("sshd"):
        return "sshd"
    if name == "ssh":
        return "ssh"
    if not name.startswith("python") and "sshuttle" not in name:
        return None
    if on_client:
        if any(word in argument for argument in argv for word in ("helper", "--firewall")):
            return "helper"
        # A tunnel's own programs only: the lab's web server is a Python on this host, too.
        ours = any("sshunt.lab" in argument for argument in argv)
        return None if ours else "client"
    # The agent has detached itself from the ssh command that started it; a stub has not.
    return "stub" if _has_ancestor_sshd(pid) and _session(pid) != pid else "agent"


def _argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _stat_field(pid: int, number: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number - 3])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _session(pid: int) -> int:
    return _stat_field(pid, 6)


def _has_ancestor_sshd(pid: int) -> bool:
    while pid > 1:
        pid = _stat_field(pid, 4)
        argv = _argv(pid)
        if argv and argv[0].startswith("sshd"):
            return True
    return False
