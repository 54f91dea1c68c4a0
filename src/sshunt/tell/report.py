"""What has happened, as values, and who hears of it.

    remote, front, host, commands --say--> Report --> printer   lines on stderr (tell.printer)
                                             |------> service   READY, STATUS (tell.notify)
                                             `------> latest    the last of each kind, for who asks

Whoever does something says what has become of it: in the past tense, with the figures, without a
sentence. Which sentence a person reads, and whether he does, is for ``tell.sentences``.

Events are tuples like those of ``mux.events``: forty frozen dataclasses would take 10 ms to be
made at each start, before ssh. So compare their kinds before their values: two kinds with the same
values are equal.

What belongs to a remote begins with its name, as lines for people call it; what belongs to a front,
with where that listens. What happens with each connection (OF_STREAMS) may come thousands of times
a second, and mostly nobody wants it; it is said only where ``hears_streams``.

Invariants: all hear the same events in the same order, also if one of them says something itself; a
hearer that raises keeps nobody else from hearing, and what it raised is handed to the owner.

Not here: errors that end us (errors), figures that change all the time (tell.snapshot).
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from sshunt.model import Endpoint, Route

# --- the start and the end ------------------------------------------------------------------------


class SessionNamed(NamedTuple):
    """The session has got its digits."""

    session: str


class OwnAddressSkipped(NamedTuple):
    """A target is this host itself, and what goes there is not captured."""

    route: Route


class Ipv6Skipped(NamedTuple):
    """This host has no IPv6, so IPv6 targets are left alone."""


class UdpSkipped(NamedTuple):
    """This kernel does not say where redirected datagrams were meant, so UDP is left alone."""


class ByIptables(NamedTuple):
    """iptables captures, and so connections and DNS alone."""


class MethodTried(NamedTuple):
    """A way to capture does not work here, and another one is tried."""

    method: str
    why: str


class Ipv6ResolversSkipped(NamedTuple):
    """The same of resolvers with IPv6 addresses."""

    why: str


class HelperStarted(NamedTuple):
    """The privileged process answers. ``guarded``: a control group holds us."""

    guarded: bool


class HelperAsked(NamedTuple):
    """The privileged process has answered a request. ``what`` it was (helper.protocol's words), and
    why it was not done; "": it was.
    """

    what: str
    took_s: float
    refusal: str


class RemoteConnected(NamedTuple):
    """The session is up for the first time and the rules are in place. ``host``: the server as it
    was given to us, without what tells sessions apart. ``rtt_s``: 0 if not measured yet.
    ``routes``: those that the far side serves; ``has_dns``: names are looked up there, too.
    """

    remote: str
    host: str
    rtt_s: float
    routes: tuple[Route, ...]
    has_dns: bool


class StartStopped(NamedTuple):
    """Asked to stop by a signal before we were up."""

    signal: str


class ShutdownStarted(NamedTuple):
    """Being up is over, and all is undone now."""


class RemoteClosed(NamedTuple):
    """The session has ended, and this is what it has moved. ``signal``: "" if none asked for it."""

    remote: str
    signal: str
    lasted_s: float
    received_bytes: int
    sent_bytes: int


class FarSideNotTold(NamedTuple):
    """The session ended here, and the far side could not be told. ``is_lost``: there is no lane."""

    remote: str
    is_lost: bool
    grace_s: int


# --- logins ---------------------------------------------------------------------------------------


class LoginStarted(NamedTuple):
    """ssh logs in, and may ask at our terminal from now on."""

    remote: str


class LoginEnded(NamedTuple):
    """... and it may not any more, whatever became of it."""

    remote: str


class SshSaid(NamedTuple):
    """A line of ssh's stderr, or one about how it is started: of the first login (FIRST_LOGIN), of
    one after the connection was lost (LATER_LOGIN), of one for a further lane (FURTHER_LOGIN).
    """

    remote: str
    login: int
    line: str


FIRST_LOGIN, LATER_LOGIN, FURTHER_LOGIN = 0, 1, 2


class FarSideSilent(NamedTuple):
    """ssh has logged in, and nothing follows. ``login``: as of SshSaid."""

    remote: str
    login: int
    why: str


class AgentStarted(NamedTuple):
    """The far side's program is up."""

    remote: str
    program_bytes: int
    ssh_options: tuple[str, ...]


class AgentNotDetached(NamedTuple):
    """It ends with its ssh connection, for the far side has no place where it could be met."""

    remote: str


# --- a remote: lost and found ---------------------------------------------------------------------


class RemoteChecked(NamedTuple):
    """There was reason to doubt the connection or to hope: its lanes are asked."""

    remote: str
    why: str


class RemoteLost(NamedTuple):
    """No lane works any more. ``since``: the last sign of life, as time.time() tells it;
    ``connections``: those that are open; ``are_kept``: they wait, and are not reset.
    """

    remote: str
    since: float
    why: str
    connections: int
    are_kept: bool


class RemoteReconnected(NamedTuple):
    """A lane works again. ``kept``: connections that have outlived it."""

    remote: str
    after_s: float
    kept: int


class SessionLost(NamedTuple):
    """The far side does not hold the session any more; ``reset``: its connections, all of them."""

    remote: str
    why: str
    reset: int


class AnotherMachineAnswered(NamedTuple):
    """... than the one that the session's agent is on."""

    remote: str


class AttemptFailed(NamedTuple):
    """A login after the connection was lost; ``failures``: how many in a row."""

    remote: str
    failures: int
    why: str


class PersonNeeded(NamedTuple):
    """... and no further one will do better until somebody has done something about it."""

    remote: str
    why: str
    hint: str


class KnownAddressTried(NamedTuple):
    """The server's name can't be resolved, so it is looked for at the address it had last."""

    remote: str
    address: str


# --- a remote: its lanes and streams --------------------------------------------------------------


class LaneOpened(NamedTuple):
    """A further lane is up."""

    remote: str
    lane: int


class LaneClosed(NamedTuple):
    """A lane is over, the first or a further one."""

    remote: str
    lane: int
    why: str


class LaneFailed(NamedTuple):
    """A further lane could not be had; it is tried again later."""

    remote: str
    why: str


class EarlyLanesClosed(NamedTuple):
    """Logins that were made in advance were not wanted."""

    remote: str


class ChannelsChosen(NamedTuple):
    """A second login would take a person: further lanes are channels of the one connection."""

    remote: str


class LanesLimited(NamedTuple):
    """A second login would take a person, and there are no channels: it stays with one lane."""

    remote: str


class LaneMeasured(NamedTuple):
    """What a lane's sender knows of its path, and what its side has waiting. ``direction``: "up"
    for what we send, "down" for what the far side does.
    """

    remote: str
    lane: int
    direction: str
    phase: str
    rate_bytes_s: float
    rtt_s: float
    min_rtt_s: float
    queue_s: float
    in_flight_bytes: float
    limit_bytes: float
    control_frames: float
    sparse_bytes: float
    bulk_bytes: float
    teed_bytes: float
    spliced_bytes: float


class StatisticsRefused(NamedTuple):
    """What the far side says of its lanes can't be understood."""

    remote: str
    why: str


class StreamOpened(NamedTuple):
    """A program's connection is a stream now."""

    remote: str
    stream: int
    host: str
    port: int


class StreamReset(NamedTuple):
    """The far side has reset a stream; ``why`` as docs/protocol.md words it."""

    remote: str
    stream: int
    why: str


# --- fronts ---------------------------------------------------------------------------------------


class FrontPaused(NamedTuple):
    """Accepting pauses: programs wait. Said anew each time that going on was in vain."""

    front: str
    why: str


class FrontResumed(NamedTuple):
    """It has gone on, and not in vain."""

    front: str


class CallerRefused(NamedTuple):
    """A connection to a listener that nothing redirected."""

    why: str


class ArrivalChecked(NamedTuple):
    """Whether captured connections arrive was looked at. ``fate``: the name of arrival.Fate."""

    family: int  # 4 or 6
    fate: str


class ArrivalNotRouted(NamedTuple):
    """... and could not be, for this host itself has no route there."""

    family: int
    address: str


class CapturedLost(NamedTuple):
    """Captured connections don't arrive; ``chains``: of this host's firewall, that may be why."""

    families: tuple[int, ...]
    chains: tuple[str, ...]


class ConnectedAtOnce(NamedTuple):
    """The kernel can't hold connections back until the far side has connected."""


class ForwardedBarred(NamedTuple):
    """Other hosts' connections arrive only if the firewall lets them in to ``port``."""

    port: int
    chains: tuple[str, ...]


# --- this host ------------------------------------------------------------------------------------


class RulesApplied(NamedTuple):
    """The kernel captures. ``by_kernel``: it is the kernel that removes the rules after our end."""

    by_kernel: bool


class TargetsBlocked(NamedTuple):
    """Nothing reaches the targets but through us, and so it stays if we are killed."""


class TargetsStayBlocked(NamedTuple):
    """We end, and what we routed can't be reached until somebody lifts that."""


class OthersBlock(NamedTuple):
    """Dead sessions, so many, block what they routed."""

    sessions: int


class PartLost(NamedTuple):
    """Somebody else has taken away what we have made; it is put back. ``part``: the value of
    helper.protocol's Part.
    """

    part: str


class RulesRefused(NamedTuple):
    """An optional part of them could not be had; it is tried again."""

    why: str


class ForwardedCaptured(NamedTuple):
    """Other hosts' connections are captured, too. ``links``: from which; none: from any."""

    family: int
    links: tuple[str, ...]


class ForwardedSkipped(NamedTuple):
    """They could be by the listener, but are not."""

    family: int
    why: str


class LinksMissing(NamedTuple):
    """Interfaces that were named, and are not there (yet)."""

    links: tuple[str, ...]


class UnseenWayFound(NamedTuple):
    """ssh goes through another user's program here, whose own way is not known."""

    remote: str
    host: str
    way: Endpoint


class PeersBypassed(NamedTuple):
    """What our ssh is connected to, and those of earlier sessions: never captured."""

    remote: str
    endpoints: tuple[Endpoint, ...]


class SshPeerSeen(NamedTuple):
    """ssh goes to another address than before, which is left alone."""

    remote: str
    address: str


class AddressesRetained(NamedTuple):
    """This host has lost addresses that open connections bear, and these are kept."""

    addresses: tuple[str, ...]


class ResolversChanged(NamedTuple):
    """This host asks other resolvers now: these, as far as they can be stood in for."""

    addresses: tuple[str, ...]


class ResolversSkipped(NamedTuple):
    """It asks these, too, and nobody stands in for them: see ``front.dns_sockets``."""

    addresses: tuple[str, ...]


# --- ping -----------------------------------------------------------------------------------------


class EchoesSkipped(NamedTuple):
    """This kernel can't hand over echo requests, so they are left alone."""


class EchoesByPing(NamedTuple):
    """The far side's user may not send echo requests, and has ping(8) do it."""


class EchoesNotPermitted(NamedTuple):
    """The far side can't send any."""


# --- all of them ----------------------------------------------------------------------------------

#: Events after which a remote is up, or is not.
RemoteState: TypeAlias = RemoteConnected | RemoteLost | RemoteReconnected
STATES = (RemoteConnected, RemoteLost, RemoteReconnected)

Event: TypeAlias = (
    SessionNamed
    | OwnAddressSkipped
    | Ipv6Skipped
    | UdpSkipped
    | ByIptables
    | MethodTried
    | Ipv6ResolversSkipped
    | HelperStarted
    | HelperAsked
    | StartStopped
    | ShutdownStarted
    | RemoteClosed
    | FarSideNotTold
    | LoginStarted
    | LoginEnded
    | SshSaid
    | FarSideSilent
    | AgentStarted
    | AgentNotDetached
    | RemoteChecked
    | RemoteState
    | SessionLost
    | AnotherMachineAnswered
    | AttemptFailed
    | PersonNeeded
    | KnownAddressTried
    | LaneOpened
    | LaneClosed
    | LaneFailed
    | EarlyLanesClosed
    | ChannelsChosen
    | LanesLimited
    | LaneMeasured
    | StatisticsRefused
    | StreamOpened
    | StreamReset
    | FrontPaused
    | FrontResumed
    | CallerRefused
    | ArrivalChecked
    | ArrivalNotRouted
    | CapturedLost
    | ConnectedAtOnce
    | ForwardedBarred
    | RulesApplied
    | TargetsBlocked
    | TargetsStayBlocked
    | OthersBlock
    | PartLost
    | RulesRefused
    | ForwardedCaptured
    | ForwardedSkipped
    | LinksMissing
    | UnseenWayFound
    | PeersBypassed
    | SshPeerSeen
    | AddressesRetained
    | ResolversChanged
    | ResolversSkipped
    | EchoesSkipped
    | EchoesByPing
    | EchoesNotPermitted
)

#: Events that happen with each connection.
OF_STREAMS = frozenset({StreamOpened, StreamReset})

Hear: TypeAlias = Callable[[Event], None]
E = TypeVar("E", bound=Event)


class Report:
    """Passes on what is said. ``on_bug`` gets what a hearer raises."""

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        self.hears_streams = False  # True if anybody wants events OF_STREAMS
        self._on_bug = on_bug
        self._all: list[Hear] = []  # who hears
        self._few: list[Hear] = []  # the same, without those that want no events OF_STREAMS
        self._latest: dict[tuple[type, str], Event] = {}  # in the order in which they were said
        self._unheard: deque[Event] = deque()
        self._is_passing_on = False

    def subscribe(self, hear: Hear, *, streams: bool = False) -> None:
        """``hear`` gets every event from now on; those OF_STREAMS only if it wants ``streams``."""
        self._all.append(hear)
        if streams:
            self._few.append(hear)
            self.hears_streams = True

    def say(self, event: Event) -> None:
        """This has happened. All have heard of it on return, unless it is said by one of them."""
        self._unheard.append(event)
        if self._is_passing_on:
            return
        self._is_passing_on = True
        try:
            while self._unheard:
                self._pass_on(self._unheard.popleft())
        finally:
            self._is_passing_on = False

    def latest(self, kind: type[E], of: str = "") -> E | None:
        """The last event of this kind, ``of`` a remote or front where it belongs to one; none of
        OF_STREAMS.
        """
        found = self._latest.get((kind, of))
        return found if isinstance(found, kind) else None

    def state(self, remote: str) -> RemoteState | None:
        """The last that changed whether this remote is up; None: it has yet to come up."""
        for (_, name), event in reversed(self._latest.items()):
            if name == remote and isinstance(event, STATES):
                return event
        return None

    def _pass_on(self, event: Event) -> None:
        kind: type = type(event)
        is_of_stream = kind in OF_STREAMS
        if not is_of_stream:
            key = kind, _of(event)
            self._latest.pop(key, None)
            self._latest[key] = event
        for hear in self._few if is_of_stream else self._all:
            try:
                hear(event)
            except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear)
                self._on_bug(error)


def _of(event: Event) -> str:
    """The remote or the front that it belongs to; "": neither."""
    of: str = getattr(event, "remote", "") or getattr(event, "front", "")
    return of
