"""A remote office to throw away: four hosts, two of them on the far side of an ssh server.

    neighbour ------------- client ------------- server ------------- target
     198.51.100.2     198.51.100.1 192.0.2.1     192.0.2.2 10.55.0.1     10.55.0.2
     2001:db8:2::2   2001:db8:2::1 2001:db8:1::1 2001:db8:1::2 fd00:55::1 fd00:55::2

    neighbour  uses the client as its router, as a container or a second computer does
    client     where the tunnel is started; its default route leads to the server
    server     runs a real sshd and is in the office network; it does not forward packets, so the
               office can be reached through a program on it and in no other way
    target     the office's machine; it has no route back to the client either

IPv4 and IPv6 on every link. Besides, the server answers on 203.0.113.7 and 2001:db8:3::7
(``ELSEWHERE``: "the rest of the internet" for the client), and from the server's point of view
10.66.0.0/24 is unreachable at once.

Theory of operation. ``Lab`` makes network namespaces joined by veth pairs, and one mount namespace
that lays the lab's own accounts over the machine's (``accounts``); a sleeping process holds it
open. ``close`` kills whatever lives in the network namespaces, by looking them up in /proc, so that
even a process that was started through ssh and has detached itself is found; then it removes them.
The names carry the pid and start time of the owner: when a lab's owner was killed with -9, the next
lab sees that he is gone and cleans up after him. Several labs can be up at once; they share no
address and no file.

Invariants: nothing outside the namespaces and the lab's own folder is changed (but see
``_use_cubic``); no packet leaves the
machine; after ``close`` no process, namespace or file of the lab is left.

With ``Lab(up=Shape(...), down=Shape(...))`` the link between client and server is an emulated one
(``link``), with a rate, a delay, a queue and losses; ``lab.link`` changes and cuts it.
"""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType

from sshunt.errors import ExitCode, UserError
from sshunt.lab.accounts import Account, plan_accounts, write_etc, write_homes
from sshunt.lab.hosts import SYSTEM_PATH, Host, ip, python
from sshunt.lab.leftovers import (
    is_agents,
    lab_name,
    number_of,
    remove_files,
    remove_leftovers,
    remove_namespace,
)
from sshunt.lab.link import DEFAULT_MTU, Link, Shape, start_link
from sshunt.lab.servers import WEB_PORT
from sshunt.lab.sshd import SSH_PORT, Sshd, start_sshd

OFFICE_V4 = "10.55.0.0/24"
OFFICE_V6 = "fd00:55::/64"
ELSEWHERE_V4 = "203.0.113.7"
ELSEWHERE_V6 = "2001:db8:3::7"
UNREACHABLE_V4 = "10.66.0.1"

#: The links, one line for each end: host, peer, addresses. Every second line is the other end.
_ENDS = (
    ("neighbour", "client", "198.51.100.2/24", "2001:db8:2::2/64"),
    ("client", "neighbour", "198.51.100.1/24", "2001:db8:2::1/64"),
    ("client", "server", "192.0.2.1/24", "2001:db8:1::1/64"),
    ("server", "client", "192.0.2.2/24", "2001:db8:1::2/64"),
    ("server", "target", "10.55.0.1/24", "fd00:55::1/64"),
    ("target", "server", "10.55.0.2/24", "fd00:55::2/64"),
)

_ROUTES = {
    "neighbour": ["route add default via 198.51.100.1", "route add default via 2001:db8:2::1"],
    "client": ["route add default via 192.0.2.2", "route add default via 2001:db8:1::2"],
    "server": [
        f"address add {ELSEWHERE_V4}/32 dev lo",
        f"address add {ELSEWHERE_V6}/128 dev lo nodad",
        "route add unreachable 10.66.0.0/24",
    ],
    "target": ["route add default via 10.55.0.1", "route add default via fd00:55::1"],
}

#: The address of each host by which the others know it.
_KNOWN_AS = {
    "neighbour": ("198.51.100.2", "2001:db8:2::2"),
    "client": ("192.0.2.1", "2001:db8:1::1", "198.51.100.1", "2001:db8:2::1"),
    "server": ("192.0.2.2", "2001:db8:1::2", "10.55.0.1", "fd00:55::1"),
    "target": ("10.55.0.2", "fd00:55::2"),
}

_NAMES = {
    "198.51.100.2": "neighbour",
    "192.0.2.2": "server",
    "2001:db8:1::2": "server6",
    "10.55.0.2": "target",
    "fd00:55::2": "target",
}

_FORWARDING = {"neighbour": 0, "client": 1, "server": 0, "target": 0}

#: How long killed processes may take to be gone.
_KILL_DEADLINE_S = 5.0

#: The most packets that wait in a host until the emulated link has read them. It reads at once, so
#: all queueing that counts is its own.
_TUN_QUEUE_PACKETS = 10_000

_numbers = itertools.count()


class Lab:
    """The four hosts with an sshd on the server. Use it as a context manager.

    ``Lab(sshd=False)`` starts no server. Raises ``UserError`` without root, or where something that
    the lab needs is not installed.
    """

    client: Host
    server: Host
    target: Host
    neighbour: Host
    link: Link

    def __init__(
        self,
        *,
        sshd: bool = True,
        up: Shape | None = None,
        down: Shape | None = None,
        mtu: int = DEFAULT_MTU,
    ) -> None:
        self.name = lab_name(next(_numbers))
        self._want_sshd = sshd
        self._shapes = None if up is None or down is None else (up, down)
        self._mtu = mtu
        self._cleanup = ExitStack()

    def __enter__(self) -> "Lab":
        _require_root_and_programs()
        remove_leftovers()
        try:
            self._build()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise UserError(
                f"the lab can't be built here: {error}",
                "it makes network namespaces and mounts: a chroot's / must be a mount of its own,"
                " a container must be privileged",
                ExitCode.CAPTURE,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab and remove all it has made. May be called again."""
        self._cleanup.close()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All four."""
        return (self.neighbour, self.client, self.server, self.target)

    @property
    def ssh_config(self) -> Path:
        """Root's ssh configuration, for ``ssh -F``; a plain ``ssh server`` uses it, too."""
        return self.accounts["root"].home / ".ssh" / "config"

    def ssh(self, *options: str) -> list[str]:
        """Return an ssh command line for the lab, for use on the client host."""
        return ["ssh", "-F", str(self.ssh_config), *options]

    def web(self, host: Host, *, port: int = WEB_PORT) -> None:
        """Start the small web server (``sshunt.lab.servers``) on every address of ``host``."""
        program = python("sshunt.lab.servers", str(port))
        wait_until_ready(host.popen(program, stdout=subprocess.PIPE))

    def account(self, name: str) -> Account:
        """Return who ``name`` is: see ``sshunt.lab.accounts``."""
        return self.accounts[name]

    def sshd(
        self,
        host: Host,
        *,
        port: int = SSH_PORT,
        options: Mapping[str, str] | None = None,
        new_host_key: bool = False,
        nofile: int | None = None,
    ) -> Sshd:
        """Start one more sshd.

        With ``new_host_key`` nobody in the lab knows its key. ``nofile`` limits the descriptors of
        every login.
        """
        key = self.host_key
        if new_host_key:
            key = _make_key(self.folder / f"host-key-{host.name}-{port}")
        return start_sshd(
            host,
            folder=self.folder,
            host_key=key,
            authorized_keys=self.key.with_suffix(".pub"),
            port=port,
            options=options,
            nofile=nofile,
        )

    # --- building, in order ----------------------------------------------------------------

    def _build(self) -> None:
        with self._cleanup:  # undoes what was done if anything fails below
            self._exit_when_asked()
            self.folder = self._make_folder()
            self._make_keys()
            self.accounts = plan_accounts(self.folder / "home", number_of(self.name))
            write_homes(self.accounts.values(), key=self.key, host_key=self.host_key)
            self._make_network()
            self._make_hosts(self._lay_over_etc())
            if self._shapes is not None:
                self._emulate_link(*self._shapes)
            if self._want_sshd:
                self.sshd(self.server)
            self._cleanup = self._cleanup.pop_all()

    def _exit_when_asked(self) -> None:
        """Make SIGTERM and SIGHUP (the terminal was closed) exceptions, so that the lab is taken
        down as with Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def leave(number: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # else somebody has a plan of his own
                signal.signal(number, leave)
                self._cleanup.callback(signal.signal, number, signal.SIG_DFL)

    def _make_folder(self) -> Path:
        """Its name can be foreseen, and in /tmp anybody may have taken it: then it is the next."""
        while True:
            folder = Path(tempfile.gettempdir(), self.name)
            try:
                folder.mkdir(mode=0o755)
            except FileExistsError:
                self.name = lab_name(next(_numbers))
            else:
                self._cleanup.callback(remove_files, self.name)
                return folder

    def _make_keys(self) -> None:
        self.key = _make_key(self.folder / "key")
        self.host_key = _make_key(self.folder / "host-key")

    def _make_network(self) -> None:
        for host in _KNOWN_AS:
            netns = f"{self.name}-{host}"
            self._cleanup.callback(remove_namespace, netns)
            ip(f"netns add {netns}")
        ip(
            *(
                f"link add to-{peer} netns {self.name}-{host} type veth"
                f" peer name to-{host} netns {self.name}-{peer}"
                for host, peer, _, _ in _ENDS[::2]
            )
        )
        commands: dict[str, list[str]] = {host: ["link set lo up"] for host in _KNOWN_AS}
        for host, peer, v4, v6 in _ENDS:
            commands[host] += [
                f"address add {v4} dev to-{peer}",
                # Without duplicate address detection an address is usable at once.
                f"address add {v6} dev to-{peer} nodad",
                f"link set to-{peer} up",
            ]
        for host, lines in commands.items():
            ip(*lines, *_ROUTES[host], netns=f"{self.name}-{host}")

    def _emulate_link(self, up: Shape, down: Shape) -> None:
        """Replace the wire between client and server by an emulated link."""
        ip("link delete to-server", netns=self.client.netns)
        self.link = start_link(self.client, "to-server", self.server, "to-client", up=up, down=down)
        for host, peer, v4, v6 in _ENDS:
            if {host, peer} != {"client", "server"}:
                continue
            ip(
                f"link set to-{peer} mtu {self._mtu} txqueuelen {_TUN_QUEUE_PACKETS} up",
                f"address add {v4} dev to-{peer}",
                f"address add {v6} dev to-{peer} nodad",
                netns=f"{self.name}-{host}",
            )
        ip(*_ROUTES["client"], netns=self.client.netns)

    def _lay_over_etc(self) -> int:
        """Make the mount namespace and return the pid of the process that holds it open."""
        # sudo complains when the machine's own name is unknown.
        names = {"127.0.0.1": f"localhost {socket.gethostname()}", "::1": "localhost", **_NAMES}
        etc = write_etc(self.folder / "etc", self.accounts.values(), names)
        binds = [f"mount --bind {path} /etc/{path.name}" for path in etc if _in_etc(path.name)]
        # A file can be bound over another one only. Those that the machine does not have appear by
        # an overlay; where the kernel has none, the lab does without them.
        added = self.folder / "etc-added"
        added.mkdir()
        for path in etc:
            if not _in_etc(path.name):
                path.rename(added / path.name)
        script = "; ".join(
            [
                "set -e",
                f"mount -t overlay -o ro,lowerdir={added}:/etc overlay /etc 2>/dev/null || :",
                *binds,
                "mount -t tmpfs -o mode=755 tmpfs /run",
                "mkdir -m 755 /run/sshd",
                "echo ready",
                "exec sleep infinity",
            ]
        )
        holder = subprocess.Popen(
            [
                "nsenter",
                f"--net=/run/netns/{self.name}-client",
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", script),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": SYSTEM_PATH},
            start_new_session=True,
        )
        wait_until_ready(holder)
        self._cleanup.callback(_end, holder)
        return holder.pid

    def _make_hosts(self, mounts_pid: int) -> None:
        for name, addresses in _KNOWN_AS.items():
            host = Host(
                name,
                f"{self.name}-{name}",
                addresses=addresses,
                accounts=self.accounts,
                mounts_pid=mounts_pid,
            )
            setattr(self, name, host)
            self._cleanup.callback(host.reap)
            host.write_sysctl("net/ipv4/ip_forward", str(_FORWARDING[name]))
            host.write_sysctl("net/ipv6/conf/all/forwarding", str(_FORWARDING[name]))
            _use_cubic(host)
        # Run first of all when closing: nothing below can go while somebody lives in it.
        self._cleanup.callback(self._kill_everybody)

    def _kill_everybody(self) -> None:
        sockets = self._sockets_of_agents()
        deadline = time.monotonic() + _KILL_DEADLINE_S
        while pids := [pid for host in self.hosts for pid in host.pids()]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for host in self.hosts:
                host.reap()
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of {self.name} can't be killed: {pids}")
            time.sleep(0.005)
        for path in sockets:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()

    def _sockets_of_agents(self) -> list[Path]:
        """Those that listen in our namespace. Root's agents can be told from those of the machine's
        own root by nothing else.
        """
        with self.server.entered():
            lines = Path("/proc/thread-self/net/unix").read_text(errors="replace").splitlines()
        # A name may have blanks, and line ends, but ours have none.
        return sorted({Path(name) for line in lines if is_agents(name := line.split(" ")[-1])})


def _use_cubic(host: Host) -> None:
    """A machine's default may be bbr, which paces; cubic is what most people have.

    A namespace may choose only what the machine allows everybody (EPERM). Where cubic is not among
    that, it is added: the one thing that a lab changes outside its namespaces, and every ordinary
    Linux has it so.
    """
    cubic = ("net/ipv4/tcp_congestion_control", "cubic")
    with suppress(FileNotFoundError):  # not built in
        try:
            host.write_sysctl(*cubic)
        except PermissionError:
            allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
            allowed.write_text(f"{allowed.read_text().strip()} cubic")
            host.write_sysctl(*cubic)


def wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the line "ready" of a program that says so; raise ``RuntimeError`` if it ends."""
    said = process.stdout.readline() if process.stdout is not None else b""
    if said != b"ready\n":
        process.kill()
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _make_key(path: Path) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path], check=True
    )
    return path


def _in_etc(name: str) -> bool:
    return Path("/etc", name).is_file()


def _require_root_and_programs() -> None:
    if os.geteuid() != 0:
        raise UserError(
            "the lab needs root to make network namespaces",
            "run it with sudo",
            ExitCode.PRIVILEGE,
        )
    needed = ("ip", "nsenter", "unshare", "setpriv", "ssh", "ssh-keygen")
    missing = [name for name in needed if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        raise UserError(
            f"the lab needs programs that are not installed: {', '.join(missing)}",
            "on Debian and Ubuntu: apt-get install iproute2 util-linux openssh-client",
            ExitCode.CAPTURE,
        )
