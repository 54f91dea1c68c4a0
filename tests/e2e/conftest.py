"""Fixtures of the end-to-end tests: a tunnel that is up, and a way to start more of them.

Whichever way a test ends, the fixtures stop what it started and then assert that nothing is left:
no rule, no process on either side, no control group, no file.
"""

from collections.abc import Callable, Iterator

import pytest

from sshunt.lab.world import Lab
from tests.e2e.tunnels import OFFICE, Remains, Tunnel, cgroups_of, running

Start = Callable[..., Tunnel]


@pytest.fixture(scope="module")
def tunnel(lab: Lab) -> Iterator[Tunnel]:
    """One tunnel to the office for all tests of a module."""
    with running(lab, "-r", "server", *OFFICE) as tunnel:
        yield tunnel


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Start sshunt with these words and wait until it is connected; as often as wanted."""
    remains = Remains(lab)
    started: list[Tunnel] = []
    cgroups = []

    def start_one(*words: str, **more: object) -> Tunnel:
        tunnel = Tunnel(lab, words, **more)  # type: ignore[arg-type]
        started.append(tunnel)
        tunnel.wait_until_connected()
        cgroups.extend(cgroups_of(tunnel))
        return tunnel

    try:
        yield start_one
    finally:
        for tunnel in started:
            tunnel.stop()
    for tunnel in started:
        assert "Traceback" not in tunnel.said
    assert remains.left() == []
    assert not [path for path in cgroups if path.exists()]
