"""A tunnel through a tunnel: the second one's server is known to, and reached by, the first alone.

client ===== 200 Mbit/s, 4 ms ====== server ------------- target
two sshunts, ssh, curl               sshd, first agent    sshd, second agent, resolver, web
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.interruptions import SOON, cut, office, wait_until_said
from tests.e2e.resolvers import laid_over, resolver
from tests.e2e.tunnels import SSHUNT, Remains, Tunnel, fetch, kill


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if shutil.which("dnsmasq") is None:
        pytest.skip("needs dnsmasq")
    with office() as lab:
        lab.sshd(lab.target, options=SOON)
        resolver(lab.target, f"--address=/inner.corp/{lab.target.v4}")
        yield lab


def begun(lab: Lab, stack: ExitStack) -> tuple[Tunnel, Tunnel]:
    """The first tunnel, and the second one through it, which takes everything."""
    conf, switch = lab.folder / "resolv.conf", lab.folder / "nsswitch.conf"
    conf.write_text("nameserver 127.0.0.53\n")
    switch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    program = ["unshare", "--mount", "sh", "-c", laid_over(conf, switch), "sh", *SSHUNT]
    ssh = f"ssh -F {lab.ssh_config} -o HostKeyAlias=server"
    outer = Tunnel(lab, ["--dns", "-r", "server", OFFICE_V4], program=program)
    stack.callback(outer.stop)
    outer.wait_until_connected()
    inner = Tunnel(lab, ["-e", ssh, "-r", "inner.corp", "0/0"], program=program)
    stack.callback(inner.stop)
    inner.wait_until_connected()
    return outer, inner


def test_two_nested_sessions_both_come_back_though_one_routes_everything(lab: Lab) -> None:
    remains = Remains(lab)
    with ExitStack() as stack:
        outer, inner = begun(lab, stack)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
        with cut(lab):
            kill([*outer.pids("ssh"), *inner.pids("ssh")])
            wait_until_said("is lost since", outer, inner)
        wait_until_said(" again after ", outer, inner)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert remains.left() == []
