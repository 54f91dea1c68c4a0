"""Fixtures for every test: the lab (see ``sshunt.lab.world`` for its topology)."""

import os
from collections.abc import Iterator

import pytest

from sshunt.lab.world import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A remote office of the module's own: sshd on the server, a web server on the target."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo ./dev test")
    with Lab() as lab:
        lab.web(lab.target)
        yield lab
