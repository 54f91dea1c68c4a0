"""Keeps a remote's link up: does what ``keeper`` decides.

    lanes, news, time, what has become of the work --> Link --> decisions --> lanes, work, Report

The work is what takes time: an attempt, a probe, the wait for a program's end. There is one at a
time, as a task, and the next one begins when the one before it has ended, with all its processes.

Decisions are carried out at once, within the call that told the link. One of them may end a lane;
then that is told, and what follows from it done, before the rest of the decisions.

Invariants: a work that was stopped tells the link nothing; none begins outside of ``run``.

Not here: when and why (keeper, attempts), lanes and their numbers (pool), what brings bytes to an
agent, by which way (transport), what is new in the network (host.network), rules (commands.up).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.remote import decisions as decided
from sshunt.remote.attempts import PROBE_EVERY_S
from sshunt.remote.decisions import Decision, LaneFacts, LinkFacts
from sshunt.remote.keeper import Link
from sshunt.remote.pool import Pool
from sshunt.tell.report import (
    AnotherMachineAnswered,
    AttemptFailed,
    PersonNeeded,
    RemoteChecked,
    RemoteLost,
    RemoteReconnected,
    Report,
    SessionLost,
)
from sshunt.transport.channel import LaneRefusedError, Transport
from sshunt.transport.endings import cancelled, to_its_end
from sshunt.transport.greeting import HELLO_DEADLINE_S

#: Addresses of the server (and of whom it is reached by) that are probed.
PROBED_PEERS = 4

#: Deadline of a login without a terminal, which waits for nobody.
ATTEMPT_DEADLINE_S = 30.0

#: How a work ended: what is to be told to the link, with what can be seen then, and the time.
Outcome: TypeAlias = Callable[[LinkFacts, float], list[Decision]]


class Owner(Protocol):
    """Whoever has the remote."""

    def on_down(self) -> None:
        """No lane works any more."""

    def on_up(self) -> None:
        """A lane works again."""


class Upkeep:
    """The link of one remote, and the work that it takes.

    ``name``: of the remote, as lines for people call it. ``is_attended``: somebody may be at a
    terminal, and look for a password.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        pool: Pool,
        report: Report,
        owner: Owner,
        *,
        is_attended: bool,
        grace_s: int,
        max_retries: int | None,
    ) -> None:
        self._name = name
        self._transport = transport
        self._pool = pool
        self._report = report
        self._owner = owner
        self._attempt_deadline_s = HELLO_DEADLINE_S if is_attended else ATTEMPT_DEADLINE_S
        self._loop = asyncio.get_running_loop()
        self.link = Link(self._loop.time(), grace_s=grace_s, max_retries=max_retries)
        self._peers: tuple[Endpoint, ...] = ()  # of the last lane of which they could be seen
        self._is_running = False
        self._wake = asyncio.Event()  # the link may have another deadline
        self._error: BaseException | None = None  # why ``run`` has to end
        self._work: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the link up until stopped. Raises UserError when --max-retries is reached."""
        self._is_running = True
        try:
            while self._is_running and self._error is None:
                self._do(self.link.on_time(self._facts(), self._loop.time()))
                await _happens(self._wake, self.link.next_deadline() - self._loop.time())
                self._wake.clear()
            if self._error is not None:
                raise self._error
        finally:
            self.stop()
            await to_its_end(self._all_stopped())

    def stop(self) -> None:
        """From now on nothing that happens to the link is of interest, and ``run`` ends."""
        self._is_running = False
        self._stop_work()
        self._wake.set()

    def note_peers(self) -> tuple[Endpoint, ...]:
        """Where the lane that came up last leads, if that can be seen; it is remembered."""
        last = self._pool.last
        found = last.peers() if last is not None else ()
        self._peers = found or self._peers
        return found

    # --- what happens elsewhere ---------------------------------------------------------------

    def on_news(self, why: str, *, asked: bool = False) -> None:
        """There is reason to doubt the lanes, or to hope; ``asked``: by a person."""
        self._tell(self.link.on_news(why, self._facts(), self._loop.time(), asked=asked))

    def on_lane_ended(self, why: str) -> None:
        """A lane is over, and the pool knows."""
        if self._is_running:
            self._tell(self.link.on_lane_ended(why, self._facts(), self._loop.time()))

    def on_goodbye(self, why: str) -> None:
        """The far side does not hold the session any more."""
        if self._is_running:
            self._tell(self.link.on_session_ended(why, self._loop.time()))

    # --- what the link decides ----------------------------------------------------------------

    def _facts(self) -> LinkFacts:
        now = self._loop.time()
        return LinkFacts(
            lanes=tuple(
                LaneFacts(
                    lane.id,
                    lane.unanswered_s(now),
                    bool(lane.outstanding),
                    now - lane.last_heard_at,
                    lane.rtt_s,
                )
                for lane in self._pool.tunnel.session.lanes.values()
            ),
            is_held=self._pool.is_resumable,
            outlives_lanes=self._pool.tunnel.outlives_lanes,
            agent_host=self._pool.agent_host,
            breaks_protocol=self._pool.tunnel.breaks_the_protocol,
            can_probe=bool(self._peers),
        )

    def _tell(self, decisions: list[Decision]) -> None:
        self._do(decisions)
        self._wake.set()

    def _do(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._do_one(decision)

    def _do_one(self, decision: Decision) -> None:
        match decision:
            case decided.Ping(number):
                if number in self._pool.tunnel.lanes:
                    self._pool.tunnel.session.ping(number)
                    self._pool.tunnel.wake()
            case decided.Drop(number, why):
                lane = self._pool.tunnel.lanes.get(number)
                if lane is not None:
                    self._pool.tunnel.lane_ended(lane, why)
            case decided.AwaitEnding():
                self._begin(self._await_ending)
            case decided.Connect():
                self._begin(self._attempt)
            case decided.AbandonUnlessReached():
                self._abandon_unless_reached()
            case decided.Probe():
                self._begin(self._probe)
            case decided.Stop():
                self._stop_work()
            case decided.SayGoodbye():
                self._say_goodbye()
            case decided.LoseSession(why):
                count = self._pool.abandon_session()
                if why:
                    self._report.say(SessionLost(self._name, why, count))
            case decided.GiveUp(failures, error):
                self._end(_gave_up(self._name, failures, error))
            case _:
                self._pass_on(decision)

    def _pass_on(self, decision: Decision) -> None:
        """What is only to be told."""
        match decision:
            case decided.Lost(why, silent_s):
                self._on_lost(why, silent_s)
            case decided.Restored(after_s, is_same_session):
                kept = len(self._pool.tunnel.relays) if is_same_session else 0
                self._report.say(RemoteReconnected(self._name, after_s, kept))
                self._owner.on_up()
            case decided.Failed(failures, error):
                self._report.say(AttemptFailed(self._name, failures, error.message))
                if self._transport.attempt_failed(error):
                    self._do(self.link.on_person_needed(self._loop.time()))
            case decided.PersonNeeded(error):
                self._report.say(PersonNeeded(self._name, error.message, error.hint))
            case decided.Checked(why):
                self._report.say(RemoteChecked(self._name, why))
            case decided.ElsewhereAnswered():
                self._report.say(AnotherMachineAnswered(self._name))

    def _on_lost(self, why: str, silent_s: float) -> None:
        tunnel = self._pool.tunnel
        self._transport.connection_lost(may_yet_answer=bool(tunnel.lanes))
        since, count = time.time() - silent_s, len(tunnel.relays)
        self._report.say(RemoteLost(self._name, since, why, count, tunnel.outlives_lanes))
        self._owner.on_down()

    def _say_goodbye(self) -> None:
        self._pool.tunnel.forgive()
        if self._pool.tunnel.lanes:  # else nobody can be told
            self._pool.tunnel.session.say_goodbye(frames.GOODBYE_PROTOCOL, "")
            self._pool.tunnel.pump()

    # --- work ---------------------------------------------------------------------------------

    async def _attempt(self) -> Outcome:
        try:
            await self._pool.connect(resumes=True, deadline_s=self._attempt_deadline_s)
        except LaneRefusedError as error:
            gone_at = error.host if error.is_session_gone else None
            return partial(self.link.on_failed, error, gone_at=gone_at)
        except UserError as error:
            return partial(self.link.on_failed, error)
        self.note_peers()
        return self.link.on_connected

    def _abandon_unless_reached(self) -> None:
        if not self._pool.has_reached():
            self._stop_work()
            self._do(self.link.on_abandoned(self._facts(), self._loop.time()))

    async def _probe(self) -> Outcome:
        return partial(self.link.on_probed, await _one_answers(self._peers[:PROBED_PEERS]))

    async def _await_ending(self) -> Outcome:
        last = self._pool.last
        if last is None:
            return partial(self.link.on_ending, False)
        await asyncio.wait([last.ended])
        return partial(self.link.on_ending, last.ended.result().agent_died)

    def _begin(self, work: Callable[[], Awaitable[Outcome]]) -> None:
        if self._is_running:
            self._work = asyncio.ensure_future(self._see_through(work))
            self._work.add_done_callback(self._on_work_ended)

    async def _see_through(self, work: Callable[[], Awaitable[Outcome]]) -> None:
        await self._all_stopped()
        tell = await work()
        if self._work is asyncio.current_task():  # else it was stopped, and has ended all the same
            self._work = None
            self._tell(tell(self._facts(), self._loop.time()))

    def _stop_work(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            stopping = asyncio.ensure_future(cancelled(work))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

    async def _all_stopped(self) -> None:
        while self._stopping:
            await asyncio.wait(self._stopping)

    def _on_work_ended(self, work: "asyncio.Task[None]") -> None:
        error = None if work.cancelled() else work.exception()
        if error is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        self._error = error
        self._wake.set()


def _gave_up(name: str, failures: int, last: UserError) -> UserError:
    return UserError(
        f"the connection to {name} was lost, and {failures} attempts failed: {last.message}",
        last.hint,
        ExitCode.LOST,
    )


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """True as soon as ``event`` is set, False after ``seconds``. (``wait_for`` of Python 3.11 and
    older swallows a cancellation that comes together with the event.)
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=max(seconds, 0.0))
    finally:
        waiting.cancel()
    return event.is_set()


async def _one_answers(peers: Sequence[Endpoint]) -> bool:
    probes = [asyncio.ensure_future(_answers(address, port)) for address, port in peers]
    try:
        for probe in asyncio.as_completed(probes, timeout=PROBE_EVERY_S):
            if await probe:
                return True
    except asyncio.TimeoutError:
        pass
    finally:
        for task in probes:
            task.cancel()
        await asyncio.wait(probes)
    return False


async def _answers(address: str, port: int) -> bool:
    """True if something at (address, port) answers a TCP connection, be it with a refusal."""
    try:
        _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.transport.abort()
    return True
