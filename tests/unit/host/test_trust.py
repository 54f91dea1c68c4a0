"""What somebody else could change is found, wherever on the way to a file it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.host.trust import below, problems

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's")

_ALICE = 12345


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """One that is root's alone, though it lies where anybody may make files."""
    place = Path("/run") / f"trust-{os.getpid()}"
    place.mkdir()
    yield str(place)
    for path in sorted(below(str(place)), reverse=True):
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)


def made(path: str, text: str = "") -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_text(text)
    return path


def test_what_is_root_s_from_the_root_on_is_all_right(folder: str) -> None:
    assert problems([made(f"{folder}/a/b/file"), folder, "/etc/passwd"]) == []


def test_a_file_that_somebody_owns_and_one_that_a_group_or_everybody_writes(folder: str) -> None:
    owned, grouped, open_to_all = (made(f"{folder}/{name}") for name in "abc")
    os.chown(owned, _ALICE, 0)
    os.chmod(grouped, 0o664)
    os.chmod(open_to_all, 0o666)
    assert problems([owned, grouped, open_to_all]) == [
        f"{owned} is {_ALICE}'s, not root's",
        f"{grouped} can be written by its group",
        f"{open_to_all} can be written by everybody",
    ]


def test_one_folder_on_the_way_is_enough_and_is_named_once(folder: str) -> None:
    files = [made(f"{folder}/a/b/{name}") for name in ("one", "two")]
    os.chown(f"{folder}/a", _ALICE, 0)
    assert problems(files) == [f"{folder}/a is {_ALICE}'s, not root's"]


def test_links_are_followed_whether_whole_or_relative(folder: str) -> None:
    made(f"{folder}/bad/file")
    os.chmod(f"{folder}/bad", 0o777)
    os.makedirs(f"{folder}/good")
    os.symlink("../bad/file", f"{folder}/good/relative")
    os.symlink(f"{folder}/bad", f"{folder}/good/whole")
    expected = [f"{folder}/bad can be written by everybody"]
    assert problems([f"{folder}/good/relative"]) == expected
    assert problems([f"{folder}/good/whole/file"]) == expected


def test_a_link_of_somebody_else_s_is_told_though_it_points_to_root_s_file(folder: str) -> None:
    os.symlink("/etc/passwd", f"{folder}/link")
    os.lchown(f"{folder}/link", _ALICE, 0)
    assert problems([f"{folder}/link"]) == [f"{folder}/link is {_ALICE}'s, not root's"]


def test_a_circle_of_links_and_a_missing_file_are_told(folder: str) -> None:
    os.symlink("circle", f"{folder}/circle")
    assert problems([f"{folder}/circle"]) == [f"{folder}/circle leads in a circle"]
    assert problems([f"{folder}/none"]) == [f"{folder}/none: No such file or directory"]


def test_all_that_is_in_a_folder_is_named_but_for_what_is_left_out(folder: str) -> None:
    for name in ("a/one", "site-packages/two"):
        made(f"{folder}/{name}")
    assert sorted(below(folder, but=["site-packages"])) == [
        folder,
        f"{folder}/a",
        f"{folder}/a/one",
    ]
