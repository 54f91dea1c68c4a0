"""The first words on a channel: bundle and HELLO are sent at once, the agent's HELLO is looked for.

Whatever a login script prints before it is passed over, within limits.

Deadlines: none is right for a person looking for a password, so while nothing has come from the far
side the limit is long (HELLO_DEADLINE_S). Once the far side prints, authentication is over; and it
is when the channel says so (``is_logged_in``), by which a login shell that hangs can be told from a
person who does not answer.

Not here: what is behind the channel (ssh, local), what the sentences of a program mean
(ssh_diagnosis).
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from sshunt.errors import ExitCode, UserError
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import ACCEPTED, AGENT, Hello, common_version
from sshunt.transport import ssh_diagnosis
from sshunt.transport.bootstrap import upload
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.channel import CLOSE_DEADLINE_S, Channel, Hearer, LaneRefusedError
from sshunt.transport.endings import cancelled
from sshunt.transport.hello_search import HelloSearch

#: The deadline of a HELLO, longer than a login may take: sshd's LoginGraceTime is 120 s, and there
#: may be several hops.
HELLO_DEADLINE_S = 600.0

#: The time from the far side's first byte (a login script's chatter) to its HELLO.
NOISE_DEADLINE_S = 60.0

#: The time from the login to the HELLO. The bundle takes 30 s of it on a line of 10 kbit/s.
LOGGED_IN_DEADLINE_S = 90.0

#: The wait for a word of a far side that one is logged in to, until it is said.
SILENCE_S = 6.0

#: The pause between two looks whether somebody is logged in.
LOGIN_LOOK_S = 0.5

#: What a program that has ended may have left in its pipe is read within this time.
LEFT_IN_PIPE_S = 0.2


async def greet(
    channel: Channel,
    hello: Hello,
    hearer: Hearer,
    *,
    ready: asyncio.Event | None = None,
    deadline_s: float = HELLO_DEADLINE_S,
) -> None:
    """Bring the agent there, and wait until it has accepted ``hello``; the channel then has its
    answer. See ``channel.Transport`` for the rest. Raises UserError; a failed or cancelled greeting
    leaves nothing of the channel behind.
    """
    is_up = False
    try:
        await _upload(channel, hello, ready, deadline_s)
        await _find_hello(channel, hello, hearer, deadline_s)
        is_up = True
    finally:
        if not is_up:
            await channel.abandon()
    channel.stderr.show_withheld()


async def _upload(
    channel: Channel, hello: Hello, ready: asyncio.Event | None, deadline_s: float
) -> None:
    if ready is None or ready.is_set():
        await _send(channel, upload(agent_bundle(), hello), deadline_s)
    else:
        await _send(channel, upload(agent_bundle(), None), deadline_s)
        await _until(ready, channel)
        await _send(channel, hello.encode(), deadline_s)


async def _send(channel: Channel, data: bytes, deadline_s: float) -> None:
    """Write ``data``, or as much as is read while the program lives. Raises UserError.

    It fits into a pipe at once, but not into one of the short ones (two pages) that are all that
    somebody gets who has many pipes (pipe(7), pipe-user-pages-soft). ssh reads from it when it is
    logged in.
    """
    writing = asyncio.ensure_future(_write_all(channel.write_fd, data))
    either: list[asyncio.Future[Any]] = [writing, channel.ended]
    try:
        done, _ = await asyncio.wait(
            either, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        await cancelled(writing)
    if not done:
        raise ssh_diagnosis.silence(deadline_s, b"")


async def _until(ready: asyncio.Event, channel: Channel) -> None:
    """Return when ``ready`` is set, or the program has ended."""
    waiting = asyncio.ensure_future(ready.wait())
    either: list[asyncio.Future[Any]] = [waiting, channel.ended]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _find_hello(channel: Channel, ours: Hello, hearer: Hearer, deadline_s: float) -> None:
    """Find the far side's HELLO; ``channel`` then has it, and the bytes behind it. UserError."""
    search = HelloSearch()
    listening = asyncio.ensure_future(_listen(channel, search, hearer, deadline_s))
    either: list[asyncio.Future[Any]] = [listening, channel.ended]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():  # the program is gone; what it wrote is in the pipe
            await asyncio.wait([listening], timeout=LEFT_IN_PIPE_S)
    finally:
        await cancelled(listening)
    if listening.cancelled() or not listening.result():
        await asyncio.wait([channel.ended], timeout=CLOSE_DEADLINE_S)
        channel.stderr.drain()
        status = channel.ended.result().code if channel.ended.done() else 255
        raise ssh_diagnosis.diagnose(status, channel.stderr.lines, search.unmatched)
    theirs = channel.hello
    if theirs.role != AGENT or theirs.token != ours.token:
        raise UserError(
            "what answered on the far side is not the agent of this session",
            "a login script there may echo its input; it must leave standard output alone",
            ExitCode.REMOTE,
        )
    if theirs.status != ACCEPTED or common_version(ours, theirs) is None:
        raise LaneRefusedError(theirs)


async def _listen(channel: Channel, search: HelloSearch, hearer: Hearer, deadline_s: float) -> bool:
    """True when the HELLO has come, False at the end of the stream. Raises UserError."""
    loop = asyncio.get_running_loop()
    waited_s = deadline_s
    deadline = loop.time() + deadline_s
    login = _LoginWatch(channel, hearer)
    while True:
        left_s = deadline - loop.time()
        look_s = min(left_s, LOGIN_LOOK_S) if login.is_of_use else left_s
        try:
            data = await asyncio.wait_for(_read_some(channel.read_fd), look_s)
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
            channel.greeted(found, search.rest)
            return True


class _LoginWatch:
    """Notices that the login has succeeded, and says so when nothing follows."""

    def __init__(self, channel: Channel, hearer: Hearer) -> None:
        self.at: float | None = None  # when the login was noticed
        self.is_of_use = True  # False once the far side has said something
        self._channel = channel
        self._hearer = hearer
        self._is_said = False

    def look(self, now: float) -> bool:
        """True if this is the first look that finds us logged in."""
        if not self.is_of_use:
            return False
        if self.at is None:
            self.at = now if self._channel.is_logged_in else None
            return self.at is not None
        if not self._is_said and now - self.at >= SILENCE_S:
            self._is_said = True
            self._hearer.on_silence(ssh_diagnosis.NO_WORD_AFTER_LOGIN)
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
