"""The child that runs iptables: it applies what it is given, and at our end removes ours alone."""

import sys
from pathlib import Path

import pytest

import sshunt
from sshunt.helper import restorer
from sshunt.lab.hosts import Host

#: Makes rules of two sessions, says a bad word, and ends the one: what is there after each step.
_PROGRAM = """
import os, sys
sys.path.append(sys.argv[1])
from sshunt.helper.processes import open_proc
from sshunt.helper.protocol import KernelError
from sshunt.helper.restorer import Restorer
def show(what):
    print(what, *sorted(l for l in one.saved(4).splitlines() if "sshunt-" in l), sep="|")
proc = open_proc()
one, other = Restorer("feedface", proc), Restorer("cafecafe", proc)
show("nothing")
for child, name in ((one, "feedface"), (other, "cafecafe")):
    child.restore(4, f"*nat\\n:sshunt-{name} - [0:0]\\n-A OUTPUT -j sshunt-{name}\\nCOMMIT\\n")
show("two")
try:
    one.restore(4, "*nat\\n-A OUTPUT -j sshunt-nobody\\nCOMMIT\\n")
except KernelError as error:
    print(error.kind.value)
other.end()
show("one")
one.end()
try:
    one.saved(4)
except KernelError as error:
    print(error.kind.value)
"""


def test_it_applies_what_it_is_given_and_removes_its_own_session_at_the_end(host: Host) -> None:
    if not Path(restorer._FOLDERS[0], "iptables-restore").exists():
        pytest.skip("needs iptables")
    source = str(Path(sshunt.__path__[0]).parent)
    said = host.run([sys.executable, "-c", _PROGRAM, source]).stdout.splitlines()
    assert said == [
        "nothing",
        "two|-A OUTPUT -j sshunt-cafecafe|-A OUTPUT -j sshunt-feedface"
        "|:sshunt-cafecafe - [0:0]|:sshunt-feedface - [0:0]",
        "iptables",
        "one|-A OUTPUT -j sshunt-feedface|:sshunt-feedface - [0:0]",
        "iptables",
    ]


#: Has rules, and ends while somebody else holds the lock for longer than any program waits for it.
_LOCKED = """
import fcntl, subprocess, sys, time
sys.path.append(sys.argv[1])
from sshunt.helper import restorer
from sshunt.helper.processes import open_proc
restorer._VARIANTS, restorer._LOCK_S = ("-legacy",), "1"
one = restorer.Restorer("feedface", open_proc())
one.restore(4, "*nat\\n:sshunt-feedface - [0:0]\\n-A OUTPUT -j sshunt-feedface\\nCOMMIT\\n")
holder = subprocess.Popen(["flock", "/run/xtables.lock", "sleep", "3"])
time.sleep(0.3)
one.end()
print(holder.poll(), subprocess.run(["iptables-legacy-save"], capture_output=True).stdout)
"""


def test_somebody_elses_lock_delays_the_removal_and_prevents_it_not(host: Host) -> None:
    if not Path(restorer._FOLDERS[0], "iptables-legacy-restore").exists():
        pytest.skip("needs iptables' legacy variant")
    source = str(Path(sshunt.__path__[0]).parent)
    said = host.run([sys.executable, "-c", _LOCKED, source]).stdout
    assert said.startswith("0 b'"), "it has waited for the lock"
    assert "sshunt-" not in said
