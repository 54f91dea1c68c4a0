"""What root does to the kernel: nftables, the guard cgroup, kept addresses, our own privileges.

With ``addresses``, which serves it alone, the only module that touches the kernel.

``Kernel`` holds what one session has made there and can undo it. It is made once, right after HELLO
and in this order:

1. libnftables is loaded; its netlink socket is what will own our table.
2. A mount namespace of our own with cgroup2 on /sys/fs/cgroup. libnftables looks cgroups up there,
   whatever the host's layout is (hybrid hosts have them in /sys/fs/cgroup/unified, and ``ip netns
   exec`` hides them), and a path means the same to us, to the library and to the kernel.
3. Capabilities that later steps don't need are dropped for good.
4. What dead sessions left behind is removed. Before anything else, because a left-over rule may
   capture the ssh connection that is about to be made.

**The table.** With ``flags owner`` (Linux 5.12) the kernel ties the table to our netlink socket:
nobody else can alter it, and it is gone when we are, SIGKILL included. Where kernel or library
don't know the flag, a plain table of the same name is made. A plain table needs an answer to "is
its maker alive?" that a dead maker can't fake: each helper holds an abstract unix socket with the
table's name. It lives in the network namespace, as tables do, and the kernel closes it with the
process. What it is not is a proof that the maker lives: abstract names are free for all, so any
local user can take the name of a dead session and keep its plain table from being removed (or that
of a session to come, whose helper then refuses to start). It redirects to a port where nobody
listens any more; root removes it with ``nft delete table``. Owned tables don't need the mark.

**The guard.** A cgroup below the client's own, so that its resource limits stay, into which the
client is moved; ssh and all that it starts are born in it, and the rules skip its sockets. A socket
keeps the cgroup in which it was made, therefore the guard comes before ssh. A cgroup cannot be tied
to a process, so a tiny shell, the *sweeper*, waits for the end of a pipe whose other end only we
hold. It then moves whoever is left inside back to the parent and removes the directory. It must
survive what kills us: it has its own session, ignores signals that are sent to groups, and nothing
in its arguments has our name.

**The client.** SO_PEERCRED of the socketpair is the process that made it, so a client can only have
itself moved. A recycled process id is told by its start time, which is later than ours.

Undo runs backwards: kept addresses, table, cgroup. All steps are idempotent.

Not here: rule text (capture.nft), how an address is kept (addresses), the order of requests
(server).
"""

import ctypes
import errno
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from sshunt.capture import nft
from sshunt.capture.plan import Plan
from sshunt.helper.addresses import KeptAddresses
from sshunt.helper.protocol import Refusal
from sshunt.model import Endpoint

_CGROUP_ROOT = "/sys/fs/cgroup"
_LEFTOVER = re.compile(re.escape(nft.TABLE_PREFIX) + "[0-9a-f]{8,16}")

#: Longest part of libnftables' message that is passed on: it quotes the command, which may be long.
_MESSAGE_CHARACTERS = 400


class KernelError(Exception):
    """The kernel, or the library in front of it, did not do it."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Kernel:
    """What one session has made in the kernel. Not thread-safe; lives as long as the helper."""

    def __init__(self, session: str, client: socket.socket, *, owner: bool = True) -> None:
        """Load, separate, drop, clean; raises KernelError. ``owner=False`` forces a plain table."""
        self._session = session
        self._want_owner = owner
        self._nft = _Nftables()
        self._client_pid = _peer_pid(client)
        self._mark = _alive_mark(nft.table_name(session))
        if self._mark is None:
            raise KernelError(Refusal.WRONG_ORDER, "another helper serves this session")
        self._parent = _parent_cgroup(self._client_pid, session) if _separate_mounts() else None
        _drop_capabilities()
        self._plan: Plan | None = None
        self._guard: _Guard | None = None
        self._kept = KeptAddresses()
        _remove_leftover_tables(self._nft)
        if self._parent is not None:
            _remove_leftover_cgroups(self._parent)

    def guard(self) -> bool:
        """Move the client into a cgroup of its own; False if that can't be had here."""
        if self._guard is not None:
            return True
        if self._parent is None or not _levels_can_be_trusted():
            return False
        guard = _make_guard(nft.table_name(self._session), self._parent, self._client_pid)
        if guard is None:
            return False
        try:
            self._nft.run(nft.render_probe(self._session, guard.cgroup))
        except KernelError:
            guard.remove()
            return False
        self._guard = guard
        return True

    def apply(self, plan: Plan) -> bool:
        """Make the rules of ``plan``; True if the kernel removes them when we die.

        Raises KernelError, and then has changed nothing.
        """
        for family in (4, 6):
            listener = plan.listener(family)
            if listener is not None:
                _check_local(family, listener)
        self._plan = plan  # from here on undo() has something to remove
        try:
            return self._make_table(plan)
        except KernelError:
            self._plan = None  # one transaction: nothing of it was made
            raise

    def bypass(self, endpoints: Iterable[Endpoint]) -> None:
        """Put other endpoints into the bypass sets; raises KernelError."""
        self._plan = replace(self._applied_plan(), bypass=tuple(endpoints))
        self._run_if_any(nft.render_bypass(self._plan, self._plan.bypass))

    def resolvers(self, addresses: Iterable[str]) -> None:
        """Put other addresses into the resolver sets; raises KernelError."""
        self._plan = replace(self._applied_plan(), resolvers=tuple(addresses))
        self._run_if_any(nft.render_resolvers(self._plan))

    def _applied_plan(self) -> Plan:
        if self._plan is None:
            raise KernelError(Refusal.WRONG_ORDER, "no plan is applied")
        return self._plan

    def _run_if_any(self, text: str) -> None:
        if text:
            self._nft.run(text)

    def keep(self, addresses: Iterable[str]) -> None:
        """Let these addresses and no others stay local; raises KernelError, and changes nothing."""
        try:
            self._kept.keep(addresses)
        except OSError as error:
            raise KernelError(Refusal.NOT_KEPT, str(error))

    def undo(self) -> None:
        """Keep no address, remove the rules, then the cgroup; raises KernelError."""
        self._kept.close()
        if self._plan is not None:
            name = nft.table_name(self._session)
            if name in _our_tables(self._nft):  # somebody's "flush ruleset" removes plain ones
                self._nft.run(nft.render_delete(self._session))
            self._plan = None
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def _make_table(self, plan: Plan) -> bool:
        """Make an owned table, or else a plain one; True if it is owned.

        Old kernels and old libraries refuse the flag in several ways, so no error is told from
        another: if the plain table is refused too, then the flag was not the reason.
        """
        if self._want_owner:
            try:
                self._nft.run(self._render(plan, owner=True))
            except KernelError:
                pass
            else:
                return True
        self._nft.run(self._render(plan, owner=False))
        return False

    def _render(self, plan: Plan, *, owner: bool) -> str:
        cgroup = self._guard.cgroup if self._guard is not None else None
        try:
            return nft.render(plan, owner=owner, cgroup=cgroup)
        except ValueError as error:
            raise KernelError(Refusal.TOO_COMPLEX, str(error))


# --- libnftables --------------------------------------------------------------------------------


class _Nftables:
    """libnftables' stable interface (libnftables(3)): commands as text, all of them or none."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            raise KernelError(Refusal.NO_NFT, "libnftables is not installed")
        for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
            getattr(self._library, name).restype = ctypes.c_char_p
            getattr(self._library, name).argtypes = [ctypes.c_void_p]
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise KernelError(Refusal.NOT_PERMITTED, "no netlink socket for nftables")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, commands: str) -> str:
        """What the commands printed; raises KernelError."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode("ascii"))
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        if not failed:
            return output.decode("utf-8", "replace")
        message: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        text = message.decode("utf-8", "replace").partition("\n")[0][:_MESSAGE_CHARACTERS]
        denied = os.strerror(errno.EPERM) in text
        kind = Refusal.NOT_PERMITTED if denied else Refusal.KERNEL
        raise KernelError(kind, text or "nftables gave no reason")


def _our_tables(nftables: _Nftables) -> list[str]:
    """The names of all sessions' tables, of living and dead ones."""
    names = [line.rpartition(" ")[2] for line in nftables.run("list tables inet").splitlines()]
    return [name for name in names if _LEFTOVER.fullmatch(name)]


def _remove_leftover_tables(nftables: _Nftables) -> None:
    for name in _our_tables(nftables):
        mark = _alive_mark(name)
        if mark is None:
            continue
        try:
            nftables.run(nft.render_delete(name.removeprefix(nft.TABLE_PREFIX)))
        except KernelError:
            pass  # owned by a process that keeps no such mark: not ours to remove
        mark.close()


def _alive_mark(table: str) -> socket.socket | None:
    """The socket that says this table's maker is alive, or None if somebody holds it."""
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind("\0" + table)
    except OSError as error:
        mark.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return mark


def _check_local(family: int, listener: Endpoint) -> None:
    """Redirecting to another host would be a service that nobody asked us for."""
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6) as probe:
        try:
            probe.bind((listener[0], 0))
        except OSError:
            raise KernelError(Refusal.LISTENER, f"{listener[0]} is not an address of this host")


# --- the guard cgroup ----------------------------------------------------------------------------

#: How long a cgroup that is being left or removed by others is waited for. An exiting process
#: leaves within a scheduling round; a second is a lot and still bearable at start.
_BUSY_S = 1.0
_BUSY_STEP_S = 0.02

# Run by /bin/sh with SWEEP (the directory, absolute) and a pipe as its standard input.
_SWEEPER = """
trap '' INT TERM HUP QUIT
cd "${SWEEP%/*}" || exit
read -r _
n=0
while [ -d "$SWEEP" ] && [ $n -lt 100 ]; do
    while read -r process; do echo "$process" >cgroup.procs; done <"$SWEEP/cgroup.procs"
    rmdir "$SWEEP" && exit
    sleep 0.05 || sleep 1
    n=$((n + 1))
done
"""


class _Guard:
    """A cgroup that holds the client, and the sweeper that outlives us to remove it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        path = os.path.relpath(directory, _CGROUP_ROOT)
        self.cgroup = nft.Cgroup(path, path.count("/") + 1)
        read_end, self._pipe = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        self._sweeper = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _SWEEPER],
            {"SWEEP": directory, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read_end, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
            setsid=True,
        )
        os.close(read_end)
        os.close(null)

    def remove(self) -> None:
        """Move everybody out, remove the directory, and let the sweeper see that it is gone."""
        _until_done(self._sweep)
        os.close(self._pipe)
        os.waitpid(self._sweeper, 0)

    def _sweep(self) -> bool:
        try:
            with open(os.path.join(self._directory, "cgroup.procs")) as file:
                for process in file:
                    _move(process.strip(), os.path.dirname(self._directory))
            os.rmdir(self._directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
        return True


def _make_guard(name: str, parent: str, pid: int) -> _Guard | None:
    """A new cgroup with the process in it, below its own; None if that can't be had.

    It can't where its own one is threaded, has too many descendants, or has a name that can't be
    written into a rule. Then there is no guard: any other place, say the root, would let a process
    out of the limits that were put on it.
    """
    directory = os.path.join(parent, name)
    if not nft.cgroup_path_is_harmless(os.path.relpath(directory, _CGROUP_ROOT)):
        return None
    return _Guard(directory) if _until_done(partial(_enter, directory, pid)) else None


def _enter(directory: str, pid: int) -> bool:
    """Make the cgroup and move the process into it; False if another try may succeed."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return False  # of a helper of this session that has just died; its sweeper is at work
    try:
        _move(str(pid), directory)
    except FileNotFoundError:
        return False  # another helper took the empty directory for a left-over one
    except OSError:
        os.rmdir(directory)
        raise
    return True


def _move(process: str, directory: str) -> None:
    """Put a process into a cgroup; raises OSError, but not if the process is gone."""
    try:
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(process)
    except ProcessLookupError:
        pass


def _until_done(step: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _BUSY_S
    try:
        while not step():
            if time.monotonic() > deadline:
                return False
            time.sleep(_BUSY_STEP_S)
    except OSError:
        return False
    return True


def _remove_leftover_cgroups(parent: str) -> None:
    """Remove empty cgroups of dead sessions, here and above. Those of living ones are not empty."""
    place = parent
    while place.startswith(_CGROUP_ROOT):
        for name in os.listdir(place):
            if _LEFTOVER.fullmatch(name):
                try:
                    os.rmdir(os.path.join(place, name))
                except OSError:
                    pass  # busy: alive
        place = os.path.dirname(place)


def _parent_cgroup(pid: int, session: str) -> str | None:
    """The directory below which a process' guard belongs, or None if the process is not visible.

    It is where the process is now, unless that is the guard of a helper that has just died (its
    sweeper is about to move the process out): then it is where that one began.
    """
    if pid == 0 or _start_time(pid) > _start_time(os.getpid()):
        return None
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
    except OSError:
        return None
    if not paths:
        return None
    parts = paths[0].strip("/").split("/")
    while parts and _LEFTOVER.fullmatch(parts[-1]) and _is_dead(parts[-1], session):
        parts.pop()
    directory = os.path.join(_CGROUP_ROOT, *parts).rstrip("/")
    # "/.." leads out of a cgroup namespace: there is nothing that we could see.
    return directory if ".." not in parts and os.path.isdir(directory) else None


def _is_dead(table: str, session: str) -> bool:
    if table == nft.table_name(session):
        return True  # we are this session's helper now
    mark = _alive_mark(table)
    if mark is None:
        return False
    mark.close()
    return True


def _start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; far in the future if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # proc(5): the command is in parentheses and may hold anything; start time is field 22.
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 1 << 63


def _peer_pid(client: socket.socket) -> int:
    """The process that made the socketpair; 0 if it is in a foreign process namespace."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _levels_can_be_trusted() -> bool:
    """Whether "level N" of a rule means what we mean.

    Inside a cgroup namespace (a container), paths begin at the namespace's root; rules counted
    levels from the real root until Linux 6.11 (nft_socket: "make cgroupsv2 matching work with
    namespaces") and so would never match.
    """
    initial_namespace = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO
    if os.stat("/proc/self/ns/cgroup").st_ino == initial_namespace:
        return True
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return (int(major), int(minor)) >= (6, 11)


# --- our own process -----------------------------------------------------------------------------

_CLONE_NEWNS = 0x00020000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1  # cgroups that were delegated to a user belong to him
_CAP_NET_ADMIN = 12  # nftables, kept addresses
_KEPT = (_CAP_DAC_OVERRIDE, _CAP_NET_ADMIN)


def _separate_mounts() -> bool:
    """A mount namespace of our own with cgroup2 where libnftables looks for it."""
    libc = ctypes.CDLL(None)
    flags = ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC)
    private = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    return bool(
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"cgroup2", _CGROUP_ROOT.encode(), b"cgroup2", flags, None) == 0
    )


def _drop_capabilities() -> None:
    """Keep what the rest of our life needs. The bounding set first, for what we start: the sweeper.

    Failure is no error: then we keep what sudo gave us, as every other program does.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        if capability not in _KEPT:
            _prctl(_PR_CAPBSET_DROP, capability)
    kept = sum(1 << capability for capability in _KEPT)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    # Two sets of 32 capabilities: effective, permitted, inheritable of each.
    ctypes.CDLL(None).capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _prctl(option: int, argument: int) -> None:
    # prctl is variadic in unsigned longs; plain integers would be passed as ints.
    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
