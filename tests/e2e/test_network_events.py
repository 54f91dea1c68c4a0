"""A process in a host of the lab is told what changes there, at once, and nothing else.

client          runs the process, as an ordinary user
  to-server     is given addresses and routes
  one -- two    a cable of its own, to be unplugged
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sshunt.host.network import ADDRESS, LINK, ROUTE
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab

#: The promise.
AT_ONCE_S = 1.0

#: The kernel looks at carriers once a second. After that IPv6 addresses are tentative for up to two
#: (RFC 4862: a delay of up to a second, then one to wait for an answer).
CARRIER_S, TENTATIVE_S = 1.2, 2.5
SETTLE_DEADLINE_S = 15.0

PROGRAM = """\
import asyncio
from sshunt.host.network import NetworkEvents

async def main():
    events = NetworkEvents(asyncio.get_running_loop(), lambda change: print(change, flush=True))
    print("listening", flush=True)
    while True:
        await asyncio.sleep(0.1)
        events.check_clock()

asyncio.run(main())
"""


class Ear:
    """The process, and what it says."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process = host.popen(
            [sys.executable, "-c", PROGRAM], user="ben", stdout=subprocess.PIPE
        )
        assert self.hears("listening", within_s=10.0)

    def ip(self, *commands: str) -> None:
        self.host.run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")

    def words(self, within_s: float) -> Iterator[str]:
        """All that is said from now on."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        deadline = time.monotonic() + within_s
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            said = os.read(pipe, 65536)
            assert said, "the process has ended"
            yield from said.decode().splitlines()  # lines are written whole

    def hears(self, word: str, *, within_s: float = AT_ONCE_S) -> bool:
        return word in self.words(within_s)

    def settle(self, quiet_s: float = CARRIER_S) -> None:
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        while list(self.words(quiet_s)):
            assert time.monotonic() < deadline, "it is never quiet"


@pytest.fixture(scope="module")
def ear(lab: Lab) -> Ear:
    lab.client.run(["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"])
    for end in ("one", "two"):
        lab.client.run(["ip", "link", "set", end, "addrgenmode", "none", "up"])
    ear = Ear(lab.client)
    ear.settle(TENTATIVE_S)
    return ear


def test_nothing_is_told_while_nothing_happens(ear: Ear) -> None:
    assert list(ear.words(1.0)) == []


def test_nothing_is_told_of_the_loopback_interface(ear: Ear) -> None:
    ear.ip(
        "address add 10.99.0.1/32 dev lo",
        "address add fd00:99::1/128 dev lo",
        "route add local 10.98.0.0/24 dev lo table 98",
        "route add local fd00:98::/64 dev lo table 98",
        "address delete 10.99.0.1/32 dev lo",
        "address delete fd00:99::1/128 dev lo",
    )
    assert list(ear.words(0.5)) == []


@pytest.mark.parametrize(
    ("thing", "word"),
    [
        ("address {} 192.0.2.77/32 dev to-server", ADDRESS),
        ("address {} 2001:db8:1::77/64 dev to-server nodad", ADDRESS),
        ("route {} 10.97.0.0/24 via 192.0.2.2", ROUTE),
        ("route {} fd00:97::/64 via 2001:db8:1::2", ROUTE),
    ],
)
@pytest.mark.parametrize("verb", ["add", "delete"])
def test_each_change_is_reported_once(ear: Ear, thing: str, verb: str, word: str) -> None:
    ear.ip(thing.format(verb))
    assert list(ear.words(0.5)) == [word]


def test_links_and_their_carriers_are_told(ear: Ear) -> None:
    for command in ("one down", "one up", "two down", "two up"):
        ear.ip(f"link set {command}")
        assert ear.hears(LINK), command
        ear.settle()


def test_a_link_that_is_changed_but_neither_up_nor_down_is_not_told(ear: Ear) -> None:
    ear.ip("link set one mtu 1400", "link set one alias x", "link set one promisc on")
    assert list(ear.words(0.5)) == []


def test_after_a_lost_burst_of_news_what_was_remembered_is_forgotten(ear: Ear) -> None:
    address = "192.0.2.78/32 dev to-server"
    routes = [f"route add 10.96.{number}.0/24 dev to-server" for number in range(250)]
    routes += [route.replace("add", "delete") for route in routes]
    os.kill(ear.process.pid, signal.SIGSTOP)
    ear.ip(f"address add {address}", *routes, f"address delete {address}")  # the end gets lost
    os.kill(ear.process.pid, signal.SIGCONT)
    assert list(ear.words(0.5)) == [ADDRESS]
    ear.ip(f"address add {address}")
    assert list(ear.words(0.5)) == [ADDRESS]
