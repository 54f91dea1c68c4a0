"""Files with one word a line: whatever they are, words or two lines that name file and line."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sshunt.cli import main
from sshunt.config import wordfiles
from sshunt.config.wordfiles import FILE_BYTES, expand, read_list
from sshunt.errors import ExitCode, UserError


def file_of(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [b"a\nb\n", b"a\nb", b"a\r\nb\r\n", b"a\rb\r", b"\xef\xbb\xbfa\nb\n", b"\n# x\na\n\n b \n",
     b"a # the first\nb\n#b"],
)  # fmt: skip
def test_a_list_is_its_words_however_its_lines_end(content: bytes, tmp_path: Path) -> None:
    assert [word for _, word in read_list(file_of(tmp_path, content))] == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"\xef\xbb\xbf10.0.0.0/8\n-x\n10.1.0.0/16\n")
    assert expand([f"@{path}"]) == ["10.0.0.0/8", "-x", "10.1.0.0/16"]


def test_files_in_files_stand_for_their_words(tmp_path: Path) -> None:
    inner = file_of(tmp_path, b"b\nc\n", "inner")
    outer = file_of(tmp_path, f"@{inner}\nd\n".encode(), "outer")
    assert expand(["a", f"@{outer}", "e"]) == ["a", "b", "c", "d", "e"]


BAD = [
    pytest.param(b"10.0.0.0/8\n# B\xfcro\n", "line 2: not UTF-8 .*0xfc", id="a Latin-1 comment"),
    pytest.param(b"\x7fELF\x02\x01\0\0", "line 1: not a text", id="a program"),
    pytest.param("10.0.0.0/8\n".encode("utf-16"), "line 1: not", id="UTF-16"),
    pytest.param(b"x" * (FILE_BYTES + 1), "more than", id="too long"),
]


@pytest.mark.parametrize(("content", "problem"), BAD)
def test_what_is_no_text_is_told_with_file_and_line(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, content)
    for read in (lambda: list(read_list(path)), lambda: expand([f"@{path}"])):
        with pytest.raises(UserError, match=problem) as caught:
            read()
        assert str(path) in caught.value.message
        assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("option", ["@", "-s", "-X"])
@pytest.mark.parametrize("path", ["/dev/zero", "/no/such/file", "/tmp", ""])
def test_a_missing_file_is_an_error_of_two_lines(
    path: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"@{path}"] if option == "@" else [option, path]
    assert main(["-r", "gate", "10.0.0.0/8", *words]) == ExitCode.USAGE
    what, hint = capfd.readouterr().err.splitlines()
    assert what.startswith("sshunt: error: ")
    assert hint.startswith("sshunt: hint: ")


def test_a_file_that_names_itself_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(f"10.0.0.0/8\n@{path}\n")
    with pytest.raises(UserError, match="deep") as caught:
        expand([f"@{path}"])
    assert "itself" in caught.value.hint


def test_files_that_name_each_other_many_times_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordfiles, "WORDS", 5000)
    for number in range(wordfiles.NESTED_FILES - 1):
        (tmp_path / f"{number}").write_text(f"@{tmp_path}/{number + 1}\n" * 10)
    (tmp_path / f"{wordfiles.NESTED_FILES - 1}").touch()
    with pytest.raises(UserError, match="more than 5000 words"):
        expand([f"@{tmp_path}/0"])


@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_words_or_an_error(content: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, content)
    for read in (lambda: list(read_list(path)), lambda: expand([f"@{path}"])):
        with suppress(UserError):
            read()


@pytest.mark.parametrize("line", ["'10.0.0.0/8'", '"10.0.0.0/8"', "  '10.0.0.0/8' "])
def test_quotes_around_a_word_are_dropped_as_a_shell_would(line: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, line.encode())
    assert expand([f"@{path}"]) == ["10.0.0.0/8"]


@pytest.mark.parametrize("line", ["'", "'a\"", "a'", "'a"])
def test_quotes_that_do_not_fit_together_are_part_of_the_word(line: str, tmp_path: Path) -> None:
    assert expand([f"@{file_of(tmp_path, line.encode())}"]) == [line]
