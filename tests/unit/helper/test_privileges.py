"""What is read before the helper has a root of its own, and what goes when; the rest is seen in
tests/e2e.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sshunt.capture.plan import Plan
from sshunt.helper.privileges import (
    DAC_OVERRIDE,
    NET_ADMIN,
    NET_RAW,
    SETPCAP,
    SYS_ADMIN,
    SYS_CHROOT,
    SYS_PTRACE,
    options_in,
)
from sshunt.helper.protocol import Apply, Guard, Guarded, Packeted, Packets
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host
from tests.unit.helper.conversation import DEADLINE_S, SESSION, Conversation

_ROOT = "25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n"
_CGROUP1 = "40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd\n"


@pytest.mark.parametrize(
    ("shown", "options"),
    [
        ("rw", []),
        ("rw,nsdelegate,memory_recursiveprot", ["nsdelegate", "memory_recursiveprot"]),
        ("ro,nsdelegate", ["nsdelegate"]),
        ("rw,seclabel,nsdelegate", ["nsdelegate"]),
        ("rw,smackfsdef=_,one_of_tomorrow", ["one_of_tomorrow"]),
    ],
)
def test_the_options_of_cgroup2_are_those_of_the_hierarchy_alone(
    shown: str, options: list[str]
) -> None:
    cgroup2 = f"41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 {shown}\n"
    assert list(options_in([_ROOT, _CGROUP1, cgroup2])) == [options]


def test_a_host_without_cgroup2_shows_none() -> None:
    assert list(options_in([_ROOT, _CGROUP1])) == []


def test_the_name_of_a_user_s_mount_keeps_nobody_from_reading_the_others(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = tmp_path / "of\r\ra user"
    name.mkdir()
    code = "from sshunt.helper import privileges; print(privileges._options_of_cgroup2())"
    script = (
        "while umount -l /sys/fs/cgroup 2>/dev/null; do :; done;"
        ' mount -t tmpfs none "$1"; exec "$2" -c "$3"'
    )
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
    subprocess.run([*words, str(name), sys.executable, code], check=True)


# --- capabilities, stage by stage -----------------------------------------------------------------


def those_of(pid: int, name: str = "CapPrm") -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split(f"{name}:")[1].split()[0], 16)
    return {number for number in range(64) if mask >> number & 1}


def children_of(pid: int) -> dict[str, int]:
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = (Path(f"/proc/{child}/comm").read_text().strip() for child in pids)
    return {
        "sweeper" if name == "sweeper" else "packets": int(child)
        for name, child in zip(names, pids, strict=True)
    }


def test_before_the_greeting_only_what_answering_it_needs_is_left(host: Host) -> None:
    expected = {DAC_OVERRIDE, NET_ADMIN, NET_RAW, SETPCAP, SYS_ADMIN, SYS_CHROOT, SYS_PTRACE}
    with Conversation(host) as helper:
        deadline = time.monotonic() + DEADLINE_S
        while those_of(helper.process.pid) != expected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert those_of(helper.process.pid, "CapBnd") == expected
        helper.greet()
        left = {DAC_OVERRIDE, NET_ADMIN, NET_RAW}
        assert those_of(helper.process.pid, "CapBnd") == left
        assert those_of(helper.process.pid) <= left
        limits = Path(f"/proc/{helper.process.pid}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]


def test_each_process_has_only_what_it_does_something_with(host: Host) -> None:
    with Conversation(host) as helper:
        helper.greet()
        guarded = helper.ask(Guard())
        assert isinstance(guarded, Guarded)
        of_groups = {DAC_OVERRIDE} if guarded.guarded else set()
        helper.ask(Apply(Plan(SESSION, (), ())))
        assert those_of(children_of(helper.process.pid)["sweeper"]) == of_groups
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                socket.send_fds(helper.socket, [encode_request(Packets())], [theirs.fileno()])
            assert isinstance(decode_reply(helper.line()), Packeted)
            processes = children_of(helper.process.pid)
            assert those_of(processes["packets"]) == {NET_ADMIN, NET_RAW}
            assert those_of(helper.process.pid) == {NET_ADMIN} | of_groups
        for pid in (helper.process.pid, *processes.values()):
            status = Path(f"/proc/{pid}/status").read_text()
            assert "NoNewPrivs:\t1\n" in status
