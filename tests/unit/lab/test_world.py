"""The lab as a whole: how its hosts are joined, who is in it, and that it leaves nothing.

What is seen with ssh and a tunnel is tested in tests/e2e/test_lab.py.
"""

import os
import subprocess
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.lab.link import Shape
from sshunt.lab.world import Lab, wait_until_ready

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def traces_of(lab: Lab) -> list[Path]:
    return [*Path("/run/netns").glob(f"{lab.name}*"), *Path("/tmp").glob(f"{lab.name}*")]


def test_hosts_have_the_addresses_by_which_the_others_know_them(lab: Lab) -> None:
    for host in lab.hosts:
        shown = host.run(["ip", "-o", "address"]).stdout
        assert f" {host.v4}/" in shown
        assert f" {host.v6}/" in shown
    assert len({host.netns for host in lab.hosts}) == 4


def test_only_the_client_forwards_for_others(lab: Lab) -> None:
    for host in lab.hosts:
        value = host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip()
        assert value == ("1" if host is lab.client else "0"), host


def test_names_mean_the_same_on_every_host(lab: Lab) -> None:
    for host in lab.hosts:
        assert host.run(["getent", "hosts", "target"]).stdout.split()[0] in host_addresses(lab)


def host_addresses(lab: Lab) -> tuple[str, ...]:
    return lab.target.addresses


def test_the_web_server_answers_on_its_host(lab: Lab) -> None:
    command = ["curl", "-sS", f"http://{lab.target.v4}/"]
    assert lab.server.run(command).stdout.startswith("Hello from the office")


@needs_root
def test_a_lab_that_is_closed_leaves_nothing_and_may_be_closed_again() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Lab(sshd=False) as lab:
        sleeper = lab.target.popen(["sleep", "1000"])
        assert traces_of(lab)
    assert traces_of(lab) == []
    assert sleeper.poll() is not None
    lab.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@needs_root
def test_a_lab_whose_making_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Lab) -> int:
        raise OSError("no mounts here")

    monkeypatch.setattr(Lab, "_lay_over_etc", fail)
    lab = Lab(sshd=False)
    with pytest.raises(UserError, match="no mounts here"):
        lab.__enter__()
    assert traces_of(lab) == []


@needs_root
def test_the_way_to_the_server_can_be_an_emulated_link() -> None:
    with Lab(sshd=False, up=Shape(), down=Shape()) as lab:
        with lab.server.listen(lab.server.v4) as listener:
            port = listener.getsockname()[1]
            lab.client.connect(lab.server.v4, port).close()
            lab.link.cut()
            with pytest.raises(OSError, match="timed out"):
                lab.client.connect(lab.server.v4, port, timeout_s=1.0)


def test_without_root_there_is_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="needs root") as caught:
        Lab().__enter__()
    assert caught.value.exit_code is ExitCode.PRIVILEGE


def test_a_program_that_ends_before_it_is_ready_is_an_error() -> None:
    with subprocess.Popen(["echo", "no"], stdout=subprocess.PIPE) as process:
        with pytest.raises(RuntimeError, match="ended with"):
            wait_until_ready(process)
