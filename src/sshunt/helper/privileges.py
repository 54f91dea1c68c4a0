"""Our own process: a file system with next to nothing in it, and few capabilities. Root; Linux.

**Mounts.** libnftables looks control groups up below /sys/fs/cgroup, whatever the host's layout is
(they are there, or in /sys/fs/cgroup/unified, or hidden by ``ip netns exec``, or not mounted). So
we live in a mount namespace of our own, in which a path means the same to us, to the library and to
the kernel. And since a mount namespace keeps alive whatever is mounted in it (umount(8) would say
that a disk may be pulled out, and its data would not be on it), there is nothing else in ours::

    /                   a tmpfs
    /sys/fs/cgroup      cgroup2
    /dev/net/tun        the host's, for retained addresses

The root of before is detached by pivot_root(2). Where that can't be had (on an initramfs), the
mounts of before stay, out of sight, as *slaves* of the host's: what is unmounted there goes here,
too. In a chroot that is no mount we leave it all as it is. What remains in use is what this process
itself was loaded from, which the client uses as well.

So all modules have to be loaded, and all files opened that are needed later, before that.

**Capabilities** go as soon as nothing of our life needs them any more:

    until the greeting   SYS_ADMIN, SYS_CHROOT, SYS_PTRACE, SETPCAP: a root of our own
    until PACKETS        NET_RAW: for the packet process, which keeps it
    to the end           NET_ADMIN; DAC_OVERRIDE only where there can be a control group
    the packet process   NET_ADMIN, NET_RAW
    the sweeper          DAC_OVERRIDE where it has a control group to remove, else none

**The options of cgroup2** (nsdelegate, memory_recursiveprot) belong to the whole hierarchy, and a
mount in the first cgroup namespace sets them all: one without options takes them from the host
(cgroup_get_tree in kernel/cgroup/cgroup.c). So we mount with those that the host has.

Rejected: a bind mount of the host's cgroup2, which is read-only in some containers, shows a part of
the hierarchy in others, and is not there behind ``ip netns exec``.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO

#: The place of control groups, for us and for libnftables.
CGROUP_ROOT = "/sys/fs/cgroup"

_TUN = "/dev/net/tun"

#: The place where the new root is put together: a directory that is certainly there, since we need
#: it.
_SITE = "/proc"

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_PR_SET_NAME = 15
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1

#: Capabilities: cgroups that were delegated to a user belong to him; nftables, retained addresses,
#: conntrack, NFLOG; raw sockets.
DAC_OVERRIDE, NET_ADMIN, NET_RAW = 1, 12, 13

#: Those that are needed until the greeting has been answered, and never again: to let go of
#: capabilities, to enter another root, to look at the first process' mounts, to mount.
SETPCAP, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN = 8, 18, 19, 21

#: Two sets of 32 capabilities: effective, permitted, inheritable of each (capget(2)).
_CAPABILITIES = struct.Struct("=6I")

#: Options that mountinfo shows beside a file system's own: proc(5), and SELinux'.
_NOT_OF_CGROUP2 = frozenset({"rw", "ro", "seclabel"})


def separate_mounts() -> bool:
    """A root of our own, with cgroup2 where libnftables looks for it; False if that isn't there.

    Where we may not do that (most containers), everything stays as it is. May only be called while
    the process has no other thread.
    """
    options = _options_of_cgroup2()
    libc = ctypes.CDLL(None)
    # In a chroot that is no mount our copies could not be made slaves, and umount would lie.
    if not _root_is_a_mount() or libc.unshare(_CLONE_NEWNS) != 0:
        return False
    if not _mount("none", "/", "", _MS_REC | _MS_SLAVE):
        return False
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if not _mount("tmpfs", _SITE, "tmpfs", flags, "size=64k,mode=755"):
        return False
    os.makedirs(_SITE + CGROUP_ROOT)
    found = _mount("cgroup2", _SITE + CGROUP_ROOT, "cgroup2", flags, ",".join(options))
    os.makedirs(_SITE + os.path.dirname(_TUN))
    os.close(os.open(_SITE + _TUN, os.O_CREAT | os.O_WRONLY))
    if not _mount(_TUN, _SITE + _TUN, "", _MS_BIND):
        os.unlink(_SITE + _TUN)
    _enter_new_root()
    return found


def _enter_new_root() -> None:
    """Let go of the root of before, if that can be, and live in the new one."""
    libc = ctypes.CDLL(None)
    os.chdir(_SITE)
    if libc.pivot_root(b".", b".") == 0:
        libc.umount2(b".", _MNT_DETACH)  # what was the root lies on top of the new one now
    else:
        os.chroot(".")
    os.chdir("/")


def _root_is_a_mount() -> bool:
    with _mountinfo("self") as file:
        return any(line.split(" ")[4] == "/" for line in file)


def _mountinfo(process: str) -> TextIO:
    """What the process has mounted: a line each, as the kernel ends it. Users name mounts, too."""
    path = f"/proc/{process}/mountinfo"
    return open(path, encoding="utf-8", errors="surrogateescape", newline="\n")


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> bool:
    words = (what.encode(), where.encode(), kind.encode())
    return bool(
        ctypes.CDLL(None).mount(*words, ctypes.c_ulong(flags), options.encode() or None) == 0
    )


def _options_of_cgroup2() -> list[str]:
    """Those that the hierarchy has now, seen at any mount of it: ours, or the first process'."""
    for process in ("self", "1"):
        try:
            with _mountinfo(process) as file:
                return next(options_in(file))
        except (OSError, StopIteration):
            pass
    return []


def options_in(mountinfo: Iterable[str]) -> Iterator[list[str]]:
    """The options of the hierarchy as each mount of cgroup2 shows them."""
    for line in mountinfo:
        # proc(5): ... optional fields, "-", file system, source, its own options.
        kind, _, options = line.rpartition(" - ")[2].split(" ", 2)
        if kind == "cgroup2":
            every = options.strip().split(",")
            yield [word for word in every if word not in _NOT_OF_CGROUP2 and "=" not in word]


def drop_capabilities(kept: Collection[int]) -> None:
    """Keep these, as far as we have them, which the rest of our life needs. The bounding set first,
    for whatever we start.

    Failure is no error: then we keep what sudo gave us, as every other program does. The bounding
    set gets smaller as long as SETPCAP is kept; after that nothing in it can be had any more, for
    no program that we might run gains privileges.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    capability = 0
    while _prctl(_PR_CAPBSET_READ, capability) >= 0:  # EINVAL: the kernel knows no more of them
        if capability not in kept:
            _prctl(_PR_CAPBSET_DROP, capability)
        capability += 1
    mask = sum(1 << capability for capability in kept)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(_CAPABILITIES.size)
    libc = ctypes.CDLL(None)
    if libc.capget(header, sets) == 0:  # to ask for one that we have not is to be refused all
        _, low, _, _, high, _ = _CAPABILITIES.unpack(sets.raw)
        mask &= low | high << 32
    low, high = mask & 0xFFFFFFFF, mask >> 32
    libc.capset(header, _CAPABILITIES.pack(low, low, 0, high, high, 0))


def leave_no_core() -> None:
    """No file of what was in our memory, should we crash."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill us when ``parent``, who has just forked us, ends; at once if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def take_name(name: bytes, arguments: tuple[int, int]) -> None:
    """Show ``name`` instead of our arguments, whose first and last address these are, and as ours.

    For a process that must not be found by the name of its parent.
    """
    begin, end = arguments
    if end - begin > len(name):
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, name, len(name))
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def _prctl(option: int, argument: int) -> int:
    # prctl is variadic in unsigned longs; plain integers would be passed as ints.
    zero = ctypes.c_ulong(0)
    result: int = ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
    return result
