"""The command itself: what it inherits, how it is stopped, what it says of it."""

import time

import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import SSHUNT, START_DEADLINE_S, STOP_DEADLINE_S, fetch


@pytest.mark.parametrize("user", ["root", "ben"])
def test_it_works_with_nothing_to_say_anything_to(lab: Lab, user: str) -> None:
    # A service manager, or `2>&-`: a socket must not take the place of stderr, at any of the ends.
    words = [*SSHUNT, "-r", "server", OFFICE_V4]
    closed = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *words]
    tunnel = lab.client.popen(closed, user=user)
    deadline = time.monotonic() + START_DEADLINE_S
    while (fetched := fetch_or_not(lab)) is None and time.monotonic() < deadline:
        assert tunnel.poll() is None, f"it ended with {tunnel.poll()}"
        time.sleep(0.1)
    tunnel.terminate()
    assert fetched is not None
    assert tunnel.wait(STOP_DEADLINE_S) == 0


def fetch_or_not(lab: Lab) -> str | None:
    page = f"http://{lab.target.v4}/"
    done = lab.client.run(["curl", "-sS", "-m", "1", page], check=False)
    return done.stdout if done.returncode == 0 else None


def test_a_login_whose_start_file_closes_stderr_does_no_harm(lab: Lab, start: Start) -> None:
    bashrc = lab.account("ada").home / ".bashrc"
    bashrc.write_text("exec 2>&-\n")
    try:
        start("-r", "server", OFFICE_V4)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    finally:
        bashrc.unlink()
