"""What others do to tables is heard of; what we do ourselves is not."""

import os
import socket
from collections.abc import Iterator

import pytest

from sshunt.helper.changes import delete_table, new_table
from sshunt.helper.netlink import Netlink
from sshunt.helper.ruleset import RulesetNews
from sshunt.lab.hosts import Host

#: The netlink protocol (linux/netlink.h).
NETFILTER = 12

OURS = {"ours", "ours-2"}


@pytest.fixture
def us(host: Host) -> Iterator[Netlink]:
    with host.entered():
        netlink = Netlink(NETFILTER)
    yield netlink
    netlink.close()
    host.run(["nft", "flush", "ruleset"])


@pytest.fixture
def news(host: Host, us: Netlink) -> Iterator[RulesetNews]:
    with host.entered():
        news = RulesetNews(us.port)
    yield news
    news.close()


def test_what_we_change_ourselves_is_no_news(us: Netlink, news: RulesetNews) -> None:
    us.change([new_table("inet", "ours", owner=False)])
    us.change([delete_table("inet", "ours")])
    assert news.touched(OURS) == set()


@pytest.mark.parametrize(
    "what",
    [
        "delete table inet ours",
        "flush ruleset",
        "delete chain inet ours c",
        "flush chain inet ours c",
        "insert rule inet ours c accept",
        "flush set inet ours s",
        "flush table inet ours",
    ],
)
def test_whatever_somebody_else_does_to_a_table_is_heard_of(
    host: Host, us: Netlink, news: RulesetNews, what: str
) -> None:
    host.run(["nft", "add table inet ours; add chain inet ours c; add rule inet ours c drop"])
    host.run(["nft", "add set inet ours s { type ipv4_addr; elements = { 192.0.2.1 } }"])
    news.touched(OURS)
    if what.startswith("delete chain"):
        host.run(["nft", "flush chain inet ours c"])
    host.run(["nft", what])
    assert news.touched(OURS) == {"ours"}
    assert news.touched(OURS) == set()


def test_other_tables_are_not_ours(host: Host, news: RulesetNews) -> None:
    host.run(["nft", "add table inet theirs; add chain inet theirs c; delete table inet theirs"])
    assert news.touched(OURS) == set()


def test_what_is_too_much_to_be_told_counts(host: Host, us: Netlink, news: RulesetNews) -> None:
    with socket.socket(fileno=os.dup(news.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    elements = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(5000))
    a_set = f"inet theirs s {{ type ipv4_addr; elements = {{ {elements} }}; }}"
    host.run(["nft", f"add table inet theirs; add set {a_set}"])
    assert news.touched(OURS) == OURS
    assert news.touched(OURS) == set()
