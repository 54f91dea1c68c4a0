"""More ssh connections where one is the limit, over an emulated link.

neighbour ------------- client ===== 300 Mbit/s, 80 ms ===== server ------------- target
                        sshunt, 1 to 4 ssh                    sshd, agent         web server

One ssh channel carries 2 MiB per round trip: about 200 Mbit/s of this link.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress

import pytest

from sshunt.lab.link import Shape
from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.transfers import Transfer, without_the_key
from tests.e2e.tunnels import SSHUNT, Remains, Tunnel, fetch, kill, running

LINK = Shape(rate_bit_s=300e6, delay_s=0.040, queue_bytes=3_000_000)

SIZE = 80_000_000

DEADLINE_S = 60

#: sshunt itself, with less patience for idle lanes than a minute.
IMPATIENT = """\
import sys
from sshunt import cli
from sshunt.remote import pool
pool.IDLE_S = 2.0
sys.exit(cli.main())
"""


#: The same with less patience for logins in advance, and where nothing is taken for loss: on a busy
#: machine one lane is enough, too.
HASTY = """\
import sys
from sshunt import cli
from sshunt.remote import demand, pool
pool.EARLY_S, demand.LOSS_STALLS = 2.0, 1000
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(up=LINK, down=LINK, mtu=9000) as lab:
        lab.web(lab.target)
        yield lab


def up(lab: Lab, *words: str, program: Sequence[str] = SSHUNT) -> AbstractContextManager[Tunnel]:
    return running(lab, "-v", "-r", "server", *words, OFFICE_V4, program=program)


def download(lab: Lab) -> Transfer:
    return Transfer(lab, SIZE, down=True, deadline_s=DEADLINE_S)


def test_a_long_fat_download_is_given_more_lanes_and_arrives_whole(lab: Lab) -> None:
    with up(lab) as tunnel:
        assert len(tunnel.pids("ssh")) == 1
        transfer = download(lab)
        tunnel.wait_until(lambda: "lane 3 is up" in tunnel.said)
        assert len(tunnel.pids("ssh")) == 4
        assert transfer.sha256() == payload_sha256(SIZE)


def test_a_long_fat_upload_is_given_more_lanes_and_arrives_whole(lab: Lab) -> None:
    with up(lab) as tunnel:
        assert Transfer(lab, SIZE, down=False, deadline_s=DEADLINE_S).sha256() == payload_sha256(
            SIZE
        )
        assert "lane 1 is up" in tunnel.said


def test_further_lanes_may_die_in_mid_transfer_and_nothing_is_lost_or_doubled(lab: Lab) -> None:
    with up(lab) as tunnel:
        (first,) = tunnel.pids("ssh")
        transfer = download(lab)
        tunnel.wait_until(lambda: tunnel.said.count("is up: ") >= 3)
        time.sleep(0.5)  # all of them carry bulk by now
        assert transfer.runs
        for pid in tunnel.pids("ssh"):
            if pid != first:
                kill([pid])
                time.sleep(0.2)
        assert transfer.sha256() == payload_sha256(SIZE)
        assert tunnel.said.count("ended: ") == 3


def test_lanes_that_carry_no_bulk_are_closed_and_the_tunnel_goes_on(lab: Lab) -> None:
    with up(lab, program=(sys.executable, "-c", IMPATIENT)) as tunnel:
        assert download(lab).sha256() == payload_sha256(SIZE)
        assert "lane 1 is up" in tunnel.said
        tunnel.wait_until(lambda: tunnel.said.count("ended: idle") == 3)
        tunnel.wait_until(lambda: len(tunnel.pids("ssh")) == 1)
        assert len(tunnel.pids("stub")) == 1
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")


def test_logins_in_advance_that_nobody_needs_are_closed_and_not_made_again(lab: Lab) -> None:
    slow = Shape(rate_bit_s=25e6, delay_s=0.040, queue_bytes=500_000)
    lab.link.change(up=slow, down=slow)
    try:
        with up(lab, program=(sys.executable, "-c", HASTY)) as tunnel:
            transfer = Transfer(lab, SIZE // 12, down=True, deadline_s=DEADLINE_S)
            tunnel.wait_until(lambda: len(tunnel.pids("ssh")) == 4)
            assert transfer.sha256() == payload_sha256(SIZE // 12)
            tunnel.wait_until(lambda: "closing those that wait" in tunnel.said)
            tunnel.wait_until(lambda: len(tunnel.pids("ssh")) == len(tunnel.pids("stub")) == 1)
            assert not re.search(r"lane \d+ is up", tunnel.said)
            again = Transfer(lab, SIZE // 12, down=True, deadline_s=DEADLINE_S)
            assert again.sha256() == payload_sha256(SIZE // 12)
            assert tunnel.said.count("closing those that wait") == 1
    finally:
        lab.link.change(up=LINK, down=LINK)


def test_lanes_1_means_one(lab: Lab) -> None:
    with up(lab, "--lanes", "1") as tunnel:
        assert download(lab).sha256() == payload_sha256(SIZE)
        assert len(tunnel.pids("ssh")) == 1


def test_where_a_second_login_is_impossible_channels_are_opened_over_the_first(lab: Lab) -> None:
    with up(lab) as tunnel, without_the_key(lab):
        (first,) = tunnel.pids("ssh")
        transfer = download(lab)
        tunnel.wait_until(lambda: "lane 6 is up" in tunnel.said)
        assert len(tcp_connections_of(lab, tunnel)) == 1
        kill([pid for pid in tunnel.pids("ssh") if pid != first][:1])
        assert transfer.sha256() == payload_sha256(SIZE)
        assert "staying with one" not in tunnel.said


def test_where_neither_login_nor_channel_is_possible_one_lane_stays_and_that_is_said_once(
    lab: Lab,
) -> None:
    with up(lab, "-e", "ssh -o ControlMaster=no", "--lanes", "3") as tunnel, without_the_key(lab):
        assert download(lab).sha256() == payload_sha256(SIZE)
        assert len(tunnel.pids("ssh")) == 1
        assert tunnel.said.count("staying with one ssh connection") == 1


def test_the_tunnel_has_no_files_while_it_runs_and_leaves_none_when_killed(lab: Lab) -> None:
    remains = Remains(lab)
    place = lab.folder / "run"  # /tmp is everybody's, and others may be at work there
    place.mkdir(mode=0o700)
    with suppress(AssertionError):  # it does not end in good order
        program = ("env", f"XDG_RUNTIME_DIR={place}", *SSHUNT)
        with up(lab, "--grace", "0", program=program) as tunnel:
            meanwhile = list(place.iterdir())
            kill([tunnel.process.pid, *tunnel.pids("ssh"), *tunnel.pids("helper")])
    assert remains.left() == []
    assert meanwhile == list(place.iterdir()) == []


def tcp_connections_of(lab: Lab, tunnel: Tunnel) -> list[str]:
    """TCP connections from the client to the ssh server."""
    found = lab.client.run(["ss", "-Htn", "state", "established", "dport", "=", ":22"])
    return found.stdout.splitlines()


def test_the_pacers_statistics_are_shown_with_v(lab: Lab) -> None:
    with up(lab, "--lanes", "1") as tunnel:
        download(lab).sha256()
        line = next(line for line in tunnel.said.splitlines() if "lane 0 down: " in line)
    for word in ("Mbit/s", "RTT", "least", "queue", "in flight", "of", "sparse", "bulk", "control"):
        assert word in line
