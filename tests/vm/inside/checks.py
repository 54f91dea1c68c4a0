"""What is checked in a guest: sshunt on a system as people have it.

Each check is a function whose docstring's first line is its name in the table. It returns what was
seen, or raises ``FailedError`` or ``ImpossibleError``. They run in the order of ``CHECKS``.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.inside.machine import (
    DEADLINE_S,
    GREETING,
    OFFICE_NETWORK,
    PAGE,
    SSHUNT,
    FailedError,
    ImpossibleError,
    Remains,
    Tunnel,
    control_groups,
    eventually,
    far_processes,
    fetch,
    kernel,
    rules,
    run,
    sshunts,
    tunnel,
)

Check = Callable[[], str]

#: "socket cgroupv2" of nft.
GUARDS_SINCE = (5, 13)

#: Tables that go with their owner.
OWNERS_SINCE = (5, 12)

#: What the demo may take on an emulated machine; it takes 20 s on a real one.
DEMO_DEADLINE_S = 600.0

#: How long systemd waits for the unit to be ready.
UNIT_DEADLINE_S = 60.0

UNIT = "tunnel-to-office.service"
_SYSTEM_UNITS = Path("/etc/systemd/system")

#: systemd waits 90 s for what does not end when it is asked to.
SHUTDOWN_S = 75.0

#: When the reboot was asked for.
REBOOTED = Path("/var/lib/checks-rebooted")

#: Seconds after the end of a killed client's connection in which the far side may forget it.
GRACE = ("--grace", "2")

_NAME, _OFFICES, _HOMES = "git.corp.example", "10.55.0.2", "192.0.2.2"


def demo() -> str:
    """`sshunt demo`: all 15 proofs hold"""
    said = run(SSHUNT, "demo", timeout_s=DEMO_DEADLINE_S, check=False)
    summary = re.search(r"(\d+) of (\d+) proofs held, in (\d+) s", said.stdout)
    if summary is None:
        raise FailedError(
            f"it did not come to its end: {(said.stderr + said.stdout).strip()[-400:]}"
        )
    if said.returncode != 0 or summary[1] != summary[2]:
        failed = [line.strip() for line in said.stdout.splitlines() if "FAILED" in line]
        raise FailedError(f"{summary[0]}: {'; '.join(failed)[:500]}")
    return f"{summary[1]} of {summary[2]}"


def stopped() -> str:
    """stopped with SIGTERM: nothing is left here or there"""
    remains = Remains()
    with tunnel(OFFICE_NETWORK) as up:
        fetch()
        status = up.stop()
        seconds = remains.must_vanish()
    if status != 0:
        raise FailedError(f"its exit status is {status}")
    return f"gone after {seconds:.1f} s"


def guard() -> str:
    """the guard: a control group that the rules skip"""
    with tunnel(OFFICE_NETWORK) as up:
        ruleset = run("nft", "list", "ruleset").stdout
        groups = control_groups()
        inside = Path(f"/proc/{up.process.pid}/cgroup").read_text()
    guarded = "socket cgroupv2" in ruleset
    if kernel() < GUARDS_SINCE:
        if guarded or groups:
            raise FailedError("a kernel without it is not believed to have it")
        raise ImpossibleError("Linux before 5.13 cannot tell sockets by their control group")
    if not guarded or not groups:
        raise FailedError(f"rule: {'yes' if guarded else 'no'}; control groups: {groups or 'none'}")
    if "sshunt" not in inside:
        raise FailedError(f"the client is not in it but in {inside.strip()}")
    return groups[0].partition(": ")[2]


def never_captures_itself() -> str:
    """0/0 with the ssh server inside, ssh killed: it connects again"""
    with tunnel("0/0") as up:
        fetch()
        for pid in run("pgrep", "-P", str(up.process.pid), "-x", "ssh").stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: up.said.count("sshunt: connected") > 1 or _fetches(), "a page again")
        fetch()
    return "a page came again"


def _fetches() -> bool:
    return GREETING in run("curl", "-sS", "-m", "10", PAGE, check=False).stdout


def sudo_user() -> str:
    """an ordinary user with sudo, logged in with ssh"""
    return _guarded_as("ben")


def _guarded_as(name: str, look: Callable[[], object] = lambda: None) -> str:
    remains = Remains()
    started = _as_user(name)
    try:
        started.wait_until_connected()
        client = _client_of(name)
        group = Path(f"/proc/{client}/cgroup").read_text().strip().rpartition(":")[2]
        guarded = "socket cgroupv2" in run("nft", "list", "ruleset").stdout
        fetch()
        look()
        os.kill(client, signal.SIGINT)
        eventually(lambda: started.process.poll() is not None, "Ctrl-C ends it")
        remains.must_vanish()
    finally:
        started.close()
    if kernel() >= GUARDS_SINCE and not guarded:
        raise FailedError(f"it works, but there is no guard (control group {group})")
    return f"guarded in {group}" if guarded else "without a guard"


def _as_user(name: str, *words: str) -> Tunnel:
    start = f"{SSHUNT} -r office {' '.join(words)} {OFFICE_NETWORK}"
    return Tunnel(["ssh", f"{name}@localhost", start])


def _client_of(name: str) -> int:
    found = run("pgrep", "-u", name, "-f", f"^[^ ]*python[^ ]* {SSHUNT} -r office").stdout.split()
    return int(found[0])


def sudo_password() -> str:
    """... whose sudo asks for the password, on a terminal; stopped with Ctrl-C"""
    remains = Remains()
    ours, theirs = pty.openpty()
    command = f"{SSHUNT} -r office {OFFICE_NETWORK}"
    client = subprocess.Popen(
        ["ssh", "-tt", "cai@localhost", command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        said = _read_until(ours, "", r"\[sshunt\] sudo password for cai: ?$")
        os.write(ours, b"sesame\n")
        said = _read_until(ours, said, r"(?m)^sshunt: connected")
        fetch()
        os.write(ours, b"\x03")
        eventually(lambda: client.poll() is not None, "Ctrl-C ends it")
        remains.must_vanish()
    finally:
        client.kill()
        client.wait()
        os.close(ours)
    return "asked once"


def _must_be_bounded() -> None:
    """Each process of the service has but the capabilities that it should have by now."""
    for pid in run("pgrep", "-f", "sshunt/helper --accepted").stdout.split():
        status = Path(f"/proc/{pid}/status").read_text()
        mask = int(status.split("CapPrm:")[1].split()[0], 16)
        if mask & ~(1 << 1 | 1 << 12 | 1 << 13):
            raise FailedError(f"process {pid} has the capabilities {mask:#x}")


def service() -> str:
    """... without sudo: a member of the group of the helper's socket (install-helper --socket)"""
    run(SSHUNT, "install-helper", "--socket")
    try:
        run("usermod", "-aG", "sshunt", "cai")
        begin = time.strftime("%Y-%m-%d %H:%M:%S")
        seen = _guarded_as("cai", _must_be_bounded)
        log = run("journalctl", "--no-pager", "-q", "-S", begin, "-t", "sshunt-helper").stdout
        for request in ("hello", "guard", "packets", "apply"):
            if not re.search(rf"uid \d+, process \d+, session \w+: {request}.*: done", log):
                raise FailedError(f"{request} is not in the journal: {log[-300:]}")
        rating = run("systemd-analyze", "security", "--no-pager", "sshunt-helper@1.service")
        exposure = re.search(r"(?m)exposure level.*: ([\d.]+)", rating.stdout)
        return f"{seen}; systemd-analyze's exposure: {exposure[1] if exposure else 'unknown'}"
    finally:
        run("gpasswd", "-d", "cai", "sshunt", check=False)
        run(SSHUNT, "install-helper", "--remove")


#: Starts a helper by run0 alone, as somebody who is not root would, and is greeted by it.
_BY_RUN0 = """
import asyncio, os, sys
os.geteuid = lambda: 1000
os.environ["PATH"] = sys.argv[1]
from sshunt.host.helper import start_helper
async def main():
    helper = await start_helper(session="feedface")
    print("guarded" if await helper.guard() else "without a guard", flush=True)
    await helper.close()
asyncio.run(main())
"""


def run0() -> str:
    """... by run0 (systemd 257), of a user whom polkit lets"""
    found = shutil.which("run0")
    version = re.match(r"systemd (\d+)", run("systemctl", "--version").stdout)
    if found is None or version is None or int(version[1]) < 257:
        raise ImpossibleError("there is no run0 that knows --pipe")
    remains = Remains()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "run0").symlink_to(found)
        said = run("/opt/sshunt/bin/python", "-c", _BY_RUN0, folder).stdout.strip()
    remains.must_vanish()
    return said


def _read_until(terminal: int, said: str, pattern: str) -> str:
    deadline = time.monotonic() + DEADLINE_S
    os.set_blocking(terminal, False)
    while not re.search(pattern, said.replace("\r", "")):
        if time.monotonic() > deadline:
            raise FailedError(f"no {pattern!r} on the terminal: {said[-300:]!r}")
        with contextlib.suppress(BlockingIOError, OSError):
            said += os.read(terminal, 65536).decode(errors="replace")
        time.sleep(0.1)
    return said


def names() -> str:
    """`--dns`: names of the far side resolve"""
    if kernel() < GUARDS_SINCE:
        raise ImpossibleError(_refusal())
    with tunnel("--dns", OFFICE_NETWORK):
        _must_be(_OFFICES)
        fetch(f"http://{_NAME}/")
    _must_be(_HOMES)
    return f"{_NAME} by the stub at 127.0.0.53"


def _refusal() -> str:
    """What `--dns` says where it can't be had: one sentence, and no tunnel."""
    started = Tunnel([SSHUNT, "--dns", "-r", "office", OFFICE_NETWORK])
    try:
        eventually(lambda: started.process.poll() is not None, "a refusal")
        said, status = started.said.strip(), started.process.returncode
    finally:
        started.close()
    lines = [line for line in said.splitlines() if line.startswith("sshunt: ")]
    if status == 0 or "Traceback" in said or not any("--dns" in line for line in lines):
        raise FailedError(f"status {status}, and it said: {said[-300:]}")
    return "refused: " + lines[0].partition("error: ")[2]


def _must_be(address: str) -> None:
    """The name has this address, for programs that ask the resolver of /etc/resolv.conf."""
    conf = Path("/etc/resolv.conf").read_text()
    if "nameserver 127.0.0.53" not in conf:
        raise FailedError(f"/etc/resolv.conf does not name systemd-resolved: {conf!r}")
    command = f"import socket; print(socket.gethostbyname({_NAME!r}))"
    found = run("/usr/bin/python3", "-c", command, check=False).stdout.strip()
    if found != address:
        raise FailedError(f"{_NAME} is {found or 'unknown'} and not {address}")


def resolved() -> str:
    """systemd-resolved goes on: resolvectl, and its own answers"""
    _query()
    words = ("--dns",) if kernel() >= GUARDS_SINCE else ()
    with tunnel(*words, OFFICE_NETWORK):
        run("resolvectl", "status", "--no-pager")
        _query()
    _query()
    _must_be(_HOMES)
    return "before, meanwhile, afterwards"


def _query() -> None:
    run("resolvectl", "flush-caches")
    said = run("resolvectl", "query", "--legend=no", "gate.home").stdout
    if _HOMES not in said:
        raise FailedError(f"resolvectl query gate.home: {said.strip()[:200]!r}")


def _readme_unit() -> str:
    return unit_for_our_office(Path("/opt/README.md").read_text())


def unit_for_our_office(readme: str) -> str:
    """The service of README's section about use, for our office; systemd waits longer for it."""
    block = re.search(r"(?m)^    \[Unit\]\n(?:(?:    .*)?\n)+?(?=^\S)", readme)
    if block is None:
        raise FailedError("README shows no unit")
    text = re.sub(r"(?m)^    ", "", block[0])
    ours, count = re.subn(r"-r \S+ \S+$", f"-r office {OFFICE_NETWORK}", text, flags=re.MULTILINE)
    if count != 1 or f"ExecStart={SSHUNT} " not in ours:
        raise FailedError(f"README's unit is not as expected: {text}")
    return ours.replace("[Service]\n", f"[Service]\nTimeoutStartSec={UNIT_DEADLINE_S:.0f}\n")


@contextmanager
def _unit(path: Path, text: str, reload: list[str]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    run(*reload, "daemon-reload")
    try:
        yield
    finally:
        run(*reload, "kill", "-s", "KILL", path.name, check=False)
        run(*reload, "reset-failed", path.name, check=False)
        path.unlink()
        run(*reload, "daemon-reload")


def unit() -> str:
    """README's systemd unit (Type=notify): started, stopped, and the far side is told"""
    return _start_and_stop(_SYSTEM_UNITS, _readme_unit(), ["systemctl"])


def plain_unit() -> str:
    """... with systemd's default of ending all its processes at once"""
    text = _readme_unit().replace("KillMode=mixed\n", "")
    return _start_and_stop(_SYSTEM_UNITS, text, ["systemctl"])


def user_unit() -> str:
    """... as a user's unit (systemctl --user), with sudo"""
    run("loginctl", "enable-linger", "ben")
    folder = Path("/home/ben/.config/systemd/user")
    try:
        return _start_and_stop(folder, _readme_unit(), ["ssh", "ben@localhost", "systemctl --user"])
    finally:
        run("loginctl", "disable-linger", "ben")


def _start_and_stop(folder: Path, text: str, systemctl: list[str]) -> str:
    path = folder / UNIT
    remains = Remains()
    with _unit(path, text, systemctl):
        begin = time.monotonic()
        started = run(*systemctl, "start", path.name, check=False, timeout_s=2 * DEADLINE_S)
        if started.returncode != 0:
            status = run(*systemctl, "status", "--no-pager", "-n", "20", path.name, check=False)
            after = time.monotonic() - begin
            why = re.findall(r"(?m)^.*(?:Active: .*|\]: .*)$", status.stdout)
            raise FailedError(f"start failed after {after:.0f} s: {' / '.join(why)[-400:]}")
        guarded = "socket cgroupv2" in run("nft", "list", "ruleset").stdout
        fetch()
        run(*systemctl, "stop", path.name)
        result = run(*systemctl, "show", "-p", "Result", path.name).stdout.strip()
        seconds = remains.must_vanish()
        if result != "Result=success":
            raise FailedError(f"systemd says {result}")
    if kernel() >= GUARDS_SINCE and not guarded:
        raise FailedError("it works, but there is no guard")
    return f"told within {seconds:.1f} s"


def killed() -> str:
    """kill -9 of the client: nothing is left"""
    remains = Remains()
    with tunnel(*GRACE, OFFICE_NETWORK) as up:
        fetch()
        up.process.kill()
        seconds = remains.must_vanish()
    return f"gone after {seconds:.1f} s, 2 of them grace"


def all_killed() -> str:
    """kill -9 of client, helper and ssh at once: nothing is left"""
    remains = Remains(helper_is_killed=True)
    with tunnel(*GRACE, OFFICE_NETWORK):
        fetch()
        sweepers = [pid for pid in sshunts() if _is_sweeper(pid)]
        _kill([pid for pid in sshunts() if pid not in sweepers])
        if kernel() < OWNERS_SINCE:
            return _without_owner(remains)
        seconds = remains.must_vanish()
    return f"gone after {seconds:.1f} s, 2 of them grace"


def _without_owner(remains: Remains) -> str:
    """Where tables do not go by themselves: they cease to capture, and the next start tidies up."""
    # What is captured is refused at once, for nobody listens; what is not gets no answer.
    seconds = eventually(lambda: not _is_refused(), "the rules cease to capture")
    left = rules()
    with tunnel(*GRACE, OFFICE_NETWORK) as again:
        again.stop()
    remains.must_vanish()
    stays = "; the next start removes the table" if left else ""
    return f"nothing is captured after {seconds:.0f} s{stays} (Linux before 5.12)"


def _is_refused() -> bool:
    """True if a connection to the office is refused, which only this host itself can do."""
    could_not_connect = 7  # curl(1)
    tried = run("curl", "-sS", "-m", "3", PAGE, check=False)
    return tried.returncode == could_not_connect


def sweeper_killed() -> str:
    """kill -9 of the sweeper, too: the next start clears up"""
    remains = Remains(helper_is_killed=True)
    with tunnel(*GRACE, OFFICE_NETWORK):
        _kill(sshunts())
    with tunnel(*GRACE, OFFICE_NETWORK) as again:
        fetch()
        again.stop()
        seconds = remains.must_vanish()
    return f"gone {seconds:.1f} s after the next stop"


def _is_sweeper(pid: int) -> bool:
    try:
        return b"SWEEP=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def umount() -> str:
    """a disk that is unmounted meanwhile is really unmounted"""
    disk, place = Path("/var/lib/disk.img"), Path("/mnt")
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-F", str(disk))
    run("mount", "-o", "loop", str(disk), str(place))
    try:
        with tunnel(OFFICE_NETWORK):
            (place / "letter").write_text("to be kept")
            run("umount", str(place))
            seen = run("dumpe2fs", "-h", str(disk)).stdout
            if "needs_recovery" in seen:
                raise FailedError("umount said that it was done, and the disk is still in use")
    finally:
        run("umount", str(place), check=False)
        disk.unlink()
    return "its journal is empty"


def no_complaints_of_the_kernel() -> str:
    """the kernel has nothing to complain about"""
    lines = run("dmesg").stdout.splitlines()
    bad = [line for line in lines if re.search(r"BUG:|Oops|WARNING:|segfault|Call Trace", line)]
    if bad:
        raise FailedError("; ".join(bad[:3])[:500])
    return "no warning, no segfault"


def start_transfer() -> None:
    """Before the reboot: a tunnel of root's unit and one of ben's, each with a download on it."""
    text = _readme_unit().replace("Type=notify", "Type=exec")
    (_SYSTEM_UNITS / UNIT).write_text(text)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", UNIT)
    eventually(lambda: bool(rules()), "the unit's rules")
    eventually(_fetches, "a page")
    subprocess.Popen(
        ["curl", "-sS", "--limit-rate", "1M", "-o", "/dev/null", f"{PAGE}bytes/4000000000"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    user = _as_user("ben")
    user.wait_until_connected()


def rebooted() -> str:
    """a reboot in mid-transfer: nothing is left afterwards"""
    (_SYSTEM_UNITS / UNIT).unlink()
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    shutdown_s = time.time() - up_s - float(REBOOTED.read_text())
    kept = run("journalctl", "-b", "-1", "--no-pager", "-o", "short-monotonic", check=False).stdout
    late = re.findall(r"(?m)^.*timed out.*$", kept.rpartition('"rebooting"')[2])
    left = [*rules(), *control_groups(), *far_processes()]
    left += [path for place in ("/tmp", "/run", "/var/tmp") for path in _named(place)]
    if left:
        raise FailedError(f"left: {'; '.join(left)[:400]}")
    if late or shutdown_s > SHUTDOWN_S:
        raise FailedError(f"the shutdown took {shutdown_s:.0f} s; {'; '.join(late)[:400]}")
    fetched = run("curl", "-sS", "-m", "5", PAGE, check=False)
    if fetched.returncode == 0:
        raise FailedError("the office can be reached without a tunnel")
    return f"no rule, control group, process or file; the shutdown took {shutdown_s:.0f} s"


def _named(place: str) -> list[str]:
    return [str(path) for path in Path(place).rglob("*sshunt*")]


#: Before the reboot, in this order.
CHECKS: tuple[Check, ...] = (
    demo,
    stopped,
    guard,
    never_captures_itself,
    sudo_user,
    sudo_password,
    service,
    run0,
    names,
    resolved,
    unit,
    plain_unit,
    user_unit,
    umount,
    killed,
    all_killed,
    sweeper_killed,
    no_complaints_of_the_kernel,
)


def title(check: Check) -> str:
    """The check's name in the table."""
    return (check.__doc__ or check.__name__).partition("\n")[0]
