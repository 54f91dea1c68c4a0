"""The session's ssh connections: the first of a session, one to resume it, and further lanes.

Further lanes are opened when one is what limits the session, and closed when idle.

One ssh channel has a window of 2 MiB: that is 168 Mbit/s at 100 ms, whatever the link. One TCP
connection on a path that loses segments collapses to a fraction of it. Several together don't, and
the protocol lets one stream use them all. On a link that one connection fills, more would gain
nothing, so none is opened there.

    several times a second while there is traffic: what do the pacers of both ends believe?
        a direction has bulk waiting, and each of its lanes is limited by
            its channel's window    delivers WINDOW_SHARE of it or more per round trip, queue aside
            loss                    keeps stalling for a round trip, and nobody else fills the link
                                    -> as many lanes as --lanes says
        others fill the link        -> three: one that joins late gets a sixth of it for long
        a long path, and a start    no queue has been seen yet, and one lane may be too few
        that still grows            -> log in, and wait with the last step until they are wanted
    no bulk for IDLE_S              -> back to the first lane

All at once, because each needs a login and then a slow start, and whoever waits for a transfer has
waited for those once. On a path of 100 ms a login takes 1.3 s, and so long a transfer would have a
quarter of the link; hence the logins in advance. The far side is not told of them: what is not
wanted after SPARE_S is closed, and in this session none are made again.

A further lane never asks anybody anything. First it is a connection of its own. Where that would
need a person, further channels are opened over the connection that is there, if the transport can:
each has a window of its own, which is all they help against. Where that is not possible either, the
session stays with one lane, says so once and does not try again.

Not here: how bytes are spread over lanes (mux); when a lane counts as dead, and when another
attempt is made after the last one (keeper).
"""

import asyncio
import os
import secrets
from collections.abc import Callable

from sshunt.errors import ExitCode, UserError
from sshunt.mux.hello import (
    CLIENT,
    FEATURE_COPY,
    FEATURE_CREATE,
    FEATURE_DETACHED,
    FEATURE_SPLICE,
    TOKEN_BYTES,
    Hello,
    make_hello,
)
from sshunt.mux.limits import INITIAL_WINDOW_BYTES, MAX_STREAMS
from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import CONTENDED
from sshunt.mux.session import Session
from sshunt.relay.lane import CHANNEL_WINDOW_BYTES, LaneIO
from sshunt.relay.tunnel import COPY, SPLICE, Tunnel
from sshunt.remote.telemetry import Beliefs, LaneBeliefs
from sshunt.tell.console import Console
from sshunt.transport.channel import Channel, Say, Transport
from sshunt.transport.greeting import HELLO_DEADLINE_S

#: A lane that delivers so much of its channel's window in a round trip of the empty path is limited
#: by it, or will be soon: a login takes ten round trips.
WINDOW_SHARE = 0.4

#: On shorter paths processors are the limit, and another process would only need more of them.
LEAST_RTT_S = 0.005

#: A standing queue above this, and the path is full rather than lossy.
FREE_S, FREE_RTTS = 0.005, 0.1

#: Beside one other flow of TCP so many lanes come to between a quarter and a half of the link in
#: half a minute, to three quarters in the end. (Two: a sixth to a half.)
CONTENDED_LANES = 3

#: On a path so long a login takes a second, and one lane carries less than 300 Mbit/s. A start that
#: has come so far, without a queue, is worth logging in for (10 Mbit/s at 100 ms).
SPARE_RTT_S, SPARE_SHARE = 0.06, 0.06

#: How long those that are logged in wait to be wanted.
SPARE_S = 8.0

#: Without bulk for so long, one lane is enough.
IDLE_S = 60.0

#: Why an idle lane ends.
IDLE = "idle"

#: A further lane must come up within this time.
CONNECT_DEADLINE_S = 30.0

#: After a failure that may pass, the next attempt.
RETRY_S = 60.0

#: How long ssh may take to end once its pipes are closed.
END_DEADLINE_S = 1.0

#: A HELLO has 16 bits for a lane's number.
LANE_NUMBERS = 1 << 16

#: Lanes that were lost while there was none to say so, and attempts in vain: the newest of them.
MOST_GONE = 256

#: What the far side is asked for in a new session, by the way of payload here.
_WISHES = {COPY: FEATURE_COPY, SPLICE: FEATURE_SPLICE}


def new_session(
    window_bytes: int = INITIAL_WINDOW_BYTES, max_streams: int = MAX_STREAMS
) -> Session:
    """The client's side of a session over ssh, with what the far side's HELLO grants."""
    return Session(CLIENT, window_bytes, max_streams, CHANNEL_WINDOW_BYTES)


def lanes_wanted(beliefs: Beliefs, most: int, *, channels: bool = False) -> int:
    """How many lanes what this side sends could use; 1 if its first is no limit. ``channels``: all
    would be on one connection.
    """
    if not beliefs.bulk_bytes or not beliefs.lanes:
        return 1
    lanes = beliefs.lanes.values()
    if all(map(_is_limited_by_window, lanes)):
        return most
    if channels:
        return 1
    if all(_is_limited_by_window(lane) or _is_limited_by_loss(lane) for lane in lanes):
        return most
    if any(lane.phase == CONTENDED for lane in lanes):
        return min(CONTENDED_LANES, most)
    return 1


def may_want_more(beliefs: Beliefs) -> bool:
    """True if what this side sends may soon need more lanes than the one it has."""
    if not beliefs.bulk_bytes or len(beliefs.lanes) != 1:
        return False
    (lane,) = beliefs.lanes.values()
    is_fast = lane.in_flight_bytes >= SPARE_SHARE * CHANNEL_WINDOW_BYTES
    return bool(lane.starting) and lane.min_rtt_s >= SPARE_RTT_S and is_fast


def _is_limited_by_window(lane: LaneBeliefs) -> bool:
    most_in_flight = WINDOW_SHARE * CHANNEL_WINDOW_BYTES
    return lane.min_rtt_s >= LEAST_RTT_S and lane.rate_bytes_s * lane.min_rtt_s >= most_in_flight


def _is_limited_by_loss(lane: LaneBeliefs) -> bool:
    # Where somebody else fills the link there is loss, too; more lanes would be an unfair answer.
    is_free = lane.phase != CONTENDED and lane.queue_s < FREE_S + FREE_RTTS * lane.min_rtt_s
    return lane.min_rtt_s >= LEAST_RTT_S and lane.stalls >= LOSS_STALLS and is_free


class Lanes:
    """Every lane of the tunnel and the channel behind it. Owns the channels."""

    def __init__(
        self,
        tunnel: Tunnel,
        transport: Transport,
        host: str,
        console: Console,
        *,
        most: int,
        grace_s: int,
    ) -> None:
        self._tunnel = tunnel
        self._transport = transport
        self._host = host  # as lines for people call it
        self._console = console
        self._most = most
        self._grace_s = grace_s
        self._channels: dict[int, Channel] = {}
        self._token = b""  # of the session that may be resumed; b"": none
        self.agent_host = b""  # which machine the session's agent is on, if it said so
        self._next = 0
        self._gone: set[int] = set()  # lanes that the far side may still think it has
        self._opening: set[asyncio.Task[None]] = set()
        self._go = asyncio.Event()  # of those that are opened in advance
        self._may_open_early = True
        self._ending: set[asyncio.Task[None]] = set()
        self._bulk_at = tunnel.loop.time()
        self._not_before = 0.0
        self._sharing_told = False  # that further channels go over the one connection
        self._least_rtt_s = 0.0
        self.last: Channel | None = None  # the session's: the one that came up last

    # --- the session's connection -------------------------------------------------------------

    @property
    def are_resumable(self) -> bool:
        """True if the far side may still hold the session."""
        return bool(self._token)

    async def connect(
        self,
        *,
        on_line: Say,
        resumes: bool = False,
        on_started: Callable[[Channel], None] | None = None,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> None:
        """Bring up a lane: the first of a new session, or one more of the present one. May prompt.

        See ``Transport.open``. Raises UserError; LaneRefusedError if the far side does not hold the
        session any more.
        """
        token = self._token or secrets.token_bytes(TOKEN_BYTES)
        features = 0 if self._token else FEATURE_CREATE | _WISHES.get(self._tunnel.way, 0)
        number = self._take_number()
        hello = make_hello(CLIENT, token, lane=number, features=features, grace_s=self._grace_s)
        try:
            with self._console.giving_way():
                channel = await self._transport.open(
                    hello,
                    on_line=on_line,
                    on_silence=self._tell_silence,
                    deadline_s=deadline_s,
                    resumes=resumes,
                    on_started=on_started,
                )
        except BaseException:
            self._note_gone(number)  # it may be up over there, and its answer be lost
            raise
        if not features and token != self._token:  # meanwhile that session has ended
            self._discard(channel)
            raise UserError("the session ended meanwhile", "try again", ExitCode.LOST)
        if features:
            self._begin(token, channel.hello)
        self.last = channel
        self._sharing_told = False
        try:
            self._add(number, channel)
        except OSError as error:
            raise UserError(
                f"the connection to {self._host} ended at once: {error.strerror}",
                "try again",
                ExitCode.LOST,
            )

    def _begin(self, token: bytes, theirs: Hello) -> None:
        """The far side has made a session: this is how it will be."""
        self._token, self.agent_host = token, theirs.host
        session, detached = self._tunnel.session, bool(theirs.features & FEATURE_DETACHED)
        terms = (theirs.initial_window_bytes, theirs.max_streams)
        if session.peer_terms != terms:  # another version's: no stream can have been opened yet
            session = new_session(*terms)
        self._tunnel.begin(session, outlives_lanes=detached and theirs.grace_s > 0)
        if self._grace_s and not detached:
            self._console.line(
                "the far side has no place for the session's agent: connections will not outlive"
                " the ssh connection"
            )

    def abandon_session(self) -> int:
        """The session is over at the far side: reset its connections, and be ready for a new one.
        How many connections there were.
        """
        count = len(self._tunnel.relays)
        self._token = b""
        self._gone.clear()
        self._give_up_spares()
        for lane in list(self._tunnel.lanes.values()):
            self._tunnel.lane_ended(lane, "the session is over")
        self._tunnel.reset_all()
        self._tunnel.begin(new_session(), outlives_lanes=self._tunnel.outlives_lanes)
        return count

    # --- further lanes ------------------------------------------------------------------------

    @property
    def may_be_several(self) -> bool:
        """False if there may never be more than one."""
        return self._most > 1

    def look(self, beliefs: Beliefs) -> None:
        """What the pacers of one side believe now."""
        now = self._tunnel.loop.time()
        rtts = [self._least_rtt_s, *(lane.min_rtt_s for lane in beliefs.lanes.values())]
        self._least_rtt_s = min(filter(None, rtts), default=0.0)
        if beliefs.bulk_bytes:
            self._bulk_at = now
        if not self._tunnel.lanes:
            return
        wanted = lanes_wanted(beliefs, self._most, channels=self._transport.shares_connection)
        if wanted > len(self._tunnel.lanes):
            self._go.set()
        if self._opening or now < self._not_before:
            return
        if self._may_open_early and may_want_more(beliefs) and wanted == 1:
            self._may_open_early = False
            self._go = asyncio.Event()
            wanted = self._most
            self._tunnel.loop.call_later(SPARE_S, self._give_up_spares)
        for _ in range(wanted - len(self._tunnel.lanes)):
            opening = asyncio.ensure_future(self._open(self._go))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def _give_up_spares(self) -> None:
        if not self._go.is_set():
            self._console.detail(1, "one ssh connection is enough: closing those that wait")
            for opening in self._opening:
                opening.cancel()

    def close_idle(self) -> None:
        """Close all lanes but the oldest if there was no bulk for long. To be called often."""
        if len(self._channels) < 2 or self._tunnel.loop.time() - self._bulk_at < IDLE_S:
            return
        for number in sorted(self._channels)[1:]:
            lane = self._tunnel.lanes.get(number)
            if lane is not None:
                self._tunnel.lane_ended(lane, IDLE)

    async def _open(self, go: asyncio.Event) -> None:
        shared = self._transport.shares_connection
        number, token = self._take_number(), self._token
        try:
            channel = await self._transport.open_beside(
                make_hello(CLIENT, token, lane=number),
                ready=go,
                on_line=self._ignore,
                deadline_s=CONNECT_DEADLINE_S,
                path_rtt_s=self._least_rtt_s,
            )
            if token != self._token:  # meanwhile that session has ended
                self._discard(channel)
                return
            self._console.detail(1, f"lane {number} is up: one was the limit")
            self._add(number, channel)
        except (UserError, OSError) as error:
            self._note_gone(number)
            if not isinstance(error, UserError) or error.exit_code is not ExitCode.AUTH:
                self._try_later(error)
            elif not shared and self._transport.shares_connection:
                self._tell_sharing()
            elif go.is_set():  # else nobody has missed it yet
                self._stay_with_one()

    def _tell_sharing(self) -> None:
        if not self._sharing_told:
            self._sharing_told = True
            self._console.detail(
                1, "a second login would ask you: more channels over the one connection instead"
            )

    def _stay_with_one(self) -> None:
        if self._most > 1:
            self._most = 1
            self._console.line(
                "one ssh connection limits the speed here, and a second one can't log in"
                " without asking you: staying with one ssh connection"
            )

    def _try_later(self, error: UserError | OSError) -> None:
        self._not_before = self._tunnel.loop.time() + RETRY_S
        message = error.message if isinstance(error, UserError) else error.strerror
        self._console.detail(1, f"no further ssh connection: {message}")

    def _tell_silence(self, line: str) -> None:
        if self.last is None:
            self._console.line(line)
        else:  # an attempt of many
            self._console.detail(1, line)

    def _ignore(self, line: str) -> None:
        """The banner and the greetings have been shown by the first connection."""
        self._console.detail(2, line)

    # --- all of them --------------------------------------------------------------------------

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """A lane of the tunnel is over, and so is its channel."""
        channel = self._channels.pop(lane.lane_id, None)
        if channel is None:
            return
        if reason != IDLE:  # whatever it was, it may happen to the next one, too
            self._not_before = self._tunnel.loop.time() + RETRY_S
        self._note_gone(lane.lane_id)
        self._tell_gone()
        why = reason or channel.last_words() or "the far side closed it"
        self._console.detail(1, f"lane {lane.lane_id} ended: {why}")
        self._end(channel)

    async def close(self) -> None:
        """Open no more, and wait for every channel to end. Close the tunnel's lanes first."""
        self._most = 1
        for opening in self._opening:
            opening.cancel()
        for channel in self._channels.values():
            self._end(channel)
        self._channels.clear()
        if self._opening | self._ending:
            await asyncio.wait(self._opening | self._ending)

    def _take_number(self) -> int:
        while self._next in self._channels:
            self._next = (self._next + 1) % LANE_NUMBERS
        number = self._next
        self._next = (self._next + 1) % LANE_NUMBERS
        return number

    def _note_gone(self, number: int) -> None:
        self._gone.add(number)
        if len(self._gone) > MOST_GONE:
            self._gone.discard(min(self._gone))

    def _tell_gone(self) -> None:
        """As soon as there is a lane for it."""
        if self._tunnel.lanes:
            for number in sorted(self._gone):
                self._tunnel.session.tell_lane_gone(number)
            self._gone.clear()

    def _add(self, number: int, channel: Channel) -> None:
        """``channel`` is up: its lane is the tunnel's. Raises OSError if it is dead already."""
        self._channels[number] = channel
        try:
            lane = self._tunnel.add_lane(number, channel.read_fd, channel.write_fd)
        except OSError:
            del self._channels[number]
            self._discard(channel)
            raise
        self._gone.discard(number)
        self._tell_gone()
        self._tunnel.session.ping(number)
        lane.receive(channel.rest)

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
