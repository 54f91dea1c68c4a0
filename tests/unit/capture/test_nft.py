"""Plans as nftables text: compared with golden files, and accepted by the real nft.

``SSHUNT_GOLDEN=write`` in the environment writes the files anew; read the difference before
committing it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from sshunt.capture.nft import (
    NO_GROUPS,
    Cgroup,
    PacketGroups,
    as_commands,
    bypass_sets,
    held_listeners,
    listeners_that_may_go,
    render,
    render_without_plan,
    resolver_sets,
    table_name,
    table_names,
)
from sshunt.capture.plan import Connect, Plan, redirects
from sshunt.model import Action, Route
from sshunt.relay.sockets import DIALED_PRIORITY

_GOLDEN = Path(__file__).parents[2] / "golden"
_SESSION = "0123456789abcdef"
_CGROUP = Cgroup(f"user.slice/app-gnome-term\\x2d1.scope/sshunt-{_SESSION}", 3)


def _route(
    network: str, action: Action = Action.REMOTE, first: int = 0, last: int = 65535
) -> Route:
    return Route(ip_network(network), action, first, last)


_OFFICE = Plan(_SESSION, redirects([("127.0.0.1", 12300)]), (_route("10.0.0.0/8"),))
_EVERYTHING = Plan(
    _SESSION,
    redirects([("0.0.0.0", 12300), ("::", 12300)]),
    (
        _route("0.0.0.0/0"),
        _route("::/0"),
        _route("192.168.0.0/16", Action.DIRECT),
        _route("10.0.0.1/32", Action.DIRECT, 22, 22),
        _route("2001:db8::/32", Action.DIRECT, 8000, 9000),
    ),
    (("203.0.113.7", 22), ("2001:db8:3::7", 2222), ("192.0.2.9", 22)),
)
_ONE_ADDRESS = Plan(
    _SESSION,
    redirects([("192.0.2.1", 1), ("2001:db8:1::1", 2)]),
    (_route("10.0.0.0/24", Action.REMOTE, 80, 90), _route("fd00::/8")),
)
_FORWARDED_IPV6_ONLY = Plan(
    _SESSION, redirects([("127.0.0.1", 5), ("::", 5)]), (_route("10.0.0.0/8"), _route("fd00::/8"))
)
_NAMES = Plan(
    _SESSION,
    redirects([("127.0.0.1", 12300)], [("127.0.0.1", 12353), ("::1", 12354)]),
    (_route("10.0.0.0/8"),),
    resolvers=("192.0.2.53", "2001:db8::53", "127.0.0.53", "192.0.2.53"),
)

_DATAGRAMS = Plan(
    _SESSION,
    redirects([("127.0.0.1", 12300), ("::1", 12301)], (), [("127.0.0.1", 12300), ("::1", 12301)]),
    (_route("10.0.0.0/8"), _route("fd00::/8", Action.REMOTE, 53, 53)),
    (("203.0.113.7", 22),),
)
_FORWARDED_DATAGRAMS = Plan(
    _SESSION,
    redirects(
        [("0.0.0.0", 12300), ("2001:db8:1::1", 12301)],
        (),
        [("0.0.0.0", 12302), ("2001:db8:1::1", 12303)],
    ),
    (_route("10.0.0.0/8"), _route("fd00::/8")),
)

_FROM_LINKS = {4: ("lan0", "wlan0.5"), 6: ()}

_GROUPS = PacketGroups(20000, 0)
_AUTO = replace(_NAMES, connect=Connect.AUTO)

_TEXTS = {
    "office": render(_OFFICE, owner=True, cgroup=None),
    "everything": render(_EVERYTHING, owner=True, cgroup=_CGROUP),
    "one-address": render(_ONE_ADDRESS, owner=False, cgroup=None),
    "forwarded-ipv6-only": render(_FORWARDED_IPV6_ONLY, owner=False, cgroup=None),
    "from-links": render(_EVERYTHING, owner=True, cgroup=None, served=_FROM_LINKS),
    "names": render(_NAMES, owner=True, cgroup=_CGROUP),
    "held": render(_AUTO, owner=True, cgroup=_CGROUP, packets=_GROUPS),
    "held-everything": render(
        replace(_EVERYTHING, connect=Connect.HONEST),
        owner=False,
        cgroup=None,
        served=_FROM_LINKS,
        packets=_GROUPS,
        own={4: "192.0.2.1"},
    ),
    "earlier": render(
        _OFFICE, owner=True, cgroup=None, earlier=listeners_that_may_go(_ONE_ADDRESS)
    ),
    "datagrams": render(_DATAGRAMS, owner=True, cgroup=_CGROUP),
    "forwarded-datagrams": render(
        _FORWARDED_DATAGRAMS, owner=False, cgroup=None, served={4: ("lan0",), 6: None}, timed=False
    ),
    "marking": render_without_plan(_SESSION, _CGROUP, owner=True),
    "gone": render_without_plan(
        _SESSION, None, owner=True, earlier=listeners_that_may_go(_ONE_ADDRESS)
    ),
    "echoes": render(
        replace(_EVERYTHING, echoes=True),
        owner=True,
        cgroup=_CGROUP,
        served=_FROM_LINKS,
        packets=PacketGroups(0, 20064),
    ),
    "echoes-plain": render(
        replace(_OFFICE, echoes=True), owner=False, cgroup=None, packets=PacketGroups(0, 20064)
    ),
    "nothing": render(Plan(_SESSION, (), (_route("::/0"),)), owner=False, cgroup=None),
}


@pytest.fixture(scope="module")
def namespace() -> Iterator[list[str]]:
    """A command prefix that runs a program in a network namespace of its own."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        pytest.skip("needs root and nft")
    name = f"sshunt-test-nft-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield ["nsenter", f"--net=/run/netns/{name}", "nft"]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("name", _TEXTS)
def test_a_plan_is_rendered_as_the_golden_file_says(name: str) -> None:
    path = _GOLDEN / f"{name}.nft"
    if os.environ.get("SSHUNT_GOLDEN") == "write":
        path.write_text(_TEXTS[name])
    assert _TEXTS[name] == path.read_text()


def test_where_nobody_reads_them_echo_requests_are_left_alone() -> None:
    nobody = render(replace(_OFFICE, echoes=True), owner=True, cgroup=None)
    unwanted = render(_OFFICE, owner=True, cgroup=None, packets=PacketGroups(0, 20064))
    assert nobody == unwanted == _TEXTS["office"]


@pytest.mark.parametrize("name", _TEXTS)
def test_what_is_rendered_and_its_commands_make_the_same_table(
    namespace: list[str], name: str
) -> None:
    text = _TEXTS[name].replace(f'socket cgroupv2 level 3 "{_CGROUP.path}" ', "")
    text = text.replace("\tflags owner;\n", "")
    made = f"add table inet {table_name(_SESSION)}\n"
    shown = []
    for commands in (text, made + as_commands(text)):
        subprocess.run([*namespace, "-f", "-"], input=commands.encode(), check=True)
        listing = subprocess.check_output([*namespace, "list", "ruleset"])
        shown.append(re.sub(rb" expires \w+", b"", listing))
        subprocess.run([*namespace, "delete", "table", "inet", table_name(_SESSION)], check=True)
    assert shown[0] == shown[1]


@pytest.mark.parametrize("name", _TEXTS)
def test_its_commands_may_make_it_by_the_session_s_other_name(name: str) -> None:
    first, second = table_names(_SESSION)
    assert first == table_name(_SESSION)
    commands = as_commands(_TEXTS[name], second)
    ends = re.findall(r"^add (?:set|chain) inet (\S+) ", commands, re.MULTILINE)
    assert set(ends) <= {second}
    assert commands.replace(f" {second} ", f" {first} ") == as_commands(_TEXTS[name])


@pytest.mark.parametrize("name", _TEXTS)
def test_the_kernel_takes_what_is_rendered_and_deletes_it_again(
    namespace: list[str], name: str
) -> None:
    # A cgroup must exist to be named; the end-to-end tests have one.
    text = _TEXTS[name].replace(f'socket cgroupv2 level 3 "{_CGROUP.path}" ', "")
    # nft's own process owns the table, so it is gone with it.
    subprocess.run([*namespace, "-f", "-"], input=text.encode(), check=True)
    plain = text.replace("\tflags owner;\n", "")
    subprocess.run([*namespace, "-f", "-"], input=plain.encode(), check=True)
    subprocess.run([*namespace, "delete", "table", "inet", table_name(_SESSION)], check=True)
    assert subprocess.check_output([*namespace, "list", "tables"]) == b""


def test_the_changeable_sets_match_the_rendered_table() -> None:
    assert resolver_sets(_NAMES) == {
        "resolvers4": [ip_address("127.0.0.53"), ip_address("192.0.2.53")],
        "resolvers6": [ip_address("2001:db8::53")],
    }
    assert bypass_sets(_EVERYTHING) == {
        "bypass4": [(ip_address("192.0.2.9"), 22), (ip_address("203.0.113.7"), 22)],
        "bypass6": [(ip_address("2001:db8:3::7"), 2222)],
    }
    for plan in (_OFFICE, _EVERYTHING, _NAMES):
        text = render(plan, owner=True, cgroup=None)
        shown = set(re.findall(r"set ((?:bypass|resolvers)\d) ", text))
        assert shown == {*bypass_sets(plan), *resolver_sets(plan)}


def test_sets_of_what_is_not_captured_are_left_out() -> None:
    peers = replace(_OFFICE, bypass=(("2001:db8::9", 22),))
    assert bypass_sets(peers) == {"bypass4": []}
    assert resolver_sets(peers) == {}


def test_listeners_on_loopback_and_everywhere_never_go_to_another_host() -> None:
    assert listeners_that_may_go(_OFFICE) == listeners_that_may_go(_EVERYTHING) == []
    assert listeners_that_may_go(_ONE_ADDRESS) == [("192.0.2.1", 1), ("2001:db8:1::1", 2)]


def test_a_listener_that_an_earlier_plan_had_too_is_named_once() -> None:
    earlier = listeners_that_may_go(_ONE_ADDRESS)
    again = render(_ONE_ADDRESS, owner=False, cgroup=None, earlier=earlier)
    assert again == _TEXTS["one-address"]


def test_connections_of_an_agent_on_this_host_are_skipped_by_their_priority() -> None:
    for name in ("everything", "names"):
        assert f"\t\tmeta priority 0:{DIALED_PRIORITY} return\n" in _TEXTS[name]


@pytest.mark.parametrize("path", ['a" ; flush ruleset ; "', "a\nb", "a b", "", "/a", "a//b", "ä"])
def test_a_cgroup_that_could_be_rule_text_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="cgroup"):
        render(_OFFICE, owner=True, cgroup=Cgroup(path, 1))
    with pytest.raises(ValueError, match="cgroup"):
        render_without_plan(_SESSION, Cgroup(path, 1), owner=True)


def test_commands_say_the_table_of_each_part_and_not_who_owns_it() -> None:
    commands = as_commands(_TEXTS["office"])
    assert "flags owner" in _TEXTS["office"]
    assert "owner" not in commands
    begun = [line for line in commands.splitlines() if line.endswith("{") and line[0] != "\t"]
    assert begun
    place = f"inet {table_name(_SESSION)}"
    assert all(re.fullmatch(rf"add (set|chain) {place} \w+ {{", line) for line in begun)


def _chain(text: str, name: str) -> list[str]:
    found = re.search(rf"^\tchain {name} {{\n(.*?)^\t}}", text, re.MULTILINE | re.DOTALL)
    return found[1].splitlines() if found else []


@pytest.mark.parametrize("connect", [Connect.AUTO, Connect.HONEST])
@pytest.mark.parametrize("plan", [_OFFICE, _EVERYTHING, _ONE_ADDRESS, _NAMES])
@pytest.mark.parametrize("owner", [True, False])
def test_what_is_held_is_exactly_what_would_be_redirected(
    plan: Plan, connect: Connect, owner: bool
) -> None:
    text = render(
        replace(plan, connect=connect),
        owner=owner,
        cgroup=_CGROUP,
        served=_FROM_LINKS,
        packets=_GROUPS,
        own={4: "192.0.2.1", 6: "2001:db8::1"},
    )
    for hook in ("output", "prerouting"):
        redirected = _chain(text, hook)[1:]
        held = _chain(text, f"hold_{hook}")[1:]
        as_held = [
            line.replace("goto capture", "goto hold").replace("goto dns", "return")
            for line in redirected
            if "goto captured_held" not in line
        ]
        assert [line for line in held if "meta mark &" not in line] == as_held
    for family in (4, 6):
        regions = [
            re.sub(r" (redirect|dnat) .*", "", line) for line in _chain(text, f"capture{family}")
        ]
        held = _chain(text, f"hold{family}")
        assert [line.replace(f" goto held{family}", "") for line in held] == regions


def test_where_nobody_reads_or_nobody_wants_it_nothing_is_held() -> None:
    assert render(_AUTO, owner=True, cgroup=_CGROUP, packets=NO_GROUPS) == _TEXTS["names"]
    fast = render(_NAMES, owner=True, cgroup=_CGROUP, packets=_GROUPS)
    assert "log group" not in fast
    assert "@known" not in fast
    assert "claimed" in fast  # so that another session does not hold it, either


def test_held_forwarded_connections_are_sent_to_an_address_that_can_answer_by_a_wire() -> None:
    everywhere = replace(_EVERYTHING, connect=Connect.AUTO)
    assert held_listeners(everywhere, {4: "192.0.2.1"}) == {4: ("192.0.2.1", 12300)}
    assert held_listeners(_EVERYTHING, {4: "192.0.2.1"}) == {}
    for plan in (_OFFICE, _ONE_ADDRESS):
        assert held_listeners(replace(plan, connect=Connect.AUTO), {4: "192.0.2.9"}) == {}
