"""Which of the kernel's messages are news, and how often somebody is told.

Messages are made here as the kernel makes them (rtnetlink(7)); they reach the reader through a
socket of ours, where one datagram is one, as it is with netlink.
"""

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.host.network import (
    ADDRESS,
    COALESCE_S,
    LEAST_SLEEP_S,
    LINK,
    REMEMBERED,
    ROUTE,
    SLEPT,
    KnownNetwork,
    NetworkEvents,
    subscribe,
)

DONE, NEWNEIGH = 3, 28
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
UP, LOOPBACK, RUNNING, PROMISC = 0x1, 0x8, 0x40, 0x100
PERMANENT, TENTATIVE = 0x80, 0x40
CLONED = 0x200
LO, ETH, WLAN = 1, 2, 3


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + padded(body)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + padded(value)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def link(kind: int, index: int, flags: int) -> bytes:
    head = struct.pack("=BxHiII", socket.AF_UNSPEC, 1, index, flags, 0)
    return message(kind, head + attribute(3, b"wlp0s20\0"))


def address(kind: int, index: int, ip: str, flags: int = PERMANENT) -> bytes:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    head = struct.pack("=BBBBI", family, 24, flags, 0, index)
    attributes = attribute(1, socket.inet_pton(family, ip))
    if family == socket.AF_INET:
        attributes += attribute(2, socket.inet_pton(family, ip))
    return message(kind, head + attributes)


def route(kind: int, index: int, flags: int = 0) -> bytes:
    head = struct.pack("=BBBBBBBBI", socket.AF_INET6, 64, 0, 0, 254, 3, 0, 1, flags)
    return message(kind, head + attribute(1, bytes(16)) + attribute(4, struct.pack("=i", index)))


def told(*datagrams: bytes) -> list[str]:
    """What the last of these says that is new after the others."""
    known = KnownNetwork()
    for datagram in datagrams[:-1]:
        list(known.learn(datagram))
    return list(known.learn(datagrams[-1]))


# --- what is news ------------------------------------------------------------------------------

WLAN_UP = link(NEWLINK, WLAN, UP | RUNNING)
IPV4 = address(NEWADDR, ETH, "192.0.2.1")
IPV6 = address(NEWADDR, ETH, "2001:db8::1", TENTATIVE)


@pytest.mark.parametrize(
    ("datagrams", "expected"),
    [
        pytest.param([WLAN_UP], [LINK], id="a first message about a link"),
        pytest.param([WLAN_UP, WLAN_UP], [], id="the same again"),
        pytest.param([WLAN_UP, link(NEWLINK, WLAN, UP | RUNNING | PROMISC)], [], id="tcpdump"),
        pytest.param([WLAN_UP, link(NEWLINK, WLAN, UP)], [LINK], id="no carrier"),
        pytest.param([WLAN_UP, link(NEWLINK, WLAN, 0)], [LINK], id="set down"),
        pytest.param([WLAN_UP, link(NEWLINK, ETH, UP | RUNNING)], [LINK], id="another link"),
        pytest.param([WLAN_UP, link(DELLINK, WLAN, 0)], [LINK], id="a link has gone"),
        pytest.param([WLAN_UP, link(DELLINK, WLAN, 0), WLAN_UP], [LINK], id="a link is back"),
        pytest.param([link(NEWLINK, LO, UP | RUNNING | LOOPBACK)], [], id="loopback link"),
        pytest.param([IPV4], [ADDRESS], id="an address"),
        pytest.param([IPV4, IPV4], [], id="its lease is renewed"),
        pytest.param([IPV4, address(NEWADDR, ETH, "192.0.2.9")], [ADDRESS], id="another address"),
        pytest.param([IPV4, address(NEWADDR, WLAN, "192.0.2.1")], [ADDRESS], id="on another link"),
        pytest.param([IPV4, address(DELADDR, ETH, "192.0.2.1")], [ADDRESS], id="it has gone"),
        pytest.param([IPV4, address(DELADDR, ETH, "192.0.2.1"), IPV4], [ADDRESS], id="it is back"),
        pytest.param([IPV6, IPV6], [], id="a router advertises again"),
        pytest.param(
            [IPV6, address(NEWADDR, ETH, "2001:db8::1", 0)], [ADDRESS], id="no longer tentative"
        ),
        pytest.param([address(NEWADDR, LO, "10.0.0.1")], [], id="loopback address"),
        pytest.param([address(DELADDR, LO, "10.0.0.1")], [], id="loopback address gone"),
        pytest.param([route(NEWROUTE, ETH)], [ROUTE], id="a route"),
        pytest.param([route(DELROUTE, ETH)], [ROUTE], id="a route has gone"),
        pytest.param([route(NEWROUTE, ETH), route(NEWROUTE, ETH)], [ROUTE], id="a route again"),
        pytest.param([route(NEWROUTE, LO)], [], id="loopback route"),
        pytest.param([route(NEWROUTE, ETH, CLONED)], [], id="route cache"),
        pytest.param([route(DELROUTE, ETH, CLONED)], [], id="route cache, gone"),
        pytest.param([message(NEWNEIGH, bytes(12)), message(DONE, b"")], [], id="other messages"),
        pytest.param([IPV4 + route(NEWROUTE, ETH)], [ADDRESS, ROUTE], id="two in a datagram"),
        pytest.param([message(DONE, b"odd") + IPV4], [ADDRESS], id="after an unaligned one"),
        pytest.param([WLAN_UP[:32]], [LINK], id="the attributes are cut off"),
        pytest.param([WLAN_UP[:31]], [], id="the head is cut off"),
    ],
)
def test_only_what_is_new_is_a_change(datagrams: list[bytes], expected: list[str]) -> None:
    assert told(*datagrams) == expected


KINDS = st.sampled_from([NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, DONE])
ATTRIBUTES = st.lists(st.builds(attribute, st.integers(0, 5), st.binary(max_size=20)))
PLAUSIBLE = st.builds(
    message, KINDS, st.builds(lambda head, rest: head + b"".join(rest), st.binary(), ATTRIBUTES)
)


@given(st.lists(st.one_of(st.binary(), PLAUSIBLE)), st.integers(min_value=0))
def test_any_bytes_are_changes_or_nothing(pieces: list[bytes], end: int) -> None:
    data = b"".join(pieces)
    assert set(told(data[: end % (len(data) + 1)])) <= {LINK, ADDRESS, ROUTE}


def test_a_length_of_nothing_ends_the_datagram() -> None:
    assert told(bytes(64) + IPV4) == []
    assert told(message(NEWROUTE, struct.pack("=8xI", 0) + bytes(64))) == [ROUTE]


def test_what_is_remembered_is_bounded() -> None:
    known = KnownNetwork()
    for index in range(3 * REMEMBERED):
        assert list(known.learn(link(NEWLINK, index, UP))) == [LINK]
        assert len(known) <= REMEMBERED


# --- who is told, and how often ----------------------------------------------------------------


class Story:
    """An event loop that turns when the test says so, and the kernel's end of the socket."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.kernel, self.netlink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.netlink.setblocking(False)
        self.slept_s = 0.0
        self.told: list[tuple[str, float]] = []
        self.events = self.listen_by(lambda: self.netlink)

    def listen_by(self, subscribe: Callable[[], socket.socket]) -> NetworkEvents:
        return NetworkEvents(
            self.loop, self.note, subscribe=subscribe, asleep_s=lambda: self.slept_s
        )

    def listen_anew_by(self, subscribe: Callable[[], socket.socket]) -> None:
        self.events.close()
        self.events = self.listen_by(subscribe)

    def note(self, change: str) -> None:
        self.told.append((change, time.monotonic()))

    def turn(self, seconds: float = 0.0) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @property
    def words(self) -> list[str]:
        return [word for word, _ in self.told]

    def close(self) -> None:
        self.events.close()
        self.kernel.close()
        self.loop.close()


@pytest.fixture
def story() -> Iterator[Story]:
    story = Story()
    yield story
    story.close()


def refuse() -> socket.socket:
    raise OSError(errno.EAFNOSUPPORT, "no netlink here")


LONG_ENOUGH_S = COALESCE_S + 0.1


def test_a_burst_is_told_once_as_what_says_most(story: Story) -> None:
    for datagram in (route(NEWROUTE, ETH), IPV6, WLAN_UP, IPV4, route(DELROUTE, ETH)):
        story.kernel.send(datagram)
    story.turn(LONG_ENOUGH_S)
    assert story.words == [LINK]


def test_a_burst_is_read_to_its_end_however_long(story: Story) -> None:
    for _ in range(150):
        story.kernel.send(route(NEWROUTE, ETH))
    story.kernel.send(WLAN_UP)
    story.turn(LONG_ENOUGH_S)
    assert story.words == [LINK]


def test_endless_changes_are_reported_now_and_then_and_their_end_always(story: Story) -> None:
    end = time.monotonic() + 3.5 * COALESCE_S
    while time.monotonic() < end:
        story.kernel.send(route(NEWROUTE, ETH))
        story.turn(0.01)
        last = time.monotonic()
    story.turn(LONG_ENOUGH_S)
    times = [at for _, at in story.told]
    assert 2 <= len(times) <= 5
    assert times[-1] > last - 0.01
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert min(gaps) > COALESCE_S - 0.02  # an event loop's clock is a little coarse


def test_an_old_change_is_not_reported(story: Story) -> None:
    story.kernel.send(WLAN_UP)
    story.turn(LONG_ENOUGH_S)
    story.kernel.send(WLAN_UP)
    story.kernel.send(b"\xff" * 100)
    story.turn(LONG_ENOUGH_S)
    assert story.words == [LINK]


def test_after_closing_nobody_is_told(story: Story) -> None:
    story.kernel.send(WLAN_UP)
    story.turn(0.01)
    story.events.close()
    story.events.close()
    story.slept_s = 100.0
    story.events.check_clock()
    story.turn(LONG_ENOUGH_S)
    assert story.words == []


def test_the_callback_may_close_the_subscription() -> None:
    told: list[str] = []

    async def run() -> None:
        kernel, netlink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        netlink.setblocking(False)

        def note(change: str) -> None:
            told.append(change)
            events.close()

        events = NetworkEvents(asyncio.get_running_loop(), note, subscribe=lambda: netlink)
        with kernel:
            kernel.send(WLAN_UP)
            await asyncio.sleep(LONG_ENOUGH_S)
        assert netlink.fileno() == -1

    asyncio.run(run())
    assert told == [LINK]


def test_sleep_is_told_if_it_was_long_enough_since_the_last_look(story: Story) -> None:
    for slept_s in (0.0, LEAST_SLEEP_S - 0.1, 2 * LEAST_SLEEP_S - 0.2):
        story.slept_s = slept_s
        story.events.check_clock()
        story.turn(LONG_ENOUGH_S)
        assert story.words == []
    story.slept_s += LEAST_SLEEP_S + 0.1
    story.kernel.send(WLAN_UP)
    story.events.check_clock()
    story.events.check_clock()
    story.turn(LONG_ENOUGH_S)
    assert story.words == [SLEPT]


def test_sleep_before_the_start_does_not_count(story: Story) -> None:
    story.slept_s = 1000.0
    story.listen_anew_by(refuse)
    story.events.check_clock()
    story.turn(LONG_ENOUGH_S)
    assert story.words == []


# --- doing without -----------------------------------------------------------------------------


def test_without_a_socket_sleep_is_told_all_the_same(story: Story) -> None:
    story.listen_anew_by(refuse)
    story.slept_s = 10.0
    story.events.check_clock()
    story.turn(LONG_ENOUGH_S)
    assert story.words == [SLEPT]


def test_a_socket_that_has_ended_is_not_read_again(story: Story) -> None:
    story.kernel.send(WLAN_UP)
    story.kernel.close()
    story.turn(LONG_ENOUGH_S)
    assert story.words == [LINK]
    assert story.netlink.fileno() == -1


def test_a_socket_that_only_fails_is_not_read_again(story: Story) -> None:
    # Reading from a socket that listens is ENOTCONN, again and again.
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    story.listen_anew_by(lambda: listener)
    with socket.create_connection(listener.getsockname()):
        story.turn(0.01)
    assert listener.fileno() == -1
    assert story.words == []


def test_the_kernel_lets_anybody_subscribe() -> None:
    with subscribe() as netlink:
        assert netlink.family == socket.AF_NETLINK
        assert not netlink.getblocking()
        groups = netlink.getsockname()[1]
        assert groups == 0x1 | 0x10 | 0x40 | 0x100 | 0x400
