"""Whom a host's programs ask, as root reads it below a root folder."""

import os
from pathlib import Path

import pytest

from sshunt.helper.resolvers import HostResolvers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "run/systemd/resolve").mkdir(parents=True)
    return tmp_path


def asked(root: Path) -> frozenset[str]:
    return HostResolvers(str(root)).addresses()


def test_the_resolvers_of_both_files_are_asked_here(root: Path) -> None:
    text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 127.0.0.53\nnameserver fe80::1%eth0 x\n"
    (root / "etc/resolv.conf").write_text(text)
    (root / "run/systemd/resolve/resolv.conf").write_text("nameserver 192.0.2.1\nnameserver me\n")
    assert asked(root) == {"127.0.0.53", "fe80::1", "192.0.2.1"}


def test_without_a_resolv_conf_the_resolver_is_this_host(root: Path) -> None:
    assert asked(root) == {"127.0.0.1"}
    (root / "etc/resolv.conf").mkdir()
    assert asked(root) == {"127.0.0.1"}


@pytest.mark.parametrize("link", ["../run/r.conf", "/run/r.conf", "/etc/../run/r.conf", "again"])
def test_links_are_followed_from_that_root(root: Path, link: str) -> None:
    (root / "run/r.conf").write_text("nameserver 192.0.2.1\n")
    (root / "etc/again").symlink_to("/run/r.conf")
    (root / "etc/resolv.conf").symlink_to(link)
    assert asked(root) == {"192.0.2.1"}


def test_links_of_folders_are_followed_from_that_root(root: Path) -> None:
    (root / "run/resolvconf").mkdir()
    (root / "run/resolvconf/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (root / "etc/resolvconf").mkdir()
    (root / "etc/resolvconf/run").symlink_to("/run/resolvconf")  # as Debian's resolvconf has it
    (root / "etc/resolv.conf").symlink_to("resolvconf/run/resolv.conf")
    assert asked(root) == {"192.0.2.1"}


@pytest.mark.parametrize("what", ["a loop", "a pipe", "a long file"])
def test_no_kind_of_file_in_its_place_blocks_the_reading(root: Path, what: str) -> None:
    conf = root / "etc/resolv.conf"
    if what == "a loop":
        conf.symlink_to("resolv.conf")
    elif what == "a pipe":
        os.mkfifo(conf)
    else:
        conf.write_text("nameserver 192.0.2.1\n" + "#" * 10_000_000 + "\nnameserver 9.9.9.9\n")
    assert asked(root) == {"192.0.2.1" if what == "a long file" else "127.0.0.1"}
