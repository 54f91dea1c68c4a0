"""Whatever a server says behind its ssh: the client opens nothing for it, says of it what is worth
a line, and goes on.
"""

import sys
from pathlib import Path

from sshunt.lab.world import OFFICE_V4, Lab
from sshunt.mux.frames import RESET_NOT_PERMITTED
from sshunt.remote.telemetry import MOST_QUESTIONS
from tests.e2e.conftest import Start
from tests.e2e.tunnels import Tunnel

PROGRAM = Path(__file__).with_name("hostile_server.py")


def attacked(lab: Lab, start: Start, attack: str) -> Tunnel:
    """A client that was attacked and is connected again."""
    mark = lab.folder / attack
    tunnel = start(
        *("-v", "-r", "server", "-e", f"{sys.executable} {PROGRAM} {attack} {mark}"), OFFICE_V4
    )
    tunnel.wait_until(lambda: "sshunt: connected to server again" in tunnel.said)
    return tunnel


def test_a_server_that_ends_the_session_again_and_again_ends_it_once(
    lab: Lab, start: Start
) -> None:
    tunnel = attacked(lab, start, "say_goodbye_again_and_again")
    assert tunnel.said.count("has lost the session") == 1


def test_unasked_answers_of_a_server_cause_no_line(lab: Lab, start: Start) -> None:
    tunnel = attacked(lab, start, "answer_what_was_not_asked")
    assert "has lost the session (that was all)" in tunnel.said
    assert tunnel.said.count("is of no use") <= MOST_QUESTIONS


def test_the_client_connects_to_nobody_for_its_server(lab: Lab, start: Start) -> None:
    tunnel = attacked(lab, start, "ask_for_a_connection")
    assert f"it was answered with {[RESET_NOT_PERMITTED] * 3}" in tunnel.said
