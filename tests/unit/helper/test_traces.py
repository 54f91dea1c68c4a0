"""What iptables leaves of itself goes, where it was not there before and nobody has use for it."""

import sys
from pathlib import Path

import pytest

import sshunt
from sshunt.helper import traces
from sshunt.lab.hosts import Host

_PROGRAM = """
import subprocess, sys
sys.path.append(sys.argv[1])
from sshunt.helper.traces import Traces
def run(words):
    return subprocess.run(words.split(), check=True, capture_output=True, text=True).stdout
def show(what):
    print(what, *[l.strip(" {\\t") for l in run("nft list ruleset").splitlines() if "{" in l])
traces = Traces()
run("/usr/sbin/iptables-nft -t nat -A OUTPUT -j ACCEPT")
traces.remove()
show("in use:")
run("/usr/sbin/iptables-nft -t nat -F")
show("empty:")
traces.remove()
show("removed:")
run("/usr/sbin/iptables-nft -t nat -A OUTPUT -j ACCEPT")
run("/usr/sbin/iptables-nft -t nat -F")
traces = Traces()
run("/usr/sbin/iptables-nft -t nat -A PREROUTING -j ACCEPT")
run("/usr/sbin/iptables-nft -t nat -F")
traces.remove()
show("was there:")
run("nft delete table ip nat")
"""


def test_an_empty_table_that_was_not_there_is_removed_and_no_other(host: Host) -> None:
    assert traces._TABLE == b"nat\0"
    if not Path("/usr/sbin/iptables-nft").exists():
        pytest.skip("needs iptables, the variant that writes nf_tables")
    source = str(Path(sshunt.__path__[0]).parent)
    said = host.run([sys.executable, "-c", _PROGRAM, source]).stdout.splitlines()
    assert said == [
        "in use: table ip nat chain OUTPUT",
        "empty: table ip nat chain OUTPUT",
        "removed:",
        "was there: table ip nat chain OUTPUT",
    ]
