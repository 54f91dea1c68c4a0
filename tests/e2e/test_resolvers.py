"""DNS by way of a far side with two resolvers: who is believed, what passes, who starves.

neighbour -------- client ===== 200 Mbit/s, 4 ms ====== server ------------- target
(whom programs     sshunt, dig                          (its resolv.conf     10.55.0.2 knows names,
 believe to ask)                                         has both of them)   fd00:55::2 denies all
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.world import Lab
from tests.e2e.interruptions import office
from tests.e2e.resolvers import laid_over
from tests.e2e.test_names import Dug
from tests.e2e.tunnels import SSHUNT, running

INNER = ["10.55.0.2"]

RESOLVERS = str(Path(__file__).with_name("strange_resolvers.py"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if shutil.which("dig") is None:
        pytest.skip("needs dig")
    with office() as lab:
        lab.target.popen([sys.executable, RESOLVERS, lab.target.v4, lab.target.v6])
        lab.target.wait_for_port(lab.target.v4, 53)
        conf, switch = lab.folder / "home-resolv.conf", lab.folder / "home-nsswitch.conf"
        conf.write_text(f"nameserver {lab.neighbour.v4}\n")
        switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        at_home = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh"]
        with running(lab, "--dns", "-r", "server", "10.55.0.0/24", program=[*at_home, *SSHUNT]):
            yield lab


def dug(lab: Lab, name: str, *words: str) -> Dug:
    return Dug(lab.client, lab.neighbour.v4, *words, name=name)


def test_a_slow_answer_of_the_first_is_believed_and_so_is_the_next(lab: Lab) -> None:
    assert dug(lab, "slow1.corp.example").addresses == INNER
    assert dug(lab, "git.corp.example").addresses == INNER


def test_a_lost_datagram_does_not_make_inner_names_unknown(lab: Lab) -> None:
    assert dug(lab, "lost1.corp.example", "+tries=1").addresses == INNER
    assert dug(lab, "git.corp.example").addresses == INNER


def test_a_zone_transfer_is_whole(lab: Lab) -> None:
    assert len(dug(lab, "corp.example", "AXFR").addresses) == 1000


@pytest.mark.parametrize("by", ["tcp", "udp"])
def test_a_query_of_20_000_bytes_is_answered(lab: Lab, by: str) -> None:
    program = f"""
        import dns.message, dns.query, dns.rrset
        query = dns.message.make_query("a.corp.example.", "TKEY")
        text = " ".join(80 * ['"' + 250 * "x" + '"'])
        query.additional.append(dns.rrset.from_text("a.corp.example.", 0, "IN", "TXT", text))
        answer = dns.query.{by}(query, "{lab.neighbour.v4}", timeout=20)
        assert answer.answer == query.additional
        """
    lab.client.run([sys.executable, "-c", textwrap.dedent(program)], timeout_s=30)


def test_another_user_s_flood_and_silent_connections_starve_nobody(lab: Lab) -> None:
    program = f"""
        import socket, time, dns.message
        silent = []
        for _ in range(200):
            silent.append(socket.create_connection(("{lab.neighbour.v4}", 53)))
        flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flood.connect(("{lab.neighbour.v4}", 53))
        print("flooding", flush=True)
        for number in range(100_000):
            flood.send(dns.message.make_query(f"never{{number}}.corp.example", "A").to_wire())
            time.sleep(0.001)
        """
    attacker = lab.client.popen(
        [sys.executable, "-c", textwrap.dedent(program)], user="ada", stdout=-1
    )
    try:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == b"flooding\n"
        dug(lab, "never.corp.example", "+tries=1", "+time=2")  # the table is full by now
        for number in range(2):
            assert dug(lab, f"git{number}.corp.example", "+tries=1").addresses == INNER
            assert dug(lab, f"slow{number}.corp.example", "+tries=1").addresses == INNER
            assert dug(lab, "git.corp.example", "+tcp", "+tries=1").addresses == INNER
    finally:
        attacker.kill()
        attacker.wait()
