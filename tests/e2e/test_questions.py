"""ssh asks at a terminal: what belongs above a question stands there, and nothing wipes it out."""

from collections.abc import Iterator

import pytest

from sshunt.lab.accounts import PASSWORD
from sshunt.lab.world import OFFICE_V4, Lab
from tests.e2e.terminals import Terminal
from tests.e2e.tunnels import SSHUNT, STOP_DEADLINE_S, Remains

QUESTION = "cai@server's password:"
DENIED = "Permission denied, please try again."


@pytest.fixture(scope="module")
def asking_server(lab: Lab) -> Iterator[str]:
    """Where a password is wanted at each login."""
    options = {"PasswordAuthentication": "yes", "PubkeyAuthentication": "no"}
    sshd = lab.sshd(lab.server, port=2241, options=options)
    yield "cai@server:2241"
    sshd.stop()


@pytest.mark.parametrize("typed_before", [0, 14])
def test_ssh_s_refusal_stands_before_its_next_question_and_a_reconnect_can_be_answered(
    lab: Lab, asking_server: str, typed_before: int
) -> None:
    remains = Remains(lab)
    ssh = "ssh -o BatchMode=no -o NumberOfPasswordPrompts=3"
    command = " ".join(["exec", *SSHUNT, f"-e '{ssh}'", "-r", asking_server, OFFICE_V4])
    # Also where the screen has to scroll.
    terminal = Terminal(
        lab, "sh", "-c", f"for n in $(seq {typed_before}); do echo $n; done; {command}"
    )
    terminal.wait_for(QUESTION)
    terminal.type("wrong")
    terminal.wait_for(DENIED)
    terminal.listen(0.3)
    *_, first, denied, second = terminal.rows()
    assert QUESTION in first
    assert DENIED in denied
    assert QUESTION in second
    terminal.type(PASSWORD)
    terminal.wait_for("sshunt: connected")
    terminal.wait_for("connections, down ")  # the status line

    lab.client.run(["pkill", "-KILL", "-P", str(terminal.process.pid), "-x", "ssh"])
    terminal.wait_for(QUESTION)
    assert terminal.listen(2.5).strip() == ""
    assert terminal.rows()[-1] == QUESTION
    terminal.type(PASSWORD)
    terminal.wait_for("again after")
    terminal.wait_for("connections, down ")
    terminal.process.terminate()
    assert terminal.process.wait(STOP_DEADLINE_S) == 0
    terminal.close()
    assert remains.left() == []
