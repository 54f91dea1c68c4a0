"""Real programs that keep a connection for long, while ssh is killed and the link is cut.

neighbour ------------- client ===== 200 Mbit/s, 4 ms ====== server ------------- target
                        sshunt, ssh                          sshd, stub, agent   PostgreSQL, sshd
                        psql, another ssh
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.lab.world import Lab
from tests.e2e.interruptions import cut, office, up
from tests.e2e.tunnels import Tunnel, kill

#: Longer than it takes to notice. An hour shows no more than this does; a minute was tried.
CUT_S = float(os.environ.get("SSHUNT_CUT_S", "8"))

#: An ordinary user: PostgreSQL refuses to run as root.
OWNER = "ben"

PORT = 5432


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with office() as lab:
        yield lab


class Program:
    """A program on the client host that is talked to line by line."""

    def __init__(self, lab: Lab, argv: Sequence[str], stack: ExitStack) -> None:
        pipe = subprocess.PIPE
        self._process = lab.client.popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
        stack.callback(self._end)

    def says(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def hears(self, pattern: str) -> str:
        """Read lines up to one with the pattern; its first group."""
        assert self._process.stdout is not None
        heard = []
        while line := self._process.stdout.readline().decode():
            heard.append(line)
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"it ended without {pattern}: {heard}")

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def database(lab: Lab) -> Path:
    """A PostgreSQL server on the target; where its programs are."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    data = lab.folder / "database"
    data.mkdir()
    os.chown(data, lab.account(OWNER).uid, lab.account(OWNER).uid)
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N"]
    lab.target.run(initdb, user=OWNER)
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all all trust\n")
    settings = {
        "listen_addresses": lab.target.v4,
        "port": str(PORT),
        "unix_socket_directories": str(data),
        "fsync": "off",
    }
    options = [word for item in settings.items() for word in ("-c", "=".join(item))]
    log = (lab.folder / "database.log").open("wb")
    with log:
        lab.target.popen(
            [str(programs / "postgres"), "-D", str(data), *options], user=OWNER, stderr=log
        )
    lab.target.wait_for_port(lab.target.v4, PORT)
    return programs


def psql(lab: Lab, programs: Path, stack: ExitStack) -> Program:
    where = ["-h", lab.target.v4, "-p", str(PORT), "-U", "postgres"]
    return Program(lab, [str(programs / "psql"), "-X", "-q", "-A", "-t", *where], stack)


def kill_ssh(tunnel: Tunnel) -> None:
    """Of the tunnel, not of a person: that one is no child of it."""
    kill([pid for pid in tunnel.pids("ssh") if parent(pid) == tunnel.process.pid])


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nPPid:\t")[2].split()[0])


def test_a_transaction_goes_on_through_a_killed_ssh_and_a_cut(lab: Lab, database: Path) -> None:
    with up(lab) as tunnel, ExitStack() as stack:
        client = psql(lab, database, stack)
        client.says("create table notes (n int);")
        client.says("begin; insert into notes values (1); select 'backend', pg_backend_pid();")
        backend = client.hears(r"backend\|(\d+)")

        kill_ssh(tunnel)
        client.says("insert into notes values (2) returning n, 'inserted';")
        assert client.hears(r"(\d)\|inserted") == "2"

        with cut(lab):
            client.says("insert into notes values (3) returning n, 'inserted';")
            tunnel.wait_until(lambda: tunnel.said.count("is lost since") == 2)
            time.sleep(CUT_S)
        assert client.hears(r"(\d)\|inserted") == "3"

        client.says("commit; select 'rows', count(*), 'backend', pg_backend_pid() from notes;")
        assert client.hears(r"(rows\|\d+\|backend\|\d+)") == f"rows|3|backend|{backend}"
        another = psql(lab, database, stack)
        another.says("select 'rows', count(*) from notes;")
        assert another.hears(r"rows\|(\d+)") == "3"
        print(tunnel.said)


def test_an_idle_login_goes_on_through_a_killed_ssh_and_a_cut(lab: Lab) -> None:
    sshd = lab.sshd(lab.target)
    with up(lab) as tunnel, ExitStack() as stack:
        login = Program(lab, lab.ssh("-tt", lab.target.v4), stack)
        ask = "echo shell-$((0))$$-"
        login.says(ask)
        shell = login.hears(r"shell-0(\d+)-")

        kill_ssh(tunnel)
        tunnel.wait_until(lambda: tunnel.said.count("again after") == 1)
        login.says(ask)
        assert login.hears(r"shell-0(\d+)-") == shell

        with cut(lab):
            time.sleep(CUT_S)
        login.says(ask)
        assert login.hears(r"shell-0(\d+)-") == shell
        login.says("exit")
    sshd.stop()
