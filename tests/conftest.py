"""Fixtures for every test: the lab (see ``sshunt.lab.world`` for its topology)."""

import os
import signal
from collections.abc import Iterator

import pytest

from sshunt.lab.world import Lab


def pytest_configure() -> None:
    """Let Ctrl-C reach what is tested also where the tests were started with ``&`` in a script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A remote office of the module's own: sshd on the server, a web server on the target."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo ./dev test")
    with Lab() as lab:
        lab.web(lab.target)
        yield lab
