"""Root cleans up after labs that were killed, and after nobody else, whatever lies in /tmp."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.accounts import uids_of
from sshunt.lab.leftovers import lab_name, left_by, number_of, remove_leftovers
from sshunt.lab.world import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other users need root")

MALLORY = 65534
TMP = Path("/tmp")


#: What the test at hand has made in /tmp, which is others' at the same time.
_made: list[Path] = []


@pytest.fixture(autouse=True)
def tidy_up() -> Iterator[None]:
    yield
    while _made:
        path = _made.pop()
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            path.rmdir()


@pytest.fixture
def dead() -> str:
    """The name of a lab whose owner has ended."""
    program = "import sshunt.lab.leftovers as l; print(l.lab_name(0))"
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def make(name: str, owner: int) -> Path:
    path = TMP / name
    path.mkdir()
    _made.append(path)
    os.chown(path, owner, owner)
    return path


def test_the_folder_of_a_dead_lab_is_removed_and_what_its_agents_left(dead: str) -> None:
    uid = uids_of(number_of(dead))[1]
    folder, agents = make(dead, 0), make(f"sshunt-{uid}", uid)
    named = make(f"sshunt-{uid}-{secrets.token_hex(4)}", uid)
    remove_leftovers()
    assert not any(path.exists() for path in (folder, agents, named))


def test_the_folder_of_a_living_lab_stays() -> None:
    folder = make(lab_name(10**6), 0)
    remove_leftovers()
    assert folder.exists()


def test_a_dead_labs_folder_that_somebody_else_made_removes_nothing(dead: str) -> None:
    uid = uids_of(number_of(dead))[1]
    invented, agents = make(dead, MALLORY), make(f"sshunt-{uid}", uid)
    remove_leftovers()
    assert invented.exists()
    assert agents.exists()


def test_files_that_other_users_agents_left_stay(dead: str) -> None:
    uids = uids_of(number_of(dead))
    make(dead, 0)
    squatted = make(f"sshunt-{uids[1]}", MALLORY)
    neighbour = make(f"sshunt-{uids.stop}", uids.stop)
    remove_leftovers()
    assert squatted.exists()
    assert neighbour.exists()


def test_files_of_a_user_of_this_machine_are_not_the_lab_s() -> None:
    known = make("sshunt-known", MALLORY)  # nobody, by that name
    assert known not in left_by({MALLORY})


@pytest.mark.parametrize(
    "name",
    ["sshunt-lab-", "sshunt-lab-x", "sshunt-lab-1-2", "sshunt-lab--1-2-3", "sshunt-lab-1-2-3-4",
     "sshunt-lab-\u0661-2-3", "sshunt-lab-99999999999999999999-1-1", "sshunt-lab-1-2-3\n"],
)  # fmt: skip
def test_a_malformed_name_is_nobodys_lab(name: str) -> None:
    path = make(name, 0)
    remove_leftovers()
    assert path.exists()


def test_a_link_is_no_folder(dead: str) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere, "precious").touch()
        link = TMP / dead
        link.symlink_to(elsewhere)
        _made.append(link)
        remove_leftovers()
        assert Path(elsewhere, "precious").exists()


def test_a_lab_whose_name_somebody_has_taken_gets_another_one() -> None:
    lab = Lab(sshd=False)
    taken = make(lab.name, MALLORY)
    with lab:
        assert lab.folder != taken
        assert lab.client.run(["id", "-u"]).stdout == "0\n"
    assert taken.exists()
