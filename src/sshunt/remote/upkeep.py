"""Keeps the session connected: notices that a lane is dead, and brings up another one.

    a lane's pipe ended                       at once: ssh says so
    no acknowledgement although one is due    after SUSPECT_RTTS round trips, at least SUSPECT_S;
                                              only QUIET_S when there is reason to doubt (``check``:
                                              the network changed, the machine slept, somebody asks)
    nothing to acknowledge                    asked with a PING every PING_EVERY_S

While another lane works, a suspect one is dropped and the session goes on. If none does:

    UP --lost--> DOWN   connect again, in parallel to a suspect lane that may yet answer
                        first at once, then after pauses (attempts);
                        before each further attempt wait until the ssh server's address answers (a
                        bare TCP connection: where a cable was unplugged ssh itself would find out
                        much later); at once when ``check`` is called
    DOWN --a lane is up, or answers again--> UP

What needs a person (a password nobody can be asked for, a changed host key) is said once and tried
again only every NEED_S, or when asked: a server must not be hammered with refused logins.

The far side says if it holds the session no more; if that is to be believed (attempts), its
connections are over and a new one begins. The same when the grace time is over, if the far side
never could keep it, or if it breaks the protocol on lane after lane (what it chokes on would be
sent over each of them).

Not here: when and how to log in next (attempts), ssh and its lanes (pool), what is new in the
network (host.network), rules (commands.up).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.mux.lanes import Lane
from sshunt.relay.tunnel import Tunnel
from sshunt.remote.attempts import PROBE_EVERY_S, Attempts, Probes, Rumours
from sshunt.remote.holding import WaitingRoom
from sshunt.remote.keeper import (
    CHECK_EVERY_S,
    HURRY_S,
    HURRY_TICK_S,
    LAST_WORDS_S,
    LEAST_ATTEMPT_S,
    NEED_S,
    PING_EVERY_S,
    QUICK_S,
    QUIET_S,
    SUSPECT_RTTS,
    SUSPECT_S,
    TICK_S,
)
from sshunt.remote.pool import Pool
from sshunt.tell.console import Console, counted
from sshunt.transport.channel import Channel, LaneRefusedError, Transport
from sshunt.transport.endings import cancelled
from sshunt.transport.greeting import HELLO_DEADLINE_S

#: Addresses of the server (and of whom it is reached by) that are probed.
PROBED_PEERS = 4

#: A login without a terminal waits for nobody.
ATTEMPT_DEADLINE_S = 30.0


class Keeper:
    """Watches the tunnel's lanes until cancelled; calls ``on_down`` and ``on_up`` at changes."""

    def __init__(
        self,
        tunnel: Tunnel,
        transport: Transport,
        pool: Pool,
        waiting: WaitingRoom,
        console: Console,
        host: str,
        *,
        grace_s: int,
        max_retries: int | None,
    ) -> None:
        self.down_since: float | None = None  # loop time of the last sign of life
        self.on_down: Callable[[], None] | None = None
        self.on_up: Callable[[], None] | None = None
        self.next_attempt_at: float | None = None  # None: one is under way, or none is needed
        self._tunnel = tunnel
        self._transport = transport
        self._pool = pool
        self._waiting = waiting
        self._console = console
        self._host = host
        self._grace_s = grace_s
        self._loop = tunnel.loop
        self._attempts = Attempts(max_retries=max_retries)
        self._attempts.on_up(self._loop.time())
        self._probes = Probes()
        self._rumours = Rumours()
        self._told_elsewhere = False  # that another machine answers
        self._is_answered = False  # the server's address answers though logins fail
        self._last_error = UserError("", "", ExitCode.LOST)  # why the last lane or login failed
        self._look = asyncio.Event()  # something happened: look now
        self._retry = asyncio.Event()  # do not wait for the next attempt
        self._hurry_until = 0.0
        self._checked_at = float("-inf")
        self._reconnecting: asyncio.Task[None] | None = None
        self._peers: tuple[Endpoint, ...] = ()
        self._lost_session = False  # since the connection was lost
        self._needs_a_person = False  # the last attempt failed for want of one, and that was said

    @property
    def is_down(self) -> bool:
        """True while no lane works, as far as is known."""
        return self.down_since is not None

    def status(self) -> str:
        """While down: one line for people."""
        now = self._loop.time()
        waiting = counted(len(self._tunnel.relays) + len(self._waiting), "connection")
        text = f"no connection for {now - (self.down_since or now):.0f} s, {waiting} waiting"
        if self.next_attempt_at is None:
            return text + ", connecting"
        return text + f", next attempt in {max(self.next_attempt_at - now, 0):.0f} s"

    def note_peers(self) -> tuple[Endpoint, ...]:
        """Where the lane that came up last leads, if that can be seen; it is remembered."""
        last = self._pool.last
        found = last.peers() if last is not None else ()
        self._peers = found or self._peers
        return found

    def check(self, why: str, *, asked: bool = False) -> None:
        """There is reason to doubt the lanes, or to hope: look at them, try again at once. Where a
        person was needed, only if it is a person who ``asked``.
        """
        session, now = self._tunnel.session, self._loop.time()
        if now > self._checked_at + CHECK_EVERY_S:
            self._checked_at = now
            self._console.detail(1, f"looking at the connection: {why}")
            for number in self._tunnel.lanes:
                session.ping(number)
            self._tunnel.wake()
        self._hurry_until = now + HURRY_S
        if asked:
            self._probes.begin(now)
        else:
            self._probes.refresh(now)
        if asked or not self._needs_a_person:
            self._retry.set()
        self._look.set()

    def on_lane_ended(self, why: str) -> None:
        """A lane is over, and the pool knows."""
        if not self._tunnel.lanes:
            self._go_down(why, 0.0)
        if self._tunnel.breaks_the_protocol:
            self._end_broken_session()
        self._look.set()

    def lose_session(self, why: str) -> None:
        """The far side does not hold the session any more: begin a new one."""
        count = self._pool.abandon_session()
        self._lost_session = True
        self._console.line(
            f"{self._host} has lost the session ({why}): {counted(count, 'connection')} reset,"
            " beginning a new one"
        )
        self._look.set()

    async def run(self) -> None:
        """Watch, and bring up what is missing. Raises UserError when --max-retries is reached."""
        try:
            while True:
                hurry = self._loop.time() < self._hurry_until
                await _happens(self._look, HURRY_TICK_S if hurry else TICK_S)
                self._look.clear()
                self._look_at_lanes()
                self._reconnect_if_needed()
        finally:
            if self._reconnecting is not None:
                self._reconnecting.cancel()
                await asyncio.wait([self._reconnecting])

    # --- the lanes ----------------------------------------------------------------------------

    def _look_at_lanes(self) -> None:
        session, now = self._tunnel.session, self._loop.time()
        suspects = [lane for lane in session.lanes.values() if self._is_suspect(lane, now)]
        if not session.lanes:
            self._go_down("", 0.0)
        elif len(suspects) < len(session.lanes):
            for lane in suspects:
                self._drop(lane, now)
            if self.is_down:
                self._go_up()
        elif not self.is_down:
            silent_s = min(lane.unanswered_s(now) for lane in suspects)
            self._go_down(f"no answer for {silent_s:.1f} s", silent_s)
        for lane in session.lanes.values():
            if not lane.outstanding and now - lane.last_heard_at > PING_EVERY_S:
                session.ping(lane.id)
                self._tunnel.wake()

    def _is_suspect(self, lane: Lane, now: float) -> bool:
        least_s = QUIET_S if now < self._hurry_until else SUSPECT_S
        return lane.unanswered_s(now) > max(SUSPECT_RTTS * lane.rtt_s, least_s)

    def _drop(self, lane: Lane, now: float) -> None:
        io = self._tunnel.lanes.get(lane.id)
        if io is not None:
            self._tunnel.lane_ended(io, f"no answer for {lane.unanswered_s(now):.1f} s")

    def _go_down(self, why: str, silent_s: float) -> None:
        if self.is_down:
            return
        self.down_since = self._loop.time() - silent_s
        self._probes.begin(self._loop.time())
        self._is_answered = False
        self._rumours.begin()
        self._told_elsewhere = False
        self._transport.connection_lost(may_yet_answer=bool(self._tunnel.lanes))
        if self._attempts.on_down(self.down_since):
            self._last_error = _ended_at_once(why)
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - silent_s))
        count = len(self._tunnel.relays)
        wait = "wait" if count != 1 else "waits"
        kept = count and self._tunnel.outlives_lanes
        fate = f"{counted(count, 'connection')} {wait}, " if kept else ""
        self._console.line(
            f"the connection to {self._host} is lost since {since}"
            f"{f' ({why})' if why else ''}: {fate}connecting again"
        )
        if self.on_down is not None:
            self.on_down()

    def _go_up(self) -> None:
        if self.down_since is None:
            return
        took_s = self._loop.time() - self.down_since
        self._attempts.on_up(self._loop.time())
        self.down_since = self.next_attempt_at = None
        self._needs_a_person = False
        count = len(self._tunnel.relays)
        kept = f": {counted(count, 'connection')} kept" if count and not self._lost_session else ""
        self._lost_session = False
        self._console.line(f"connected to {self._host} again after {took_s:.1f} s{kept}")
        if self.on_up is not None:
            self.on_up()

    # --- another one --------------------------------------------------------------------------

    def _reconnect_if_needed(self) -> None:
        task = self._reconnecting
        if task is not None and task.done():
            self._reconnecting = None
            if not task.cancelled():
                task.result()  # raises what ended it
        if self.is_down and self._reconnecting is None:
            self._reconnecting = asyncio.ensure_future(self._reconnect())
            self._reconnecting.add_done_callback(lambda _: self._look.set())
        elif not self.is_down and self._reconnecting is not None:
            self._reconnecting.cancel()  # the old lane answers again

    async def _reconnect(self) -> None:
        """Attempts, until a lane is up. Raises UserError."""
        await self._judge_session()
        pause_s = self._attempts.pause_s()
        while self.is_down:
            self._stop_if_over()
            if pause_s and not await self._pause(pause_s) and not self._is_answered:
                self._is_answered = await self._until_reachable()
            self._end_overdue_session()
            before = list(self._tunnel.lanes.values())
            began = self._loop.time()
            try:
                if not await self._attempt():
                    continue
            except UserError as error:
                self._is_answered &= self._loop.time() < began + QUICK_S
                if self._is_gone(error):
                    self.lose_session(error.message)
                    pause_s = 0.0
                else:
                    pause_s = self._note_failure(error)
                continue
            self.note_peers()
            for lane in before:
                self._tunnel.lane_ended(lane, "replaced")
            if not self._tunnel.lanes:  # what came with its HELLO has ended it
                pause_s = self._note_failure(_ended_at_once())
            else:
                self._go_up()

    def _is_gone(self, error: UserError) -> bool:
        """True if the far side says that it has not got the session that was asked for, and that is
        to be believed.
        """
        if not isinstance(error, LaneRefusedError) or not error.is_session_gone:
            return False
        if not self._pool.is_resumable:
            return False
        known = self._pool.agent_host
        is_elsewhere = bool(known) and bool(error.host) and error.host != known
        if is_elsewhere and not self._told_elsewhere:
            self._told_elsewhere = True
            self._console.line(
                f"another machine answers as {self._host} than the one that holds the session"
            )
        return self._rumours.is_believed(
            self._loop.time(),
            may_yet_answer=bool(self._tunnel.lanes),
            is_elsewhere=is_elsewhere,
        )

    def _end_broken_session(self) -> None:
        self._tunnel.forgive()
        if self._tunnel.lanes:  # else nobody can be told
            self._tunnel.session.say_goodbye(frames.GOODBYE_PROTOCOL, "")
            self._tunnel.pump()
        self.lose_session("it broke the protocol on one ssh connection after the other")

    async def _judge_session(self) -> None:
        """What the end of the last ssh says about the agent behind it."""
        last = self._pool.last
        if self._tunnel.lanes or last is None:
            return
        await asyncio.wait([last.ended], timeout=LAST_WORDS_S)
        if not self._pool.is_resumable:
            return
        if last.ended.done() and last.ended.result().agent_died:
            self.lose_session("its agent died")
        elif not self._tunnel.outlives_lanes:
            self._lost_session = True
            self._pool.abandon_session()

    def _end_overdue_session(self) -> None:
        down_s = self._loop.time() - (self.down_since or 0.0)
        if self._pool.is_resumable and self._tunnel.outlives_lanes and down_s > self._grace_s:
            self.lose_session(f"the grace time of {self._grace_s} s is over")

    async def _attempt(self) -> bool:
        """One. False if ``check`` was called before anybody was reached: try again at once."""
        self.next_attempt_at = None
        self._retry.clear()
        started: list[Channel] = []
        began = self._loop.time()
        connecting = asyncio.ensure_future(
            self._pool.connect(
                resumes=True,
                on_started=started.append,
                deadline_s=HELLO_DEADLINE_S if self._console.is_terminal else ATTEMPT_DEADLINE_S,
            )
        )
        asked: asyncio.Future[Any] = self._loop.create_future()
        try:
            while not connecting.done():
                asked = asyncio.ensure_future(self._retry.wait())
                either: list[asyncio.Future[Any]] = [connecting, asked]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                self._retry.clear()
                overdue = self._loop.time() > began + LEAST_ATTEMPT_S
                if not connecting.done() and overdue and started and not started[0].has_reached():
                    return False
        finally:
            asked.cancel()
            await cancelled(connecting)
        connecting.result()
        return True

    def _note_failure(self, error: UserError) -> float:
        """Say what is worth saying, once; how long to wait."""
        self._attempts.on_failure()
        self._last_error = error
        self._console.detail(1, f"attempt {self._attempts.failures} failed: {error.message}")
        self._stop_if_over()
        if self._transport.attempt_failed(error):
            if not self._needs_a_person:
                self._needs_a_person = True
                self._console.line(f"{error.message}; {error.hint}; then: sshunt reconnect")
            return NEED_S
        self._needs_a_person = False
        return self._attempts.pause_s()

    def _stop_if_over(self) -> None:
        if self._attempts.are_over:
            raise UserError(
                f"the connection to {self._host} was lost, and {self._attempts.failures} attempts"
                f" failed: {self._last_error.message}",
                self._last_error.hint,
                ExitCode.LOST,
            )

    async def _pause(self, seconds: float) -> bool:
        """Wait; True as soon as ``check`` is called."""
        self.next_attempt_at = self._loop.time() + seconds
        self._retry.clear()
        return await _happens(self._retry, seconds)

    async def _until_reachable(self) -> bool:
        """Wait until one of the addresses that ssh was connected to answers, if any is known: then
        True. Not for ever, because the server may have got another one, and not after ``check``.
        """
        while self._peers:
            begin = self._loop.time()
            if await _one_answers(self._peers[:PROBED_PEERS]):
                return True
            pause_s, is_sshs_turn = self._probes.next(begin)
            if await self._pause(max(begin + pause_s - self._loop.time(), 0.0)) or is_sshs_turn:
                break
        return False


def _ended_at_once(why: str = "") -> UserError:
    return UserError(
        f"it ended soon after it was made{f' ({why})' if why else ''}",
        "ask the server's log: it may end what is started there",
        ExitCode.LOST,
    )


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """True as soon as ``event`` is set, False after so long. (``wait_for`` of Python 3.11 and older
    swallows a cancellation that comes together with the event.)
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
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
