"""The command line that every login shell must take, and the upload that follows it."""

import os
import subprocess

import pytest

from sshunt.agent import stub
from sshunt.errors import ExitCode, UserError
from sshunt.mux.hello import CLIENT, make_hello
from sshunt.transport.bootstrap import (
    EXIT_FAILED,
    EXIT_NO_UPLOAD,
    EXIT_OLD_PYTHON,
    argv,
    remote_command,
    upload,
)
from sshunt.transport.bundle import agent_bundle

HELLO = make_hello(CLIENT, bytes(32))


@pytest.mark.parametrize("python", [None, "python3.9", "/opt/python 3/bin/python3", "~/bin/py"])
def test_the_command_has_nothing_that_any_shell_would_take_for_its_own(python: str | None) -> None:
    command = remote_command(python)
    head, script, tail = command.split("'")
    assert (head, tail) == ("exec /bin/sh -c ", "")
    assert not set(script) & set("'!\\\n\t`")
    assert script == argv(python)[2]
    assert subprocess.run(["/bin/sh", "-n", "-c", script], check=False).returncode == 0


def test_the_python_within_has_no_quotes_and_parses_in_old_and_new() -> None:
    stage_one = argv()[2].split('-c "')[1].split('";')[0]
    assert not set(stage_one) & set("\"'$`\\!")
    compile(stage_one, "stage one", "exec")


def test_the_same_command_serves_every_bundle() -> None:
    assert str(len(agent_bundle().data)) not in remote_command()


def test_the_upload_says_how_long_the_bundle_is() -> None:
    sent = upload(agent_bundle(), HELLO)
    assert int(sent[:6]) == len(agent_bundle().data)
    assert sent[6:] == agent_bundle().data + HELLO.encode()


def test_only_the_named_python_is_tried() -> None:
    done = subprocess.run(argv("no-such-python"), capture_output=True, text=True, check=False)
    assert done.returncode == 97
    assert done.stderr == "sshunt: found no Python here (tried: no-such-python)\n"


def test_a_python_in_the_home_directory_is_found_there(tmp_path: os.PathLike[str]) -> None:
    home = str(tmp_path)
    with open(os.path.join(home, "py"), "w") as script:
        script.write("#!/bin/sh\necho here >&2; exit 3\n")
    os.chmod(os.path.join(home, "py"), 0o755)
    done = subprocess.run(
        argv("~/py"), env={"HOME": home}, capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_OLD_PYTHON
    assert done.stderr.startswith("here\nsshunt: ")
    assert "/py does not run (status 3)" in done.stderr


def test_once_the_upload_is_being_read_no_other_python_is_tried() -> None:
    for sent, status in ((b"", EXIT_FAILED), (b"000003xyz", EXIT_FAILED), (b"login", EXIT_FAILED)):
        done = subprocess.run(argv(), input=sent, capture_output=True, check=False)
        assert done.returncode == status, sent
        assert b"sshunt:" not in done.stderr, sent
    done = subprocess.run(argv(), input=b"not digits", capture_output=True, check=False)
    assert done.returncode == EXIT_NO_UPLOAD


def test_both_ends_agree_on_the_exit_statuses() -> None:
    assert stub.EXIT_FAILED == EXIT_FAILED
    assert f"|{stub.EXIT_AGENT_DIED}|" in argv()[2]


@pytest.mark.parametrize("python", ["", "-c", "py'thon", 'py"thon', "a;b", "$(x)", "a\nb", "`x`"])
def test_a_python_that_can_not_be_quoted_everywhere_is_refused(python: str) -> None:
    with pytest.raises(UserError) as raised:
        remote_command(python)
    assert raised.value.exit_code == ExitCode.USAGE
