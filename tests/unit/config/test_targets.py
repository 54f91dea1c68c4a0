"""Targets with sshuttle's meaning."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.config.targets import parse_target, read_target_file
from sshunt.errors import ExitCode, UserError


@pytest.mark.parametrize(
    ("text", "network", "first_port", "last_port"),
    [
        ("1.2.3.4", "1.2.3.4/32", 0, 65535),
        ("1.2.3.4/32", "1.2.3.4/32", 0, 65535),
        ("1.2.3.0/24", "1.2.3.0/24", 0, 65535),
        ("1.2.3.4:8000", "1.2.3.4/32", 8000, 8000),
        ("1.2.3.0/24:8000-9000", "1.2.3.0/24", 8000, 9000),
        ("0/0", "0.0.0.0/0", 0, 65535),
        ("0.0.0.0/0:443", "0.0.0.0/0", 443, 443),
        ("10/8", "10.0.0.0/8", 0, 65535),
        ("192.168.1/24:22", "192.168.1.0/24", 22, 22),
        ("10.1.2.3/8", "10.0.0.0/8", 0, 65535),
        ("::/0", "::/0", 0, 65535),
        ("2001:db8::1", "2001:db8::1/128", 0, 65535),
        ("2001:db8::1:80", "2001:db8::1:80/128", 0, 65535),
        ("2001:db8::/32", "2001:db8::/32", 0, 65535),
        ("2001:db8::/32:80-90", "2001:db8::/32", 80, 90),
        ("[2001:db8::1]", "2001:db8::1/128", 0, 65535),
        ("[2001:db8::1]:80", "2001:db8::1/128", 80, 80),
        ("[2001:db8::/32]:80-90", "2001:db8::/32", 80, 90),
        ("[2001:db8::]/32:80", "2001:db8::/32", 80, 80),
        ("  10.0.0.0/8  ", "10.0.0.0/8", 0, 65535),
    ],
)
def test_a_network_is_understood(text: str, network: str, first_port: int, last_port: int) -> None:
    target = parse_target(text)
    assert target.network == ip_network(network)
    assert target.name is None
    assert (target.first_port, target.last_port) == (first_port, last_port)


@pytest.mark.parametrize(
    ("text", "name", "width", "first_port", "last_port"),
    [
        ("example.com", "example.com", None, 0, 65535),
        ("example.com:8000", "example.com", None, 8000, 8000),
        ("example.com/24", "example.com", 24, 0, 65535),
        ("example.com/24:8000", "example.com", 24, 8000, 8000),
        ("example.com:8000-9000", "example.com", None, 8000, 9000),
        ("intranet", "intranet", None, 0, 65535),
        ("my_host.corp.", "my_host.corp.", None, 0, 65535),
        ("bücher.example", "bücher.example", None, 0, 65535),
        ("3com.example", "3com.example", None, 0, 65535),
    ],
)
def test_a_name_is_understood(
    text: str, name: str, width: int | None, first_port: int, last_port: int
) -> None:
    target = parse_target(text)
    assert target.network is None
    assert (target.name, target.width) == (name, width)
    assert (target.first_port, target.last_port) == (first_port, last_port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0/33",
        "::/129",
        "1.2.3.4/",
        "1.2.3.4/x",
        "1.2.3.4/-1",
        "1.2.3.4:90-80",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:http",
        "1.2.3.4:80-",
        "1.2.3.4:",
        "1.2.3.4:80:90",
        "1.2.3.256",
        "1.2.3.4.5",
        "01.2.3.4",
        "10",
        "10.1",
        "10./8",
        "[1.2.3.4]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::/32]/32",
        "[2001:db8::1]80",
        "2001:db8:::1",
        "fe80::1%eth0",
        "example..com",
        "-example.com",
        "exa mple.com",
        "example.com\n.org",
        "example.com/129",
        "*.example.com",
        "user@example.com",
        "a" * 64 + ".example",
        "10.0.0.0/8,10.1.0.0/16",
    ],
)
def test_a_bad_target_is_quoted_in_an_error_that_shows_good_ones(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_target(text)
    assert repr(text) in caught.value.message
    assert "10.0.0.0/8" in caught.value.hint
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_file_has_one_target_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "targets"
    file.write_text("# office\n10.0.0.0/8\n\n  example.com:80   # web\n::/0\r\n")
    assert [target.text for target in read_target_file(file)] == [
        "10.0.0.0/8",
        "example.com:80",
        "::/0",
    ]


def test_an_error_in_a_file_names_the_file_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "targets"
    file.write_text("10.0.0.0/8\n10.0.0.0/33\n")
    with pytest.raises(UserError, match=r"targets, line 2: '10\.0\.0\.0/33'"):
        read_target_file(file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_is_missing_or_no_text_is_a_usage_error(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "targets"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_target_file(file)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("10.0.0.0/8,192.168.0.0/16", "comma", "10.0.0.0/8 192.168.0.0/16"),
        ("http://intranet/", "URL", "intranet:80"),
        ("https://user@wiki.corp:8443/a?b", "URL", "wiki.corp:8443"),
        ("https://[fd00::1]/", "URL", "[fd00::1]:443"),
        ("ftp://files", "URL", "files"),
        ("http://", "URL", "example.com"),
    ],
)
def test_common_foreign_spellings_are_answered_with_ours(
    text: str, problem: str, hint: str
) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        parse_target(text)
    assert caught.value.hint.endswith(hint)
    assert text in caught.value.message
