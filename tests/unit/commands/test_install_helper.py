"""What is installed for all is the helper, whole, root's alone, and can be removed again."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.commands import install_helper as module
from sshunt.commands.install_helper import install_helper
from sshunt.errors import ExitCode, UserError
from sshunt.helper.protocol import EXIT_NO_SOCKET
from sshunt.host.elevate import LAUNCHER
from sshunt.tell.console import Console

_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="installs as root")


def installed(root: Path, *words: str) -> list[str]:
    assert install_helper(["--root", str(root), *words], Console()) == ExitCode.OK
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@_AS_ROOT
def test_the_launcher_and_the_modules_that_it_imports_are_all_there_is(tmp_path: Path) -> None:
    files = installed(tmp_path)
    launcher, lib = LAUNCHER[1:], f"{os.path.dirname(LAUNCHER)[1:]}/lib/sshunt"
    assert launcher in files
    assert f"{lib}/helper/__main__.py" in files
    folders = {name.removeprefix(f"{lib}/").partition("/")[0] for name in files if name != launcher}
    assert folders == {"__init__.py", "model.py", "capture", "helper"}
    for path in (tmp_path / LAUNCHER[1:]).parent.rglob("*"):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode) & 0o022) == (0, 0)


@_AS_ROOT
def test_what_is_installed_loads_every_module_without_the_rest_of_sshunt(tmp_path: Path) -> None:
    installed(tmp_path)
    folder = tmp_path / os.path.dirname(LAUNCHER)[1:]
    # Where it would be: what is run is the launcher, as sudo would.
    script = f"mount --bind {folder.parent} /usr/local/lib && exec /usr/local/lib/sshunt/helper"
    launcher = folder / "helper"
    text = launcher.read_text().replace("/usr/local/libexec", "/usr/local/lib")
    launcher.write_text(text)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == EXIT_NO_SOCKET
    load = (
        "import sys; sys.path.append(sys.argv[1]); import importlib, pkgutil, sshunt.helper as h;"
        "[importlib.import_module(f'sshunt.helper.{m.name}') for m in pkgutil.iter_modules("
        "h.__path__) if m.name != '__main__']"
    )
    subprocess.run([sys.executable, "-ISBc", load, str(folder / "lib")], check=True)


@_AS_ROOT
def test_a_second_time_takes_the_place_of_the_first_and_leaves_nothing_of_it(
    tmp_path: Path,
) -> None:
    first = installed(tmp_path)
    stale = tmp_path / os.path.dirname(LAUNCHER)[1:] / "lib/sshunt/helper/stale.py"
    stale.write_text("")
    assert installed(tmp_path) == first


@_AS_ROOT
def test_with_socket_there_are_units_and_remove_takes_all_away(tmp_path: Path) -> None:
    files = installed(tmp_path, "--socket")
    assert "etc/systemd/system/sshunt-helper.socket" in files
    assert "etc/systemd/system/sshunt-helper@.service" in files
    assert installed(tmp_path, "--remove") == []


def test_somebody_else_than_root_is_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="only root") as caught:
        install_helper([], Console())
    assert caught.value.exit_code == ExitCode.PRIVILEGE


@_AS_ROOT
def test_a_python_that_is_somebody_s_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python3"
    python.write_text("")
    os.chown(python, 12345, 0)
    monkeypatch.setattr(module, "_PYTHON", str(python))
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match="no Python for root to run the helper with"):
        install_helper(["--root", str(tmp_path)], Console())
