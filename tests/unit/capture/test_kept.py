"""The rules around kept addresses, and that the real nft takes them."""

import os
import shutil
import subprocess

import pytest

from sshunt.capture.kept import render_kept

_SESSION = "0123456789abcdef"


def nft(commands: str) -> str:
    """What nft says of a network namespace of its own with these commands carried out."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        pytest.skip("needs root and nft")
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", "nft -f - && nft list ruleset"],
        input=commands,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_each_family_has_its_own_tables() -> None:
    first = render_kept(_SESSION, ["2001:db8::1"], owner=False)
    assert nft(first).count("2001:db8::1") == 1
    assert "table ip " not in first
    assert "table arp " not in first
    assert "2001" not in render_kept(_SESSION, ["192.0.2.1"], owner=False)


def test_a_change_takes_the_place_of_what_was_there() -> None:
    first = render_kept(_SESSION, ["192.0.2.1"], owner=False)
    second = render_kept(_SESSION, ["192.0.2.3", "192.0.2.2"], owner=False, instead=["arp", "ip"])
    shown = nft(first + second)
    assert shown.count("192.0.2.2") == shown.count("192.0.2.3") == 2
    assert "192.0.2.1" not in shown


def test_none_leaves_nothing() -> None:
    first = render_kept(_SESSION, ["192.0.2.1"], owner=False)
    assert nft(first + render_kept(_SESSION, [], owner=False, instead=["ip", "arp"])) == ""


def test_what_the_kernel_owns_does_not_expire_and_what_it_does_not_own_does() -> None:
    assert "timeout" not in render_kept(_SESSION, ["192.0.2.1"], owner=True)
    assert nft(render_kept(_SESSION, ["192.0.2.1"], owner=False)).count("expires") == 2
