"""A lane through the ssh program.

    begin     start ``ssh HOST 'stage one'``
    connect   the same, send bundle and HELLO at once, find the agent's HELLO
    SshLane   ssh's stdin and stdout as two descriptors for the relay, and the process behind them

ssh is the user's: configuration, keys, agent, ProxyJump, prompts (they go to the terminal) all work
as ever. What we do ask of it stands in ``_OPTIONS``, each with its reason, and behind the arguments
of -e: ssh takes the first value it sees, so -e has the last word.

Invariants: the descriptors of a lane belong to whoever called ``connect``, the process to the lane,
until ``close``; a cancelled or failed ``connect`` leaves neither behind; if this process dies, the
kernel ends ssh (Linux).

Deadlines: none is right for a person looking for a password, so while nothing has come from the far
side the limit is long (HELLO_DEADLINE_S). Once the far side prints, authentication is over; and it
is when ssh has bound its control socket (``ssh_sharing``), by which a login shell that hangs can be
told from a person who does not answer.

Not here: the process, and which signals it hears (ssh_process), what the sentences of ssh mean
(ssh_diagnosis), more lanes and reconnects (remote).
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sshunt.config.remotes import Remote, find_program
from sshunt.errors import ExitCode, UserError
from sshunt.host.terminal import TerminalModes
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import (
    ACCEPTED,
    AGENT,
    REFUSED_SESSION_GONE,
    Hello,
    HelloSearch,
    common_version,
)
from sshunt.transport import ssh_diagnosis
from sshunt.transport.bootstrap import remote_command, upload
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.ssh_process import Pipes, kill, spawn, to_its_end
from sshunt.transport.ssh_sharing import ControlSocket

#: Longer than a login may take: sshd's LoginGraceTime is 120 s, and there may be several hops.
HELLO_DEADLINE_S = 600.0

#: From the first byte of the far side (a login script's chatter) to its HELLO.
NOISE_DEADLINE_S = 60.0

#: From the login to the HELLO. The bundle takes 30 s of it on a line of 10 kbit/s.
LOGGED_IN_DEADLINE_S = 90.0

#: After so long without a word from a far side that one is logged in to, it is said.
SILENCE_S = 6.0

#: How often is looked whether ssh has logged in.
LOGIN_LOOK_S = 0.5

#: From ``close`` until ssh is killed.
CLOSE_DEADLINE_S = 2.0

_OPTIONS = (
    "-T",  # no terminal: the lane is binary
    *("-o", "RequestTTY=no"),
    *("-o", "RemoteCommand=none"),  # ssh refuses a configured one beside ours
    *("-o", "ClearAllForwardings=yes"),  # a second ssh can't bind the forwarded ports again
    *("-o", "ForwardX11=no"),
    *("-o", "ForwardAgent=no"),
    *("-o", "Tunnel=no"),
    *("-o", "EscapeChar=none"),
    *("-o", "PermitLocalCommand=no"),  # it would have our stdin, and may read it
    # An existing shared connection (ControlPath) is used: its owner wants no second login. But we
    # never become the one that other logins share: they would end with us. (``ssh_sharing`` is for
    # our own lanes.)
    *("-o", "ControlMaster=no"),
)


class LaneRefusedError(UserError):
    """The far side answered, and refused the lane; ``status`` and ``host`` are its HELLO's."""

    def __init__(self, hello: Hello) -> None:
        gone = hello.status == REFUSED_SESSION_GONE
        super().__init__(
            f"the far side refused: {hello.sentence or f'status {hello.status}'}",
            "start again" if gone else "use the same version of sshunt at both ends",
            ExitCode.LOST if gone else ExitCode.REMOTE,
        )
        self.status = hello.status
        self.host = hello.host


# --- the command line -----------------------------------------------------------------------------


def ssh_argv(remote: Remote, ssh_options: Sequence[str], command: str) -> list[str]:
    """The whole command line. Raises UserError if the ssh program can't be found."""
    program, *arguments = remote.ssh_command
    port = ["-p", str(remote.port)] if remote.port is not None else []
    return [
        find_program(program),
        *arguments,
        *ssh_options,
        *_OPTIONS,
        *port,
        remote.destination,
        *(["--"] if remote.delimiter else []),
        command,
    ]


# --- the lane -------------------------------------------------------------------------------------


def _echo(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class SshLane:
    """A lane that is up. ``rest`` came in behind the HELLO; what follows it comes by ``read_fd``.

    Both descriptors are non-blocking, and the caller's: closing them tells ssh to end, ``close``
    makes sure. ``ended`` is done when ssh is, with its exit status (negative: a signal).
    """

    hello: Hello  # the far side's

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pipes: Pipes,
        control: ControlSocket | None,
        modes: TerminalModes | None,
        *,
        is_channel: bool = False,
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.read_fd = pipes.read_fd
        self.write_fd = pipes.write_fd
        self.stderr = pipes.stderr
        self.rest = b""
        self.control = control
        self._modes = modes
        self.is_channel = is_channel  # through the user's own connection: there was no login
        self._began_at = time.monotonic()
        self.login_s = 0.0  # from its start to the far side's HELLO, once that has come
        self.ended: asyncio.Future[int] = asyncio.ensure_future(process.wait())

    @property
    def is_logged_in(self) -> bool:
        """True if ssh has logged in, as far as that can be known before there is a HELLO."""
        return self.is_channel or (self.control is not None and self.control.is_bound)

    def greeted(self, hello: Hello, rest: bytes) -> None:
        """The far side has answered."""
        self.hello, self.rest = hello, rest
        self.login_s = time.monotonic() - self._began_at

    def last_words(self) -> str:
        """The last line that ssh printed, or what its exit status says; empty if neither does."""
        if self.stderr.lines:
            return self.stderr.lines[-1]
        status = self.ended.result() if self.ended.done() else 0
        if status < 0:
            return f"ssh was killed by signal {-status}"
        return f"ssh ended with status {status}" if status else ""

    async def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait for ssh to end, at most ``deadline_s``, then end it. Close the pipes first.

        A cancellation shortens the wait; ssh is ended all the same.
        """
        try:
            await asyncio.wait([self.ended], timeout=deadline_s)
        finally:
            await to_its_end(self._end())

    async def _end(self) -> None:
        if not self.ended.done():
            await kill(self.process, self.ended)
        if self._modes is not None:
            self._modes.restore()
            self._modes = None
        self.stderr.close()
        if self.control is not None:
            self.control.close()


async def begin(
    remote: Remote,
    *,
    ssh_options: Sequence[str] = (),
    on_stderr: Callable[[str], None] = _echo,
    share: bool = False,
    asks_nobody: bool = False,
    control_path: str = "",
    env: Mapping[str, str] | None = None,
) -> SshLane:
    """Start ssh, which logs in by itself: see ``connect``, which goes on from there. UserError."""
    is_channel = "-S" not in ssh_options and _is_master(control_path)  # -S none: past it
    asks_nobody = asks_nobody or is_channel
    control = _control_socket() if share else None
    options = [*ssh_options, *control.options] if control is not None else ssh_options
    try:
        argv = ssh_argv(remote, options, remote_command(remote.python))
        modes = None if asks_nobody else TerminalModes()
        process, pipes = await spawn(argv, on_stderr, env, asks_nobody=asks_nobody)
    except BaseException:
        if control is not None:
            control.close()
        raise
    return SshLane(process, pipes, control, modes, is_channel=is_channel)


def _control_socket() -> ControlSocket | None:
    """One of our own, where that is possible."""
    if sys.platform == "linux":
        with suppress(OSError):
            return ControlSocket()
    return None


async def connect(
    remote: Remote,
    hello: Hello,
    *,
    ssh_options: Sequence[str] = (),
    on_stderr: Callable[[str], None] = _echo,
    on_silence: Callable[[str], None] = _echo,
    deadline_s: float = HELLO_DEADLINE_S,
    share: bool = False,
    asks_nobody: bool = False,
    control_path: str = "",
    env: Mapping[str, str] | None = None,
    on_started: Callable[[int], None] | None = None,
    go: asyncio.Event | None = None,
    begun: "SshLane | None" = None,
) -> SshLane:
    """Start ssh, bring the agent there, and wait until it has answered ``hello``.

    ``on_stderr`` gets each line of ssh's stderr as it comes, except those that a failure's message
    will say; ``on_silence`` gets one when ssh has logged in and nothing follows. ``share``: others
    may open channels through this connection later (the lane's ``control``). ``asks_nobody``: the
    options see to that. ``control_path``: the user's own shared connection; if it is there, ssh
    will only open a channel through it. ``env``: ssh's, instead of ours. ``on_started`` gets the
    pid of ssh. The HELLO is not sent before ``go`` is set: until then the far side only has a
    program that waits. ``begun`` is a lane that ``begin`` has begun with these options; it belongs
    to this call from now on. Raises UserError (LaneRefusedError if it was the agent that said no).
    """
    lane = begun
    if lane is None:
        lane = await begin(
            remote,
            ssh_options=ssh_options,
            on_stderr=on_stderr,
            share=share,
            asks_nobody=asks_nobody,
            control_path=control_path,
            env=env,
        )
    if on_started is not None:
        on_started(lane.pid)
    up = False
    try:
        if go is None or go.is_set():
            await _write_all(lane.write_fd, upload(agent_bundle(), hello))
        else:
            await _write_all(lane.write_fd, upload(agent_bundle(), None))
            await _until(go, lane)
            await _write_all(lane.write_fd, hello.encode())
        try:
            await _greet(lane, hello, deadline_s, on_silence)
        except UserError as error:
            if error.exit_code is ExitCode.AUTH and ":" in (remote.user or ""):
                error.hint = (
                    f"-r takes no password, all before the @ is the user name; {error.hint}"
                )
            raise
        if lane.control is not None:
            lane.control.hold()
        up = True
    finally:
        if not up:
            os.close(lane.read_fd)
            os.close(lane.write_fd)
            await lane.close(0.0)
    lane.stderr.show_withheld()
    return lane


def _is_master(control_path: str) -> bool:
    """True if an ssh answers there, so that ours will only open a channel through it."""
    if not control_path.startswith("/"):
        return False
    with socket.socket(socket.AF_UNIX) as caller, suppress(OSError):
        caller.setblocking(False)
        caller.connect(control_path)
        return True
    return False


# --- the greeting ---------------------------------------------------------------------------------


async def _until(go: asyncio.Event, lane: SshLane) -> None:
    """Return when ``go`` is set, or ssh has ended."""
    going = asyncio.ensure_future(go.wait())
    either: list[asyncio.Future[Any]] = [going, lane.ended]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        going.cancel()


async def _greet(
    lane: SshLane, ours: Hello, deadline_s: float, on_silence: Callable[[str], None]
) -> None:
    """Find the far side's HELLO; ``lane`` then has it, and the bytes behind it. UserError."""
    search = HelloSearch()
    listening = asyncio.ensure_future(_listen(lane, search, deadline_s, on_silence))
    either: list[asyncio.Future[Any]] = [listening, lane.ended]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():  # ssh is gone; what it wrote is in the pipe
            await asyncio.wait([listening], timeout=0.2)
    finally:
        while not listening.done():  # wait_for may swallow a cancellation
            listening.cancel()
            await asyncio.wait([listening], timeout=0.1)
    if listening.cancelled() or not listening.result():
        await asyncio.wait([lane.ended], timeout=CLOSE_DEADLINE_S)
        lane.stderr.drain()
        status = lane.ended.result() if lane.ended.done() else 255
        raise ssh_diagnosis.diagnose(status, lane.stderr.lines, search.unmatched)
    theirs = lane.hello
    if theirs.role != AGENT or theirs.token != ours.token:
        raise UserError(
            "what answered on the far side is not the agent of this session",
            "a login script there may echo its input; it must leave standard output alone",
            ExitCode.REMOTE,
        )
    if theirs.status != ACCEPTED or common_version(ours, theirs) is None:
        raise LaneRefusedError(theirs)


async def _listen(
    lane: SshLane, search: HelloSearch, deadline_s: float, on_silence: Callable[[str], None]
) -> bool:
    """True when the HELLO has come, False at the end of the stream. Raises UserError."""
    loop = asyncio.get_running_loop()
    waited_s = deadline_s
    deadline = loop.time() + deadline_s
    login = _LoginWatch(lane, on_silence)
    while True:
        left_s = deadline - loop.time()
        try:
            data = await asyncio.wait_for(
                _read_some(lane.read_fd), min(left_s, LOGIN_LOOK_S) if login.is_of_use else left_s
            )
        except asyncio.TimeoutError:
            if login.look(loop.time()) and deadline - loop.time() > LOGGED_IN_DEADLINE_S:
                deadline = loop.time() + LOGGED_IN_DEADLINE_S
            if loop.time() < deadline:
                continue
            if login.at is not None and not search.unmatched:
                raise ssh_diagnosis.silence_after_login(loop.time() - login.at)
            raise ssh_diagnosis.silence(waited_s, search.unmatched)
        if not data:
            return False
        if not search.unmatched and deadline - loop.time() > NOISE_DEADLINE_S:
            waited_s = NOISE_DEADLINE_S
            deadline = loop.time() + NOISE_DEADLINE_S
        login.is_of_use = False
        try:
            found = search.feed(data)
        except RemoteProtocolError:
            raise ssh_diagnosis.endless_noise(search.unmatched)
        if found is not None:
            lane.greeted(found, search.rest)
            return True


class _LoginWatch:
    """Notices that ssh has logged in, and says so when nothing follows."""

    def __init__(self, lane: SshLane, on_silence: Callable[[str], None]) -> None:
        self.at: float | None = None  # when the login was noticed
        self.is_of_use = True  # False once the far side has said something
        self._lane = lane
        self._say: Callable[[str], None] | None = on_silence

    def look(self, now: float) -> bool:
        """True if this is the first look that finds ssh logged in."""
        if not self.is_of_use:
            return False
        if self.at is None:
            self.at = now if self._lane.is_logged_in else None
            return self.at is not None
        if self._say is not None and now - self.at >= SILENCE_S:
            self._say(ssh_diagnosis.NO_WORD_AFTER_LOGIN)
            self._say = None
        return False


async def _read_some(fd: int) -> bytes:
    """What is there, as soon as something is; b"" at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            await _ready(loop.add_reader, loop.remove_reader, fd)


async def _write_all(fd: int, data: bytes) -> None:
    """Write ``data``; if nobody reads any more, that is for the reading side to find out."""
    loop = asyncio.get_running_loop()
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            await _ready(loop.add_writer, loop.remove_writer, fd)
        except BrokenPipeError:
            return


async def _ready(add: Callable[..., None], remove: Callable[[int], bool], fd: int) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
