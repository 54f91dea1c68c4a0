"""A captured connection lives on when this host loses the address that the connection has.

    client ------------------------------------------------------- server
     to-server: 192.0.2.1, 2001:db8:1::1, then ...:77               203.0.113.7, 2001:db8:3::7
     a program's connection, our listener, rules and helper

Both ends of the captured connection are in the test's hands.
"""

import errno
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from sshunt.lab.hosts import Host, family_of
from sshunt.lab.world import ELSEWHERE_V4, ELSEWHERE_V6, Lab
from tests.e2e.captures import (
    Capture,
    Start,
    beside_what_crashes_libnftables,
    captures,
    devices,
    soon,
)

#: Long enough to see that nothing comes. TCP sends again after 0.2, 0.6, 1.4 ... seconds.
FROZEN_S = 0.5

#: So the next try comes within a second; the rest is for a busy machine.
RESUMED_S = 3.0


class Family(NamedTuple):
    """Where a laptop is before and after it has moved, and what it talks to."""

    before: str
    bits: int
    after: str
    router: str
    loopback: str
    captured: str
    elsewhere: str

    @property
    def route(self) -> list[object]:
        return [self.captured, "remote", 0, 65535]


FAMILIES = {
    4: Family("192.0.2.1", 24, "192.0.2.77", "192.0.2.2", "127.0.0.1", "10.9.8.7", ELSEWHERE_V4),
    6: Family(
        *("2001:db8:1::1", 64, "2001:db8:1::77", "2001:db8:1::2", "::1", "fd00::9", ELSEWHERE_V6)
    ),
}


class Captured(NamedTuple):
    """A captured connection, seen from both of its ends."""

    program: socket.socket
    ours: socket.socket

    def send(self) -> None:
        self.program.sendall(b"question")
        self.ours.sendall(b"answer")

    def arrives(self, within_s: float) -> bool:
        """Whether what was sent from both ends comes."""
        deadline = time.monotonic() + within_s
        for end, expected in ((self.ours, b"question"), (self.program, b"answer")):
            if not select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            assert end.recv(100) == expected
        return True


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


#: Addresses that the client has while a helper starts, and not any more when a test begins.
HAD = (
    *("192.0.2.200/32", "192.0.2.201/32", "192.0.2.202/32"),
    *("2001:db8:1::200/128", "2001:db8:1::201/128"),
)


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    def start_one(*options: str, **keywords: Any) -> Capture:
        ip(lab.client, *(f"address add {address} dev lo nodad" for address in HAD))
        capture: Capture = start(*options, **keywords)
        ip(lab.client, *(f"address delete {address} dev lo" for address in HAD))
        return capture

    with captures(lab) as start:
        yield start_one


@pytest.fixture
def capture(start: Start) -> Capture:
    return start()


@pytest.fixture
def connection(lab: Lab, capture: Capture, family: Family) -> Iterator[Captured]:
    """A captured connection from the address before the move."""
    with lab.client.listen(family.loopback) as listener:
        endpoint = listener.getsockname()[:2]
        listen4, listen6 = (endpoint, None) if "." in family.loopback else (None, endpoint)
        capture.apply([family.route], listen4=listen4, listen6=listen6)
        with lab.client.connect(family.captured, 7) as program, listener.accept()[0] as ours:
            assert program.getsockname()[0] == family.before
            yield Captured(program, ours)


@pytest.fixture
def move(lab: Lab, family: Family) -> Iterator[Callable[[str, str], None]]:
    """Gives the client another address; it has that of before again at the end.

    The new one is all of its network, so the old one is not of the same network.
    """
    before = f"{family.before}/{family.bits}"

    def move(old: str, new: str) -> None:
        old, new = (before if address == family.before else address for address in (old, new))
        ip(
            lab.client,
            f"address delete {old} dev to-server",
            f"address add {new} dev to-server nodad",
            f"route replace default via {family.router} dev to-server onlink",
        )

    yield move
    if before not in lab.client.run(["ip", "address"]).stdout:
        move(family.after, family.before)


def ip(host: Host, *commands: str) -> None:
    host.run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")


def kept(lab: Lab) -> list[str]:
    """The addresses that are local by routes of helpers, sorted."""
    commands = [["ip", family, "route", "show", "table", "local"] for family in ("-4", "-6")]
    lines = "".join(lab.client.run(command).stdout for command in commands).splitlines()
    return sorted(line.split()[1] for line in lines if re.match("local .* dev sshunt", line))


def source(host: Host, destination: str) -> str:
    """Which address a new connection of this host would have."""
    with host.make_socket(family_of(destination), socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))
        address: str = probe.getsockname()[0]
        return address


Move = Callable[[str, str], None]


def test_a_connection_stands_still_without_its_address_and_goes_on_when_it_is_kept(
    capture: Capture, connection: Captured, family: Family, move: Move
) -> None:
    move(family.before, family.after)
    connection.send()
    assert not connection.arrives(FROZEN_S)
    capture.ask("keep", [family.before])
    if family is FAMILIES[6]:  # only the way back stood still
        assert connection.program.recv(100) == b"answer"
    else:
        assert connection.arrives(RESUMED_S)
    connection.send()
    assert connection.arrives(RESUMED_S)


def test_an_address_that_is_kept_before_it_goes_is_not_missed(
    lab: Lab, capture: Capture, connection: Captured, family: Family, move: Move
) -> None:
    capture.ask("keep", [family.before])
    assert source(lab.client, family.elsewhere) == family.before
    with lab.server.listen(family.elsewhere) as listener:
        port = listener.getsockname()[1]
        with lab.client.connect(family.elsewhere, port), listener.accept()[0] as accepted:
            assert accepted.getpeername()[0] == family.before
    for old, new in ((family.before, family.after), (family.after, family.before)):
        move(old, new)
        connection.send()
        assert connection.arrives(RESUMED_S)
        assert source(lab.client, family.elsewhere) == new


@pytest.mark.usefixtures("connection")
def test_no_new_connection_has_a_retained_address_and_no_interface_shows_it(
    lab: Lab, capture: Capture, family: Family, move: Move
) -> None:
    move(family.before, family.after)
    capture.ask("keep", [family.before])
    assert source(lab.client, family.elsewhere) == family.after
    assert f"{family.before}/" not in lab.client.run(["ip", "address"]).stdout
    (device,) = devices(lab)
    assert lab.client.run(["ip", "address", "show", "dev", device]).stdout.count("inet") == 0


@pytest.mark.usefixtures("connection")
def test_when_the_helper_is_killed_its_device_and_its_addresses_are_gone(
    lab: Lab, capture: Capture, family: Family
) -> None:
    capture.ask("guard")  # with a sweeper, which outlives it
    capture.ask("keep", [family.before, "192.0.2.200", "2001:db8:1::200"])
    assert len(kept(lab)) == 3
    os.kill(capture.helper_pid(), signal.SIGKILL)
    soon(lambda: not devices(lab) and not kept(lab))
    assert source(lab.client, family.elsewhere) == family.before


def test_only_the_addresses_that_were_asked_for_last_are_kept(lab: Lab, capture: Capture) -> None:
    capture.apply([FAMILIES[4].route])
    for addresses in (
        ["192.0.2.200"],
        ["192.0.2.200", "2001:db8:1::200"],
        ["192.0.2.201", "2001:db8:1::200"],
        ["192.0.2.201", "2001:db8:1::200"],
        ["2001:db8:1::201"],
    ):
        assert capture.ask("keep", addresses) is None
        assert kept(lab) == addresses
        assert len(devices(lab)) == 1
    capture.ask("keep", [])
    assert not devices(lab)


def test_undo_keeps_nothing_and_one_can_start_over(lab: Lab, capture: Capture) -> None:
    for _ in range(2):
        capture.apply([FAMILIES[4].route])
        capture.ask("keep", ["192.0.2.200"])
        assert kept(lab) == ["192.0.2.200"]
        capture.ask("undo")
        assert not devices(lab)


def test_two_sessions_may_keep_the_same_address_and_end_one_by_one(lab: Lab, start: Start) -> None:
    addresses = ["192.0.2.200", "2001:db8:1::200"]
    sessions = [start(), start()]
    for capture in sessions:
        capture.apply([FAMILIES[4].route])
        assert capture.ask("keep", addresses) is None
    assert kept(lab) == sorted(addresses * 2)
    sessions[0].ask("keep", [])
    assert kept(lab) == addresses
    sessions[1].ask("close")
    assert not devices(lab)


def test_a_refusal_changes_nothing_and_what_others_have_removed_is_no_error(
    lab: Lab, capture: Capture
) -> None:
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", ["192.0.2.200"])
    (device,) = devices(lab)
    ip(lab.client, f"link set {device} down")  # it takes no new route of IPv6
    message, hint, _ = capture.ask("keep", ["192.0.2.201", "192.0.2.202", "2001:db8:1::201"])
    assert "can't keep" in message
    assert hint
    assert kept(lab) == ["192.0.2.200"]
    ip(lab.client, f"route delete local 192.0.2.200 dev {device} table local")
    capture.ask("keep", ["192.0.2.201"])
    assert kept(lab) == ["192.0.2.201"]


# --- for this host alone --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.9", "203.0.113.7", "8.8.8.8", "2001:db8:1::9"])
def test_an_address_that_has_not_been_this_host_s_is_not_kept(
    lab: Lab, capture: Capture, address: str
) -> None:
    capture.apply([FAMILIES[4].route])
    message, hint, _ = capture.ask("keep", ["192.0.2.200", address])
    assert message.endswith(f"{address} has not been this host's")
    assert hint
    assert not devices(lab)


def test_an_address_that_came_and_went_while_the_helper_ran_is_kept(
    lab: Lab, capture: Capture
) -> None:
    capture.apply([FAMILIES[4].route])
    ip(lab.client, "address add 192.0.2.210 dev to-server")
    soon(lambda: capture.ask("keep", ["192.0.2.210"]) is None)
    ip(lab.client, "address delete 192.0.2.210/32 dev to-server")
    capture.ask("keep", [])
    assert capture.ask("keep", ["192.0.2.210"]) is None
    assert kept(lab) == ["192.0.2.210"]


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_nobody_who_asks_for_a_retained_address_is_answered_by_this_host(
    lab: Lab, start: Start, options: list[str]
) -> None:
    capture = start(*options)
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", ["192.0.2.200", "2001:db8:1::200"])
    if options:
        time.sleep(3)  # longer than a plain table remembers what is not said again
    for address in ("192.0.2.200", "2001:db8:1::200"):
        assert not is_a_neighbour(lab.server, address)
    capture.ask("keep", ["192.0.2.201"])
    assert not is_a_neighbour(lab.server, "192.0.2.201")
    # An interface gets it again, and then it is this host's as any other.
    ip(lab.client, "address add 192.0.2.201/24 dev to-server")
    soon(lambda: is_a_neighbour(lab.server, "192.0.2.201"))
    ip(lab.client, "address delete 192.0.2.201/24 dev to-server")
    soon(lambda: not is_a_neighbour(lab.server, "192.0.2.201"))
    capture.ask("keep", [])
    assert lab.client.run(["nft", "list", "tables"]).stdout.count("table") == 1


def is_a_neighbour(host: Host, address: str) -> bool:
    """Whether somebody answers for an address on the link to the client."""
    ip(host, "neighbour flush dev to-client")
    with host.make_socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (address, 9))
    time.sleep(0.2)
    shown = host.run(["ip", "neighbour", "show", address]).stdout
    return "lladdr" in shown


def test_somebody_s_flush_of_plain_tables_does_not_let_others_hear_of_retained_addresses(
    lab: Lab, start: Start
) -> None:
    capture = start("--plain")
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", ["192.0.2.200", "2001:db8:1::200"])
    lab.client.run(["nft", "flush", "ruleset"])
    expected = {"ip": ["192.0.2.200"], "ip6": ["2001:db8:1::200"], "arp": ["192.0.2.200"]}
    soon(lambda: kept_from_others(lab, capture) == expected)
    assert not is_a_neighbour(lab.server, "192.0.2.200")
    assert kept(lab) == ["192.0.2.200", "2001:db8:1::200"]


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_another_plan_keeps_the_same_addresses_and_keeps_them_from_others(
    lab: Lab, start: Start, options: list[str]
) -> None:
    capture = start(*options)
    addresses = ["192.0.2.200", "2001:db8:1::200"]
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", addresses)
    for route in (FAMILIES[6].route, FAMILIES[4].route):
        assert isinstance(capture.apply([route])[0], int)
        if options:
            time.sleep(2.5)  # longer than a plain one would live without being renewed
        assert kept(lab) == addresses
        expected = {"ip": addresses[:1], "ip6": addresses[1:], "arp": addresses[:1]}
        assert kept_from_others(lab, capture) == expected
        assert not is_a_neighbour(lab.server, "192.0.2.200")
    capture.ask("undo")
    assert not kept(lab)
    assert not any(kept_from_others(lab, capture).values())


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_where_a_foreign_table_crashes_libnftables_addresses_are_kept_to_this_host(
    lab: Lab, start: Start, options: list[str]
) -> None:
    capture = start(*options)
    capture.apply([["10.9.8.7/32", "remote", 0, 65535]], listen6=None)
    for addresses in (
        ["192.0.2.200", "2001:db8:1::200"],
        ["192.0.2.201", "192.0.2.202"],
        ["2001:db8:1::201"],
        [],
    ):
        with beside_what_crashes_libnftables(lab):
            assert capture.ask("keep", addresses) is None
            if options:
                time.sleep(2.5)  # longer than a plain one would live without being renewed
        assert kept_from_others(lab, capture) == {
            family: [address for address in addresses if (":" in address) == (family == "ip6")]
            for family in ("ip", "ip6", "arp")
        }


def kept_from_others(lab: Lab, capture: Capture) -> dict[str, list[str]]:
    """What the tables of each family hold; those that are not there hold nothing."""
    found = {}
    for family in ("ip", "ip6", "arp"):
        words = ["nft", "list", "set", family, f"sshunt-{capture.session}", "retained"]
        listing = lab.client.run(words, check=False).stdout
        found[family] = sorted(re.findall(r"[0-9a-f:.]+[:.]20\d\b", listing))
    return found


def test_nothing_leaves_this_host_in_the_name_of_a_retained_address(
    lab: Lab, capture: Capture
) -> None:
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", ["192.0.2.200"])
    with (
        lab.server.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        lab.client.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as program,
    ):
        server.bind(("192.0.2.2", 0))
        server.settimeout(0.3)
        program.bind(("192.0.2.200", 0))
        with pytest.raises(PermissionError):
            program.sendto(b"hello", server.getsockname())
        with pytest.raises(TimeoutError):
            server.recv(100)


@pytest.mark.parametrize("address", ["192.0.2.200", "2001:db8:1::200"])
def test_hosts_behind_this_one_do_not_reach_it_by_a_retained_address(
    lab: Lab, capture: Capture, address: str
) -> None:
    capture.apply([FAMILIES[4].route])
    capture.ask("keep", [address])
    anywhere = "::" if ":" in address else "0.0.0.0"
    with lab.client.listen(anywhere) as listener:
        port = listener.getsockname()[1]
        with lab.client.connect(address, port), listener.accept()[0]:
            pass  # its own programs do
        with pytest.raises(TimeoutError):
            lab.neighbour.connect(address, port, timeout_s=1.0)
    with (
        lab.client.make_socket(family_of(address), socket.SOCK_DGRAM) as hearing,
        lab.neighbour.make_socket(family_of(address), socket.SOCK_DGRAM) as saying,
    ):
        hearing.bind((anywhere, 0))
        hearing.settimeout(0.3)
        saying.sendto(b"for another host", (address, hearing.getsockname()[1]))
        with pytest.raises(TimeoutError):
            hearing.recv(100)


def test_a_listener_on_a_retained_address_is_refused(lab: Lab, start: Start) -> None:
    keeping, capturing = start(), start()
    keeping.apply([FAMILIES[4].route])
    keeping.ask("keep", ["192.0.2.200"])
    message, _, _ = capturing.apply([FAMILIES[4].route], listen4="192.0.2.200", listen6=None)
    assert message == "can't capture connections: 192.0.2.200 is not an address of this host"
    assert lab.client.run(["nft", "list", "tables"]).stdout.count("inet") == 1


@pytest.mark.parametrize("new_owner", ["server", "neighbour"])
def test_a_listener_whose_address_is_another_host_s_now_gets_nothing_redirected(
    lab: Lab, start: Start, new_owner: str
) -> None:
    owner = lab.server if new_owner == "server" else lab.neighbour
    address = "192.0.2.88" if new_owner == "server" else "198.51.100.88"
    ip(lab.client, f"address add {address}/24 dev to-{new_owner}")
    capture = start()
    port, _, _ = capture.apply([FAMILIES[4].route], listen4=address, listen6=None)
    # Who is served: this host, and the hosts of that link, for which it is a router.
    served = [lab.client, *([owner] if owner is lab.neighbour else [])]
    for host in served:
        with host.connect("10.9.8.7", 7) as program:
            assert program.recv(100).startswith(b"captured")
    ip(lab.client, f"address delete {address}/24 dev to-{new_owner}")
    ip(owner, f"address add {address}/24 dev to-client")
    try:
        with owner.listen(address, port) as other:
            for host in served:
                with pytest.raises(ConnectionRefusedError):
                    host.connect("10.9.8.7", 7)
            other.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.accept()
    finally:
        ip(owner, f"address delete {address}/24 dev to-client")


#: Somebody's, with which the kernel goes on translating when our rules are gone.
_OTHER_NAT = "add table ip other; add chain ip other nat { type nat hook output priority 0; }"


@pytest.mark.parametrize("options", [[], ["--plain"]])
@pytest.mark.parametrize("next_plans", [2, 0])
@pytest.mark.parametrize("new_owner", ["server", "neighbour"])
def test_what_a_plan_before_has_redirected_does_not_go_to_another_host_either(
    lab: Lab, start: Start, new_owner: str, next_plans: int, options: list[str]
) -> None:
    owner = lab.server if new_owner == "server" else lab.neighbour
    address = "192.0.2.88" if new_owner == "server" else "198.51.100.88"
    ip(lab.client, f"address add {address}/24 dev to-{new_owner}")
    capture = start(*options)
    served = [lab.client, *([owner] if owner is lab.neighbour else [])]
    with ExitStack() as opened:
        listener = opened.enter_context(lab.client.listen(address))
        listen4 = listener.getsockname()[:2]
        listener.listen(0)  # one may wait to be accepted; of all others the SYN comes in vain
        lab.client.run(["nft", _OTHER_NAT])
        opened.callback(lab.client.run, ["nft", "delete table ip other"])
        capture.apply([FAMILIES[4].route], listen4=listen4, listen6=None)
        opened.enter_context(lab.client.connect("10.9.8.7", 7))
        programs = [opened.enter_context(begins_to_connect(host, "10.9.8.7")) for host in served]
        for number in range(next_plans):
            capture.apply([[f"10.{number}.0.0/16", "remote", 0, 65535]], listen6=None)
        if not next_plans:
            capture.ask("undo")
        ip(lab.client, f"address delete {address}/24 dev to-{new_owner}")
        ip(owner, f"address add {address}/24 dev to-client")
        try:
            other = opened.enter_context(hears_every_segment(owner))
            for program in programs:  # sends its SYN again
                assert select.select([], [program], [], RESUMED_S)[1]
                error = program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                assert error == errno.ECONNREFUSED
            assert listen4[1] not in ports_that_are_asked(other)
        finally:
            ip(owner, f"address delete {address}/24 dev to-client")


def begins_to_connect(host: Host, address: str) -> socket.socket:
    program = host.make_socket()
    program.setblocking(False)
    assert program.connect_ex((address, 7)) == errno.EINPROGRESS
    return program


def hears_every_segment(host: Host) -> socket.socket:
    with host.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)


def ports_that_are_asked(raw: socket.socket) -> set[int]:
    """The ports to which TCP segments come, until none comes any more."""
    raw.settimeout(0.3)
    ports = set()
    try:
        while True:
            packet = raw.recv(65536)
            header_bytes = (packet[0] & 15) * 4
            ports.add(int.from_bytes(packet[header_bytes + 2 : header_bytes + 4], "big"))
    except TimeoutError:
        return ports
