"""Children that end with their parent."""

import os
import subprocess
import sys

from sshunt.lab.hosts import is_alive
from tests.agent.far_side import eventually

#: A parent that says who its child is, and is killed.
KILLED = """\
import os, signal, time
from sshunt.host.parent import tie
tied = tie()
child = os.fork()
if child == 0:
    os.write(1, b"%d %d" % (tied(), os.getpid()))
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""

#: A parent that ends before its child asks to end with it.
GONE = """\
import os, time
from sshunt.host.parent import tie
tied = tie()
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
os.write(1, b"%d" % tied())
os._exit(0)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        tied, child = os.read(parent.stdout.fileno(), 100).split()
        assert tied == b"1"
        parent.kill()
    eventually(lambda: not is_alive(int(child)), "the child's end")


def test_a_child_learns_that_its_parent_was_gone_before() -> None:
    done = subprocess.run([sys.executable, "-c", GONE], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"0"
