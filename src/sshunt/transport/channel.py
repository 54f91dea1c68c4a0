"""A channel: one ordered, reliable pipe of bytes to an agent, whatever tool brings it there.

    Transport   opens channels to one far side
    Channel     the standard input and output of a program of this host, and the far side's HELLO
    Ending      how that program ended

Every transport is a program: ssh, or sh for an agent on this very host (``local``). So a channel is
its two pipes and its process. What is special of one tool stays behind these faces: who shares a
connection with whom, passwords, addresses, what an exit status means. Nobody looks at what kind of
transport he has: he asks the channel (``peers``, ``has_reached``) and the transport
(``shares_connection``, ``attempt_failed``); one that has no such thing gives the harmless answer.

Invariants: the descriptors of a channel belong to whoever opened it, the process to the channel,
until ``close``; an opening that fails or is cancelled leaves neither behind.

Not one ``open`` with a flag for each difference, but two: ``open`` for the session's channel, which
may ask a person, and ``open_beside`` for a further one, which asks nobody and may wait with its
HELLO. No caller wants any other combination.

Not here: what is said first (greeting), the process (process), lanes (remote).
"""

import asyncio
import os
from typing import NamedTuple, Protocol

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.mux.hello import REFUSED_SESSION_GONE, Hello
from sshunt.transport.bootstrap import EXIT_AGENT_DIED
from sshunt.transport.endings import to_its_end
from sshunt.transport.process import Pipes, kill

#: The time from ``close`` until the program is killed.
CLOSE_DEADLINE_S = 2.0


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

    @property
    def is_session_gone(self) -> bool:
        """True if it says that it does not hold the session that was asked for."""
        return self.status == REFUSED_SESSION_GONE


class Ending(NamedTuple):
    """How a channel's program ended."""

    code: int  # its exit status; negative: a signal
    agent_died: bool  # the far side says that nobody holds the session any more


class Channel:
    """A program's pipes. ``rest`` came in behind the HELLO; what follows comes by ``read_fd``.

    Both descriptors are non-blocking, and the caller's: closing them tells the program to end,
    ``close`` makes sure. ``ended`` is done when it has.
    """

    hello: Hello  # the far side's, once it has answered

    def __init__(self, name: str, process: asyncio.subprocess.Process, pipes: Pipes) -> None:
        self.pid = process.pid
        self.read_fd = pipes.read_fd
        self.write_fd = pipes.write_fd
        self.stderr = pipes.stderr
        self.rest = b""
        self._name = name  # of the program, for people
        self._process = process
        self.ended: asyncio.Future[Ending] = asyncio.ensure_future(self._ending())

    @property
    def is_logged_in(self) -> bool:
        """True if nobody is asked for a password any more, as far as that is known before there is
        a HELLO.
        """
        return True

    def has_reached(self) -> bool:
        """True if the program has reached somebody, as far as that can be seen."""
        return True

    def peers(self) -> tuple[Endpoint, ...]:
        """Whom the program is connected to, as far as that can be seen."""
        return ()

    def greeted(self, hello: Hello, rest: bytes) -> None:
        """The far side has answered."""
        self.hello, self.rest = hello, rest

    def last_words(self) -> str:
        """The last line that the program printed, or what its exit status says; empty if neither
        does.
        """
        if self.stderr.lines:
            return self.stderr.lines[-1]
        status = self.ended.result().code if self.ended.done() else 0
        if status < 0:
            return f"{self._name} was killed by signal {-status}"
        return f"{self._name} ended with status {status}" if status else ""

    async def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait for the program to end, at most ``deadline_s``, then end it. Close the pipes first.

        A cancellation shortens the wait; the program is ended all the same.
        """
        try:
            await asyncio.wait([self.ended], timeout=deadline_s)
        finally:
            await to_its_end(self._end())

    async def abandon(self) -> None:
        """Close the pipes, and end the program at once: nobody has taken the channel."""
        os.close(self.read_fd)
        os.close(self.write_fd)
        await self.close(0.0)

    async def _ending(self) -> Ending:
        code = await self._process.wait()
        return Ending(code, agent_died=code == EXIT_AGENT_DIED)

    async def _end(self) -> None:
        if not self.ended.done():
            await kill(self._process, self.ended)
        self.stderr.close()


class Hearer(Protocol):
    """Whoever wants to know what becomes of an opening."""

    def on_started(self, channel: Channel) -> None:
        """Its program runs: to look at, not to keep."""

    def on_line(self, line: str) -> None:
        """The program prints this. What a failure's message says is left out."""

    def on_silence(self, why: str) -> None:
        """The login has succeeded, and nothing follows. Once."""

    def on_known_address(self, address: str) -> None:
        """The far side is looked for at the address it had last, for its name can't be resolved."""


class Transport(Protocol):
    """Opens channels to one far side. Several at once, if need be."""

    async def start(self, hearer: Hearer) -> None:
        """Start the program ahead of the first ``open``, which goes on from there; meanwhile it
        logs in by itself. It is the transport's until then (``abandon_started``). Raises UserError.
        """

    async def abandon_started(self) -> None:
        """End what was started, if ``open`` has not taken it."""

    async def open(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        deadline_s: float,
        resumes: bool = False,
    ) -> Channel:
        """The session's channel: bring the agent there, wait until it has answered ``hello``.

        May ask a person. ``resumes``: a connection was lost, and this is an attempt to have another
        one, by the way that is to be tried next. Raises UserError (LaneRefusedError if it was the
        agent that said no).
        """

    async def open_beside(
        self,
        hello: Hello,
        hearer: Hearer,
        *,
        ready: asyncio.Event,
        deadline_s: float,
        path_rtt_s: float,
    ) -> Channel:
        """A further channel of the session whose channel was opened last. Asks nobody anything.

        The HELLO is not sent before ``ready`` is set: until then the far side only has a program
        that waits. ``path_rtt_s``: the least round-trip time seen on the path, 0 if none was.
        Raises UserError; where that would need a person, with ExitCode.AUTH.
        """

    @property
    def shares_connection(self) -> bool:
        """True if a further channel will go over the connection that is there: it has a window of
        its own, and nothing else.
        """

    def connection_lost(self, *, may_yet_answer: bool) -> None:
        """No lane works any more. ``may_yet_answer``: there is one that has only fallen silent."""

    def attempt_failed(self, error: UserError) -> bool:
        """The last attempt to resume was in vain. True if only a person can help now: there is no
        other way to try.
        """
