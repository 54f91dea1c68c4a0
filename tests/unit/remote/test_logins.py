"""What becomes of a login is said, with what kind of login it was."""

import pytest

from sshunt.remote.logins import Login
from sshunt.tell.report import (
    FIRST_LOGIN,
    FURTHER_LOGIN,
    LATER_LOGIN,
    Event,
    FarSideSilent,
    KnownAddressTried,
    Report,
    SshSaid,
)
from sshunt.transport.channel import Hearer


@pytest.mark.parametrize("kind", [FIRST_LOGIN, LATER_LOGIN, FURTHER_LOGIN])
def test_what_happens_to_a_login_is_said_of_its_remote(kind: int) -> None:
    said: list[Event] = []
    report = Report(lambda error: pytest.fail(str(error)))
    report.subscribe(said.append)
    hearer: Hearer = Login(report, "gate", kind)
    hearer.on_line("Welcome")
    hearer.on_silence("no word")
    hearer.on_known_address("192.0.2.1")
    assert said == [
        SshSaid("gate", kind, "Welcome"),
        FarSideSilent("gate", kind, "no word"),
        KnownAddressTried("gate", "192.0.2.1"),
    ]
