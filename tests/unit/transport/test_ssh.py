"""What ssh is given, how a start of it fails or is cancelled, and sessions by one transport."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sshunt.config.remotes import RemoteSpec
from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import is_alive
from sshunt.mux.hello import CLIENT, FEATURE_CREATE, make_hello
from sshunt.transport import ssh as ssh_module
from sshunt.transport import ssh_unattended
from sshunt.transport.channel import Channel
from sshunt.transport.ssh import SshTransport, ssh_argv
from sshunt.transport.ssh_choices import NOTHING, Choices, Sharing
from sshunt.transport.stderr import SPEAKER, STDERR_LINE_CHARACTERS
from tests.agent.far_side import eventually
from tests.unit.transport.programs import Heard

DEADLINE_S = 20.0


def program(folder: Path, text: str, name: str = "ssh") -> str:
    """A program to stand in ssh's place."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_the_users_own_arguments_come_before_ours(tmp_path: Path) -> None:
    path = program(tmp_path, "exit 0")
    remote = RemoteSpec("gate", "alice", 2222, (path, "-o", "ControlMaster=yes"))
    argv = ssh_argv(remote, ["-o", "Extra=1"], "command")
    assert argv[:3] == [path, "-o", "ControlMaster=yes"]
    assert argv.index("ControlMaster=yes") < argv.index("ControlMaster=no")
    assert argv[3:5] == ["-o", "Extra=1"]
    assert argv[-5:] == ["-p", "2222", "alice@gate", "--", "command"]


def test_the_delimiter_before_the_command_can_be_left_out() -> None:
    assert ssh_argv(RemoteSpec("gate", delimiter=False), [], "command")[-2:] == ["gate", "command"]


def test_ssh_is_found_where_it_usually_is_when_the_path_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert ssh_argv(RemoteSpec("gate"), [], "command")[0].endswith("/ssh")


def test_an_ssh_that_is_not_there_is_said_so() -> None:
    with pytest.raises(UserError, match=r"no-such-ssh can't be started") as raised:
        ssh_argv(RemoteSpec("gate", ssh_command=("no-such-ssh",)), [], "command")
    assert raised.value.exit_code == ExitCode.CONNECT


# --- connecting, with programs that stand in ssh's place --------------------------------------


async def connect(
    remote: RemoteSpec, heard: Heard | None = None, deadline_s: float = DEADLINE_S
) -> None:
    hello = make_hello(CLIENT, bytes(32))
    await SshTransport(remote, NOTHING).open(hello, heard or Heard(), deadline_s=deadline_s)


def attempt(path: str, deadline_s: float = 20.0) -> tuple[UserError, list[str]]:
    """How ``connect`` fails, and what it showed on the way."""
    heard = Heard()

    async def run() -> UserError:
        remote = RemoteSpec("gate", ssh_command=(path,))
        with pytest.raises(UserError) as raised:
            await connect(remote, heard, deadline_s)
        return raised.value

    return asyncio.run(run()), heard.lines


def test_lines_that_the_diagnosis_will_say_are_not_shown_twice(tmp_path: Path) -> None:
    said = "echo Welcome to the gate >&2; echo 'a@gate: Permission denied (publickey).' >&2"
    error, shown = attempt(program(tmp_path, said + "; exit 255"))
    assert shown == ["ssh: Welcome to the gate"]
    assert error.exit_code == ExitCode.AUTH


def test_what_the_far_side_writes_can_not_control_the_terminal(tmp_path: Path) -> None:
    _, shown = attempt(program(tmp_path, r"printf 'a\033[2Jb\r\n' >&2; exit 1"))
    assert shown == ["ssh: a [2Jb"]


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    _, shown = attempt(program(tmp_path, "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"))
    assert max(map(len, shown)) <= len(SPEAKER) + STDERR_LINE_CHARACTERS


def test_an_answer_that_never_comes_has_a_deadline(tmp_path: Path) -> None:
    error, _ = attempt(program(tmp_path, "exec sleep 60"), deadline_s=0.2)
    assert "did not answer" in error.message
    assert error.exit_code == ExitCode.REMOTE


def test_an_echo_of_the_upload_is_not_taken_for_the_agent(tmp_path: Path) -> None:
    error, _ = attempt(program(tmp_path, "exec cat"))
    assert "not the agent" in error.message


def test_a_grandchild_that_keeps_the_pipes_open_does_not_hold_the_failure_up(
    tmp_path: Path,
) -> None:
    pid_file = tmp_path / "pid"
    error, _ = attempt(program(tmp_path, f"sleep 60 & echo $! > {pid_file}; exit 255"))
    assert error.exit_code == ExitCode.CONNECT
    Path("/proc", pid_file.read_text().strip(), "comm").read_text()  # it lives
    asyncio.run(_kill(int(pid_file.read_text())))


async def _kill(pid: int) -> None:
    await (await asyncio.create_subprocess_exec("kill", str(pid))).wait()


def test_a_cancelled_start_leaves_no_ssh_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")

    async def run() -> None:
        remote = RemoteSpec("gate", ssh_command=(path,))
        starting = asyncio.ensure_future(connect(remote))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    assert not Path("/proc", pid_file.read_text().strip()).exists()


def test_a_start_that_is_cancelled_again_and_again_leaves_no_ssh_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")

    async def run() -> None:
        remote = RemoteSpec("gate", ssh_command=(path,))
        starting = asyncio.ensure_future(connect(remote))
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        while not starting.done():
            starting.cancel()
            await asyncio.wait([starting], timeout=0.02)
        assert starting.cancelled()

    asyncio.run(run())
    assert not is_alive(int(pid_file.read_text()))


def test_children_of_ssh_end_with_a_cancelled_start(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"sleep 60 & echo $! > {pid_file}; wait")
    error, _ = attempt(path, deadline_s=0.5)
    assert "did not answer" in error.message
    sleep = int(pid_file.read_text())
    eventually(lambda: not is_alive(sleep), "the end of what ssh had started")


def test_a_start_leaks_no_descriptor_whenever_it_is_cancelled(tmp_path: Path) -> None:
    remote = RemoteSpec("gate", ssh_command=(program(tmp_path, "exec sleep 60"),))

    async def run() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()  # the loop's own descriptors
        before = len(os.listdir("/proc/self/fd"))
        for turns in range(1, 12):  # from before the pipes are made until ssh runs
            starting = asyncio.ensure_future(connect(remote))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert len(os.listdir("/proc/self/fd")) == before, turns

    asyncio.run(run())


# --- whole sessions, with an ssh that runs its command on this host ------------------------------


class FakeSsh:
    """A program in ssh's place that notes its options and runs the command right here, so that a
    real agent answers. Unless it is to refuse the login: ``refuses`` is a shell's condition.
    """

    def __init__(self, folder: Path, refuses: str = "false") -> None:
        self._log = folder / "log"
        text = f"""case "$*" in *-G*) exit 1;; esac
printf '%s|%s\\n' "${{SSH_AUTH_SOCK-none}}" "${{*%% -- *}}" >> {self._log}
if {refuses}; then echo 'a@gate: Permission denied (publickey).' >&2; exit 255; fi
for last; do :; done
exec /bin/sh -c "$last"
"""
        self.remote = RemoteSpec("gate", ssh_command=(program(folder, text),))

    def runs(self) -> list[tuple[str, str]]:
        """(SSH_AUTH_SOCK, options) of each run."""
        lines = self._log.read_text().splitlines()
        return [(agent, options) for agent, _, options in (line.partition("|") for line in lines)]


#: What ssh -G would say of a user who has an agent.
WITH_AGENT = Choices([], Sharing.OURS, unattended=("-o", "IdentityAgent=none"), is_direct=True)

TOKEN = bytes(range(32))


class Conversation:
    """A session's channels by one transport."""

    def __init__(self, ssh: FakeSsh, choices: Choices) -> None:
        self.transport = SshTransport(ssh.remote, choices)
        self.heard = Heard()
        self._channels: list[Channel] = []

    async def open(self, *, resumes: bool = False) -> Channel:
        features = 0 if self._channels else FEATURE_CREATE
        hello = make_hello(CLIENT, TOKEN, lane=len(self._channels), features=features)
        channel = await self.transport.open(
            hello, self.heard, deadline_s=DEADLINE_S, resumes=resumes
        )
        self._channels.append(channel)
        return channel

    async def open_beside(self, path_rtt_s: float = 60.0) -> Channel:
        ready = asyncio.Event()
        ready.set()
        channel = await self.transport.open_beside(
            make_hello(CLIENT, TOKEN, lane=100 + len(self._channels)),
            self.heard,
            ready=ready,
            deadline_s=DEADLINE_S,
            path_rtt_s=path_rtt_s,
        )
        self._channels.append(channel)
        return channel

    async def end(self) -> None:
        for channel in self._channels:
            os.close(channel.read_fd)
            os.close(channel.write_fd)
            await channel.close()


def converse(
    ssh: FakeSsh, choices: Choices, conversation: Callable[[Conversation], Awaitable[None]]
) -> None:
    async def whole() -> None:
        made = Conversation(ssh, choices)
        try:
            await conversation(made)
        finally:
            await made.end()

    asyncio.run(whole())


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    return "/run/agent"


def test_a_further_login_asks_nobody_and_goes_past_every_shared_connection(
    tmp_path: Path, agent: str
) -> None:
    ssh = FakeSsh(tmp_path)

    async def conversation(session: Conversation) -> None:
        await session.open()
        await session.open_beside()

    converse(ssh, WITH_AGENT, conversation)
    (_, first), (asked, further) = ssh.runs()
    assert "BatchMode" not in first
    assert "-S none" not in first
    assert "BatchMode=yes" in further
    assert "-S none" in further
    assert asked == agent  # the first login was quick, so it asked nobody either
    assert "IdentityAgent" not in further


def test_after_a_login_that_took_somebodys_time_further_ones_have_no_agent(
    tmp_path: Path, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_unattended, "LOGIN_S", 0.0)
    ssh = FakeSsh(tmp_path)

    async def conversation(session: Conversation) -> None:
        await session.open()
        await session.open_beside(path_rtt_s=0.0)
        await session.open_beside(path_rtt_s=60.0)  # what was found out once holds for good

    converse(ssh, WITH_AGENT, conversation)
    for asked, further in ssh.runs()[1:]:
        assert asked == "none"
        assert "IdentityAgent=none" in further


def test_without_a_login_of_its_own_the_session_may_have_taken_somebodys_time(
    tmp_path: Path, agent: str
) -> None:
    path = tmp_path / "shared"
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(path))
    ssh = FakeSsh(tmp_path)

    async def conversation(session: Conversation) -> None:
        with socket.socket(socket.AF_UNIX) as master:
            master.bind(str(path))
            master.listen()
            channel = await session.open()
            assert channel.is_logged_in
            await session.open_beside()

    converse(ssh, theirs, conversation)
    assert ssh.runs()[1][0] == "none"


def test_where_a_second_login_is_refused_further_channels_share_the_users_own_connection(
    tmp_path: Path,
) -> None:
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(tmp_path / "shared"))
    ssh = FakeSsh(tmp_path, refuses='case "$*" in *"-S none"*) true;; *) false;; esac')

    async def conversation(session: Conversation) -> None:
        await session.open()
        assert not session.transport.shares_connection
        with pytest.raises(UserError) as raised:
            await session.open_beside()
        assert raised.value.exit_code is ExitCode.AUTH
        assert session.transport.shares_connection
        await session.open_beside()

    converse(ssh, theirs, conversation)
    assert "-S none" not in ssh.runs()[-1][1]


def test_where_there_is_no_connection_to_share_a_refused_login_changes_nothing(
    tmp_path: Path,
) -> None:
    ssh = FakeSsh(tmp_path, refuses='case "$*" in *BatchMode*) true;; *) false;; esac')

    async def conversation(session: Conversation) -> None:
        await session.open()  # and binds no control socket
        for _ in range(2):
            with pytest.raises(UserError):
                await session.open_beside()
            assert not session.transport.shares_connection

    converse(ssh, WITH_AGENT, conversation)
    assert all("-S none" in options for _, options in ssh.runs()[1:])


def test_a_new_connection_makes_a_second_login_worth_another_try(tmp_path: Path) -> None:
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(tmp_path / "shared"))
    ssh = FakeSsh(tmp_path, refuses='case "$*" in *BatchMode*) true;; *) false;; esac')

    async def conversation(session: Conversation) -> None:
        await session.open()
        with pytest.raises(UserError):
            await session.open_beside()
        assert session.transport.shares_connection
        await session.open(resumes=True)
        assert not session.transport.shares_connection

    converse(ssh, theirs, conversation)


def test_what_resumes_goes_through_the_shared_connection_and_past_it_in_turn(
    tmp_path: Path,
) -> None:
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(tmp_path / "shared"))
    ssh = FakeSsh(tmp_path, refuses=f"test -e {tmp_path / 'closed'}")

    async def conversation(session: Conversation) -> None:
        await session.open()
        session.transport.connection_lost(may_yet_answer=False)
        (tmp_path / "closed").touch()
        needs_a_person = []
        for _ in range(2):
            with pytest.raises(UserError) as raised:
                await session.open(resumes=True)
            needs_a_person.append(session.transport.attempt_failed(raised.value))
        assert needs_a_person == [False, True]

    converse(ssh, theirs, conversation)
    through, past = (options for _, options in ssh.runs()[1:])
    assert "ConnectTimeout" in through
    assert "-S none" not in through
    assert "-S none" in past


def test_a_shared_connection_that_nobody_answers_through_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_module, "SHARED_DEADLINE_S", 0.3)
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(tmp_path / "shared"))
    ssh = FakeSsh(tmp_path, refuses=f"test -e {tmp_path / 'dead'} && exec sleep 60")

    async def conversation(session: Conversation) -> None:
        await session.open()
        session.transport.connection_lost(may_yet_answer=False)
        (tmp_path / "dead").touch()
        with pytest.raises(UserError, match=r"\(ControlPath\) does not answer"):
            await session.open(resumes=True)

    converse(ssh, theirs, conversation)


def test_an_attempt_that_is_given_up_in_the_moment_of_its_success_leaves_no_ssh_behind(
    tmp_path: Path,
) -> None:
    theirs = WITH_AGENT._replace(sharing=Sharing.THEIRS, control_path=str(tmp_path / "shared"))
    ssh = FakeSsh(tmp_path, refuses="echo Connection closed by 192.0.2.2 port 22 >&2; false")

    class GivesUp(Heard):
        """At the line that is held back until the far side has answered."""

        opening: "asyncio.Future[Channel]"

        def on_line(self, line: str) -> None:
            super().on_line(line)
            self.opening.cancel()

    async def run() -> None:
        transport = SshTransport(ssh.remote, theirs)
        transport.connection_lost(may_yet_answer=False)
        heard = GivesUp()
        hello = make_hello(CLIENT, TOKEN, features=FEATURE_CREATE)
        heard.opening = asyncio.ensure_future(
            transport.open(hello, heard, deadline_s=DEADLINE_S, resumes=True)
        )
        with pytest.raises(asyncio.CancelledError):
            await heard.opening
        (channel,), (_,) = heard.channels, heard.lines
        assert not is_alive(channel.pid)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(channel.read_fd)

    asyncio.run(run())


def test_what_was_started_ahead_and_never_opened_leaves_no_ssh_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")

    async def run() -> None:
        transport = SshTransport(RemoteSpec("gate", ssh_command=(path,)), NOTHING)
        await transport.start(Heard())
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        await transport.abandon_started()
        await transport.abandon_started()

    asyncio.run(run())
    assert not is_alive(int(pid_file.read_text()))
