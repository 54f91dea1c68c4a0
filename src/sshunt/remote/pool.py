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

A further lane never asks anybody anything: BatchMode, and where the session's connection may have
taken a person's time, or a further one has failed once, nothing else that could
(``ssh_unattended``). First it is an ssh connection of its own. Where that would need a person,
further channels are opened over the connection that is there: each has a window of its own, which
is all they help against. Where that is not possible either, the session stays with one lane, says
so once and does not try again.

Not here: how bytes are spread over lanes (mux); when a lane counts as dead, and when another
attempt is made after the last one (keeper).
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence

from sshunt.config.remotes import Remote
from sshunt.errors import ExitCode, UserError
from sshunt.model import Endpoint
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
from sshunt.transport import ssh_unattended
from sshunt.transport.peers import own_peer
from sshunt.transport.ssh import HELLO_DEADLINE_S, SshLane, connect
from sshunt.transport.ssh_choices import Choices, Sharing

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

_QUIET = ("-o", "BatchMode=yes")  # fail rather than ask
#: Past every shared connection. (The last -S counts, and more than ControlPath: whatever -e says.)
OWN_CONNECTION = ("-S", "none")


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
    """Every lane of the tunnel and the ssh process behind it. Owns the processes."""

    def __init__(
        self,
        tunnel: Tunnel,
        remote: Remote,
        console: Console,
        choices: Choices,
        *,
        most: int,
        grace_s: int,
    ) -> None:
        self._tunnel = tunnel
        self._remote = remote
        self._console = console
        self._cipher = choices.cipher
        self._session_options = choices.session
        self._sharing = choices.sharing
        self._control_path = choices.control_path
        self._unattended = choices.unattended
        self._is_direct = choices.is_direct
        self._most = most
        self._grace_s = grace_s
        self._ssh: dict[int, SshLane] = {}
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
        self._own_connection_refused = False
        self._may_ask_agents = True  # as the session's connection did, for nobody noticed
        self._least_rtt_s = 0.0
        self._channel_options: Sequence[str] | None = None  # None: there can't be more channels
        self.last: SshLane | None = None  # the one that came up last

    # --- the session's connection -------------------------------------------------------------

    @property
    def may_share_theirs(self) -> bool:
        """True if ssh may go through a connection of the user's (ControlPath)."""
        return self._sharing is Sharing.THEIRS

    @property
    def address(self) -> Endpoint | None:
        """Where the ssh that came up last is connected to, if it found that out by itself."""
        if self.last is None or not self._is_direct:
            return None
        return own_peer(self.last.pid)

    @property
    def are_resumable(self) -> bool:
        """True if the far side may still hold the session."""
        return bool(self._token)

    async def connect(
        self,
        *,
        ssh_options: Sequence[str] = (),
        on_stderr: Callable[[str], None],
        on_started: Callable[[int], None] | None = None,
        deadline_s: float = HELLO_DEADLINE_S,
        begun: SshLane | None = None,
    ) -> None:
        """Bring up a lane: the first of a new session, or one more of the present one. May prompt.

        ``begun`` is what ``transport.ssh.begin`` has begun already, with these very options.
        Raises UserError; LaneRefusedError if the far side does not hold the session any more.
        """
        token = self._token or secrets.token_bytes(TOKEN_BYTES)
        features = 0 if self._token else FEATURE_CREATE | _WISHES.get(self._tunnel.way, 0)
        number = self._take_number()
        hello = make_hello(CLIENT, token, lane=number, features=features, grace_s=self._grace_s)
        try:
            with self._console.giving_way():
                ssh = await connect(
                    self._remote,
                    hello,
                    ssh_options=[*self._cipher, *self._session_options, *ssh_options],
                    on_stderr=on_stderr,
                    on_silence=self._tell_silence,
                    deadline_s=deadline_s,
                    share=self._sharing is Sharing.OURS,
                    control_path=self._control_path,
                    on_started=on_started,
                    begun=begun,
                )
        except BaseException:
            self._note_gone(number)  # it may be up over there, and its answer be lost
            raise
        if not features and token != self._token:  # meanwhile that session has ended
            self._discard(ssh)
            raise UserError("the session ended meanwhile", "try again", ExitCode.LOST)
        if features:
            self._begin(token, ssh.hello)
        self.last = ssh
        self._channel_options = [] if self._sharing is Sharing.THEIRS else None
        if ssh.control is not None:
            self._channel_options = ssh.control.channel_options
        self._own_connection_refused = False
        try:
            self._add(number, ssh)
        except OSError as error:
            raise UserError(
                f"the connection to {self._remote.host} ended at once: {error.strerror}",
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
        wanted = lanes_wanted(beliefs, self._most, channels=self._own_connection_refused)
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
        if len(self._ssh) < 2 or self._tunnel.loop.time() - self._bulk_at < IDLE_S:
            return
        for number in sorted(self._ssh)[1:]:
            lane = self._tunnel.lanes.get(number)
            if lane is not None:
                self._tunnel.lane_ended(lane, IDLE)

    async def _open(self, go: asyncio.Event) -> None:
        by_channel = self._own_connection_refused
        asks_agents = self._may_ask_agents and not self._login_took_a_person()
        options = self._channel_options or () if by_channel else (*OWN_CONNECTION, *self._cipher)
        if not by_channel and not asks_agents:
            options = (*options, *self._unattended)
        number, token = self._take_number(), self._token
        try:
            hello = make_hello(CLIENT, token, lane=number)
            ssh = await connect(
                self._remote,
                hello,
                ssh_options=[*_QUIET, *self._session_options, *options],
                on_stderr=self._ignore,
                on_silence=self._ignore,
                asks_nobody=True,
                env=None if asks_agents else ssh_unattended.environment(),
                deadline_s=CONNECT_DEADLINE_S,
                go=go,
            )
            if token != self._token:  # meanwhile that session has ended
                self._discard(ssh)
                return
            self._console.detail(1, f"lane {number} is up: one was the limit")
            self._add(number, ssh)
        except (UserError, OSError) as error:
            self._note_gone(number)
            self._may_ask_agents = False  # somebody may have been asked, and not have answered
            if not isinstance(error, UserError) or error.exit_code is not ExitCode.AUTH:
                self._try_later(error)
            elif not by_channel and self._channel_options is not None:
                self._take_channels()
            elif go.is_set():  # else nobody has missed it yet
                self._stay_with_one()

    def _login_took_a_person(self) -> bool:
        """True if the session's connection may have waited for somebody; then for good."""
        last = self.last
        if last is not None:
            slow = ssh_unattended.took_a_person(last.login_s, self._least_rtt_s)
            self._may_ask_agents = self._may_ask_agents and not slow and not last.is_channel
        return not self._may_ask_agents

    def _take_channels(self) -> None:
        if not self._own_connection_refused:
            self._own_connection_refused = True
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
        """A lane of the tunnel is over, and so is its ssh."""
        ssh = self._ssh.pop(lane.lane_id, None)
        if ssh is None:
            return
        if reason != IDLE:  # whatever it was, it may happen to the next one, too
            self._not_before = self._tunnel.loop.time() + RETRY_S
        self._note_gone(lane.lane_id)
        self._tell_gone()
        why = reason or ssh.last_words() or "the far side closed it"
        self._console.detail(1, f"lane {lane.lane_id} ended: {why}")
        self._end(ssh)

    async def close(self) -> None:
        """Open no more, and wait for every ssh to end. Close the tunnel's lanes first."""
        self._most = 1
        for opening in self._opening:
            opening.cancel()
        for ssh in self._ssh.values():
            self._end(ssh)
        self._ssh.clear()
        if self._opening | self._ending:
            await asyncio.wait(self._opening | self._ending)

    def _take_number(self) -> int:
        while self._next in self._ssh:
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

    def _add(self, number: int, ssh: SshLane) -> None:
        """``ssh`` is up: its lane is the tunnel's. Raises OSError if it is dead already."""
        self._ssh[number] = ssh
        try:
            lane = self._tunnel.add_lane(number, ssh.read_fd, ssh.write_fd)
        except OSError:
            del self._ssh[number]
            self._discard(ssh)
            raise
        self._gone.discard(number)
        self._tell_gone()
        self._tunnel.session.ping(number)
        lane.receive(ssh.rest)

    def _discard(self, ssh: SshLane) -> None:
        """Let go of a connection that the tunnel does not have."""
        os.close(ssh.read_fd)
        os.close(ssh.write_fd)
        self._end(ssh)

    def _end(self, ssh: SshLane) -> None:
        """See to it that it ends, its pipes being closed."""
        ending = asyncio.ensure_future(ssh.close(END_DEADLINE_S))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
