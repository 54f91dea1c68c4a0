"""Channels to an agent on this very host: the same bootstrap, bundle, stub and agent, without ssh.

    sh -c 'stage one'  ->  stub  ->  agent (detached)         as behind an sshd

It is the second transport, and the smallest: nobody logs in, nobody is asked, there is no
connection that could be shared, lost or found by another way. A session has a real far side with it
within a quarter of a second, which is what tests of pool and keeper want.

The agent holds the channel's very pipes, where ssh would be between: whoever kills the program does
not cut the channel. Closing our ends does.

Not here: other programs that bring a command's pipes somewhere (docker exec and the like), though
they will look much like this.
"""

import asyncio
from collections.abc import Mapping, Sequence

from sshunt.errors import ExitCode, UserError
from sshunt.mux.hello import Hello
from sshunt.transport.bootstrap import argv
from sshunt.transport.channel import Channel, Hearer
from sshunt.transport.greeting import greet
from sshunt.transport.process import Signals, spawn


class LocalTransport:
    """Channels to agents on this host: see ``channel.Transport``.

    ``python``: the only interpreter to try. ``prefix``: words in front of the command. ``env``:
    the far side's environment instead of ours.
    """

    shares_connection = False

    def __init__(
        self,
        *,
        python: str | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = [*prefix, *argv(python)]
        self._env = env
        self._started: Channel | None = None

    async def start(self, hearer: Hearer) -> None:
        """See ``channel.Transport``."""
        self._started = await self._start(hearer)

    async def abandon_started(self) -> None:
        """See ``channel.Transport``."""
        channel, self._started = self._started, None
        if channel is not None:
            await channel.abandon()

    async def open(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        deadline_s: float,
        resumes: bool = False,
    ) -> Channel:
        """See ``channel.Transport``. ``resumes`` makes no difference: there is one way only."""
        channel, self._started = self._started, None
        if channel is None:
            channel = await self._start(hearer)
        hearer.on_started(channel)
        await greet(channel, hello, hearer, deadline_s=deadline_s)
        return channel

    async def open_beside(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        ready: asyncio.Event,
        deadline_s: float,
        path_rtt_s: float,
    ) -> Channel:
        """See ``channel.Transport``. ``path_rtt_s`` makes no difference: nobody logs in."""
        channel = await self._start(hearer)
        hearer.on_started(channel)
        await greet(channel, hello, hearer, ready=ready, deadline_s=deadline_s)
        return channel

    def connection_lost(self, *, may_yet_answer: bool) -> None:
        """See ``channel.Transport``: there is nothing to remember."""

    def attempt_failed(self, error: UserError) -> bool:
        """See ``channel.Transport``: no person could help."""
        return False

    async def _start(self, hearer: Hearer) -> Channel:
        try:
            process, pipes = await spawn(
                self._argv, hearer.on_line, self._env, signals=Signals.UNCHANGED
            )
        except OSError as error:
            raise UserError(
                f"{self._argv[0]} can't be started: {error.strerror or error}",
                "the agent is started by /bin/sh",
                ExitCode.CONNECT,
            )
        return Channel(self._argv[0], process, pipes)
