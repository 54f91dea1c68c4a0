"""What tests leave open: nothing, as soon as what takes a moment is through."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

DEADLINE_S = 10.0


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """What is open afterwards was open before. A thread, or a process that ends, may take a moment
    longer.
    """
    before = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + DEADLINE_S
    while len(os.listdir("/proc/self/fd")) != before:
        assert time.monotonic() < deadline, "something stays open"
        time.sleep(0.01)
