"""The unit files of contrib are what is installed, and systemd understands them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sshunt.commands.units import GROUP, SERVICE_UNIT, SOCKET_UNIT, UNITS
from sshunt.helper.service import ACCEPTED_WORD, SERVICE_SOCKET
from sshunt.host.elevate import LAUNCHER, SERVICE

_CONTRIB = Path(__file__).parents[3] / "contrib" / "systemd"


def test_contrib_has_the_same_files_to_the_letter() -> None:
    assert {path.name: path.read_text() for path in _CONTRIB.iterdir()} == UNITS


def test_the_names_are_those_that_client_and_helper_know() -> None:
    assert set(UNITS) == {f"{SERVICE}.socket", f"{SERVICE}@.service"}
    assert f"ListenStream={SERVICE_SOCKET}\n" in SOCKET_UNIT
    assert f"SocketGroup={GROUP}\n" in SOCKET_UNIT
    assert f"ExecStart={LAUNCHER} {ACCEPTED_WORD}\n" in SERVICE_UNIT


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_finds_nothing_to_say_about_them(tmp_path: Path) -> None:
    for name, text in UNITS.items():
        (tmp_path / name).write_text(text.replace(LAUNCHER, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / f"{SERVICE}.socket")],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if SERVICE in line]
    # Older ones know no limit for each who connects, and go on without.
    assert [line for line in said if "MaxConnectionsPerSource" not in line] == []
