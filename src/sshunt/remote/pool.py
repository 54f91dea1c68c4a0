"""The session, and its lanes: the first of a session, one to resume it, and further ones.

There is one session at a time, and a tunnel for each: it begins when the far side has answered for
the first time, and ends with ``abandon_session``. What came before and comes after is nobody's.

Each lane of the pool is a ``Member``: its number, its pipes in the event loop (LaneIO) and the
channel behind them, made and dropped together.

Further lanes are opened when one is what limits the session (``demand``), and closed when idle:

    several times a second while there is traffic: what do the pacers of both ends measure?
        one lane is too few          -> as many as would help, at once
        it may soon be               -> log in, and wait with the last step until they are wanted
    no bulk for IDLE_S               -> back to the first lane

All at once, because each needs a login and then a slow start, and whoever waits for a transfer has
waited for those once. On a path of 100 ms a login takes 1.3 s, and until then a transfer would
have a quarter of the link; hence the logins ahead of need (``Early``). The far side is not told of
them: what is not wanted after EARLY_S is closed, and none are made again.

A further lane never asks anybody anything. First it is a connection of its own. Where that would
need a person, further channels are opened over the connection that is there, if the transport can:
each has a window of its own, which is all they help against. Where that is not possible either, the
session stays with one lane, says so once and does not try again.

Not here: how bytes are spread over lanes (mux); by which connection a channel goes, and what is
asked of whom for it (transport); when a lane counts as dead, and when another attempt is made after
the last one (keeper).
"""

import asyncio
import enum
import os
from typing import NamedTuple

from sshunt.errors import ExitCode, UserError
from sshunt.mux.hello import CLIENT, FEATURE_COPY, FEATURE_CREATE, FEATURE_SPLICE, Hello
from sshunt.mux.limits import INITIAL_WINDOW_BYTES, MAX_STREAMS
from sshunt.mux.session import Session
from sshunt.relay.lane import CHANNEL_WINDOW_BYTES, LaneIO
from sshunt.relay.reactor import COPY, SPLICE, Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner
from sshunt.remote.demand import lanes_wanted, may_want_more
from sshunt.remote.identity import Identity, is_detached
from sshunt.remote.logins import Login
from sshunt.remote.statistics import Statistics
from sshunt.tell.report import (
    FIRST_LOGIN,
    FURTHER_LOGIN,
    LATER_LOGIN,
    AgentNotDetached,
    ChannelsChosen,
    EarlyLanesClosed,
    LaneClosed,
    LaneFailed,
    LaneOpened,
    LanesLimited,
    LoginEnded,
    LoginStarted,
    Report,
)
from sshunt.transport.channel import Channel, Transport
from sshunt.transport.endings import cancelled
from sshunt.transport.greeting import HELLO_DEADLINE_S

#: How long lanes that are logged in ahead of need wait to be wanted.
EARLY_S = 8.0

#: Time without bulk after which one lane is enough.
IDLE_S = 60.0

#: Why an idle lane ends.
IDLE = "idle"

#: A further lane must come up within this time.
CONNECT_DEADLINE_S = 30.0

#: The pause after a failure that may pass.
RETRY_S = 60.0

#: How long a channel's program may take to end once its pipes are closed.
END_DEADLINE_S = 1.0

#: What the far side is asked for in a new session, by the way of payload here.
_WISHES = {COPY: FEATURE_COPY, SPLICE: FEATURE_SPLICE}


def new_session(
    window_bytes: int = INITIAL_WINDOW_BYTES, max_streams: int = MAX_STREAMS
) -> Session:
    """The client's side of a session over ssh, with what the far side's HELLO grants."""
    return Session(CLIENT, window_bytes, max_streams, CHANNEL_WINDOW_BYTES)


class Member(NamedTuple):
    """A lane that is up."""

    number: int
    io: LaneIO
    channel: Channel


class Early(enum.Enum):
    """Whether lanes are logged in ahead of need."""

    POSSIBLE = enum.auto()  # there was no reason yet
    WAITING = enum.auto()  # they log in, or have, and wait with their HELLO until they are wanted
    OVER = enum.auto()  # they were wanted, or it was in vain: once is enough


class Traffic(NamedTuple):
    """Bytes on all lanes so far, those that have ended included."""

    sent: int
    received: int


class Pool:
    """The session's ``tunnel``, every lane of it and the channel behind it. Owns the channels.

    ``owner`` hears what the tunnels tell; ``remote``: the far side's name, as lines for people call
    it.
    """

    def __init__(
        self,
        reactor: Reactor,
        owner: TunnelOwner,
        transport: Transport,
        report: Report,
        remote: str,
        *,
        most: int,
        grace_s: int,
    ) -> None:
        self.last: Channel | None = None  # the session's: the one that came up last
        self._reactor = reactor
        self._loop = reactor.loop
        self._owner = owner
        self._transport = transport
        self._report = report
        self._remote = remote
        self._most = most
        self._identity = Identity(grace_s=grace_s, wishes=_WISHES.get(reactor.way, 0))
        self._members: dict[int, Member] = {}
        self._login: Login | None = None  # of the ``connect`` under way
        self._ending: set[asyncio.Task[None]] = set()
        # Of further lanes:
        self._opening: set[asyncio.Task[None]] = set()
        self._early = Early.POSSIBLE
        self._wanted = asyncio.Event()  # those that are being opened may send their HELLO
        self._paused_until = 0.0  # after a failure
        self._is_sharing_told = False  # that they are channels of the one connection
        self._bulk_at = self._loop.time()
        self._least_rtt_s = 0.0  # of all lanes so far; 0: none has been measured
        self._past = Traffic(0, 0)  # of lanes that are over
        # What the far side grants is known when it has answered; ours grants what is taken here.
        #: The session's; before the first one, and while there is none, without a lane.
        self.tunnel = Tunnel(reactor, new_session(), owner, outlives_lanes=grace_s > 0)

    # --- the session's channel ----------------------------------------------------------------

    @property
    def is_resumable(self) -> bool:
        """True if the far side may still hold the session."""
        return self._identity.is_resumable

    @property
    def agent_host(self) -> bytes:
        """Which machine the session's agent is on; b"" if it did not say so."""
        return self._identity.agent_host

    async def connect(self, *, resumes: bool = False, deadline_s: float = HELLO_DEADLINE_S) -> None:
        """Bring up a lane: the first of a new session, or one more of the present one. May prompt.

        See ``Transport.open``. Raises UserError; LaneRefusedError if the far side does not hold the
        session any more.
        """
        number = self._identity.take_number(self._members)
        ours = self._identity.hello(number)
        try:
            channel = await self._open(ours, deadline_s, resumes=resumes)
        except BaseException:
            self._identity.note_dead(number)  # it may be up over there, and its answer be lost
            raise
        if not self._identity.is_current(ours):
            self._discard(channel)
            raise UserError("the session ended meanwhile", "try again", ExitCode.LOST)
        if ours.features & FEATURE_CREATE:
            self._start_session(ours, channel.hello)
        self.last = channel
        self._is_sharing_told = False
        try:
            self._add(number, channel)
        except OSError as error:
            raise UserError(
                f"the connection to {self._remote} ended at once: {error.strerror}",
                "try again",
                ExitCode.LOST,
            )

    def has_reached(self) -> bool:
        """False while ``connect`` is under way and its program has not reached anybody yet."""
        channel = self._login.channel if self._login is not None else None
        return channel is None or channel.has_reached()

    async def _open(self, ours: Hello, deadline_s: float, *, resumes: bool) -> Channel:
        kind = LATER_LOGIN if resumes else FIRST_LOGIN
        login = self._login = Login(self._report, self._remote, kind)
        self._report.say(LoginStarted(self._remote))
        try:
            return await self._transport.open(ours, login, deadline_s=deadline_s, resumes=resumes)
        finally:
            self._login = None
            self._report.say(LoginEnded(self._remote))

    def _start_session(self, ours: Hello, theirs: Hello) -> None:
        """The far side has made a session: this is how it will be."""
        self._identity.accepted(ours, theirs)
        detached = is_detached(theirs)
        session = new_session(theirs.initial_window_bytes, theirs.max_streams)
        self.tunnel.close()
        self.tunnel = Tunnel(
            self._reactor, session, self._owner, outlives_lanes=detached and theirs.grace_s > 0
        )
        if self._identity.grace_s and not detached:
            self._report.say(AgentNotDetached(self._remote))

    def abandon_session(self) -> int:
        """The session is over at the far side: reset its connections, and be ready for a new one.
        How many connections there were.
        """
        count = len(self.tunnel.relays)
        self._identity.forget()
        self._give_up_early()
        for lane in list(self.tunnel.lanes.values()):
            self.tunnel.lane_ended(lane, "the session is over")
        self.tunnel.close()
        return count

    def moved(self) -> Traffic:
        """What has gone over all lanes so far."""
        sent, received = self._past
        for member in self._members.values():
            sent += member.io.sent_bytes
            received += member.io.received_bytes
        return Traffic(sent, received)

    # --- further lanes ------------------------------------------------------------------------

    @property
    def may_be_several(self) -> bool:
        """False if there may never be more than one."""
        return self._most > 1

    def look(self, statistics: Statistics) -> None:
        """What the pacers of one side measure now."""
        now = self._loop.time()
        rtts = [self._least_rtt_s, *(lane.min_rtt_s for lane in statistics.lanes.values())]
        self._least_rtt_s = min(filter(None, rtts), default=0.0)
        if statistics.bulk_bytes:
            self._bulk_at = now
        if not self._members:
            return
        wanted = lanes_wanted(statistics, self._most, channels=self._transport.shares_connection)
        missing = wanted - len(self._members)
        if missing > 0:
            self._want_early()
        if self._opening or now < self._paused_until:
            return
        if wanted == 1 and self._early is Early.POSSIBLE and may_want_more(statistics):
            missing = self._most - len(self._members)
            self._log_in_early()
        for _ in range(missing):
            opening = asyncio.ensure_future(self._open_further(self._wanted))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def _log_in_early(self) -> None:
        self._early = Early.WAITING
        self._wanted = asyncio.Event()
        self._loop.call_later(EARLY_S, self._give_up_early)

    def _want_early(self) -> None:
        """Those that are logged in, or on their way, are wanted now."""
        if self._early is Early.WAITING:
            self._early = Early.OVER
        self._wanted.set()

    def _give_up_early(self) -> None:
        if self._early is Early.WAITING:
            self._early = Early.OVER
            if self._opening:  # else none may be had, or all have failed
                self._report.say(EarlyLanesClosed(self._remote))
            for opening in self._opening:
                opening.cancel()

    def close_idle(self) -> None:
        """Close all lanes but the oldest if there was no bulk for long. To be called often."""
        if len(self._members) < 2 or self._loop.time() - self._bulk_at < IDLE_S:
            return
        for number in sorted(self._members)[1:]:
            self.tunnel.lane_ended(self._members[number].io, IDLE)

    async def _open_further(self, wanted: asyncio.Event) -> None:
        shared = self._transport.shares_connection
        number = self._identity.take_number(self._members)
        ours = self._identity.hello_beside(number)
        try:
            channel = await self._transport.open_beside(
                ours,
                Login(self._report, self._remote, FURTHER_LOGIN),
                ready=wanted,
                deadline_s=CONNECT_DEADLINE_S,
                path_rtt_s=self._least_rtt_s,
            )
            if not self._identity.is_current(ours):
                self._discard(channel)
                return
            self._report.say(LaneOpened(self._remote, number))
            self._add(number, channel)
        except UserError as error:
            self._identity.note_dead(number)
            if error.exit_code is not ExitCode.AUTH:
                self._try_later(error.message)
            elif not shared and self._transport.shares_connection:
                self._tell_sharing()
            elif wanted.is_set():  # else nobody has missed it yet
                self._stay_with_one()
        except OSError as error:
            self._identity.note_dead(number)
            self._try_later(error.strerror or str(error))

    def _tell_sharing(self) -> None:
        if not self._is_sharing_told:
            self._is_sharing_told = True
            self._report.say(ChannelsChosen(self._remote))

    def _stay_with_one(self) -> None:
        if self._most > 1:
            self._most = 1
            self._report.say(LanesLimited(self._remote))

    def _try_later(self, why: str) -> None:
        self._paused_until = self._loop.time() + RETRY_S
        self._report.say(LaneFailed(self._remote, why))

    # --- all of them --------------------------------------------------------------------------

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """A lane of the tunnel is over, and so is its channel."""
        member = self._members.pop(lane.lane_id, None)
        if member is None:
            return
        self._past = Traffic(
            self._past.sent + lane.sent_bytes, self._past.received + lane.received_bytes
        )
        if reason != IDLE:  # whatever it was, it may happen to the next one, too
            self._paused_until = self._loop.time() + RETRY_S
        self._identity.note_dead(member.number)
        self._tell_dead()
        why = reason or member.channel.last_words() or "the far side closed it"
        self._report.say(LaneClosed(self._remote, member.number, why))
        self._end(member.channel)

    async def close(self) -> None:
        """Open no more, and wait for every channel to end. Close the tunnel's lanes first."""
        self._most = 1
        self._identity.forget()  # what comes up all the same is let go
        for member in self._members.values():
            self._end(member.channel)
        self._past = self.moved()
        self._members.clear()
        await cancelled(*self._opening)
        while self._ending:
            await asyncio.wait(self._ending)

    def _tell_dead(self) -> None:
        """As soon as there is a lane for it."""
        if self.tunnel.lanes:
            for number in self._identity.take_dead():
                self.tunnel.session.tell_lane_gone(number)

    def _add(self, number: int, channel: Channel) -> None:
        """``channel`` is up: its lane is the tunnel's. Raises OSError if it is dead already."""
        try:
            io = self.tunnel.add_lane(number, channel.read_fd, channel.write_fd)
        except OSError:
            self._discard(channel)
            raise
        self._members[number] = Member(number, io, channel)
        self._identity.note_alive(number)
        self._tell_dead()
        self.tunnel.session.ping(number)
        io.receive(channel.rest)

    def _discard(self, channel: Channel) -> None:
        """Let go of a channel that the tunnel does not have."""
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        self._end(channel)

    def _end(self, channel: Channel) -> None:
        """See to it that it ends, its pipes being closed."""
        ending = asyncio.ensure_future(channel.close(END_DEADLINE_S))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
