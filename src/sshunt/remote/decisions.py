"""What the keeper is told of what can be seen, and what it decides: values.

Decisions are tuples, as the events of a session are, and for the same reason (to make a class of
each would take longer than to load all else of this folder): compare kinds before values.

Not here: why anything is decided (keeper), doing it (upkeep).
"""

from typing import NamedTuple, TypeAlias

from sshunt.errors import UserError

# --- what can be seen -----------------------------------------------------------------------------


class LaneFacts(NamedTuple):
    """A lane, as its numbers are now."""

    number: int
    unanswered_s: float  # since an acknowledgement is due; 0: none is
    is_owing: bool  # an acknowledgement is outstanding
    quiet_s: float  # since anything was heard on it
    rtt_s: float


class LinkFacts(NamedTuple):
    """What can be seen at the time of an input."""

    lanes: tuple[LaneFacts, ...] = ()
    is_held: bool = True  # the far side may still hold the session
    outlives_lanes: bool = True  # it can do so without a lane
    agent_host: bytes = b""  # which machine the session's agent is on, if it said so
    breaks_protocol: bool = False  # lane after lane has ended because of what the far side sent
    can_probe: bool = True  # an address is known


# --- what is to be done ---------------------------------------------------------------------------


class Ping(NamedTuple):
    """Ask for an acknowledgement."""

    lane: int


class Drop(NamedTuple):
    """End a lane."""

    lane: int
    why: str


class AwaitEnding(NamedTuple):
    """Say with ``on_ending`` how the last lane's program ended, as soon as it has."""


class Connect(NamedTuple):
    """Begin an attempt. ``on_connected`` or ``on_failed`` follows, or ``on_abandoned``."""


class AbandonUnlessReached(NamedTuple):
    """End the attempt if it has reached nobody by now, and say so with ``on_abandoned``."""


class Probe(NamedTuple):
    """See whether the server's address answers: ``on_probed``."""


class Stop(NamedTuple):
    """End what is under way. Nothing is to be heard of it any more."""


class SayGoodbye(NamedTuple):
    """Tell the far side, if there is a lane, that it breaks the protocol. That is forgiven now."""


class LoseSession(NamedTuple):
    """The session is over: reset its connections, begin a new one. Its end is news, unless ``why``
    is "": then nobody thought that it would outlive its lanes.
    """

    why: str


class GiveUp(NamedTuple):
    """The end: ``failures`` in a row, and this was the last."""

    failures: int
    error: UserError


# --- what is to be told ---------------------------------------------------------------------------


class Lost(NamedTuple):
    """No lane works any more. The last sign of life was ``silent_s`` ago."""

    why: str
    silent_s: float


class Restored(NamedTuple):
    """A lane works again. ``is_same_session``: as when it was lost."""

    after_s: float
    is_same_session: bool


class Failed(NamedTuple):
    """An attempt failed. If there is no other way to try, and only a person can help:
    ``on_person_needed``.
    """

    failures: int
    error: UserError


class PersonNeeded(NamedTuple):
    """Somebody has to do something about ``error``. Said once."""

    error: UserError


class Checked(NamedTuple):
    """The lanes are asked, because of some news."""

    why: str


class ElsewhereAnswered(NamedTuple):
    """Another machine than the agent's answers under the server's name. Said once."""


Decision: TypeAlias = (
    Ping
    | Drop
    | AwaitEnding
    | Connect
    | AbandonUnlessReached
    | Probe
    | Stop
    | SayGoodbye
    | LoseSession
    | GiveUp
    | Lost
    | Restored
    | Failed
    | PersonNeeded
    | Checked
    | ElsewhereAnswered
)
