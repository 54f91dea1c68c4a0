"""Plans as pf's rule text, compared with golden files. No pf has read it: there is none here.

``SSHUNT_GOLDEN=write`` in the environment writes the files anew; read the difference before
committing it.
"""

import os
import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.pf import System, anchor, main_rules, render
from sshunt.capture.plan import Plan, redirects
from sshunt.model import Action, Route

_GOLDEN = Path(__file__).parents[2] / "golden"
_SESSION = "0123456789abcdef"


def _route(
    network: str, action: Action = Action.REMOTE, first: int = 0, last: int = 65535
) -> Route:
    return Route(ip_network(network), action, first, last)


_OFFICE = Plan(
    _SESSION,
    redirects(
        [("127.0.0.1", 12300), ("::1", 12300)],
        [("127.0.0.1", 12353)],
        [("127.0.0.1", 12301), ("::1", 12301)],
    ),
    (
        _route("10.0.0.0/8"),
        _route("10.1.2.0/24", Action.DIRECT),
        _route("192.0.2.80/32", Action.REMOTE, 443, 443),
        _route("fd00::/8", Action.REMOTE, 8000, 9000),
    ),
    (("10.9.9.9", 22), ("fd00::22", 2222)),
    ("10.0.0.53", "192.168.1.1", "fe80::1"),
)
_ROUTER = Plan(_SESSION, redirects([("0.0.0.0", 12300)]), (_route("0.0.0.0/0"), _route("fd00::/8")))


@pytest.mark.parametrize("system", System)
@pytest.mark.parametrize(("name", "plan"), [("office", _OFFICE), ("router", _ROUTER)])
def test_a_plan_is_rendered_as_in_its_golden_file(name: str, plan: Plan, system: System) -> None:
    path = _GOLDEN / f"{name}.{system.value.lower()}.pf"
    text = render(plan, system)
    if os.environ.get("SSHUNT_GOLDEN") == "write":
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("system", System)
@pytest.mark.parametrize("plan", [_OFFICE, _ROUTER])
def test_every_filter_rule_is_quick_and_what_is_never_caught_comes_first(
    plan: Plan, system: System
) -> None:
    lines = render(plan, system).splitlines()
    passing = [line for line in lines if line.startswith("pass")]
    assert passing
    assert all(re.match(r"pass (in|out) quick ", line) for line in passing)
    caught = [number for number, line in enumerate(passing) if re.search("route-to|divert", line)]
    assert caught == list(range(caught[0], len(passing)))
    # Translation stands before filters, or the file is refused; exceptions before both.
    kinds = [re.match(r"no rdr|rdr|pass", line) for line in lines]
    order = [kind[0] for kind in kinds if kind is not None]
    assert len(lines) == len(order)
    assert order == sorted(order, key=["no rdr", "rdr", "pass"].index)


def test_openbsd_diverts_and_translates_nothing() -> None:
    text = render(_OFFICE, System.OPENBSD)
    assert "rdr" not in text
    assert "divert-to 127.0.0.1 port 12300" in text


def test_what_is_forwarded_is_caught_but_for_this_host_and_not_past_other_filters() -> None:
    for system in (System.MACOS, System.FREEBSD):
        text = render(_ROUTER, system)
        assert "no rdr inet proto tcp from any to self\nrdr inet proto tcp from any to" in text
        assert "rdr pass" not in text
    assert "pass in quick inet" not in render(_ROUTER, System.OPENBSD)


def test_replies_of_the_listener_are_not_translated_again() -> None:
    for system in (System.MACOS, System.FREEBSD):
        assert render(_ROUTER, system).startswith(
            "no rdr on lo0 inet proto tcp from 127.0.0.1 port 12300 to any\n"
        )


def test_a_family_without_listener_or_regions_is_left_alone() -> None:
    assert "inet6" not in render(_ROUTER, System.FREEBSD)
    nothing = Plan(_SESSION, redirects([("127.0.0.1", 1)]), (_route("fd00::/8"),))
    assert render(nothing, System.MACOS) == ""


def test_rules_live_in_an_anchor_of_ours() -> None:
    assert anchor(System.MACOS, _SESSION) == f"com.apple/sshunt-{_SESSION}"
    assert anchor(System.FREEBSD, _SESSION) == f"sshunt/{_SESSION}"
    with pytest.raises(ValueError, match="session"):
        anchor(System.OPENBSD, '"; block all')
    assert main_rules(System.MACOS) == ""
    assert main_rules(System.FREEBSD) == 'rdr-anchor "sshunt/*"\nanchor "sshunt/*"\n'
    assert main_rules(System.OPENBSD) == 'anchor "sshunt/*"\n'
