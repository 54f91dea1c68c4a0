"""Ways back to the server that are barred: a dead shared connection, a ban.

client ===== 200 Mbit/s, 4 ms ====== server ------------- target
sshunt, ssh, a shell of the user's   sshd, agent          echo
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.interruptions import Talk, another_address, office, sshds_of
from tests.e2e.tunnels import SSHUNT, Tunnel, kill, running


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with office() as lab:
        yield lab


@contextmanager
def shared_connection(lab: Lab) -> Iterator[tuple["subprocess.Popen[bytes]", list[str]]]:
    """A shell of the user's holds a shared connection to the server; words for sshunt to use it."""
    path = lab.folder / "shared"
    config = lab.folder / "shared-config"
    config.write_text(f"ControlPath {path}\nInclude {lab.ssh_config}\n")
    shell = lab.client.popen(["ssh", "-F", str(config), "-M", "-N", "server"])
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield shell, ["-e", f"ssh -F {config}"]
    finally:
        shell.kill()
        shell.wait()
        path.unlink(missing_ok=True)


@contextmanager
def nothing_gets_through_from(lab: Lab, address: str) -> Iterator[None]:
    """As from another network, where that address is somebody else's."""
    chain = "chain in { type filter hook input priority 0; ip saddr " + address + " drop; };"
    lab.server.run(["nft", "add table inet elsewhere { " + chain + " }"])
    try:
        yield
    finally:
        lab.server.run(["nft", "delete table inet elsewhere"])


def sshs_of(tunnel: Tunnel) -> list[int]:
    """The tunnel's own, not the user's shell."""
    family = psutil.Process(tunnel.process.pid).children(recursive=True)
    return [process.pid for process in family if process.name() == "ssh"]


def test_a_dead_shared_connection_is_bypassed(lab: Lab) -> None:
    with shared_connection(lab) as (shell, words), ExitStack() as stack:
        tunnel = stack.enter_context(running(lab, "-v", *words, "-r", "server", OFFICE_V4))
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        with another_address(lab), nothing_gets_through_from(lab, "192.0.2.1"):
            assert talk.says(b"from elsewhere")
            assert "again after" in tunnel.said
            kill(sshs_of(tunnel))  # now it is the shared connection's turn, and that is dead
            assert talk.says(b"from elsewhere still")
            assert "(ControlPath) does not answer" in tunnel.said
        shell.kill()  # or what was asked of it meanwhile goes on at the server
        assert talk.says(b"and back")
        tunnel.wait_until(lambda: len(sshds_of(lab)) == 2)  # those of one connection


def test_a_shared_connection_that_lives_is_used_again(lab: Lab) -> None:
    with shared_connection(lab) as (_, words), ExitStack() as stack:
        tunnel = stack.enter_context(running(lab, *words, "-r", "server", OFFICE_V4))
        talk = Talk(lab, stack)
        key = lab.account("root").home / ".ssh" / "id_ed25519"
        hidden = key.rename(key.with_suffix(".hidden"))  # a second login would need a person
        try:
            kill(sshs_of(tunnel))
            assert talk.says(b"without a login")
        finally:
            hidden.rename(key)


def test_without_a_group_a_fresh_ssh_is_not_captured_after_a_shared_connection_ended(
    lab: Lab,
) -> None:
    """Our first ssh has no connection of its own by which the next one could be known."""
    weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", *SSHUNT]
    with shared_connection(lab) as (shell, words), ExitStack() as stack:
        words = ["-v", *words, "-r", "server", "0/0"]
        tunnel = stack.enter_context(running(lab, *words, program=weak))
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        shell.kill()
        assert talk.says(b"after")
        assert "again after" in tunnel.said


#: Everything ten times as fast as in real life.
HURRIED = """\
import sys
from sshunt.remote import attempts
from sshunt.remote import upkeep
from sshunt.transport import ssh
for module in (attempts, upkeep):
    for name in ("DENSE_S", "PROBE_EVERY_S", "LONGEST_PAUSE_S", "BAN_S"):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) / 10)
ssh.CONNECT_TIMEOUT_S = 1
from sshunt.cli import main
sys.exit(main())
"""
BAN = """\
table inet ban {
    set seen { type ipv4_addr; flags dynamic, timeout; timeout 6s; }
    set banned { type ipv4_addr; flags dynamic, timeout; timeout 6s; }
    chain in {
        type filter hook input priority 0
        tcp dport 22 tcp flags & (syn | ack) == syn jump connecting
    }
    chain connecting {
        ip saddr @banned update @banned { ip saddr } drop
        update @seen { ip saddr limit rate over 1/second burst 3 packets } jump too_often
    }
    chain too_often {
        add @banned { ip saddr }
        drop
    }
}
"""


def test_a_firewall_ban_renewed_by_every_packet_is_sat_out(lab: Lab) -> None:
    program = [sys.executable, "-c", HURRIED]
    with ExitStack() as stack:
        tunnel = stack.enter_context(running(lab, "-v", "-r", "server", OFFICE_V4, program=program))
        talk = Talk(lab, stack)
        assert talk.says(b"before")
        lab.server.run(["nft", "-f", "-"], stdin=BAN)
        try:
            lab.server.run(["nft", "add element inet ban banned { 192.0.2.1 timeout 6s }"])
            kill(tunnel.pids("ssh"))
            assert talk.says(b"after the ban")
        finally:
            lab.server.run(["nft", "delete table inet ban"])
