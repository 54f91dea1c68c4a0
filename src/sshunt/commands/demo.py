"""``sshunt demo``: the main job, shown on a remote office that exists for twenty seconds.

It builds the lab (``sshunt.lab.world``), starts the real sshunt on its client host exactly as a
user would, and lets unmodified programs reach an office that they could not reach before. Each line
of the table at the end is a proof: something that was tried just now and held, with the speed that
was seen and, where it means something, the speed of ``ssh -L`` beside it.

It is not a benchmark (``./dev bench`` is) and changes nothing on the machine. That nothing is left
behind is looked for at the end as well. The exit code is 0 only if every proof held.
"""

import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import sshunt
from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import SYSTEM_PATH, ProgramFailedError, python
from sshunt.lab.leftovers import left_by
from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import OFFICE_V4, OFFICE_V6, Lab
from sshunt.tell.figures import counted

#: What is downloaded to see the speed, and for how long at most: long enough for a steady speed,
#: short enough for a demo.
DOWNLOAD_BYTES = 400_000_000
DOWNLOAD_S = 8.0

#: What is compared byte for byte; its digests are computed on the same two cores. On a slow machine
#: it is what comes in a few seconds, as seen in the first of them, but not less than a megabyte.
CHECKED_BYTES = 40_000_000
LEAST_CHECKED_BYTES = 1_000_000
CHECKED_S = 4.0

#: The longest that anything may take that is fetched.
CURL_DEADLINE_S = 50

#: curl's exit status for "Operation timeout. The specified time-out period was reached" (curl(1)).
_CURL_TIMED_OUT = 28

NEW_CONNECTIONS = 100

#: How long a start and an end may take on a machine that is very slow, or has very much to do.
START_DEADLINE_S = 120.0
END_DEADLINE_S = 5.0

#: How long after kill -9 something may be left: the promise is a second.
CLEAN_DEADLINE_S = 1.0

#: The grace time in the demo (an hour by default), and, where a login takes long, how many logins
#: it lasts: the next ssh must come before it is over.
LEAST_GRACE_S = 2
GRACE_LOGINS = 6

#: Where an ordinary user of the server can leave files.
WRITABLE_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")

#: Where ``ssh -L`` listens, for comparison.
FORWARD_PORT = 8080

_HELP = """\
usage: sshunt demo

Builds a remote office on this machine (network namespaces, a real sshd, a web server that only that
sshd can reach), opens a tunnel to it, and shows with unmodified programs that it works. Takes about
20 seconds, needs root (asks sudo for it), and leaves nothing behind.
"""


class Proof(NamedTuple):
    """Something that was tried: what, whether it held, and what was seen."""

    what: str
    held: bool
    seen: str


def main(argv: Sequence[str] = ()) -> int:
    """Run the demo; return the exit code. Raises ``UserError`` where it can't be run at all."""
    if set(argv) & {"-h", "--help"}:
        print(_HELP, end="")
        return ExitCode.OK
    if argv:
        raise UserError(
            f"the demo takes no words, not {argv[0]!r}", "see: sshunt demo --help", ExitCode.USAGE
        )
    if os.geteuid() != 0:
        _become_root()
    _require("curl", "nft")
    begin = time.monotonic()
    # Ctrl-C must not end us at once, as it ends other commands: there is an office to take down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        proofs = _build_and_prove()
    except KeyboardInterrupt:
        _say("stopped; the office is gone from this machine")
        return ExitCode.SIGNALLED + signal.SIGINT
    _show(proofs, time.monotonic() - begin)
    return ExitCode.OK if all(proof.held for proof in proofs) else ExitCode.INTERNAL


def _build_and_prove() -> list[Proof]:
    _say("building a remote office that only its ssh server can reach")
    with Lab() as lab:
        try:
            lab.web(lab.target)
            proofs = list(_proofs(lab))
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes now is not to be cut short
    proofs.append(_try("the office is gone from this machine", lambda: _lab_gone(lab)))
    return proofs


def _proofs(lab: Lab) -> Iterator[Proof]:
    yield _try("without the tunnel, no way to the office", lambda: _out_of_reach(lab))
    grace_s = _grace_s(lab)
    argv = ["-r", "server", "--grace", str(grace_s), OFFICE_V4, OFFICE_V6]
    _say(f"starting:  sshunt {' '.join(argv)}")
    before = _files_on_server(lab)
    begin = time.monotonic()
    with _sshunt(lab, argv) as tunnel:
        yield Proof("sshunt is up and connected", True, _ms(begin))
        yield _try("nothing is installed on the server", lambda: _not_installed(lab, before))
        v4, v6 = lab.target.v4, f"[{lab.target.v6}]"
        _say("fetching pages with curl, as if it were in the office")
        yield _try(f"curl http://{v4}/ shows its page", lambda: _page(lab, v4))
        yield _try(f"curl http://{v6}/, over IPv6", lambda: _page(lab, v6))
        _say("moving data both ways, and comparing every byte")
        size = _checked_bytes(lab)
        yield _try("a download arrives byte for byte", lambda: _checked_download(lab, size))
        yield _try("an upload arrives byte for byte", lambda: _checked_upload(lab, size))
        _say("measuring, with ssh -L beside it")
        with _ssh_forward(lab):
            yield _try("download speed, one connection", lambda: _speed(lab))
            yield _try("first byte of a new connection", lambda: _new_connections(lab))
        yield _try("a closed port does not look open", lambda: _closed_port(lab))
        _say("killing its ssh in the middle of a download")
        yield _try("... and it goes on, byte for byte", lambda: _outlived(lab, tunnel, size))
        _say("killing sshunt with kill -9")
        tunnel.kill()
        killed = time.monotonic()
        yield _try("after kill -9: no rule, no process here", lambda: _nothing_left(lab, killed))
        yield _try(
            "... none on the server, nor a file",
            lambda: _server_clean(lab, before, grace_s),
        )
        yield _try("... and the network is as before", lambda: _out_of_reach(lab))


# --- the proofs: each returns what was seen, or raises ProofError ------------------------------


class ProofError(Exception):
    """A proof did not hold; the message says what was seen instead."""


def _try(what: str, prove: Callable[[], str]) -> Proof:
    try:
        return Proof(what, True, prove())
    except (ProofError, ProgramFailedError, OSError, subprocess.TimeoutExpired) as error:
        return Proof(what, False, str(error))


def _out_of_reach(lab: Lab) -> str:
    try:
        lab.client.connect(lab.target.v4, 80, timeout_s=0.5).close()
    except OSError as error:
        return f"{error}"
    raise ProofError("it can be reached")


def _page(lab: Lab, host: str) -> str:
    begin = time.monotonic()
    page = _curl(lab, f"http://{host}/")
    if "Hello from the office" not in page:
        raise ProofError(f"another page came: {page[:60]!r}")
    return _ms(begin)


def _checked_bytes(lab: Lab) -> int:
    """As much as this machine moves in a few seconds."""
    try:
        came = _fetched(lab, f"{lab.target.v4}/bytes/{CHECKED_BYTES}", 1.0, "size_download")
    except ProofError:
        came = 0.0  # the proofs will say so
    return int(min(max(CHECKED_S * came, LEAST_CHECKED_BYTES), CHECKED_BYTES))


def _checked_download(lab: Lab, size: int) -> str:
    fetch = f"curl -sS -m {CURL_DEADLINE_S} http://{lab.target.v4}/bytes/{size} | sha256sum"
    digest = lab.client.run(["sh", "-c", fetch]).stdout.split()[0]
    if digest != payload_sha256(size):
        raise ProofError("the bytes differ")
    return f"{size / 1e6:.0f} MB, SHA-256 {digest[:8]}"


def _checked_upload(lab: Lab, size: int) -> str:
    path = lab.folder / "upload"
    path.write_bytes(os.urandom(size))
    page = f"http://{lab.target.v4}/sha256"
    answer = _curl(lab, "--data-binary", f"@{path}", "-H", "Expect:", page).strip()
    ours = lab.client.run(["sha256sum", str(path)]).stdout.split()[0]
    if answer != ours:
        raise ProofError("the bytes differ")
    return f"{size / 1e6:.0f} MB, SHA-256 {ours[:8]}"


def _speed(lab: Lab) -> str:
    def mbit_s(host: str) -> float:
        page = f"{host}/bytes/{DOWNLOAD_BYTES}"
        return _fetched(lab, page, DOWNLOAD_S, "speed_download") * 8 / 1e6

    ours, theirs = mbit_s(lab.target.v4), mbit_s(f"127.0.0.1:{FORWARD_PORT}")
    if ours < 100:
        return f"{ours:.1f} Mbit/s (ssh -L: {theirs:.1f})"
    return f"{ours / 1000:.1f} Gbit/s (ssh -L: {theirs / 1000:.1f})"


def _fetched(lab: Lab, page: str, seconds: float, what: str) -> float:
    """Fetch a page for ``seconds`` at most; what curl then says of it."""
    args = ["-sS", "-m", str(seconds), "-o", "/dev/null", "-w", f"%{{{what}}}"]
    done = lab.client.run(["curl", *args, f"http://{page}"], check=False)
    if done.returncode not in (0, _CURL_TIMED_OUT):
        raise ProofError(done.stderr.strip())
    return float(done.stdout)


def _new_connections(lab: Lab) -> str:
    def median_ms(address: str, port: int) -> float:
        times = []
        for _ in range(NEW_CONNECTIONS):
            begin = time.monotonic()
            with lab.client.connect(address, port) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if not sock.recv(1):
                    raise ProofError("a connection was closed without an answer")
                times.append(1000 * (time.monotonic() - begin))
        return statistics.median(times)

    ours = median_ms(lab.target.v4, 80)
    theirs = median_ms("127.0.0.1", FORWARD_PORT)
    return f"{ours:.1f} ms (ssh -L: {theirs:.1f} ms)"


def _closed_port(lab: Lab) -> str:
    try:
        with lab.client.connect(lab.target.v4, 81) as sock:
            # The kernel here has accepted before the far side was asked; the truth follows at once.
            sock.recv(1)
    except (ConnectionRefusedError, ConnectionResetError) as error:
        return os.strerror(error.errno or 0)
    raise ProofError("it looked open")


def _outlived(lab: Lab, tunnel: "subprocess.Popen[bytes]", size: int) -> str:
    """A download during which the client's ssh is killed."""
    limit = "--limit-rate 50M"  # so that it is not over too soon
    page = f"http://{lab.target.v4}/bytes/{size}"
    command = f"curl -sS -m {CURL_DEADLINE_S} {limit} {page} | sha256sum"
    download = lab.client.popen(["sh", "-c", command], stdout=subprocess.PIPE)
    time.sleep(0.3)
    found = lab.client.run(["pgrep", "-P", str(tunnel.pid), "-x", "ssh"], check=False).stdout
    for pid in found.split():
        os.kill(int(pid), signal.SIGKILL)
    if not found or download.poll() is not None:
        raise ProofError("it was over before ssh could be killed")
    digest = download.communicate(timeout=CURL_DEADLINE_S + 10)[0].decode().split()[0]
    if digest != payload_sha256(size):
        raise ProofError("other bytes arrived")
    return "another ssh took over"


def _nothing_left(lab: Lab, killed: float) -> str:
    while True:
        rules = lab.client.run(["nft", "list", "ruleset"]).stdout.strip()
        # pgrep sees every process; only those on the client host are ours to end.
        mine = set(lab.client.pids())
        found = lab.client.run(["pgrep", "-f", "sshunt -r|sshunt.helper"], check=False).stdout
        processes = mine & {int(pid) for pid in found.split()}
        if not rules and not processes:
            return f"gone within {time.monotonic() - killed:.1f} s"
        if time.monotonic() - killed > CLEAN_DEADLINE_S:
            left = f"{len(rules.splitlines())} lines of rules, {len(processes)} processes"
            raise ProofError(f"still there after {CLEAN_DEADLINE_S:.0f} s: {left}")
        time.sleep(0.02)


def _files_on_server(lab: Lab) -> set[str]:
    """What the login on the server has in the places where it may write, each with its type."""
    account = lab.account("ada")
    places = [str(account.home), *WRITABLE_FOLDERS]
    find = ["find", *places, "-xdev", "-uid", str(account.uid), "-printf", "%y %p\\n"]
    return set(lab.server.run(find, check=False).stdout.splitlines())


def _not_installed(lab: Lab, before: set[str]) -> str:
    new = _files_on_server(lab) - before
    files = [line for line in new if line.startswith("f ")]
    if files:
        raise ProofError(f"there is {files[0]!r}")
    sockets = sum(line.startswith("s ") for line in new)
    return f"no new file, {counted(sockets, 'socket')}"


def _server_clean(lab: Lab, before: set[str], grace_s: int) -> str:
    begin = time.monotonic()
    while True:
        new = _files_on_server(lab) - before
        agents = [pid for pid in lab.server.pids() if _owner(pid) == lab.account("ada").uid]
        if not new and not agents:
            return f"gone, {grace_s} s of grace"
        if time.monotonic() - begin > grace_s + CLEAN_DEADLINE_S:
            raise ProofError(f"still there: {len(new)} files, {len(agents)} processes")
        time.sleep(0.02)


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return None


def _lab_gone(lab: Lab) -> str:
    """After the lab was closed: nothing of it is found where it was made."""
    left = [*Path("/run/netns").glob(f"{lab.name}*"), *Path("/tmp").glob(f"{lab.name}*")]
    left += [lab.folder] if lab.folder.exists() else []
    left += left_by({account.uid for account in lab.accounts.values()} - {0})
    left = [path for path in left if path.exists()]
    if left:
        raise ProofError(f"still there: {left[0]}")
    return "no namespace, no file"


# --- what they stand on ------------------------------------------------------------------------


@contextmanager
def _sshunt(lab: Lab, argv: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the real sshunt on the client host; return when it says that it is connected."""
    log = lab.folder / "sshunt.log"
    with log.open("wb") as stderr:
        process = lab.client.popen(python("sshunt", *argv), stderr=stderr)
    deadline = time.monotonic() + START_DEADLINE_S
    while not re.search("^sshunt: connected", log.read_text(), re.MULTILINE):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = log.read_text().strip()
            raise UserError(
                "sshunt did not start in the demo"
                + (f"; it said: {said!r}" if said else f" within {START_DEADLINE_S:.0f} s"),
                "check that this kernel has nf_tables: nft list ruleset",
                ExitCode.CAPTURE,
            )
        time.sleep(0.01)
    try:
        yield process
    finally:
        _end(process)


@contextmanager
def _ssh_forward(lab: Lab) -> Iterator[None]:
    forward = ["ssh", "-N", "-L", f"{FORWARD_PORT}:{lab.target.v4}:80", "server"]
    process = lab.client.popen(forward)
    try:
        lab.client.wait_for_port("127.0.0.1", FORWARD_PORT)
        yield
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the program to end; end it if it does not."""
    process.terminate()
    try:
        process.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _grace_s(lab: Lab) -> int:
    """How long the far side is to wait for the next ssh on this machine."""
    begin = time.monotonic()
    lab.client.run(["ssh", "server", "true"], check=False)
    return max(LEAST_GRACE_S, math.ceil(GRACE_LOGINS * (time.monotonic() - begin)))


def _curl(lab: Lab, *args: str) -> str:
    done = lab.client.run(["curl", "-sS", "-g", "-m", str(CURL_DEADLINE_S), *args], check=False)
    if done.returncode != 0:
        raise ProofError(done.stderr.strip())
    return done.stdout


def _become_root() -> None:
    tool = shutil.which("sudo") or shutil.which("doas")
    if tool is None:
        raise UserError(
            "the demo builds network namespaces, which needs root, and there is no sudo or doas",
            "run `sshunt demo` as root",
            ExitCode.PRIVILEGE,
        )
    _say(f"network namespaces need root: asking {Path(tool).name}")
    # By its path and -I: what lies in the current directory must not run as root, however it is
    # called. -B: root must not leave compiled files in somebody's checkout.
    program = Path(sshunt.__path__[0]).resolve() / "__main__.py"
    os.execv(tool, [tool, sys.executable, "-I", "-B", str(program), "demo"])


def _require(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        raise UserError(
            f"the demo uses programs that are not installed: {', '.join(missing)}",
            "on Debian and Ubuntu: apt-get install curl nftables",
            ExitCode.CAPTURE,
        )


def _ms(begin: float) -> str:
    return f"{1000 * (time.monotonic() - begin):.0f} ms"


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def _show(proofs: Sequence[Proof], seconds: float) -> None:
    width = max(len(proof.what) for proof in proofs)
    print()
    for what, held, seen in proofs:
        print(f"  {'ok    ' if held else 'FAILED'}  {what.ljust(width)}  {seen}")
    count = sum(proof.held for proof in proofs)
    rest = " Nothing is left behind." if count == len(proofs) else ""
    print(f"\n{count} of {len(proofs)} proofs held, in {seconds:.0f} s.{rest}")
