"""Our own process: mounts of its own, and no more capabilities than it needs. Root; Linux.

**Control groups.** libnftables looks them up below /sys/fs/cgroup, whatever the host's layout is:
most have cgroup2 there (unified), some in /sys/fs/cgroup/unified (hybrid), some nowhere, and ``ip
netns exec`` hides it. In a mount namespace with cgroup2 there, mounted by ourselves, a path means
the same to us, to the library and to the kernel. What is there already has to go first: the kernel
refuses to mount a file system where it is mounted (EBUSY), as it would be on a unified host.

**Nobody else's mounts.** A mount namespace is a copy of all of the host's mounts, and a copy holds
what it shows: ``umount`` of a disk would say that all is well, and the disk would stay in use for
as long as we live. So everything is let go of but what no running host can unmount: its root, the
places of programs and libraries, /proc, /dev and /sys. What a container's limits don't let us
unmount stays a slave of the host's mount: it goes when that one goes, where the host shares it.

Kept, and why: /bin, /lib, /usr and what distributions have instead for the sweeper's shell; /etc
for names of protocols, which libnftables looks up; /proc for the client's start time and user;
/dev for the TUN device of kept addresses; /sys because cgroup2 is mounted on a directory of its.
"""

import ctypes
import re
import struct

#: Where control groups are, for us and for libnftables.
CGROUP_ROOT = "/sys/fs/cgroup"

#: Mounts that are kept, and nothing that is mounted below them.
_KEPT_MOUNTS = frozenset(
    b"/ /usr /bin /sbin /lib /lib32 /lib64 /libx32 /nix /nix/store /gnu /gnu/store"
    b" /etc /proc /dev /dev/net /dev/net/tun /sys".split()
)

_OCTAL = re.compile(rb"\\([0-7]{3})")

_CLONE_NEWNS = 0x00020000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1  # cgroups that were delegated to a user belong to him
_CAP_NET_ADMIN = 12  # nftables, kept addresses
_KEPT = (_CAP_DAC_OVERRIDE, _CAP_NET_ADMIN)


def separate_mounts() -> bool:
    """A mount namespace of our own; True if it has cgroup2 where libnftables looks for it."""
    libc = ctypes.CDLL(None)
    slaves = ctypes.c_ulong(_MS_REC | _MS_SLAVE)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, slaves, None) != 0:
        # Not permitted; or "/" is no mount (chroot), and what we did would be done to the host.
        return False
    for point in reversed(_mount_points()):  # what was mounted last covers what is below
        if point in _KEPT_MOUNTS:
            libc.mount(None, point, None, ctypes.c_ulong(_MS_PRIVATE), None)
        else:
            libc.umount2(point, _MNT_DETACH)
    flags = ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC)
    return bool(libc.mount(b"cgroup2", CGROUP_ROOT.encode(), b"cgroup2", flags, None) == 0)


def _mount_points() -> list[bytes]:
    """Where something is mounted, in the order in which it was."""
    with open("/proc/self/mountinfo", "rb") as file:
        # proc(5): the fifth field; blanks and the like are written as octal numbers.
        return [_OCTAL.sub(_from_octal, line.split(b" ")[4]) for line in file]


def _from_octal(found: "re.Match[bytes]") -> bytes:
    return bytes([int(found[1], 8)])


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
