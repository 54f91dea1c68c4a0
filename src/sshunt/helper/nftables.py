"""libnftables, and which tables in the kernel are sessions' of ours. Root; Linux.

**The library's context** is a netlink socket, and it is this socket that owns our table: the kernel
removes the table when the socket is closed for good.

**Alive or dead?** A plain table (no ``flags owner``) needs an answer to "is its maker alive?" that
a dead maker can't fake: each helper holds an abstract unix socket with the table's name. It lives
in the network namespace, as tables do, and the kernel closes it with the process. What it is not is
a proof that the maker lives: abstract names are free for all, so any local user can take the name
of a dead session and keep its plain table from being removed (or that of a session to come, whose
helper then refuses to start). It redirects to a port where nobody listens any more; root removes it
with ``nft delete table``. Owned tables don't need the mark.

Not here: rule text (capture.nft), when a table is made and removed (apply).
"""

import ctypes
import errno
import os
import re
import socket

from sshunt.capture import nft
from sshunt.helper.protocol import KernelError, Refusal

#: The name of a session's table, and of its control group.
SESSION_NAME = re.compile(re.escape(nft.TABLE_PREFIX) + "[0-9a-f]{8,16}")

#: Longest part of libnftables' message that is passed on: it quotes the command, which may be long.
_MESSAGE_CHARACTERS = 400


class Nftables:
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
        before = _descriptors()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise KernelError(Refusal.NOT_PERMITTED, "no netlink socket for nftables")
        # The library has no way to name its socket, and does not close it on exec: whatever we
        # start would own our table with us, and keep it when we are gone.
        for descriptor in _descriptors() - before:
            os.set_inheritable(descriptor, False)
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


def _descriptors() -> set[int]:
    """Those that are open now."""
    numbers = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in numbers if _is_open(number)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False  # the one that listdir itself had open
    return True


def our_tables(nftables: Nftables) -> list[str]:
    """The names of all sessions' tables, of living and dead ones."""
    names = [line.rpartition(" ")[2] for line in nftables.run("list tables inet").splitlines()]
    return [name for name in names if SESSION_NAME.fullmatch(name)]


def remove_leftover_tables(nftables: Nftables) -> None:
    """Remove the plain tables of dead sessions."""
    for name in our_tables(nftables):
        mark = alive_mark(name)
        if mark is None:
            continue
        try:
            nftables.run(nft.render_delete(name.removeprefix(nft.TABLE_PREFIX)))
        except KernelError:
            pass  # owned by a process that keeps no such mark: not ours to remove
        mark.close()


def alive_mark(table: str) -> socket.socket | None:
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
