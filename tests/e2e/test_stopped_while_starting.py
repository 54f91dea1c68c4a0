"""Stopped at any moment of its start, sshunt leaves nothing at the server."""

import signal
import time

import pytest

from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.tunnels import Remains, Tunnel

#: From before the login to after "connected", here.
MOMENTS_S = [0.30 + 0.06 * step for step in range(14)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_wherever_a_start_is_stopped_nothing_stays_at_the_server(lab: Lab, number: int) -> None:
    remains = Remains(lab)
    tunnels = []
    for moment_s in MOMENTS_S[:: 1 if number == signal.SIGINT else 3]:
        tunnels.append(Tunnel(lab, ["-r", "server", OFFICE_V4]))
        time.sleep(moment_s)
        tunnels[-1].stop(number)
    assert remains.left() == []
    assert any("connected to" not in tunnel.said for tunnel in tunnels)
