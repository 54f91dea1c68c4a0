"""A line is printed only where it makes nobody root, and says exactly what is run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import sshunt
from sshunt.commands import sudoers as module
from sshunt.commands.sudoers import doas_line, sudoers, sudoers_line
from sshunt.errors import ExitCode, UserError
from sshunt.tell.console import Console

_COMMAND = ["/opt/sshunt/bin/python3", "-I", "-S", "-B", "/opt/sshunt/lib/x/__main__.py"]


def is_valid_sudoers(line: str, folder: Path) -> bool:
    (folder / "line").write_text(line + "\n")
    command = ["visudo", "-c", "-f", str(folder / "line")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def is_valid_doas_conf(line: str, folder: Path) -> bool:
    (folder / "conf").write_text(line + "\n")
    command = ["doas", "-C", str(folder / "conf")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_line_names_the_user_and_the_command_word_for_word() -> None:
    words = " ".join(_COMMAND)
    assert sudoers_line("alice", _COMMAND) == f"alice ALL=(root) NOPASSWD: {words}"
    _, _, arguments = words.partition(" ")
    assert doas_line("alice", _COMMAND) == (
        f"permit nopass alice as root cmd {_COMMAND[0]} args {arguments}"
    )
    assert doas_line("%wheel", _COMMAND).startswith("permit nopass :wheel as root cmd ")


def test_a_command_without_words_may_be_given_none() -> None:
    assert sudoers_line("alice", ["/usr/libexec/x"]).endswith('NOPASSWD: /usr/libexec/x ""')
    assert doas_line("alice", ["/usr/libexec/x"]).endswith("cmd /usr/libexec/x args")


@pytest.mark.skipif(not shutil.which("visudo"), reason="there is no visudo")
@pytest.mark.parametrize("word", ["/o p/t", "/a,b", "/a:b=c", "/a~b@c+d"])
def test_paths_that_mean_something_in_sudoers_are_written_so_that_they_do_not(
    word: str, tmp_path: Path
) -> None:
    assert is_valid_sudoers(sudoers_line("alice", [word, "-I", word]), tmp_path)


@pytest.mark.skipif(not shutil.which("doas"), reason="there is no doas")
@pytest.mark.parametrize("word", ["/o p/t", "/a,b", "/a:b=c", "/a~b@c+d", "/usr/bin/python3"])
def test_paths_that_mean_something_in_doas_conf_are_quoted(word: str, tmp_path: Path) -> None:
    assert is_valid_doas_conf(doas_line("root", [word, "-I", word]), tmp_path)


@pytest.mark.parametrize("word", ["/a*", "/a[b]", "/a\\b", '/a"b', "/a#b", "/a\nb"])
def test_paths_that_can_not_be_written_safely_get_no_line(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "helper_command", lambda: [word, "-I"])
    with pytest.raises(UserError, match="can't be written into such a line"):
        sudoers(["--user", "nobody"], Console())


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's")
def test_an_installation_with_one_file_of_somebody_s_gets_no_line_but_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path("/run") / f"sudoers-{os.getpid()}"
    package = folder / "sshunt"
    shutil.copytree(sshunt.__path__[0], package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (package, *package.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        command = ["/usr/bin/python3", "-I", "-S", "-B", str(package / "helper/__main__.py")]
        monkeypatch.setattr(module, "helper_command", lambda: command)
        assert sudoers(["--user", "nobody"], Console()) == ExitCode.OK
        assert capfd.readouterr().out == sudoers_line("nobody", command) + "\n"
        os.chown(package / "capture" / "plan.py", 12345, 0)
        with pytest.raises(UserError, match="whoever can change what root runs is root") as caught:
            sudoers(["--user", "nobody"], Console())
        assert caught.value.exit_code == ExitCode.PRIVILEGE
        said = capfd.readouterr().err
        assert said == f"sshunt: {package}/capture/plan.py is 12345's, not root's\n"
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--user", "no-such-user"], "there is no user 'no-such-user'"),
        (["--user", "%no-such-group"], "there is no group 'no-such-group'"),
        (["--user", "root"], "root needs no such line"),
        (["--nothing"], "unrecognized arguments"),
    ],
)
def test_whom_it_can_not_be_for_is_said(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        sudoers(words, Console())
    assert caught.value.exit_code == ExitCode.USAGE
