"""Channels through the ssh program: ``ssh HOST 'stage one'``, and what only ssh knows.

ssh is the user's: configuration, keys, agent, ProxyJump, prompts (they go to the terminal) all work
as ever. What we do ask of it stands in ``_OPTIONS``, each with its reason, and behind the arguments
of -e: ssh takes the first value it sees, so -e has the last word.

    open            a login, which may prompt; or a channel through the user's own shared connection
                    (ControlPath); after a loss by the ways that take turns (``ssh_ways``): by that
                    connection or past it, by the server's name or by the address it had last
    open_beside     a login of its own that asks nobody (BatchMode, ``ssh_unattended``). Where that
                    would need a person: a channel over the connection that is there, from then on
                    (``shares_connection``)

A further login never asks anybody anything: BatchMode, and where the session's connection may have
taken a person's time, or a further one has failed once, nothing else that could.

Not here: what ssh is configured to do (ssh_choices), the process and which signals it hears
(process), the first words (greeting), what the sentences of ssh mean (ssh_diagnosis), when another
channel is wanted (remote).
"""

import asyncio
import socket
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sshunt.config.remotes import RemoteSpec
from sshunt.errors import ExitCode, UserError
from sshunt.host.terminal import TerminalModes
from sshunt.model import Endpoint
from sshunt.mux.hello import Hello
from sshunt.transport import ssh_known_address, ssh_unattended
from sshunt.transport.bootstrap import remote_command
from sshunt.transport.channel import Channel, Hearer
from sshunt.transport.endings import cancelled, to_its_end
from sshunt.transport.process import Pipes, Signals, spawn
from sshunt.transport.ssh_choices import Choices, Sharing
from sshunt.transport.ssh_program import find_program, no_ssh
from sshunt.transport.ssh_sharing import ControlSocket
from sshunt.transport.ssh_ways import NEEDS_A_PERSON, Way, Ways

#: A shared connection of the user's answers within a round trip, or is dead.
SHARED_DEADLINE_S = 5.0

#: How long ssh itself tries what does not answer at all, when the connection was lost: what
#: comes then is probed (``remote.keeper``).
CONNECT_TIMEOUT_S = 8

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

_QUIET = ("-o", "BatchMode=yes")  # fail rather than ask
#: Options that lead past every shared connection. (The last -S counts, and more than ControlPath:
#: whatever -e says.)
OWN_CONNECTION = ("-S", "none")


def ssh_argv(spec: RemoteSpec, ssh_options: Sequence[str], command: str) -> list[str]:
    """The whole command line. Raises UserError if the ssh program can't be found."""
    program, *arguments = spec.ssh_command
    port = ["-p", str(spec.port)] if spec.port is not None else []
    return [
        find_program(program),
        *arguments,
        *ssh_options,
        *_OPTIONS,
        *port,
        spec.destination,
        *(["--"] if spec.delimiter else []),
        command,
    ]


class SshChannel(Channel):
    """A channel through ssh."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pipes: Pipes,
        control: ControlSocket | None,
        modes: TerminalModes | None,
        *,
        is_through_theirs: bool,
    ) -> None:
        super().__init__("ssh", process, pipes)
        self.control = control  # further channels over this connection, if that is possible
        self.is_through_theirs = is_through_theirs  # the user's own connection: there was no login
        self.login_s = 0.0  # from the start of ssh to the far side's HELLO, once that has come
        self._modes = modes
        self._started_at = time.monotonic()

    @property
    def is_logged_in(self) -> bool:
        """True if ssh has logged in, as far as that can be known before there is a HELLO."""
        return self.is_through_theirs or (self.control is not None and self.control.is_bound)

    def has_reached(self) -> bool:
        """True if ssh, or a program that it has started, has reached somebody by TCP."""
        from sshunt.transport.peers import has_connection  # takes its time to load

        return has_connection(self.pid)

    def peers(self) -> tuple[Endpoint, ...]:
        """Whom ssh, and what it has started, is connected to."""
        from sshunt.transport.peers import ssh_peers

        return ssh_peers(self.pid)

    def own_peer(self) -> Endpoint | None:
        """Whom ssh itself is connected to, if that is one."""
        from sshunt.transport.peers import own_peer

        return own_peer(self.pid)

    def greeted(self, hello: Hello, rest: bytes) -> None:
        """The far side has answered."""
        super().greeted(hello, rest)
        self.login_s = time.monotonic() - self._started_at

    async def _end(self) -> None:
        await super()._end()
        if self._modes is not None:
            self._modes.restore()
            self._modes = None
        if self.control is not None:
            self.control.close()


class SshTransport:
    """Channels to one ssh server: see ``channel.Transport``."""

    def __init__(self, spec: RemoteSpec, choices: Choices) -> None:
        self._spec = spec
        self._choices = choices
        self._ways = Ways(is_shared=choices.sharing is Sharing.THEIRS)
        self._started: SshChannel | None = None  # ahead of ``open``
        self._session: SshChannel | None = None  # the one that ``open`` has opened last
        self._address: Endpoint | None = None  # that the server's name had last
        self._second_login_refused = False
        self._may_ask_agents = True  # as the session's connection did, for nobody noticed

    # --- the session's channel ----------------------------------------------------------------

    async def start(self, hearer: Hearer) -> None:
        """See ``channel.Transport``."""
        self._started = await self._start((), hearer)

    async def open(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        deadline_s: float,
        resumes: bool = False,
    ) -> Channel:
        """See ``channel.Transport``."""
        way = self._ways.next if resumes else None
        channel, self._started = self._started, None
        if channel is None:
            channel = await self._start(self._options(way, hearer), hearer)
        hearer.on_started(channel)
        greeting = self._greet(channel, hello, hearer, deadline_s)
        if way is not None and way.shares:
            greeting = _while_it_answers(channel, greeting)
        await greeting
        if channel.control is not None:
            channel.control.hold()
        if self._choices.is_direct:
            self._address = channel.own_peer() or self._address
        self._session = channel
        self._second_login_refused = False
        return channel

    def connection_lost(self, *, may_yet_answer: bool) -> None:
        """See ``channel.Transport``."""
        self._ways.start(is_silent=may_yet_answer)

    def attempt_failed(self, error: UserError) -> bool:
        """See ``channel.Transport``."""
        self._ways.on_failure(error.exit_code, has_address=self._address is not None)
        if error.exit_code not in NEEDS_A_PERSON or self._ways.is_another_untried:
            return False
        self._ways.start_anew()
        return True

    async def abandon_started(self) -> None:
        """See ``channel.Transport``."""
        channel, self._started = self._started, None
        if channel is not None:
            await channel.abandon()

    def _options(self, way: Way | None, hearer: Hearer) -> tuple[str, ...]:
        """What ssh is given for the session's channel."""
        if way is None:
            return ()
        options = ("-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}")
        if way.by_address and self._address is not None:
            address, port = self._address
            hearer.on_known_address(address)
            return *options, *ssh_known_address.options(address, port, deadline_s=CONNECT_TIMEOUT_S)
        if self._choices.sharing is Sharing.THEIRS and not way.shares:
            return *options, *OWN_CONNECTION
        return options

    async def _start(self, options: Sequence[str], hearer: Hearer) -> SshChannel:
        choices = self._choices
        is_past_theirs = "-S" in options  # -S none
        through_theirs = not is_past_theirs and _is_master(choices.control_path)
        return await _start_ssh(
            self._spec,
            [*choices.cipher, *choices.session, *options],
            hearer,
            control=_control_socket() if choices.sharing is Sharing.OURS else None,
            asks_nobody=through_theirs,
            is_through_theirs=through_theirs,
        )

    async def _greet(
        self, channel: SshChannel, hello: Hello, hearer: Hearer, deadline_s: float
    ) -> None:
        from sshunt.transport.greeting import greet  # ssh need not wait for it

        try:
            await greet(channel, hello, hearer, deadline_s=deadline_s)
        except UserError as error:
            if error.exit_code is ExitCode.AUTH and ":" in (self._spec.user or ""):
                error.hint = (
                    f"-r takes no password, all before the @ is the user name; {error.hint}"
                )
            raise

    # --- further ones -------------------------------------------------------------------------

    @property
    def shares_connection(self) -> bool:
        """See ``channel.Transport``."""
        return self._second_login_refused

    async def open_beside(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        ready: asyncio.Event,
        deadline_s: float,
        path_rtt_s: float,
    ) -> Channel:
        """See ``channel.Transport``."""
        from sshunt.transport.greeting import greet

        shares = self.shares_connection
        asks_agents = self._asks_agents(path_rtt_s)
        try:
            channel = await _start_ssh(
                self._spec,
                [*_QUIET, *self._choices.session, *self._options_beside(asks_agents=asks_agents)],
                hearer,
                env=None if asks_agents else ssh_unattended.environment(),
                asks_nobody=True,
            )
            hearer.on_started(channel)
            await greet(channel, hello, hearer, ready=ready, deadline_s=deadline_s)
        except UserError as error:
            self._may_ask_agents = False  # somebody may have been asked, and not have answered
            if (
                error.exit_code is ExitCode.AUTH
                and not shares
                and self.sharing_options() is not None
            ):
                self._second_login_refused = True
            raise
        return channel

    def _options_beside(self, *, asks_agents: bool) -> Sequence[str]:
        if self.shares_connection:
            return self.sharing_options() or ()
        options = (*OWN_CONNECTION, *self._choices.cipher)
        return options if asks_agents else (*options, *self._choices.unattended)

    def sharing_options(self) -> Sequence[str] | None:
        """What opens a channel over the session's connection; None if that is impossible."""
        if self._choices.sharing is Sharing.THEIRS:
            return ()
        control = self._session.control if self._session is not None else None
        return control.channel_options if control is not None else None

    def _asks_agents(self, path_rtt_s: float) -> bool:
        """False, for good, once the login of a session's channel may have waited for somebody."""
        session = self._session
        if session is not None:
            slow = ssh_unattended.took_a_person(session.login_s, path_rtt_s)
            self._may_ask_agents &= not slow and not session.is_through_theirs
        return self._may_ask_agents


async def _start_ssh(
    spec: RemoteSpec,
    options: Sequence[str],
    hearer: Hearer,
    *,
    control: ControlSocket | None = None,
    env: Mapping[str, str] | None = None,
    asks_nobody: bool,
    is_through_theirs: bool = False,
) -> SshChannel:
    """Start ssh with ``options``, and those that let others share its connection by ``control``,
    which is the channel's. ``asks_nobody``: the options see to that. Raises UserError.
    """
    try:
        shared = control.options if control is not None else ()
        argv = ssh_argv(spec, [*options, *shared], remote_command(spec.python))
        modes = None if asks_nobody else TerminalModes()
        signals = Signals.BLOCKED if asks_nobody else Signals.IGNORED
        try:
            process, pipes = await spawn(argv, hearer.on_line, env, signals=signals)
        except OSError as error:
            raise no_ssh(argv[0], error.strerror or str(error))
    except BaseException:
        if control is not None:
            control.close()
        raise
    return SshChannel(process, pipes, control, modes, is_through_theirs=is_through_theirs)


def _control_socket() -> ControlSocket | None:
    """One of our own, where that is possible."""
    if sys.platform == "linux":
        with suppress(OSError):
            return ControlSocket()
    return None


def _is_master(control_path: str) -> bool:
    """True if an ssh answers there, so that ours will only open a channel through it."""
    if not control_path.startswith("/"):
        return False
    with socket.socket(socket.AF_UNIX) as caller, suppress(OSError):
        caller.setblocking(False)
        caller.connect(control_path)
        return True
    return False


async def _while_it_answers(channel: Channel, greeting: Coroutine[Any, Any, None]) -> None:
    """Await ``greeting``, unless after a while nobody at all has been reached. Raises UserError. A
    failed or cancelled one leaves nothing of the channel behind, as ``greet``.
    """
    task = asyncio.ensure_future(greeting)
    try:
        await asyncio.wait([task], timeout=SHARED_DEADLINE_S)
        if not task.done() and not channel.has_reached():
            raise UserError(
                "the shared ssh connection (ControlPath) does not answer",
                "end it: ssh -O exit HOST",
                ExitCode.CONNECT,
            )
        await asyncio.wait([task])
    except BaseException:
        await to_its_end(_called_off(task, channel))
        raise
    task.result()


async def _called_off(greeting: "asyncio.Future[None]", channel: Channel) -> None:
    await cancelled(greeting)
    if not greeting.cancelled() and greeting.exception() is None:
        await channel.abandon()  # it has come up in this very moment
