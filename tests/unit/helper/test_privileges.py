"""What is read before the helper has a root of its own; the rest is seen in tests/e2e."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.helper.privileges import options_in

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
