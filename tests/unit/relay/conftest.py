"""On which systems, and which way, payload moves in these tests."""

import pytest

from sshunt.relay import piped, reactor, ticks
from sshunt.relay.reactor import AUTO, COPY, SPLICE
from sshunt.relay.readiness import LevelReadiness


@pytest.fixture(params=["copy", "splice", "auto", "elsewhere"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every way of payload; the last is that of BSD and macOS: no epoll, no timerfd, no tee."""
    if request.param == "elsewhere":
        monkeypatch.setattr(reactor, "readiness", LevelReadiness)
        for module in (piped, ticks):
            monkeypatch.setattr(module, "can_tee", lambda: False)
    return {"splice": SPLICE, "auto": AUTO}.get(request.param, COPY)
