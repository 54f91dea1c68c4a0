"""The start's first steps. All of it, with ssh and rules, is started in tests/e2e."""

import asyncio
import os
import socket

import pytest

from sshunt.cli import parse
from sshunt.commands import up
from sshunt.errors import ExitCode, UserError
from sshunt.front.arrival import Prober
from sshunt.host.elevate import helper_command
from sshunt.tell.console import Console
from sshunt.transport.ssh_choices import SshConfigQuery


def test_a_dry_run_says_what_root_would_run_and_the_rules_and_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    text = up.dry_run(parse(["-r", "gate", "10.0.0.0/8", "--dry-run"]), Console())
    assert " ".join(helper_command()) in text
    assert "10.0.0.0" in text
    assert "echo-request" in text
    assert "log group 20000 " in text
    fast = up.dry_run(parse(["-r", "gate", "10/8", "--connect", "fast", "--dry-run"]), Console())
    assert "log group 20000 " not in fast
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dry_run_of_a_mistake_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = parse(["-r", "gate", "-l", f"127.0.0.1:{port}", "10.0.0.0/8"])
        with pytest.raises(UserError) as caught:
            up.dry_run(options, Console())
    assert caught.value.exit_code == ExitCode.LISTEN
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_at_the_start_undoes_what_came_before_it() -> None:
    """A target that can't be resolved: it comes before any helper or ssh is asked."""
    before = len(os.listdir("/proc/self/fd"))
    options = parse(["-r", "gate", "no-such-host.invalid"])
    with pytest.raises(UserError) as caught:
        asyncio.run(up._run(options, Console(), _no_query(), None, _no_prober()))
    assert caught.value.exit_code == ExitCode.NAME
    assert len(os.listdir("/proc/self/fd")) == before


def _no_query() -> SshConfigQuery:
    return SshConfigQuery(parse(["-r", "gate", "-e", "true", "10.0.0.0/8"]).remote)


def _no_prober() -> Prober:
    prober = Prober()
    prober.close()
    return prober
