"""What is read before the helper has a root of its own; the rest is seen in tests/e2e."""

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
