"""Control groups: who is moved where, and what is removed, in the machine's own hierarchy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.capture.nft import table_name
from sshunt.helper import cgroups, marks
from sshunt.helper.marks import Marks
from tests.unit.helper.control_groups import sleeper

OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Marks:
    monkeypatch.setattr(marks, "PLACE", str(tmp_path / "sshunt"))
    return Marks()


def test_a_process_is_moved_into_a_new_group_and_out_again_when_that_goes(
    root: Path, place: Path, proc: int
) -> None:
    group = place / "guard"
    with sleeper(proc, place) as process:
        assert cgroups.make_with(str(group), process)
        assert process.cgroup() == str(group.relative_to(root))
        assert cgroups.remove(str(group), proc)
        assert process.cgroup() == str(place.relative_to(root))
        assert not group.exists()


def test_a_group_that_is_there_already_is_not_taken(place: Path, proc: int) -> None:
    group = place / "guard"
    group.mkdir()
    with sleeper(proc, place) as process:
        assert not cgroups.make_with(str(group), process)
        assert process.cgroup() != f"{place.name}/guard"
    group.rmdir()


def test_where_no_group_can_be_made_nothing_is_left(place: Path, proc: int) -> None:
    with sleeper(proc, place) as process:
        assert not cgroups.make_with(str(place / "not there" / "guard"), process)
    assert [path.name for path in place.iterdir() if path.is_dir()] == []


def test_a_process_that_has_ended_is_not_waited_for(place: Path, proc: int) -> None:
    with sleeper(proc, place) as process:
        pass
    cgroups.move(process.pid, str(place))


def test_a_group_that_is_not_there_is_removed(place: Path, proc: int) -> None:
    assert cgroups.remove(str(place / "never made"), proc)


def test_a_group_with_another_one_inside_needs_another_try(place: Path, proc: int) -> None:
    group = place / "guard"
    (group / "inner").mkdir(parents=True)
    assert not cgroups.remove(str(group), proc)
    (group / "inner").rmdir()
    assert cgroups.remove(str(group), proc)


def test_a_step_is_taken_until_it_succeeds_or_fails_or_takes_too_long() -> None:
    answers = iter([False, False, True])
    assert cgroups.until_done(lambda: next(answers))
    assert not cgroups.until_done(lambda: False, 0.05)

    def fail() -> bool:
        raise OSError("no more")

    assert not cgroups.until_done(fail)


# --- where a guard belongs ------------------------------------------------------------------------


def test_a_guard_belongs_below_the_group_of_its_client(
    place: Path, proc: int, living: Marks
) -> None:
    with sleeper(proc, place) as process:
        assert cgroups.parent_of(process, OURS, living) == str(place)


def test_in_the_guard_of_a_dead_helper_the_place_is_where_that_one_began(
    place: Path, proc: int, living: Marks
) -> None:
    for session in (OURS, THEIRS):  # an earlier helper of ours; a session that nobody serves
        group = place / table_name(session)
        group.mkdir()
        with sleeper(proc, group) as process:
            assert cgroups.parent_of(process, OURS, living) == str(place)
            assert cgroups.remove(str(group), proc)


def test_in_the_guard_of_a_living_session_the_place_is_in_there(
    place: Path, proc: int, living: Marks
) -> None:
    mark = living.take(table_name(THEIRS))
    assert mark is not None
    group = place / table_name(THEIRS)
    group.mkdir()
    with sleeper(proc, group) as process:
        assert cgroups.parent_of(process, OURS, living) == str(group)
        assert cgroups.remove(str(group), proc)
    mark.close()


def test_a_process_that_has_ended_has_no_place(place: Path, proc: int, living: Marks) -> None:
    with sleeper(proc, place) as process:
        os.kill(process.pid, 9)
        os.waitid(os.P_PID, process.pid, os.WEXITED)
        assert cgroups.parent_of(process, OURS, living) is None


def test_empty_groups_of_sessions_are_removed_and_those_in_use_stay(place: Path, proc: int) -> None:
    inner = place / "scope"
    empty, above = inner / table_name(OURS), place / table_name(OURS)
    busy, other = inner / table_name(THEIRS), inner / "other"
    for group in (inner, empty, above, busy, other):
        group.mkdir()
    with sleeper(proc, busy):
        cgroups.remove_leftovers(str(inner))
        assert [group.exists() for group in (empty, above, busy, other)] == [
            False,
            False,
            True,
            True,
        ]
        assert cgroups.remove(str(busy), proc)
    other.rmdir()
    inner.rmdir()


def test_in_a_namespace_the_kernel_s_age_decides_whether_levels_can_be_trusted() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    code = "from sshunt.helper import cgroups; print(cgroups.levels_can_be_trusted())"
    command = ["unshare", "--cgroup", sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    version = tuple(int(word) for word in re.findall(r"\d+", os.uname().release)[:2])
    assert said == f"{version >= (6, 11)}\n"
