"""Runs a program as if the kernel had no nf_tables: ``without_nf_tables.py PROGRAM WORD...``

A seccomp filter answers socket(AF_NETLINK, *, NETLINK_NETFILTER) as such a kernel does.
"""

import ctypes
import errno
import os
import struct
import sys

AF_NETLINK, NETLINK_NETFILTER = 16, 12
NUMBER_OF_SOCKET = {"x86_64": 41, "aarch64": 198}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def main() -> None:
    number = NUMBER_OF_SOCKET[os.uname().machine]
    # linux/seccomp.h: the system call's number is at 0, its arguments at 16, 24, 32.
    program = [
        (LOAD, 0, 0, 0),
        (IF_EQUAL, 0, 5, number),
        (LOAD, 0, 0, 16),
        (IF_EQUAL, 0, 3, AF_NETLINK),
        (LOAD, 0, 0, 32),
        (IF_EQUAL, 0, 1, NETLINK_NETFILTER),
        (RETURN, 0, 0, ERRNO | errno.EPROTONOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("=H6xQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0):
        sys.exit("no seccomp here")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
