"""Which targets are this host itself, and whether it gets anywhere over IPv6."""

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from sshunt.host.own import own_cgroup, own_routes
from sshunt.model import Action, Route

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def routes(*texts: str, action: Action = Action.REMOTE) -> list[Route]:
    return [Route(ip_network(text), action, 0, 65535) for text in texts]


def test_loopback_is_this_host_itself() -> None:
    own = routes("127.0.0.1/32", "127.0.0.0/8", "127.9.9.9/32", "::1/128")
    assert own_routes([*own, *routes("192.0.2.1/32", "0.0.0.0/0", "126.0.0.0/7")]) == own


def test_excluded_addresses_are_not_reported_as_this_hosts_own() -> None:
    assert own_routes(routes("127.0.0.0/8", action=Action.DIRECT)) == []


PROGRAM = """
from ipaddress import ip_network
from pathlib import Path
from sshunt.model import Action, Route
from sshunt.host.own import has_ipv6, own_cgroup, own_routes
texts = ("192.0.2.1/32", "192.0.2.9/32", "192.0.2.0/24", "2001:db8::1/128", "2001:db8::2/128")
routes = [Route(ip_network(text), Action.REMOTE, 0, 65535) for text in texts]
print([str(route.network) for route in own_routes(routes)], has_ipv6())
"""


def in_a_namespace(*commands: str, switched_on: tuple[str, ...] = ()) -> str:
    """What PROGRAM prints in a network of its own, after these commands of ip(8), and with these
    options of the kernel's network switched on.
    """
    options = [f"echo 1 > /proc/sys/net/{option}" for option in switched_on]
    script = "; ".join([*(f"ip {command}" for command in commands), *options, 'exec "$@"'])
    words = ["unshare", "--net", "sh", "-ec", script, "sh", sys.executable, "-c", PROGRAM]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


ETHERNET = (
    "link set lo up",
    "link add e0 type veth peer name e1",
    "link set e0 up",
    "link set e1 up",
)


@needs_root
def test_an_address_of_this_host_is_this_host_itself_and_its_neighbours_are_not() -> None:
    own = ("address add 192.0.2.1/24 dev e0", "address add 2001:db8::1/64 dev e0 nodad")
    assert in_a_namespace(*ETHERNET, *own) == "['192.0.2.1/32', '2001:db8::1/128'] True"


@needs_root
def test_a_second_address_in_the_same_network_is_this_host_itself_too() -> None:
    own = ("address add 192.0.2.1/24 dev e0", "address add 192.0.2.9/24 dev e0")
    assert in_a_namespace(*ETHERNET, *own).startswith("['192.0.2.1/32', '192.0.2.9/32']")


@needs_root
def test_an_address_that_can_be_bound_all_the_same_is_not_this_host_s() -> None:
    own = ("address add 192.0.2.1/24 dev e0", "address add 2001:db8::1/64 dev e0 nodad")
    allowed = ("ipv4/ip_nonlocal_bind", "ipv6/ip_nonlocal_bind")
    found = in_a_namespace(*ETHERNET, *own, switched_on=allowed)
    assert found == "['192.0.2.1/32', '2001:db8::1/128'] True"


@needs_root
@pytest.mark.parametrize(
    ("commands", "answer"),
    [
        ((), "False"),
        (("link set lo up",), "False"),
        (ETHERNET, "False"),  # a link-local address and no way out
        ((*ETHERNET, "-6 route add default via fe80::1 dev e0"), "True"),
        ((*ETHERNET, "address add fd00::1/64 dev e0 nodad"), "True"),
        ((*ETHERNET, "address add fd00::1/64 dev e0 nodad", "-6 address flush dev lo"), "True"),
    ],
)
def test_a_host_has_ipv6_if_it_gets_beyond_its_links(
    commands: tuple[str, ...], answer: str
) -> None:
    assert in_a_namespace(*commands).endswith(f"] {answer}")


def test_the_control_group_is_the_one_that_the_kernel_names() -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert [own_cgroup()] == ([line[3:] for line in lines if line.startswith("0::")] or [""])
