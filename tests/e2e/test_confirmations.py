"""Who must confirm each use of a key is asked for the session's login, and not for further lanes.

neighbour ------------- client ===== 300 Mbit/s, 80 ms ===== server ------------- target
             sshunt, ssh-agent (ssh-add -c)                   sshd, agent         web server
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import OFFICE_V4, Lab
from tests.agent.far_side import eventually
from tests.e2e.test_lanes import LINK, SIZE, download, tcp_connections_of
from tests.e2e.transfers import without_the_key
from tests.e2e.tunnels import SSHUNT, running


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(up=LINK, down=LINK, mtu=9000) as lab:
        lab.web(lab.target)
        yield lab


class Person:
    """Confirms each use of the key in an agent, after a second. The key lies nowhere else."""

    def __init__(self, lab: Lab) -> None:
        self._questions = lab.folder / "questions"
        self._questions.write_text("")
        self._program = lab.folder / "asks"
        self.answers("sleep 1")
        self.socket = lab.folder / "agent"
        self.agent = lab.client.popen(
            ["ssh-agent", "-D", "-a", str(self.socket)],
            env={"SSH_ASKPASS": str(self._program), "DISPLAY": ":none"},
        )
        eventually(self.socket.exists, "the agent")
        home = lab.account("root").home
        key = home / ".ssh" / "id_ed25519"
        lab.client.run(["ssh-add", "-q", "-c", str(key)], env={"SSH_AUTH_SOCK": str(self.socket)})
        public = lab.client.run(["ssh-keygen", "-y", "-f", str(key)]).stdout
        Path(f"{key}.pub").write_text(public)  # IdentitiesOnly wants to know which key it is

    def answers(self, how: str) -> None:
        """From now on. The exit status is the answer."""
        self._program.write_text(f"#!/bin/sh\necho asked >> {self._questions}\n{how}\n")
        self._program.chmod(0o755)

    @property
    def questions(self) -> int:
        """How many there were."""
        return self._questions.read_text().count("asked")


@pytest.fixture
def person(lab: Lab) -> Iterator[Person]:
    person = Person(lab)
    with without_the_key(lab):
        yield person
    person.agent.terminate()
    person.agent.wait()


def test_a_user_who_confirms_logins_is_asked_once_and_gets_channels(
    lab: Lab, person: Person
) -> None:
    program = ("env", f"SSH_AUTH_SOCK={person.socket}", *SSHUNT)
    with running(lab, "-v", "-r", "server", OFFICE_V4, program=program) as tunnel:
        transfer = download(lab)
        tunnel.wait_until(lambda: "channels over the one connection instead" in tunnel.said)
        tunnel.wait_until(lambda: tunnel.said.count("is up: ") >= 3)
        assert len(tcp_connections_of(lab, tunnel)) == 1
        assert transfer.sha256() == payload_sha256(SIZE)
    assert person.questions == 1


def test_a_user_with_a_shared_connection_is_asked_for_no_other(lab: Lab, person: Person) -> None:
    """That it is shared may be because its login took somebody's time."""
    config, path = lab.folder / "sharing", lab.folder / "cm"
    config.write_text(f"Host *\n    ControlPath {path}\nInclude {lab.ssh_config}\n")
    ssh = ("ssh", "-F", str(config))
    env = {"SSH_AUTH_SOCK": str(person.socket)}
    master = lab.client.popen([*ssh, "-N", "-o", "ControlMaster=yes", "server"], env=env)
    eventually(path.exists, "the user's own connection")
    program = ("env", f"SSH_AUTH_SOCK={person.socket}", *SSHUNT)
    words = ("-v", "-r", "server", "-e", " ".join(ssh), OFFICE_V4)
    with running(lab, *words, program=program) as tunnel:
        transfer = download(lab)
        tunnel.wait_until(lambda: "channels over the one connection instead" in tunnel.said)
        assert transfer.sha256() == payload_sha256(SIZE)
    assert person.questions == 1
    master.terminate()
    master.wait()


def test_an_unanswered_confirmation_is_not_asked_again(lab: Lab, person: Person) -> None:
    """The first login was answered at once, as by a touch in passing; the next is not answered."""
    hasty = (
        "import sys; from sshunt import cli; from sshunt.remote import pool;"
        "from sshunt.transport import ssh_unattended;"
        "ssh_unattended.LOGIN_S = 60; pool.RETRY_S = 1; sys.exit(cli.main())"
    )
    program = ("env", f"SSH_AUTH_SOCK={person.socket}", sys.executable, "-c", hasty)
    with running(lab, "-v", "-r", "server", "--lanes", "2", OFFICE_V4, program=program) as tunnel:
        person.answers("exit 1")
        transfer = download(lab)
        tunnel.wait_until(lambda: "channels over the one connection instead" in tunnel.said)
        assert transfer.sha256() == payload_sha256(SIZE)
    assert person.questions == 2
