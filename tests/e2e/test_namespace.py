"""--namespace: what programs of another network namespace do goes by an ssh that is outside of it.

box (its wire leads nowhere)

client ----------------- server ------------- target
 sshunt, ssh              sshd + agent         web, echo
"""

import subprocess
from collections.abc import Iterator

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.hosts import ip
from sshunt.lab.leftovers import remove_namespace
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import SSHUNT


@pytest.fixture
def box(lab: Lab) -> Iterator[str]:
    """A process in a namespace of its own, which has a route and nothing behind it: its id."""
    name = f"{lab.name}-alone"
    ip(f"netns add {name}")
    try:
        ip(
            "link set lo up",
            "link add eth0 type veth peer name eth1",
            "address add 198.18.0.2/24 dev eth0",
            "link set eth0 up",
            "link set eth1 up",
            "route add default via 198.18.0.1",
            netns=name,
        )
        enter = ["ip", "netns", "exec", name, "sleep", "60"]
        with subprocess.Popen(enter) as program:
            try:
                yield str(program.pid)
            finally:
                program.kill()
    finally:
        remove_namespace(name)


def inside(box: str, *command: str) -> str:
    enter = ["nsenter", f"--net=/proc/{box}/ns/net", *command]
    return subprocess.run(enter, capture_output=True, text=True, check=True).stdout


def test_programs_in_there_are_served_and_those_outside_are_not(
    lab: Lab, start: Start, box: str
) -> None:
    tunnel = start("--namespace", box, "--grace", "0", "-r", "server", OFFICE_V4)
    assert "Hello" in inside(box, "curl", "-sS", "-m", "5", f"http://{lab.target.v4}/")
    inside(box, "ping", "-c", "1", "-W", "5", lab.target.v4)
    assert "sshunt-" in inside(box, "nft", "list", "tables")
    assert lab.client.run(["nft", "list", "tables"]).stdout == ""
    with pytest.raises(OSError, match="timed out"):
        lab.client.connect(lab.target.v4, 80, timeout_s=0.2)
    assert "do not arrive" not in tunnel.said
    tunnel.process.kill()
    tunnel.process.wait(5)
    subprocess.run(["sleep", "0.5"], check=True)
    assert inside(box, "nft", "list", "tables") == ""


@pytest.mark.parametrize(
    ("user", "namespace", "code"),
    [
        ("root", "no-such-namespace", ExitCode.USAGE),
        ("root", "../../proc/1/ns/net", ExitCode.USAGE),
        ("ben", "anything", ExitCode.PRIVILEGE),
    ],
)
def test_what_can_t_be_entered_is_said(lab: Lab, user: str, namespace: str, code: int) -> None:
    words = [*SSHUNT, "--namespace", namespace, "-r", "server", OFFICE_V4]
    done = lab.client.run(words, user=user, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
