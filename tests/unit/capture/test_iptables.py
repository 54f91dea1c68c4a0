"""Plans as text for iptables-restore: compared with golden files, taken by both variants of it.

``SSHUNT_GOLDEN=write`` in the environment writes the files anew; read the difference before
committing it.
"""

import itertools
import os
import shutil
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.capture.iptables import is_whole, numbers, owner_of, removal, render
from sshunt.capture.nft import Cgroup
from sshunt.capture.plan import Method, Plan, redirects
from sshunt.model import Action, Route

_GOLDEN = Path(__file__).parents[2] / "golden"
_SESSION = "0123456789abcdef"
_NAME = f"sshunt-{_SESSION}"

_EVERYTHING = Plan(
    _SESSION,
    redirects([("0.0.0.0", 12300), ("::", 12300)], [("127.0.0.1", 12353), ("::1", 12353)]),
    (
        Route(ip_network("10.0.0.0/8"), Action.REMOTE, 0, 65535),
        Route(ip_network("10.0.0.1/32"), Action.DIRECT, 22, 22),
        Route(ip_network("192.0.2.0/30"), Action.REMOTE, 80, 90),
        Route(ip_network("fd00::/8"), Action.REMOTE, 0, 65535),
        Route(ip_network("fd00::1/128"), Action.DIRECT, 0, 65535),
    ),
    (("203.0.113.7", 22), ("2001:db8:3::7", 2222)),
    ("192.0.2.53", "2001:db8::53"),
    Method.NAT,
)
_OFFICE = Plan(
    _SESSION,
    redirects([("127.0.0.1", 1), ("2001:db8::1", 2)]),
    (Route(ip_network("10.0.0.0/24"), Action.REMOTE, 443, 443),),
)
_ONE_ADDRESS = Plan(
    _SESSION, redirects([("192.0.2.1", 1)]), (Route(ip_network("10.0.0.0/24"), Action.REMOTE),)
)
_NAMES = Plan(_SESSION, redirects([], [("127.0.0.1", 53)]), (), (), ("192.0.2.53",))

_PLANS = {
    "nat-everything": (_EVERYTHING, Cgroup(f"user.slice/{_NAME}", 2), None),
    "nat-office": (_OFFICE, None, ()),
    "nat-one-address": (_ONE_ADDRESS, None, ("lan0", "wlan0.5")),
    "nat-names": (_NAMES, None, ()),
}


@pytest.mark.parametrize(("name", "family"), list(itertools.product(_PLANS, (4, 6))))
def test_a_plan_is_rendered_as_the_golden_file_says(name: str, family: int) -> None:
    plan, cgroup, served = _PLANS[name]
    text = render(plan, family, cgroup=cgroup, served=served, is_first=True)
    file = _GOLDEN / f"{name}.ip{'' if family == 4 else '6'}tables"
    if os.environ.get("SSHUNT_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize(("name", "family"), list(itertools.product(_PLANS, (4, 6))))
def test_both_variants_take_it_replace_it_and_forget_it(
    name: str, family: int, variant: str
) -> None:
    program = f"ip{'' if family == 4 else '6'}tables-{variant}"
    if shutil.which(f"{program}-restore", path="/usr/sbin:/sbin") is None:
        pytest.skip(f"there is no {program}")
    plan, _, served = _PLANS[name]  # the cgroup of the golden file is not there
    foreign = "*nat\n:sshunt-ish - [0:0]\n-A OUTPUT -j sshunt-ish\n-A OUTPUT -d 1.2.3.4 -j RETURN\n"
    foreign = foreign.replace("1.2.3.4", "1.2.3.4" if family == 4 else "fd00::9") + "COMMIT\n"
    others = render(
        Plan("feedface", plan.redirects, plan.routes), family, cgroup=None, served=(), is_first=True
    )
    first = render(plan, family, cgroup=None, served=served, is_first=True)
    again = render(plan, family, cgroup=None, served=served, is_first=False)
    script = f"{program}-restore --noflush -w 5 <<'END' && {program}-save -t nat"
    with subprocess.Popen(
        ["unshare", "--net", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:

        def apply(text: str) -> str:
            assert shell.stdin is not None
            assert shell.stdout is not None
            shell.stdin.write(f"{script}\n{text}END\necho done\n")
            shell.stdin.flush()
            lines = iter(shell.stdout.readline, "done\n")
            return "".join(line for line in lines if not line.startswith("#"))

        saved = [apply(text) for text in (foreign, others, first, again)]
        before = saved[1]
        rules = numbers(first, _SESSION)
        assert rules == numbers(again, _SESSION)
        whole = [is_whole(each, _SESSION, rules) for each in saved]
        assert whole == [False, False, True, True]
        assert saved[2] == saved[3], "applied once more, it is as it was"
        assert apply(removal(saved[3], lambda name: name == _NAME)) == before
        rest = apply(removal(before, lambda name: name == "sshunt-feedface"))
        assert rest == saved[0]
        assert removal(rest, lambda _: True) == ""


def test_rules_are_whole_while_none_is_missing_in_any_of_their_chains() -> None:
    text = render(_ONE_ADDRESS, 4, cgroup=None, served=("lan0",), is_first=True)
    saved = text.replace("-I OUTPUT 1", "-A OUTPUT").replace("-I PREROUTING 1", "-A PREROUTING")
    rules = numbers(text, _SESSION)
    assert is_whole(saved, _SESSION, rules)
    for line in saved.splitlines():
        if line.startswith("-A"):
            assert not is_whole(saved.replace(f"{line}\n", "", 1), _SESSION, rules), line


def test_a_chain_that_only_looks_like_ours_is_nobodys() -> None:
    assert owner_of(f"{_NAME}-t") == owner_of(_NAME) == _NAME
    for chain in ("sshunt-", "sshunt-xyz", f"{_NAME}-x", f"my-{_NAME}", "OUTPUT"):
        assert owner_of(chain) is None


def test_a_control_group_that_can_not_be_written_is_an_error() -> None:
    bad = Cgroup('a"\n-A OUTPUT -j DROP', 1)
    with pytest.raises(ValueError, match="cgroup"):
        render(_EVERYTHING, 4, cgroup=bad, served=None, is_first=True)


def test_a_unit_s_backslash_stands_twice_since_it_escapes_inside_quotes() -> None:
    text = render(_EVERYTHING, 4, cgroup=Cgroup(r"app\x2da", 1), served=None, is_first=True)
    assert r'-m cgroup --path "app\\x2da" -j RETURN' in text


def test_a_link_that_iptables_would_take_for_others_as_well_is_not_served() -> None:
    text = render(_ONE_ADDRESS, 4, cgroup=None, served=("eth+", "lan0"), is_first=True)
    assert "eth+" not in text
    assert '-i "lan0"' in text


def test_routes_that_are_too_many_networks_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sshunt.capture.iptables.MAX_TARGETS", 1)
    with pytest.raises(ValueError, match="more than 1 networks"):
        render(_EVERYTHING, 4, cgroup=None, served=None, is_first=True)
