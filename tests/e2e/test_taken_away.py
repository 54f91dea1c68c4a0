"""Somebody else takes away what sshunt has made: it is noticed within a second and put back.

client ----------------- server ------------- target
 sshunt, and root,        sshd + agent         web server
 who tidies up
"""

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import Tunnel, cgroups_of, fetch

#: What is promised is a second; for a busy machine it may be more.
DEADLINE_S = 4.0

#: An sshunt whose rules the kernel does not own, as before Linux 5.12.
_SERVE_PLAIN = """
import os, socket, sys
sys.path.append({source!r})
from sshunt.helper import server
client = socket.socket(fileno=os.dup(0))
null = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
if os.fork():
    os._exit(0)
os.setsid()
server.serve(client, owner=False)
"""
_PLAIN = """
import sys
from sshunt.host import elevate
elevate._command = lambda: ([sys.executable, "-I", "-S", "-B", "-c", {serve!r}], None)
from sshunt.cli import main
sys.exit(main(sys.argv[1:]))
"""
_SOURCE = str(Path(__file__).parents[2] / "src")
PLAIN = (sys.executable, "-c", _PLAIN.format(serve=_SERVE_PLAIN.format(source=_SOURCE)))


def wait_until(true: Callable[[], object], tunnel: Tunnel) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert tunnel.process.poll() is None, tunnel.said
        assert time.monotonic() < deadline, tunnel.said
        time.sleep(0.02)


def said(tunnel: Tunnel, what: str) -> int:
    return len(re.findall(f"^sshunt: .*{what}", tunnel.said, re.MULTILINE))


def works(lab: Lab) -> bool:
    return "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def rules(lab: Lab) -> str:
    return lab.client.run(["nft", "list", "ruleset"]).stdout


def test_rules_that_a_firewall_s_reload_has_flushed_come_back(lab: Lab, start: Start) -> None:
    tunnel = start("--fail", "block", "-r", "server", OFFICE_V4, program=PLAIN)
    before = rules(lab)
    assert "flags owner" not in before
    assert works(lab)
    for times in (1, 2):
        lab.client.run(["nft", "flush", "ruleset"])
        wait_until(lambda: said(tunnel, "removed or altered") == times, tunnel)  # noqa: B023
        wait_until(lambda: rules(lab).count("chain") == before.count("chain"), tunnel)
        assert works(lab)
    # One rule is enough.
    name = next(line.split()[2] for line in rules(lab).splitlines() if "table" in line)
    lab.client.run(["nft", "flush", "chain", "inet", name, "output"])
    wait_until(lambda: said(tunnel, "removed or altered") == 3, tunnel)
    wait_until(lambda: rules(lab).count("return") == before.count("return"), tunnel)
    assert works(lab)


def test_rules_that_the_kernel_owns_stay_whatever_is_flushed(lab: Lab, start: Start) -> None:
    tunnel = start("--fail", "block", "-r", "server", OFFICE_V4)
    before = rules(lab)
    assert "flags owner" in before
    lab.client.run(["nft", "flush", "ruleset"])
    for kind in ("table", "chain", "return", "reject"):  # elements come and go by themselves
        assert rules(lab).count(kind) == before.count(kind)
    assert works(lab)
    assert said(tunnel, "somebody") == 0


def test_moved_out_of_its_control_group_it_goes_back(lab: Lab, start: Start) -> None:
    # The server is a target, too: but for the group, a new ssh would go into the tunnel.
    tunnel = start("-r", "server", OFFICE_V4, "192.0.2.0/24")
    (group,) = cgroups_of(tunnel)
    for times in (1, 2):
        pids = (group / "cgroup.procs").read_text().split()
        assert str(tunnel.process.pid) in pids
        for pid in pids:
            (group.parent / "cgroup.procs").write_text(pid)
        if times == 2:
            group.rmdir()
        wait_until(lambda: said(tunnel, "out of its control group") == times, tunnel)  # noqa: B023
        wait_until(lambda: cgroups_of(tunnel), tunnel)
        (group,) = cgroups_of(tunnel)
        wait_until(lambda: works(lab), tunnel)
    kill_ssh(tunnel)
    wait_until(lambda: said(tunnel, "connected to server again"), tunnel)
    assert works(lab)


def kill_ssh(tunnel: Tunnel) -> None:
    for pid in tunnel.pids("ssh"):
        os.kill(pid, 9)
