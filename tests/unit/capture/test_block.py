"""The kill switch as nftables text: compared with a golden file, and accepted by the real nft."""

import os
import shutil
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.block import (
    BlockName,
    block_name,
    block_peers,
    let_out,
    read_block_name,
    render_block,
)
from sshunt.capture.nft import Cgroup, as_commands
from sshunt.capture.plan import MAX_REGIONS, Plan, redirects
from sshunt.model import Action, Route

_GOLDEN = Path(__file__).parents[2] / "golden" / "block.nft"
_SESSION = "0123456789abcdef"
_CGROUP = Cgroup(f"user.slice/sshunt-{_SESSION}", 2)
_UID = 1000

_PLAN = Plan(
    _SESSION,
    redirects([("127.0.0.1", 12300)]),
    (
        Route(ip_network("10.0.0.0/8"), Action.REMOTE),
        Route(ip_network("10.9.0.0/16"), Action.DIRECT),
        Route(ip_network("192.0.2.0/24"), Action.REMOTE, 8000, 9000),
        Route(ip_network("2001:db8::/32"), Action.REMOTE),
    ),
    bypass=(("203.0.113.7", 22), ("2001:db8:3::7", 2222), ("192.0.2.53", 53)),
    blocks=True,
)


def test_what_is_rendered_is_what_was_read_and_approved() -> None:
    text = render_block(_PLAN, _UID, _CGROUP, persists=True)
    if os.environ.get("SSHUNT_GOLDEN") == "write":
        _GOLDEN.write_text(text)
    assert text == _GOLDEN.read_text()


@pytest.mark.parametrize("cgroup", [None, _CGROUP])
def test_nft_takes_it_as_commands(cgroup: Cgroup | None) -> None:
    if os.geteuid() or not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("needs root, nft and unshare")
    text = render_block(_PLAN, _UID, None, persists=False)
    name = str(block_name(_PLAN, _UID))
    commands = f"add table inet {name}\n" + as_commands(text)
    if cgroup is not None:
        # Which the kernel looks up by its path: the root of a hierarchy is there wherever one is.
        text = render_block(_PLAN, _UID, cgroup, persists=False)
        assert f'level 2 "{cgroup.path}" accept' in text
        assert let_out(name, cgroup).startswith(f"add chain inet {name} ours {{\n")
    done = subprocess.run(
        ["unshare", "-n", "nft", "-f", "-"],
        input=commands,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_flags_are_only_for_who_reads_it() -> None:
    text = render_block(_PLAN, _UID, None, persists=True)
    assert "flags owner,persist;" in text
    assert "persist" not in as_commands(text)
    assert "persist" not in render_block(_PLAN, _UID, None, persists=False)


def test_a_family_without_a_listener_is_blocked_all_the_same() -> None:
    text = render_block(_PLAN, _UID, None, persists=False)
    assert _PLAN.listener(6) is None
    assert "elements = { 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff }" in text


def test_the_name_says_whose_it_is_and_what_it_blocks() -> None:
    name = block_name(_PLAN, _UID)
    assert (name.session, name.uid) == (_SESSION, _UID)
    assert read_block_name(str(name)) == name
    other = replace(_PLAN, session="fedcba9876543210", bypass=(), redirects=())
    assert block_name(other, _UID).digest == name.digest
    fewer = replace(_PLAN, routes=_PLAN.routes[1:])
    assert block_name(fewer, _UID).digest != name.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"sshunt-{_SESSION}",
        f"sshunt-block-{_SESSION}",
        f"sshunt-block-{_SESSION}-1000-0123456",
        f"sshunt-block-{_SESSION}-1000-01234567\n",
        f"sshunt-block-{_SESSION}--1-01234567",
    ],
)
def test_another_name_is_none_of_ours(text: str) -> None:
    assert read_block_name(text) is None


def test_a_name_is_read_as_it_was_written() -> None:
    assert read_block_name("sshunt-block-01234567-0-89abcdef") == BlockName(
        "01234567", 0, "89abcdef"
    )


def test_resolvers_are_no_peers_where_queries_are_captured() -> None:
    queries = redirects([("127.0.0.1", 12300)], [("127.0.0.1", 12353)])
    with_dns = replace(_PLAN, redirects=queries, resolvers=("192.0.2.53",))
    for plan, spared in ((_PLAN, [("192.0.2.53", 53)]), (with_dns, [])):
        names = {
            name: [(str(address), port) for address, port in peers]
            for name, peers in block_peers(plan).items()
        }
        assert names == {
            "bypass4": [*spared, ("203.0.113.7", 22)],
            "bypass6": [("2001:db8:3::7", 2222)],
        }


def test_a_cgroup_that_cannot_be_written_is_an_error() -> None:
    bad = Cgroup('x" accept', 1)
    with pytest.raises(ValueError, match="cgroup"):
        render_block(_PLAN, _UID, bad, persists=False)
    with pytest.raises(ValueError, match="cgroup"):
        let_out("sshunt-x", bad)


def test_too_many_pieces_are_an_error() -> None:
    routes = [
        Route(ip_network((n << 9, 24)), Action.REMOTE, 1 + n % 7) for n in range(MAX_REGIONS + 1)
    ]
    with pytest.raises(ValueError, match="too many pieces"):
        block_name(replace(_PLAN, routes=tuple(routes)), _UID)
