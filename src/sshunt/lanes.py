"""The session's further lanes: opened when one is what limits it, closed when idle.

One ssh channel has a window of 2 MiB: that is 168 Mbit/s at 100 ms, whatever the link. One TCP
connection on a path that loses segments collapses to a fraction of it. Several together don't, and
the protocol lets one stream use them all. On a link that one connection fills, more would gain
nothing, so none is opened there.

    twice a second while there is traffic: what do the pacers of both ends believe?
        a direction has bulk waiting, and each of its lanes is limited by
            its channel's window    delivers half a window or more per round trip of the empty path
            loss                    keeps stalling for a round trip, and nobody else fills the link
                                    -> as many lanes as --lanes says
        others fill the link        -> two: one that joins late gets a sixth of it for half a minute
    no bulk for IDLE_S              -> back to the first lane

All at once, because each needs a login and then a slow start, and whoever waits for a transfer has
waited for those once.

A further lane never asks anybody anything (BatchMode). First it is an ssh connection of its own.
Where that would need a person, further channels are opened over the connection that is there: each
has a window of its own, which is all they help against. Where that is not possible either, the
session stays with one lane, says so once and does not try again.

Not here: how bytes are spread over lanes (mux), what happens when the last lane dies (client).
"""

import asyncio
import os
from collections.abc import Sequence

from sshunt.console import Console
from sshunt.errors import ExitCode, UserError
from sshunt.metrics import Beliefs, LaneBeliefs
from sshunt.mux.hello import CLIENT, make_hello
from sshunt.mux.pacer import LOSS_STALLS
from sshunt.mux.path import CONTENDED
from sshunt.relay.lane import LaneIO
from sshunt.relay.tunnel import Tunnel
from sshunt.transport.ssh import Remote, SshLane, connect

#: OpenSSH's window of a session's channel (channels.h: CHAN_SES_WINDOW_DEFAULT, 64 x 32 KiB), less
#: what is not granted again at once.
CHANNEL_WINDOW_BYTES = 2 * 1024 * 1024
WINDOW_SHARE = 0.5

#: On shorter paths processors are the limit, and another process would only need more of them.
LEAST_RTT_S = 0.005

#: A standing queue above this, and the path is full rather than lossy.
FREE_S, FREE_RTTS = 0.005, 0.1

#: Beside one other flow of TCP two lanes come to between a third and two thirds of the link.
CONTENDED_LANES = 2

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

_QUIET = ("-o", "BatchMode=yes")  # fail rather than ask
_OWN_CONNECTION = ("-o", "ControlPath=none")


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


def _is_limited_by_window(lane: LaneBeliefs) -> bool:
    most_in_flight = WINDOW_SHARE * CHANNEL_WINDOW_BYTES
    return lane.min_rtt_s >= LEAST_RTT_S and lane.rate_bytes_s * lane.min_rtt_s >= most_in_flight


def _is_limited_by_loss(lane: LaneBeliefs) -> bool:
    # Where somebody else fills the link there is loss, too; more lanes would be an unfair answer.
    is_free = lane.phase != CONTENDED and lane.queue_s < FREE_S + FREE_RTTS * lane.min_rtt_s
    return lane.min_rtt_s >= LEAST_RTT_S and lane.stalls >= LOSS_STALLS and is_free


class FurtherLanes:
    """Opens and closes every lane but the first. Owns their ssh processes."""

    def __init__(
        self,
        tunnel: Tunnel,
        remote: Remote,
        token: bytes,
        ssh_options: Sequence[str],
        channel_options: Sequence[str] | None,
        console: Console,
        *,
        most: int,
    ) -> None:
        self._tunnel = tunnel
        self._remote = remote
        self._token = token
        self._ssh_options = [*_QUIET, *_OWN_CONNECTION, *ssh_options]
        self._channel_options = channel_options  # None: there can't be more channels
        self._by_channel = False
        self._console = console
        self._most = most
        self._lanes: dict[int, SshLane] = {}
        self._next = 1
        self._opening: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._bulk_at = tunnel.loop.time()
        self._not_before = 0.0

    @property
    def are_possible(self) -> bool:
        """False if there may never be more than one."""
        return self._most > 1

    def look(self, beliefs: Beliefs) -> None:
        """What the pacers of one side believe now."""
        now = self._tunnel.loop.time()
        if beliefs.bulk_bytes:
            self._bulk_at = now
        if self._opening or now < self._not_before:
            return
        missing = lanes_wanted(beliefs, self._most, channels=self._by_channel) - len(
            self._tunnel.lanes
        )
        for number in range(self._next, self._next + missing):
            opening = asyncio.ensure_future(self._open(number))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
            self._next = number + 1

    def close_idle(self) -> None:
        """Close the further lanes if there was no bulk for long. To be called now and then."""
        if not self._lanes or self._tunnel.loop.time() - self._bulk_at < IDLE_S:
            return
        for number in list(self._lanes):
            lane = self._tunnel.lanes.get(number)
            if lane is not None:
                self._tunnel.lane_ended(lane, IDLE)

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """A lane of the tunnel is over; if it is one of ours, so is its ssh."""
        ssh = self._lanes.pop(lane.lane_id, None)
        if ssh is None:
            return
        if reason != IDLE:  # whatever it was, it may happen to the next one, too
            self._not_before = self._tunnel.loop.time() + RETRY_S
        self._console.detail(1, f"lane {lane.lane_id} ended: {reason or ssh.last_words()}")
        self._end(ssh)

    async def close(self) -> None:
        """Open no more, and wait for every ssh to end. Close the tunnel's lanes first."""
        self._most = 1
        for opening in self._opening:
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for ssh in self._lanes.values():
            self._end(ssh)
        self._lanes.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, ssh: SshLane) -> None:
        ending = asyncio.ensure_future(ssh.close(END_DEADLINE_S))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _open(self, number: int) -> None:
        by_channel = self._by_channel
        try:
            hello = make_hello(CLIENT, self._token, lane=number)
            ssh = await connect(
                self._remote,
                hello,
                ssh_options=self._ssh_options,
                on_stderr=self._ignore,
                deadline_s=CONNECT_DEADLINE_S,
            )
            self._lanes[number] = ssh
            try:
                lane = self._tunnel.add_lane(number, ssh.read_fd, ssh.write_fd)
            except OSError:
                for fd in (ssh.read_fd, ssh.write_fd):
                    os.close(fd)
                raise
            self._tunnel.session.ping(number)
            self._console.detail(1, f"lane {number} is up: one was the limit")
            lane.receive(ssh.rest)
        except (UserError, OSError) as error:
            if not isinstance(error, UserError) or error.exit_code is not ExitCode.AUTH:
                self._try_later(error)
            elif not by_channel and self._channel_options is not None:
                self._take_channels(self._channel_options)
            else:
                self._stay_with_one()

    def _take_channels(self, options: Sequence[str]) -> None:
        if not self._by_channel:
            self._by_channel = True
            self._ssh_options = [*_QUIET, *options]
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

    def _ignore(self, line: str) -> None:
        """The banner and the greetings have been shown by the first connection."""
        self._console.detail(2, line)
