"""Which links a listener serves, by the kernel's own switches (in a /proc made for it)."""

import os
from pathlib import Path

import pytest

from sshunt.capture import links
from sshunt.capture.links import Links, addresses_of
from sshunt.capture.plan import Plan, redirects

_LINKS = {"192.0.2.1": "lan0", "198.51.100.1": "wlan0", "203.0.113.1": 'a"b', "2001:db8::1": "lan0"}


def served(
    tmp_path: Path,
    on: list[str],
    listen4: str | None,
    listen6: str | None = None,
    named: tuple[str, ...] = (),
) -> tuple[Links, Links]:
    """From which links, with these files of sys/net saying 1 and all others 0."""
    for family in ("ipv4", "ipv6"):
        for link in ("all", "default", "lan0", "wlan0", 'a"b'):
            for knob in ("forwarding", "force_forwarding"):
                path = tmp_path / "sys/net" / family / "conf" / link / knob
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("0\n")
    for name in on:
        (tmp_path / "sys/net" / name).write_text("1\n")
    proc = os.open(tmp_path, os.O_PATH)
    listeners = [(address, 1) for address in (listen4, listen6) if address]
    plan = Plan("01234567", redirects(listeners), (), links=named)
    try:
        found = links.served(plan, proc, lambda address: _LINKS.get(address, ""))
    finally:
        os.close(proc)
    return found[4], found[6]


ALL4, ALL6 = "ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"
LAN4, LAN6 = "ipv4/conf/lan0/forwarding", "ipv6/conf/lan0/force_forwarding"


@pytest.mark.parametrize(
    ("on", "listen4", "listen6", "expected"),
    [
        ([ALL4, ALL6], "127.0.0.1", "::1", ((), ())),
        ([ALL4, ALL6], None, None, ((), ())),
        ([], "0.0.0.0", "::", ((), ())),
        ([ALL4, ALL6], "0.0.0.0", "::", (None, None)),
        ([ALL4], "0.0.0.0", "::", (None, ())),
        ([LAN4, LAN6], "0.0.0.0", "::", (("lan0",), ("lan0",))),
        (["ipv6/conf/lan0/forwarding"], None, "::", ((), ())),  # says "a router", and no more
        (["ipv4/conf/default/forwarding"], "0.0.0.0", None, ((), ())),
        ([ALL4, ALL6], "192.0.2.1", "2001:db8::1", (("lan0",), ("lan0",))),
        ([LAN4], "192.0.2.1", None, (("lan0",), ())),
        ([LAN4], "198.51.100.1", None, ((), ())),
        ([ALL4], "192.0.2.99", None, ((), ())),  # on no link at all
        ([ALL4, 'ipv4/conf/a"b/forwarding'], "203.0.113.1", None, ((), ())),
        (['ipv4/conf/a"b/forwarding'], "0.0.0.0", None, ((), ())),
    ],
)
def test_links_from_which_the_kernel_forwards_are_served(
    tmp_path: Path,
    on: list[str],
    listen4: str | None,
    listen6: str | None,
    expected: tuple[Links, Links],
) -> None:
    assert served(tmp_path, on, listen4, listen6) == expected


@pytest.mark.parametrize(
    ("on", "listen4", "expected"),
    [
        ([ALL4], "0.0.0.0", ("lan0", "docker0")),
        ([ALL4], "192.0.2.1", ("lan0", "docker0")),
        ([LAN4], "0.0.0.0", ("lan0",)),
        ([], "0.0.0.0", ()),
        ([ALL4], "127.0.0.1", ()),
    ],
)
def test_of_links_that_are_named_those_are_served_from_which_it_forwards(
    tmp_path: Path, on: list[str], listen4: str, expected: Links
) -> None:
    assert served(tmp_path, on, listen4, named=("lan0", "docker0"))[0] == expected


def test_a_refusal_names_the_links() -> None:
    plan = Plan("01234567", redirects([("0.0.0.0", 1)]), (), links=("lan0", "docker0"))
    assert "does not forward IPv4 from lan0, docker0" in links.refusal(plan, 4, ())


def test_a_kernel_without_a_family_forwards_none_of_it(tmp_path: Path) -> None:
    proc = os.open(tmp_path, os.O_PATH)
    plan = Plan("01234567", redirects([("0.0.0.0", 1)]), ())
    assert links.served(plan, proc, lambda _: "") == {4: (), 6: ()}
    os.close(proc)


def test_a_listener_that_could_serve_others_but_does_not_is_explained() -> None:
    everywhere = Plan("01234567", redirects([("0.0.0.0", 1), ("::1", 1)]), ())
    assert "net.ipv4.ip_forward=1" in links.refusal(everywhere, 4, ())
    assert links.refusal(everywhere, 4, None) == ""
    assert links.refusal(everywhere, 4, ("lan0",)) == ""
    assert links.refusal(everywhere, 6, ()) == ""
    one = Plan("01234567", redirects([("192.0.2.1", 1)]), ())
    assert "from the link of 192.0.2.1" in links.refusal(one, 4, ())


def test_the_real_proc_says_of_a_listener_for_this_host_only_that_it_serves_no_link() -> None:
    proc = links.open_proc()
    try:
        plan = Plan("01234567", redirects([("127.0.0.1", 1), ("::1", 1)]), ())
        assert links.served(plan, proc, lambda address: "lo") == {4: (), 6: ()}
    finally:
        os.close(proc)


def test_an_address_of_a_link_that_is_served_is_preferred() -> None:
    link_of = {
        "127.0.0.1": "lo",
        "192.0.2.1": "wan0",
        "10.0.0.1": "lan0",
        "fe80::1": "lan0",
        "2001:db8::1": "wan0",
    }
    assert addresses_of({4: ("lan0",), 6: ("lan0",)}, link_of) == {
        4: "10.0.0.1",
        6: "2001:db8::1",
    }
    assert addresses_of({4: None, 6: None}, link_of)[4] == "192.0.2.1"
    assert addresses_of({4: (), 6: ()}, {"127.0.0.1": "lo", "::1": "lo"}) == {}
