"""Where the helper's parts are tried: a host of the lab's, the machine's own control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.helper.processes import open_proc
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from tests.unit.helper.control_groups import hierarchy, place_in


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.target


@pytest.fixture
def proc() -> Iterator[int]:
    descriptor = open_proc()
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="module")
def root() -> Path:
    return hierarchy()


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with place_in(root, monkeypatch) as place:
        yield place
