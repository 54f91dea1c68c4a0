"""Fixtures for every test: the lab (see ``sshunt.lab.world`` for its topology)."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.world import Lab


def pytest_configure(config: pytest.Config) -> None:
    """Let signals reach what is tested also where the tests were started with ``&`` in a script, or
    by nohup; and let what draws by itself use the seed that hypothesis is given (./dev fuzz).
    """
    config.addinivalue_line("markers", "many: does one thing over and over, to reach a limit")
    if seed := config.getoption("--hypothesis-seed"):
        os.environ["SSHUNT_FUZZ_SEED"] = seed
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _leave_nothing_in_a_checkout_of_somebody_else()


def _leave_nothing_in_a_checkout_of_somebody_else() -> None:
    """hypothesis keeps what it has found in the current directory. Root, whom ./dev test becomes,
    would leave files there that the checkout's owner can't remove.
    """
    if Path.cwd().stat().st_uid != os.geteuid():
        folder = tempfile.mkdtemp(prefix="hypothesis-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A remote office of the module's own: sshd on the server, a web server on the target."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo ./dev test")
    with Lab() as lab:
        lab.web(lab.target)
        yield lab
