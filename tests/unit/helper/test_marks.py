"""Marks of living helpers: held by one, gone with him, and nobody else's to take."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sshunt.helper import marks
from sshunt.helper.marks import Marks
from sshunt.helper.protocol import KernelError, Refusal

TABLE = "sshunt-0123456789ab"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.geteuid() != 0:
        pytest.skip("the place must be root's")
    monkeypatch.setattr(marks, "PLACE", str(tmp_path / "sshunt"))
    return tmp_path / "sshunt"


def file_of(place: Path, table: str = TABLE) -> Path:
    return place / f"{os.stat('/proc/self/ns/net').st_ino}-{table}"


def test_a_mark_is_one_helper_s_until_he_gives_it_back(place: Path) -> None:
    mark = Marks().take(TABLE)
    assert mark is not None
    assert Marks().take(TABLE) is None
    assert Marks().is_alive(TABLE)
    mark.close()
    assert not Marks().is_alive(TABLE)
    assert not list(place.iterdir())


def test_the_mark_of_a_killed_helper_can_be_taken(place: Path) -> None:
    hold = (
        f"from sshunt.helper import marks; marks.PLACE = {str(place)!r};"
        f"mark = marks.Marks().take({TABLE!r}); print(flush=True); import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert Marks().is_alive(TABLE)
        assert Marks().take_from_the_dead(TABLE) is None
        holder.kill()
    assert not Marks().is_alive(TABLE)
    mark = Marks().take_from_the_dead(TABLE)
    assert mark is not None
    mark.close()


def test_a_table_without_a_mark_is_not_called_dead() -> None:
    assert Marks().take_from_the_dead(TABLE) is None


def test_a_user_has_a_number_of_slots_and_one_that_is_given_back_is_free() -> None:
    slots = [Marks().take_slot(1000, 3) for _ in range(3)]
    assert None not in slots
    assert Marks().take_slot(1000, 3) is None
    assert Marks().take_slot(1001, 3) is not None
    assert slots[1] is not None
    slots[1].close()
    assert Marks().take_slot(1000, 3) is not None


def test_what_killed_helpers_left_is_swept_and_nothing_else(place: Path) -> None:
    here = Marks()
    held = here.take(TABLE)
    old = time.time() - 3600
    young = file_of(place, "sshunt-00000000")
    left = file_of(place, "sshunt-11111111")
    elsewhere = place / "1-sshunt-22222222"
    for path in (young, left, elsewhere, place / "other"):
        path.touch()
    for path in (left, elsewhere, file_of(place), place / "other"):
        os.utime(path, (old, old))
    here.sweep()
    assert held is not None
    assert set(place.iterdir()) == {young, elsewhere, file_of(place), place / "other"}


@pytest.mark.parametrize("why", ["another user's", "open to others", "a link", "a file"])
def test_a_place_that_is_not_root_s_alone_is_refused(place: Path, why: str) -> None:
    if why == "a link":
        (place.parent / "real").mkdir(0o700)
        place.symlink_to(place.parent / "real")
    elif why == "a file":
        place.touch(0o700)
    else:
        place.mkdir()
        place.chmod(0o755 if why == "open to others" else 0o700)
        os.chown(place, 1000 if why == "another user's" else 0, 0)
    with pytest.raises(KernelError) as caught:
        Marks()
    assert caught.value.kind is Refusal.NO_PLACE
