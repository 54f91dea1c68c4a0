"""What a rule logs comes to whoever has the group, on a host of the lab's."""

import struct
import sys
from pathlib import Path

import pytest

import sshunt
from sshunt.helper.nflog import Logged, logged_in
from sshunt.lab.hosts import Host

#: Takes two groups of the same two, sees that there is no third, and reads what a rule logs.
_PROGRAM = """
import os, select, socket, subprocess, sys
sys.path.append(sys.argv[1])
from sshunt.helper.nflog import LogGroup
numbers = range(20000, 20002)
first, second = LogGroup(numbers, 64), LogGroup(numbers, 64)
print(first.number, second.number)
try:
    LogGroup(numbers, 64)
except OSError as error:
    print(error.strerror)
second.close()
print(LogGroup(numbers, 64).number)
rules = "add table inet logged; add chain inet logged o { type filter hook output priority 0; };"
rules += "add rule inet logged o udp dport 9 log group %d snaplen 64" % first.number
subprocess.run(["nft", rules], check=True)
assert first.read() == []
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x" * 100, ("127.0.0.1", 9))
assert select.select([first.fileno()], [], [], 10)[0]
(logged,) = first.read()
print(len(logged.packet), logged.packet[-36:].decode(), logged.in_index, logged.out_index)
print(logged.user == os.getuid(), logged.group == os.getgid())
subprocess.run(["nft", "delete table inet logged"], check=True)
"""


def test_a_group_has_one_reader_who_gets_what_is_logged(host: Host) -> None:
    source = str(Path(sshunt.__path__[0]).parent)
    said = host.run([sys.executable, "-c", _PROGRAM, source]).stdout.splitlines()
    assert said == [
        "20000 20001",
        "Operation not permitted",
        "20001",
        f"64 {'x' * 36} 0 1",
        "True True",
    ]


def test_what_is_no_packet_of_the_kernels_is_an_error_or_nothing() -> None:
    assert logged_in(b"") == []
    assert logged_in(struct.pack("=IHHII", 16, 3, 0, 0, 0)) == []
    assert logged_in(struct.pack("=IHHII", 20, 4 << 8, 0, 0, 0) + bytes(4)) == [Logged(b"", 0, 0)]
    for length in (15, 17, 1 << 31):
        with pytest.raises(OSError, match="Protocol"):
            logged_in(struct.pack("=IHHII", length, 4 << 8, 0, 0, 0))
