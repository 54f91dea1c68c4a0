"""libnftables, and which tables in the kernel are sessions' of ours. Root; Linux.

**The library's context** is a netlink socket, and it is this socket that owns our table: the kernel
removes the table when the last process that has the socket closes it.

**In a child.** The library ends its process where it meets what it does not expect: Debian 12's
dies of SIGSEGV of most commands while there is a set that nft 1.1 has made, by a container with the
host's network, say. It may also get stuck. So each of its calls is made in a child of ours, which
has the same socket: we survive, say what happened, and undo what is done. The memory that 20,000
routes take in there goes with the child, too.

**Tables themselves** are listed, made and deleted by our own messages, over the same socket: in
these the library dies there, too, it ends its process where the kernel has no nf_tables, and old
ones do not know ``owner``. Other elements are put into a set in the same way, for of that the
library dies, too (changes). Of making sets and chains it does not (capture.nft, ``as_commands``):
what is in a new table is the library's work.

**Another table in the place of one** is made whole before the other is deleted. For a moment there
are both, and what either of them captures is captured: nothing slips through, and nat's hooks never
go, without which the kernel translates no open connection. Rejected: making it dormant and waking
it in the transaction that deletes the other. From Linux 6.9 on an owned table's flags can't be
changed (nf_tables_updtable: EOPNOTSUPP).

Not here: rule text (capture.nft), when a table is made and removed (apply), whose tables may be
removed (marks).
"""

import ctypes
import errno
import os
import re
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sshunt.capture import nft
from sshunt.capture.block import read_block_name
from sshunt.helper.changes import FAMILIES, delete_table, new_table
from sshunt.helper.marks import Marks
from sshunt.helper.netlink import Change, Netlink, attributes
from sshunt.helper.protocol import KernelError, Refusal

#: The name of a session's control group, and the first of its tables' names.
SESSION_NAME = re.compile(re.escape(nft.TABLE_PREFIX) + "[0-9a-f]{8,16}")

#: Any name of a session's table.
TABLE_NAME = re.compile(f"{SESSION_NAME.pattern}({re.escape(nft.SECOND_SUFFIX)})?")

#: The deadline for a call into the library, after which it counts as stuck for ever. 20,000 routes
#: take half a second; the first call after a boot, which loads the kernel's modules, took more than
#: 10 s in a busy emulated machine.
CALL_DEADLINE_S = 60.0

#: The failures after which the library is of no use, whatever is asked of it.
BROKEN = (Refusal.CRASHED, Refusal.STUCK)

#: The longest part of libnftables' message that is passed on, and that is read: it quotes the
#: command, which may be long.
_MESSAGE_CHARACTERS = 400
_COMPLAINT_BYTES = 2048

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER = 12
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_NFTA_TABLE_NAME = 1
_FAMILIES = {number: family for family, number in FAMILIES.items()}

_PR_SET_PDEATHSIG = 1


class Nftables:
    """libnftables' stable interface (libnftables(3)): commands as text, all of them or none."""

    def __init__(self) -> None:
        """Raises KernelError if the kernel or the library is missing."""
        our_tables()
        try:
            self._library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            raise KernelError(Refusal.NO_NFT, "libnftables is not installed")
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        before = _descriptors()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise KernelError(Refusal.NOT_PERMITTED, "no netlink socket for nftables")
        # The library has no way to name its socket, and does not close it on exec: whatever we
        # start would own our table with us, and keep it when we are gone.
        opened = _descriptors() - before
        for descriptor in opened:
            os.set_inheritable(descriptor, False)
        self._netlink = Netlink(_NETLINK_NETFILTER, sock=_netlink_among(opened))
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    @property
    def port(self) -> int:
        """The netlink port that what we change comes from."""
        return self._netlink.port

    def make(self, name: str, render: Callable[[bool], str], *, owner: bool) -> bool:
        """Make an inet table of that name, whole or not at all; raises KernelError.

        True if it is owned, as ``owner`` wants, and as ``render`` is told; else it is a plain one.
        Old kernels refuse the flag in several ways, so no error is told from another: if the plain
        table is refused too, then the flag was not the reason.
        """
        if owner:
            try:
                self.fill("inet", name, render(True), owner=True)
            except KernelError as error:
                if error.kind in BROKEN:
                    raise
            else:
                return True
        self.fill("inet", name, render(False), owner=False)
        return False

    def fill(
        self, family: str, name: str, table: str, *, owner: bool, persists: bool = False
    ) -> None:
        """Make a table that is rendered, whole or not at all; raises KernelError.

        A table that the kernel lets us make but not remove again is left for the next try (apply).
        """
        self.change([new_table(family, name, owner=owner, persists=persists)])
        try:
            self.run(nft.as_commands(table, name))
        except KernelError:
            with suppress(KernelError):
                self.delete((family, name))
            raise

    def replace(self, old: str, name: str, table: str, *, owner: bool) -> None:
        """Make an inet table of that name in the place of the ``old`` one; raises KernelError, and
        then there is the old one alone.
        """
        self.fill("inet", name, table, owner=owner)
        try:
            self.delete(("inet", old))
        except KernelError:
            with suppress(KernelError):
                self.delete(("inet", name))
            raise

    def delete(self, *tables: tuple[str, str]) -> None:
        """Remove tables, by family and name, all or none; raises KernelError."""
        self.change([delete_table(family, name) for family, name in tables])

    def change(self, changes: Sequence[Change]) -> None:
        """Do all of them at once, or none; raises KernelError."""
        if not changes:
            return
        try:
            self._netlink.change(changes)
        except OSError as error:
            denied = error.errno == errno.EPERM
            raise KernelError(Refusal.NOT_PERMITTED if denied else Refusal.KERNEL, str(error))

    def run(self, commands: str) -> None:
        """Have the library carry out commands, all or none; raises KernelError."""
        message = _in_a_child(lambda: self._complaint(commands))
        if not message:
            return
        text = message.decode("utf-8", "replace").partition("\n")[0][:_MESSAGE_CHARACTERS]
        denied = os.strerror(errno.EPERM) in text
        raise KernelError(Refusal.NOT_PERMITTED if denied else Refusal.KERNEL, text)

    def _complaint(self, commands: str) -> bytes:
        """What the library has to say about the commands; nothing if they are carried out."""
        if not self._library.nft_run_cmd_from_buffer(self._context, commands.encode("ascii")):
            return b""
        message: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        return message[:_COMPLAINT_BYTES] or b"nftables gave no reason"


def _descriptors() -> set[int]:
    """Those that are open now."""
    numbers = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in numbers if _is_open(number)}


def _netlink_among(descriptors: set[int]) -> socket.socket:
    """The library's socket, once more; raises KernelError."""
    for descriptor in descriptors:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            found = socket.socket(fileno=os.dup(descriptor))
            if found.family == socket.AF_NETLINK:
                return found
            found.close()
    raise KernelError(Refusal.NOT_PERMITTED, "no netlink socket for nftables")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False  # the one that listdir itself had open
    return True


def our_tables() -> list[tuple[str, str]]:
    """Family and name of all sessions' tables, of living and dead ones; raises KernelError."""
    return [(family, name) for family, name in _tables() if TABLE_NAME.fullmatch(name)]


def block_tables() -> list[str]:
    """The names of all kill switches (capture.block); raises KernelError."""
    return [name for family, name in _tables() if family == "inet" and read_block_name(name)]


def _tables() -> list[tuple[str, str]]:
    """Family and name of all tables, of those families in which we make any."""
    try:
        netlink = Netlink(_NETLINK_NETFILTER)
        try:
            messages = netlink.dump(_GET_TABLE, bytes(_NFGENMSG.size))
        finally:
            netlink.close()
        tables = [_table(message) for message in messages]
    except OSError as error:
        if error.errno == errno.EPERM:
            raise KernelError(Refusal.NOT_PERMITTED, str(error))
        # EPROTONOSUPPORT, EINVAL: there is nobody who could answer.
        raise KernelError(Refusal.NO_NF_TABLES, f"this kernel has no nf_tables ({error.strerror})")
    return [(family, name) for family, name in tables if family]


def _table(message: bytes) -> tuple[str, str]:
    family, _, _ = _NFGENMSG.unpack_from(message)
    name = attributes(message[_NFGENMSG.size :]).get(_NFTA_TABLE_NAME, b"")
    return _FAMILIES.get(family, ""), name.rstrip(b"\0").decode("latin-1")


def remove_leftover_tables(nftables: Nftables, marks: Marks) -> list[str]:
    """Remove the plain tables of dead sessions, and name those; raises KernelError. Not their kill
    switches, which are there to outlive them (blocks).
    """
    removed = []
    tables: dict[str, list[tuple[str, str]]] = {}  # by the name of their session
    for family, name in our_tables():
        session = name.removesuffix(nft.SECOND_SUFFIX)
        tables.setdefault(session, []).append((family, name))
    for session, theirs in tables.items():
        mark = marks.take_from_the_dead(session)
        if mark is None:
            continue
        for family, name in theirs:
            with suppress(KernelError):  # it is owned: by whom we can't see here
                nftables.delete((family, name))
                removed.append(f"{family} {name}")
        mark.close()
    return removed


# --- children -----------------------------------------------------------------------------------


def _in_a_child(work: Callable[[], bytes]) -> bytes:
    """What ``work`` returns, done in a child of ours; raises KernelError if there is no child to be
    had, or it ends before it has said that, or says nothing in time.
    """
    parent = os.getpid()
    child, ours, theirs = _forked()
    if not child:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it means our parent
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
            if os.getppid() == parent:
                os.write(theirs, b"." + work())
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        answer = _read(ours, time.monotonic() + CALL_DEADLINE_S)
    finally:
        os.close(ours)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is None:
        raise KernelError(Refusal.STUCK, f"libnftables did not end for {CALL_DEADLINE_S:.0f} s")
    if not answer:
        raise KernelError(Refusal.CRASHED, f"libnftables {_end(status)}")
    return answer[1:]


def _forked() -> tuple[int, int, int]:
    """A child of ours, or 0 where we are it, and a pipe's ends; raises KernelError."""
    ends: tuple[int, ...] = ()
    try:
        ours, theirs = ends = os.pipe()
        return os.fork(), ours, theirs
    except OSError as error:
        for end in ends:
            os.close(end)
        raise KernelError(Refusal.KERNEL, f"no process for libnftables: {error.strerror}")


def _read(descriptor: int, deadline: float) -> bytes | None:
    """All that the other end writes until it closes; None if that takes too long."""
    read = b""
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            return None
        piece = os.read(descriptor, 2 * _COMPLAINT_BYTES)
        if not piece:
            return read
        read += piece


def _end(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended its process (status {os.WEXITSTATUS(status)})"
