"""The command line: what words mean, and that every mistake is two lines and a status."""

from pathlib import Path

import pytest

from sshunt import __version__
from sshunt.cli import main, parse
from sshunt.config.options import MAX_LANES
from sshunt.errors import ExitCode, UserError

MINIMUM = ["-r", "gate", "10.0.0.0/8"]


def test_up_may_be_left_out_and_may_be_said(capfd: pytest.CaptureFixture[str]) -> None:
    with_verb = main(["up", *MINIMUM, "--dry-run"])
    without = main([*MINIMUM, "--dry-run"])
    assert with_verb == without == ExitCode.OK


def test_a_dry_run_prints_the_rules_with_the_routes(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*MINIMUM, "fd00::/8", "-x", "10.1.0.0/16", "--dry-run"]) == ExitCode.OK
    rules = capfd.readouterr().out
    assert "\ntable inet sshunt-" in rules
    assert all(line.startswith("#") for line in rules.partition("\ntable")[0].splitlines())
    assert "fd00::" in rules
    assert "10.0.0.0-10.0.255.255" in rules or "10.0.0.0/16" in rules


def test_targets_come_from_words_files_and_at_files(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("# the office\n192.0.2.0/24\n\n-x\n192.0.2.7\n")
    subnets = tmp_path / "subnets"
    subnets.write_text("198.51.100.0/24\n")
    skipped = tmp_path / "skipped"
    skipped.write_text("198.51.100.9:80 # the printer\n")
    options = parse(["-r", "gate", f"@{words}", "-s", str(subnets), "-X", str(skipped)])
    assert [str(t.network) for t in options.targets] == ["192.0.2.0/24", "198.51.100.0/24"]
    assert [str(t.network) for t in options.excludes] == ["192.0.2.7/32", "198.51.100.9/32"]


def test_a_file_of_words_may_have_comment_lines_and_quotes(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("""# comment\n"10.0.0.0/8"\n--ssh-cmd=ssh -i key#2\n  '10.1.0.0/16' \n""")
    options = parse(["-r", "gate", f"@{words}"])
    assert [str(t.network) for t in options.targets] == ["10.0.0.0/8", "10.1.0.0/16"]
    assert options.remote.ssh_command == ("ssh", "-i", "key#2")


def test_targets_may_stand_between_options() -> None:
    options = parse(["10.0.0.0/8", "-r", "gate", "192.168.0.0/16", "-v", "10.9.0.0/16"])
    assert len(options.targets) == 3


@pytest.mark.parametrize(
    ("words", "listen4", "listen6"),
    [
        ([], ("127.0.0.1", 0), ("::1", 0)),
        (["-l", "12300"], ("127.0.0.1", 12300), ("::1", 0)),
        (["-l", "0.0.0.0:0"], ("0.0.0.0", 0), ("::1", 0)),
        (["-l", "0.0.0.0"], ("0.0.0.0", 0), ("::1", 0)),
        (["-l", ":12300"], ("127.0.0.1", 12300), ("::1", 0)),
        (["-l", "[::]"], ("127.0.0.1", 0), ("::", 0)),
        (["-l", "127.0.0.1:0,[::1]:7"], ("127.0.0.1", 0), ("::1", 7)),
        (["--disable-ipv6"], ("127.0.0.1", 0), None),
        (["-l", "[::]:9", "--disable-ipv6"], ("127.0.0.1", 0), None),
    ],
)
def test_where_redirected_connections_are_accepted(
    words: list[str], listen4: tuple[str, int], listen6: tuple[str, int] | None
) -> None:
    options = parse([*MINIMUM, *words])
    assert (options.listen4, options.listen6) == (listen4, listen6)


def test_the_ssh_command_is_split_as_a_shell_would() -> None:
    options = parse([*MINIMUM, "-e", "ssh -p 2222 -o 'User=a b'"])
    assert options.remote.ssh_command == ("ssh", "-p", "2222", "-o", "User=a b")


def test_the_delimiter_can_be_left_out() -> None:
    assert parse(MINIMUM).remote.delimiter
    assert not parse([*MINIMUM, "--no-cmd-delimiter"]).remote.delimiter


@pytest.mark.parametrize(
    ("words", "lanes"),
    [([], 4), (["--lanes", "1"], 1), (["--lanes", "2"], 2), (["--lanes", str(MAX_LANES)], 16)],
)
def test_the_number_of_ssh_connections_can_be_chosen(words: list[str], lanes: int) -> None:
    assert parse([*MINIMUM, *words]).lanes == lanes


@pytest.mark.parametrize("value", ["0", "17", "x"])
def test_a_wrong_number_of_lanes_is_quoted_with_what_is_possible(value: str) -> None:
    with pytest.raises(UserError) as caught:
        parse([*MINIMUM, "--lanes", value])
    assert repr(value) in caught.value.message
    assert "from 1 to 16" in caught.value.message


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["10.0.0.0/8"],
        ["-r", "gate"],
        ["-r", "gate", "10.0.0.0/33"],
        ["-r", "gate", "1.2.3.4:90-80"],
        ["-r", "gate", "1.2.3.4:99999"],
        ["-r", "gate", "10.0.0.0/8", "-x", "nonsense/8/8"],
        ["-r", "gate:port", "10.0.0.0/8"],
        ["-r", "-oProxyCommand=x", "10.0.0.0/8"],
        ["-r", "gate", "10.0.0.0/8", "-l", "no such host"],
        ["-r", "gate", "10.0.0.0/8", "-l", "127.0.0.1:70000"],
        ["-r", "gate", "10.0.0.0/8", "-l", "224.0.0.1:0"],
        ["-r", "gate", "10.0.0.0/8", "-l", "255.255.255.255:0"],
        ["-r", "gate", "10.0.0.0/8", "-l", "1,2"],
        ["-r", "gate", "10.0.0.0/8", "-e", "'"],
        ["-r", "gate", "10.0.0.0/8", "-e", ""],
        ["-r", "gate", "10.0.0.0/8", "--python", "a'b"],
        ["-r", "gate", "10.0.0.0/8", "--method", "pf"],
        ["-r", "gate", "10.0.0.0/8", "--method=ipfw"],
        ["-r", "gate", "10.0.0.0/8", "--method", "tproxy"],
        ["-r", "gate", "10.0.0.0/8", "--method", "magic"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "0"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", str(MAX_LANES + 1)],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "x"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "-1"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "2.0"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "٣"],
        ["-r", "gate", "10.0.0.0/8", "--lanes", "4" * 5000],
        ["-r", "gate", "10.0.0.0/8", "--lanes"],
        ["-r", "gate", "10.0.0.0/8", "--no-such-option"],
        ["-r", "gate", "@/no/such/file"],
        ["-r", "gate", "-s", "/no/such/file"],
        ["status"],
        ["stop"],
        ["status", "-r", "gate"],
        ["version"],
    ],
)
def test_a_mistake_is_one_line_of_what_and_one_of_what_to_do(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.USAGE
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("sshunt: error: ")
    assert said[1].startswith("sshunt: hint: ")


def test_an_error_quotes_what_was_wrong() -> None:
    with pytest.raises(UserError) as caught:
        parse(["-r", "gate", "10.0.0.0/33"])
    assert "10.0.0.0/33" in caught.value.message


def test_an_unknown_command_is_answered_with_the_known_ones(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for word in ("status", "stop"):
        assert main([word]) == ExitCode.USAGE
        said = capfd.readouterr().err
        assert f"no command '{word}'" in said
        assert "reconnect" in said
    assert parse(["-r", "gate", "status"]).targets[0].name == "status"  # a host may have that name


def test_version_and_help_need_no_host(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"], ["help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    said = capfd.readouterr().out
    assert __version__ in said
    assert "examples:" in said
    assert "exit status:" in said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("45s", 45), ("90m", 5400), ("12h", 43200), ("7d", 604800)],
)
def test_a_grace_time_is_seconds_or_has_a_unit(text: str, seconds: int) -> None:
    assert parse(["-r", "gate", "--grace", text, "10.0.0.0/8"]).grace_s == seconds


@pytest.mark.parametrize("text", ["", "-1", "1.5h", "8d", "1w", "h", "\u0661"])
def test_a_bad_grace_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no time up to 7d"):
        parse(["-r", "gate", f"--grace={text}", "10.0.0.0/8"])


def test_attempts_are_made_for_ever_and_the_rules_stay_unless_it_is_said_otherwise() -> None:
    options = parse(["-r", "gate", "10.0.0.0/8"])
    assert (options.max_retries, options.fail_open, options.grace_s) == (None, False, 3600)
    words = ["--max-retries", "0", "--fail", "open"]
    options = parse(["-r", "gate", *words, "10.0.0.0/8"])
    assert (options.max_retries, options.fail_open) == (0, True)


def test_interfaces_are_named_and_listened_for_where_other_hosts_come() -> None:
    options = parse(
        ["-r", "h", "0/0", "--from", "docker0", "--from", "eth0.7", "--from", "docker0"]
    )
    assert options.links == ("docker0", "eth0.7")
    assert (options.listen4, options.listen6) == (("0.0.0.0", 0), ("::", 0))


@pytest.mark.parametrize(
    "words", [["--from", "a/b"], ["--from", 'a"'], ["--from", "eth0", "-l", "127.0.0.1"]]
)
def test_what_can_t_be_captured_from_is_a_mistake(words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        parse(["-r", "h", "0/0", *words])
    assert raised.value.exit_code is ExitCode.USAGE


def test_several_addresses_of_one_family_are_those_whose_links_are_served() -> None:
    options = parse(["-r", "h", "0/0", "-l", "192.0.2.1:7,198.51.100.1:7,[2001:db8::1]:8"])
    assert options.served == ("192.0.2.1", "198.51.100.1", "2001:db8::1")
    assert (options.listen4, options.listen6) == (("0.0.0.0", 7), ("2001:db8::1", 8))
    third = parse(["-r", "h", "0/0", "-l", "192.0.2.1,192.0.2.2,192.0.2.3"])
    assert third.listen4 == ("0.0.0.0", 0)
    one_each = parse(["-r", "h", "0/0", "-l", "192.0.2.1,[2001:db8::1]"])
    assert one_each.served == ()


@pytest.mark.parametrize(
    "listen",
    ["192.0.2.1:1,192.0.2.2:2", "127.0.0.1,192.0.2.1", "192.0.2.1,127.0.0.1", "0.0.0.0,192.0.2.1"],
)
def test_addresses_that_can_t_be_listened_on_together_are_a_mistake(listen: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(["-r", "h", "0/0", "-l", listen])
    assert raised.value.exit_code is ExitCode.USAGE
