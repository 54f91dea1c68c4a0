"""Captured by iptables, either variant: what a person sees, and that nothing of it is left."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sshunt.lab.world import Lab
from tests.e2e.captures import soon
from tests.e2e.tunnels import OFFICE, SSHUNT, Remains, Tunnel, fetch, kill, running

NAT = ("--method", "nat", "-r", "server", *OFFICE)

#: Somebody else's rules, which stay as they are.
FOREIGN = "*nat\n:others - [0:0]\n-A OUTPUT -j others\n-A others -d 192.0.2.99 -j RETURN\nCOMMIT\n"


@pytest.fixture(scope="module", params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    if shutil.which(f"iptables-{request.param}-restore", path="/usr/sbin:/sbin") is None:
        pytest.skip("this iptables is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def program(variant: str) -> list[str]:
    """sshunt, where the plain name is that variant's."""
    over = "mount --bind /usr/sbin/xtables-{}-multi /usr/sbin/xtables-{}-multi"
    other = "legacy" if variant == "nft" else "nft"
    script = f'set -e; {over.format(variant, other)}; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *SSHUNT]


def saved(lab: Lab, variant: str) -> str:
    """All that this variant has there, as text."""
    said = [
        lab.client.run([f"/usr/sbin/ip{six}tables-{variant}-save", "-t", "nat"]).stdout
        for six in ("", "6")
    ]
    lines = "".join(said).splitlines()  # but for chains of the kernel's own, and when it was
    return "\n".join(line for line in lines if line.startswith("-A") or " - [" in line)


@pytest.fixture
def before(lab: Lab, variant: str) -> Iterator[str]:
    """What somebody else has there, before and after."""
    lab.client.run([f"/usr/sbin/iptables-{variant}-restore", "-w", "5"], stdin=FOREIGN)
    before = saved(lab, variant)
    yield before
    with suppress(AssertionError):
        soon(lambda: saved(lab, variant) == before)
    assert saved(lab, variant) == before
    for six in ("", "6"):
        lab.client.run([f"/usr/sbin/ip{six}tables-{variant}", "-t", "nat", "-F"])
        lab.client.run([f"/usr/sbin/ip{six}tables-{variant}", "-t", "nat", "-X"])


def test_both_families_arrive_and_somebodys_flush_is_made_up_for(
    lab: Lab, program: list[str], variant: str, before: str
) -> None:
    with running(lab, *NAT, program=program) as tunnel:
        assert "captured by iptables: TCP" in tunnel.said
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/")
        lab.client.run([f"/usr/sbin/iptables-{variant}", "-t", "nat", "-F", "OUTPUT"])
        soon(lambda: "putting it right" in tunnel.said, within_s=10)
        # Of both families: it is said before it is done.
        soon(lambda: saved(lab, variant).count("-A OUTPUT -j sshunt-") == 2, within_s=10)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        lab.client.run(
            [f"/usr/sbin/iptables-{variant}-restore", "-w", "5", "--noflush"],
            stdin="*nat\n-A OUTPUT -j others\nCOMMIT\n",
        )


@pytest.mark.parametrize("victims", [("helper",), ("client", "helper")], ids="+".join)
def test_kill_9_leaves_no_rule(
    lab: Lab, program: list[str], variant: str, before: str, victims: tuple[str, ...]
) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["--grace", "0", *NAT], program=program)
    tunnel.wait_until_connected()
    kill([pid for role in victims for pid in tunnel.pids(role)])
    with suppress(AssertionError):
        soon(lambda: saved(lab, variant) == before)
    assert saved(lab, variant) == before
    tunnel.stop()
    assert [line for line in remains.left(within_s=1.0)[1:] if "jump others" not in line] == []


def test_what_was_left_when_all_was_killed_goes_at_the_next_start(
    lab: Lab, program: list[str], variant: str, before: str
) -> None:
    known = set(lab.client.pids())
    tunnel = Tunnel(lab, ["--grace", "0", *NAT], program=program)
    tunnel.wait_until_connected()
    for pid in set(lab.client.pids()) - known:
        os.kill(pid, signal.SIGSTOP)  # or one would see the others go
    kill([*(set(lab.client.pids()) - known)])
    tunnel.process.wait()
    left = saved(lab, variant)
    assert "sshunt-" in left
    if variant == "nft":  # the other way to be rid of it
        said = lab.client.run([*program, "cleanup"]).stdout
        assert "removed: iptables chain sshunt-" in said
        assert saved(lab, variant) == before
    tunnel = Tunnel(lab, NAT, program=program)
    tunnel.wait_until_connected()
    assert not set(re.findall("sshunt-[0-9a-f]+", left)) & set(
        re.findall("sshunt-[0-9a-f]+", saved(lab, variant))
    )
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert tunnel.stop() == 0


def test_a_kernel_without_nf_tables_is_served_by_the_legacy_variant(lab: Lab) -> None:
    if shutil.which("iptables-legacy-restore", path="/usr/sbin:/sbin") is None:
        pytest.skip("this iptables is not installed")
    wrapped = [sys.executable, str(Path(__file__).parent / "without_nf_tables.py"), *SSHUNT]
    with running(lab, "-v", "-r", "server", *OFFICE, program=wrapped) as tunnel:
        assert "this kernel has no nf_tables" in tunnel.said
        assert "-j sshunt-" in saved(lab, "legacy")
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        assert "Hello" in fetch(lab.client, f"http://[{lab.target.v6}]/")
    assert "sshunt-" not in saved(lab, "legacy")
