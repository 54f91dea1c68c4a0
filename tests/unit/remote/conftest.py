"""A far side for the tests of this folder."""

import os
from collections.abc import Iterator

import pytest

from tests.agent.far_side import eventually, marked
from tests.unit.remote.far_sessions import Far


@pytest.fixture
def far() -> Iterator[Far]:
    mark = os.urandom(8).hex()
    yield Far(mark)
    eventually(lambda: marked(mark) == [], "the agent's end")
