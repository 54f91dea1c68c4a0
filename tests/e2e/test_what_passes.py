"""The table of what passes, cell by cell; docs/what-passes.md shows what was seen here."""

import os
import shutil
from collections.abc import Iterator

import pytest

from sshunt.lab.world import Lab
from tests.e2e import passages
from tests.e2e.passages import FIREWALLS, METHODS, NAME, Cell, cells, not_offered
from tests.e2e.resolvers import laid_over, resolver
from tests.e2e.tunnels import OFFICE, SSHUNT, running

_BEGIN, _END = "<!-- table: begin -->\n\n", "\n<!-- table: end -->"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if shutil.which("dnsmasq") is None or shutil.which("ping") is None:
        pytest.skip("needs dnsmasq and ping")
    with Lab() as lab:
        lab.web(lab.target)
        passages.serve_echo(lab)
        resolver(lab.target, f"--host-record={NAME},{lab.target.v4}")
        resolver(lab.neighbour)
        yield lab


@pytest.fixture(scope="module")
def at_home(lab: Lab) -> list[str]:
    conf, switch = lab.folder / "home-resolv.conf", lab.folder / "home-nsswitch.conf"
    conf.write_text(f"nameserver {lab.neighbour.v4}\n")
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    return ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]


@pytest.fixture(scope="module")
def inside(lab: Lab) -> Iterator[list[str]]:
    with passages.container(lab.client) as enter:
        yield enter


@pytest.fixture(scope="module")
def seen() -> dict[Cell, str]:
    """What this run has seen, from one test to the last one."""
    return {}


@pytest.mark.parametrize("firewall", FIREWALLS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_offered_arrives(
    lab: Lab,
    at_home: list[str],
    inside: list[str],
    seen: dict[Cell, str],
    method: str,
    firewall: str,
) -> None:
    words = ("--dns", "--method", method, "-r", "server", "-l", "0.0.0.0:0,[::]:0", *OFFICE)
    with (
        passages.firewall(lab.client, firewall),
        running(lab, *words, program=[*at_home, *SSHUNT]),
    ):
        arrived = passages.look(lab, inside, at_home)
    found = {
        cell: arrived[cell.origin][cell.traffic]
        for cell in cells(method, firewall)
        if not not_offered(cell)
    }
    seen.update({cell: "passes" if what == "arrived" else what for cell, what in found.items()})
    assert {cell: what for cell, what in found.items() if what != "arrived"} == {}


def test_the_page_shows_what_was_seen(seen: dict[Cell, str]) -> None:
    wanted = {
        cell for method in METHODS for firewall in FIREWALLS for cell in cells(method, firewall)
    }
    if wanted - seen.keys() - {cell for cell in wanted if not_offered(cell)}:
        pytest.skip("only a part of the table was looked at")
    text = passages.PAGE.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    if os.environ.get("WRITE_TABLE"):
        passages.PAGE.write_text(text[:begin] + passages.page(seen) + text[end:])
        return
    assert text[begin:end] == passages.page(seen)
