"""-r [user@]host[:port] and -e."""

import subprocess
from pathlib import Path

import pytest

from sshunt.config.remotes import parse_remote
from sshunt.errors import ExitCode, UserError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("gate", None, "gate", None),
        ("alice@gate.example", "alice", "gate.example", None),
        ("gate:2222", None, "gate", 2222),
        ("alice@corp.example@gate:22", "alice@corp.example", "gate", 22),
        ("192.0.2.7:22", None, "192.0.2.7", 22),
        ("2001:db8::1", None, "2001:db8::1", None),
        ("[2001:db8::1]", None, "2001:db8::1", None),
        ("root@[fe80::1%eth0]:65535", "root", "fe80::1%eth0", 65535),
        ("work_alias-2", None, "work_alias-2", None),
        ("jump/gate", None, "jump/gate", None),
        ("gate#1:2222", None, "gate#1", 2222),
        ("gate*!?=~+", None, "gate*!?=~+", None),
        ("alice:ticket#7@gate", "alice:ticket#7", "gate", None),
        ("svc$!*/@gate", "svc$!*/", "gate", None),
        (r"CORP\john doe@gate", r"CORP\john doe", "gate", None),
        ("ssh://gate", None, "gate", None),
        ("ssh://gate/", None, "gate", None),
        ("ssh://alice@gate.example:2222", "alice", "gate.example", 2222),
        ("ssh://alice@[2001:db8::1]:22", "alice", "2001:db8::1", 22),
        ("ssh://alice@corp.example@gate", "alice@corp.example", "gate", None),
        ("ssh://john%20doe;fingerprint=x@gate:22", "john doe", "gate", 22),
    ],
)
def test_a_destination_is_user_host_and_port(
    text: str, user: str | None, host: str, port: int | None
) -> None:
    remote = parse_remote(text)
    assert (remote.user, remote.host, remote.port) == (user, host, port)
    assert remote.destination == (f"{user}@{host}" if user else host)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@gate",
        "alice@",
        "gate:",
        "gate:0",
        "gate:65536",
        "gate:ssh",
        "[::1]x",
        "[::1]:",
        "-oProxyCommand=x",
        "alice@-oProxyCommand=x",
        "-l@gate",
        "ga te",
        "gate;reboot",
        "gate`x`",
        "alice;x@gate",
        "a -oProxyCommand=x@gate",
        "alice\\@gate",
        "gate$x",
        "ssh://",
        "ssh://@gate",
        "ssh://gate/path",
        "ssh://gate:22/path",
        "ssh://-oProxyCommand=x",
        "ssh://%2doProxyCommand=x",
        "ssh://alice%0a@gate",
        "ssh://gate:port",
        "gate\n",
        "gate:\N{SUPERSCRIPT TWO}",
    ],
)
def test_what_is_no_destination_is_refused_in_two_lines(text: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_remote(text)
    assert raised.value.exit_code == ExitCode.USAGE
    assert raised.value.hint


def test_the_ssh_command_is_split_as_a_shell_would() -> None:
    assert parse_remote("gate", ssh_command="ssh -F '/a b/config' -v").ssh_command == (
        "ssh",
        "-F",
        "/a b/config",
        "-v",
    )


@pytest.mark.parametrize("command", ["", "  ", "ssh -o 'unclosed"])
def test_a_malformed_ssh_command_is_refused(command: str) -> None:
    with pytest.raises(UserError, match="-e"):
        parse_remote("gate", ssh_command=command)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("ssh -N", "-N"),
        ("/usr/bin/ssh -vfn", "-f"),
        ("ssh -i key -n", "-n"),
        ("ssh -W target:22", "-W"),
        ("ssh -o StdinNull=yes", "-o StdinNull=yes"),
        ("ssh -osessiontype=none", "-o sessiontype=none"),
        ("ssh -o 'ForkAfterAuthentication yes'", "-o ForkAfterAuthentication yes"),
    ],
)
def test_options_with_which_ssh_runs_no_command_are_refused_by_name(words: str, shown: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_remote("gate", ssh_command=words)
    assert f"with {shown} ssh" in raised.value.message
    assert raised.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "words",
    [
        "ssh -i N -l nfs -F f",
        "ssh -iN -4 -v -o StdinNull=no -o sessiontype=default",
        "ssh -o ProxyCommand='ssh -W %h:%p gate' -J n -p 22",
        "plink -N",
    ],
)
def test_what_only_looks_like_such_an_option_is_passed_on(words: str) -> None:
    assert parse_remote("gate", ssh_command=words).ssh_command[1:]


def test_ssh_takes_what_is_taken_here(tmp_path: Path) -> None:
    """A user or host that only we took would fail later, and less clearly."""
    config = tmp_path / "config"
    config.write_text("")
    for text in ("alice:ticket#7@gate#1", "svc$!*/@jump/gate", r"CORP\john doe@gate"):
        remote = parse_remote(text)
        command = ["ssh", "-F", str(config), "-G", remote.destination]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"user {remote.user}\n" in said
        assert f"hostname {remote.host}\n" in said


@pytest.mark.parametrize("python", ["python3.9", "/opt/python 3/bin/python3", "~/bin/py"])
def test_a_python_is_a_name_or_a_path(python: str) -> None:
    assert parse_remote("gate", python=python).python == python


@pytest.mark.parametrize(
    "python", ["", "-c", "py'thon", 'py"thon', "py$x", "py`x`", "a\nb", "\u00fc"]
)
def test_a_python_that_some_shell_would_read_otherwise_is_refused(python: str) -> None:
    with pytest.raises(UserError, match="--python") as raised:
        parse_remote("gate", python=python)
    assert raised.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("words", ["ssh -v other -N", "ssh -v -- -N"])
def test_what_stands_behind_ssh_s_own_options_is_not_read_as_one(words: str) -> None:
    assert parse_remote("gate", ssh_command=words).ssh_command == tuple(words.split())
