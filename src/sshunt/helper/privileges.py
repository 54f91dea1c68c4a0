"""Our own process: mounts of its own, and no more capabilities than it needs. Root; Linux.

libnftables looks control groups up below /sys/fs/cgroup, whatever the host's layout is (hybrid
hosts have them in /sys/fs/cgroup/unified, and ``ip netns exec`` hides them). In a mount namespace
with cgroup2 there, a path means the same to us, to the library and to the kernel.
"""

import ctypes
import struct

#: Where control groups are, for us and for libnftables.
CGROUP_ROOT = "/sys/fs/cgroup"

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


def separate_mounts() -> bool:
    """A mount namespace of our own with cgroup2 where libnftables looks for it."""
    libc = ctypes.CDLL(None)
    flags = ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC)
    private = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    return bool(
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"cgroup2", CGROUP_ROOT.encode(), b"cgroup2", flags, None) == 0
    )


def drop_capabilities() -> None:
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
