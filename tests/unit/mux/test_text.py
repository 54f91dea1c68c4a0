"""What a person may see of the other side's text."""

import pytest

from sshunt.mux.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("Zugriff verweigert: für alle", "Zugriff verweigert: für alle"),
        ("a\x1b[2Jb\n", "a [2Jb "),
        ("bell\a, tab\t, null\0", "bell , tab , null "),
        ("right\u202eleft", "right left"),
    ],
)
def test_what_could_move_a_cursor_is_a_blank(text: str, shown: str) -> None:
    assert printable(text) == shown
