"""When a remote's link counts as lost, and what is done about it: a machine of states. Pure.

Its driver (``upkeep``) tells what has happened, what can be seen (``LinkFacts``), what time it is.
``Link`` answers with ``decisions``, to be carried out in that order. Liveness:

    a lane's pipe ended                       at once: its program says so
    no acknowledgement although one is due    after SUSPECT_RTTS round trips, at least SUSPECT_S;
                                              only QUIET_S when there is reason to doubt (news: the
                                              network changed, the machine slept, somebody asks)
    nothing to acknowledge                    asked with a PING every PING_EVERY_S

While another lane works, a suspect one is dropped and the session goes on. If none does, the link
is lost, and goes through these states until there is a lane again (``TRANSITIONS``; drawn in
docs/reconnecting.md):

    UP            a lane works, as far as is known
    JUDGING       what the end of the last lane's program says about the agent is waited for
    CONNECTING    an attempt is under way; in parallel to silent lanes, which may yet answer
    WAITING       the last attempt failed: a pause (``attempts``)
    NEEDS_PERSON  the same, and a person has to mend something: a server must not be hammered with
                  refused logins, so the pause is long, and news of the network don't shorten it
    PROBING       does the server's address answer a bare TCP connection? Where a cable was
                  unplugged ssh itself would find out much later
    RESTING       it does not: a pause between two such probes
    OVER          there were more failures than the user wants

The first attempt is made at once. News end every pause, and lead to another one at once.

The far side says if it holds the session no more; if that is to be believed (``attempts``), its
connections are over and a new one begins. The same when the grace time is over, if the far side
never could keep it, or if it breaks the protocol on lane after lane (what it chokes on would be
sent over each of them).

Invariants: nothing happens that the table does not have; at most one thing is under way at a time,
an attempt, a probe or the wait of JUDGING; while the link is down, that or a deadline leads on.

Not here: when and how to log in next (attempts), doing any of it (upkeep), how it is said (tell).
"""

import math
import random
from collections.abc import Callable
from enum import Enum, auto

from sshunt.errors import ExitCode, UserError
from sshunt.remote.attempts import Attempts, Probes, Rumours
from sshunt.remote.decisions import (
    AbandonUnlessReached,
    AwaitEnding,
    Checked,
    Connect,
    Decision,
    Drop,
    ElsewhereAnswered,
    Failed,
    GiveUp,
    LaneFacts,
    LinkFacts,
    LoseSession,
    Lost,
    PersonNeeded,
    Ping,
    Probe,
    Restored,
    SayGoodbye,
    Stop,
)

#: Interval between two polls of the lanes; the shorter one for FAST_POLLING_S after news.
POLL_EVERY_S = 1.0
FAST_POLL_EVERY_S = 0.1
FAST_POLLING_S = 5.0

#: Least time between two rounds of PINGs because of news: a network may never come to rest.
CHECK_EVERY_S = 1.0

#: Age of an acknowledgement that is due, at which a lane is suspect. TCP below it may be sending a
#: segment again for the third time. QUIET_S is the least while there is reason to doubt.
SUSPECT_RTTS, SUSPECT_S = 3.0, 4.0
QUIET_S = 1.5

#: Silence on an idle lane that is ended by a PING. Home routers forget an idle connection after
#: minutes.
PING_EVERY_S = 15.0

#: Pause after a failure that a person has to mend.
PERSON_PAUSE_S = 300.0

#: Age of an attempt below which its failure is a refusal, by somebody who is there: no need to
#: probe for him.
QUICK_S = 3.0

#: Age that an attempt may have in any case. On a flapping link, where there are news all the time,
#: none would ever finish.
LEAST_ATTEMPT_S = 3.0

#: Wait for the end of a lane's program, when its pipe ended before it did.
LAST_WORDS_S = 0.6


# --- the machine ----------------------------------------------------------------------------------


class State(Enum):
    """Where a link is; see the module's head."""

    UP = auto()
    JUDGING = auto()
    CONNECTING = auto()
    WAITING = auto()
    NEEDS_PERSON = auto()
    PROBING = auto()
    RESTING = auto()
    OVER = auto()


class Input(Enum):
    """What ``Link`` concludes from what it is told."""

    LOST = auto()  # no lane works any more
    RECOVERED = auto()  # a lane that was there answers again
    CONNECTED = auto()  # the attempt has brought a lane
    FAILED = auto()  # it has not; or the last lane ended too soon
    PERSON_NEEDED = auto()  # nor will another one, for now
    DUE = auto()  # it is time for an attempt
    UNSURE = auto()  # it would be, if the server can be reached
    UNANSWERED = auto()  # its address does not answer
    EXHAUSTED = auto()  # too many failures


_S, _I = State, Input

#: The machine. What is absent is an error.
TRANSITIONS: dict[State, dict[Input, State]] = {
    _S.UP: {
        _I.LOST: _S.JUDGING,
    },
    _S.JUDGING: {
        _I.DUE: _S.CONNECTING,
        _I.FAILED: _S.WAITING,
        _I.EXHAUSTED: _S.OVER,
        _I.RECOVERED: _S.UP,
    },
    _S.CONNECTING: {
        _I.CONNECTED: _S.UP,
        _I.FAILED: _S.WAITING,
        _I.DUE: _S.CONNECTING,  # the one before it was given up
        _I.EXHAUSTED: _S.OVER,
        _I.RECOVERED: _S.UP,
    },
    _S.WAITING: {
        _I.DUE: _S.CONNECTING,
        _I.UNSURE: _S.PROBING,
        _I.PERSON_NEEDED: _S.NEEDS_PERSON,
        _I.RECOVERED: _S.UP,
    },
    _S.NEEDS_PERSON: {
        _I.DUE: _S.CONNECTING,
        _I.UNSURE: _S.PROBING,
        _I.RECOVERED: _S.UP,
    },
    _S.PROBING: {
        _I.DUE: _S.CONNECTING,
        _I.UNANSWERED: _S.RESTING,
        _I.RECOVERED: _S.UP,
    },
    _S.RESTING: {
        _I.DUE: _S.CONNECTING,
        _I.UNSURE: _S.PROBING,
        _I.RECOVERED: _S.UP,
    },
    _S.OVER: {},
}

_PAUSING = (State.WAITING, State.NEEDS_PERSON, State.RESTING)
_BUSY = (State.JUDGING, State.CONNECTING, State.PROBING)


class Link:
    """The link to one remote, which is up. Times are in seconds of any monotonic clock."""

    def __init__(
        self,
        now: float,
        *,
        grace_s: int,
        max_retries: int | None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.state = State.UP
        self.down_since: float | None = None  # the last sign of life
        self.next_attempt_at: float | None = None  # None: one is under way, or none is needed
        self._grace_s = grace_s
        self._attempts = Attempts(max_retries=max_retries, chance=chance)
        self._attempts.on_up(now)
        self._probes = Probes()
        self._rumours = Rumours()
        self._decisions: list[Decision] = []  # of the present input
        self._last_error = UserError("", "", ExitCode.LOST)  # why the last lane or attempt failed
        # The lanes.
        self._poll_at = now
        self._polls_fast_until = -math.inf
        self._checked_at = -math.inf
        # While it is down.
        self._deadline = math.inf  # of the present state
        self._attempt_at = now  # when the present one began
        self._before: frozenset[int] = frozenset()  # the lanes that there were then
        self._is_answered = False  # the server's address answers though attempts fail
        self._probed_at = now
        self._tries_next = False  # after this rest comes an attempt, whether it answers or not
        self._is_same_session = True
        self._told_elsewhere = False
        self._needs_person = False  # the last attempt failed for want of one, and that was said
        self._needed_person = False  # the same of the attempt before it

    @property
    def is_down(self) -> bool:
        """True while no lane works, as far as is known."""
        return self.state is not State.UP

    def next_deadline(self) -> float:
        """When ``on_time`` wants to be called."""
        return math.inf if self.state is State.OVER else min(self._poll_at, self._deadline)

    # --- what has happened ------------------------------------------------------------------------

    def on_time(self, facts: LinkFacts, now: float) -> list[Decision]:
        """Time has passed."""
        if now >= self._poll_at and self.state is not State.OVER:
            self._poll_at = now + (
                FAST_POLL_EVERY_S if now < self._polls_fast_until else POLL_EVERY_S
            )
            self._poll(facts, now)
        if now >= self._deadline:
            self._on_deadline(facts, now)
        return self._decided()

    def on_news(
        self, why: str, facts: LinkFacts, now: float, *, asked: bool = False
    ) -> list[Decision]:
        """There is reason to doubt the lanes, or to hope: poll them, try again at once. Where a
        person was needed, only if it is a person who ``asked``.
        """
        if self.state is State.OVER:
            return []
        if now > self._checked_at + CHECK_EVERY_S:
            self._checked_at = now
            self._decide(Checked(why), *(Ping(lane.number) for lane in facts.lanes))
        self._polls_fast_until = now + FAST_POLLING_S
        self._poll_at = now
        if asked:
            self._probes.begin(now)
        else:
            self._probes.refresh(now)
        if asked or not self._needs_person:
            self._try_now(facts, now)
        return self._decided()

    def on_lane_ended(self, why: str, facts: LinkFacts, now: float) -> list[Decision]:
        """A lane is over, and not among ``facts`` any more."""
        if self.state is State.OVER:
            return []
        if not facts.lanes:
            self._lose(why, 0.0, facts, now)
        if facts.breaks_protocol:
            self._decide(SayGoodbye())
            self._lose_session("it broke the protocol on one ssh connection after the other")
        self._poll_at = now
        return self._decided()

    def on_session_ended(self, why: str, now: float) -> list[Decision]:
        """The far side says goodbye: it does not hold the session any more."""
        if self.state is State.OVER:
            return []
        self._lose_session(why)
        self._poll_at = now
        return self._decided()

    def on_ending(self, agent_died: bool, facts: LinkFacts, now: float) -> list[Decision]:
        """The last lane's program has ended; what it says about the agent."""
        self._judge(agent_died, facts, now)
        return self._decided()

    def on_connected(self, facts: LinkFacts, now: float) -> list[Decision]:
        """The attempt has brought a lane. If it is not among ``facts``, it has ended already: of
        what came with its HELLO.
        """
        left = [lane.number for lane in facts.lanes]
        self._decide(*(Drop(number, "replaced") for number in left if number in self._before))
        if set(left) <= self._before:
            self._fail(_ended_at_once(), now)
        else:
            self._restore(Input.CONNECTED, now)
        return self._decided()

    def on_failed(
        self, error: UserError, facts: LinkFacts, now: float, *, gone_at: bytes | None = None
    ) -> list[Decision]:
        """The attempt failed. ``gone_at``: somebody answered that there is no such session; which
        machine, b"" if it does not say.
        """
        self._is_answered &= now < self._attempt_at + QUICK_S
        if gone_at is not None and self._is_gone(gone_at, facts, now):
            self._lose_session(error.message)
            self._attempt(facts._replace(is_held=False), now)
        else:
            self._fail(error, now)
        return self._decided()

    def on_person_needed(self, now: float) -> list[Decision]:
        """The attempt that has just failed left nothing to try without a person."""
        if self.state is State.OVER:
            return []
        self._move(Input.PERSON_NEEDED)
        if not self._needed_person:
            self._decide(PersonNeeded(self._last_error))
        self._needs_person = True
        self._pause(PERSON_PAUSE_S, now)
        return self._decided()

    def on_abandoned(self, facts: LinkFacts, now: float) -> list[Decision]:
        """The attempt had reached nobody, and has been ended."""
        self._attempt(facts, now)
        return self._decided()

    def on_probed(self, is_answered: bool, facts: LinkFacts, now: float) -> list[Decision]:
        """The server's address answers, or it does not."""
        self._is_answered = is_answered
        if is_answered:
            self._attempt(facts, now)
        else:
            self._move(Input.UNANSWERED)
            pause_s, self._tries_next = self._probes.next(self._probed_at)
            self.next_attempt_at = self._deadline = max(self._probed_at + pause_s, now)
        return self._decided()

    # --- the lanes --------------------------------------------------------------------------------

    def _poll(self, facts: LinkFacts, now: float) -> None:
        suspects = [lane for lane in facts.lanes if self._is_suspect(lane, now)]
        quiet = [lane for lane in facts.lanes if not lane.is_owing and lane.quiet_s > PING_EVERY_S]
        if not facts.lanes:
            self._lose("", 0.0, facts, now)
        elif len(suspects) < len(facts.lanes):
            self._decide(*(Drop(lane.number, _silence(lane.unanswered_s)) for lane in suspects))
            if self.is_down:
                self._restore(Input.RECOVERED, now)
        elif not self.is_down:
            silent_s = min(lane.unanswered_s for lane in suspects)
            self._lose(_silence(silent_s), silent_s, facts, now)
        self._decide(*(Ping(lane.number) for lane in quiet))

    def _is_suspect(self, lane: LaneFacts, now: float) -> bool:
        least_s = QUIET_S if now < self._polls_fast_until else SUSPECT_S
        return lane.unanswered_s > max(SUSPECT_RTTS * lane.rtt_s, least_s)

    def _lose(self, why: str, silent_s: float, facts: LinkFacts, now: float) -> None:
        if self.is_down:
            return
        self._move(Input.LOST)
        self.down_since = now - silent_s
        self._probes.begin(now)
        self._is_answered = False
        self._rumours.begin()
        self._told_elsewhere = False
        if self._attempts.on_down(self.down_since):
            self._last_error = _ended_at_once(why)
        self._decide(Lost(why, silent_s))
        if facts.lanes:  # nothing has ended that could say anything
            self._resume(facts, now)
        else:
            self._decide(AwaitEnding())
            self._deadline = now + LAST_WORDS_S

    def _restore(self, how: Input, now: float) -> None:
        if how is Input.RECOVERED and self.state in _BUSY:
            self._decide(Stop())
        self._move(how)
        self._attempts.on_up(now)
        after_s = now - (self.down_since or 0.0)
        self.down_since = self.next_attempt_at = None
        self._deadline = math.inf
        self._needs_person = False
        self._decide(Restored(after_s, self._is_same_session))
        self._is_same_session = True

    # --- the session ------------------------------------------------------------------------------

    def _judge(self, agent_died: bool, facts: LinkFacts, now: float) -> None:
        if facts.is_held and agent_died:
            self._lose_session("its agent died")
            facts = facts._replace(is_held=False)
        elif facts.is_held and not facts.outlives_lanes:
            self._lose_session("")
            facts = facts._replace(is_held=False)
        self._resume(facts, now)

    def _lose_session(self, why: str) -> None:
        self._is_same_session = False
        self._decide(LoseSession(why))

    def _is_gone(self, host: bytes, facts: LinkFacts, now: float) -> bool:
        """True if it is to be believed that the far side does not hold the session."""
        if not facts.is_held:
            return False
        is_elsewhere = bool(facts.agent_host) and bool(host) and host != facts.agent_host
        if is_elsewhere and not self._told_elsewhere:
            self._told_elsewhere = True
            self._decide(ElsewhereAnswered())
        return self._rumours.is_believed(
            now, may_yet_answer=bool(facts.lanes), is_elsewhere=is_elsewhere
        )

    # --- another lane -----------------------------------------------------------------------------

    def _resume(self, facts: LinkFacts, now: float) -> None:
        """The link has been lost, and all is known about it."""
        if self._attempts.are_over:
            self._give_up()
            return
        pause_s = self._attempts.pause_s()
        if pause_s:
            self._move(Input.FAILED)
            self._pause(pause_s, now)
        else:
            self._attempt(facts, now)

    def _pause(self, pause_s: float, now: float) -> None:
        self.next_attempt_at = self._deadline = now + pause_s

    def _on_deadline(self, facts: LinkFacts, now: float) -> None:
        if self.state is State.JUDGING:
            self._decide(Stop())
            self._judge(False, facts, now)
        elif self.state is State.RESTING:
            if self._tries_next:
                self._attempt(facts, now)
            else:
                self._probe(now)
        elif self._is_answered or not facts.can_probe:
            self._attempt(facts, now)
        else:
            self._probe(now)

    def _try_now(self, facts: LinkFacts, now: float) -> None:
        """There is hope: end a pause, a probe, or an attempt that began without it."""
        if self.state is State.PROBING:
            self._decide(Stop())
            self._attempt(facts, now)
        elif self.state in _PAUSING:
            self._attempt(facts, now)
        elif self.state is State.CONNECTING and now > self._attempt_at + LEAST_ATTEMPT_S:
            self._decide(AbandonUnlessReached())

    def _probe(self, now: float) -> None:
        self._move(Input.UNSURE)
        self._deadline = math.inf
        self._probed_at = now
        self._decide(Probe())

    def _attempt(self, facts: LinkFacts, now: float) -> None:
        self._move(Input.DUE)
        self._deadline = math.inf
        down_s = now - (self.down_since or 0.0)
        if facts.is_held and facts.outlives_lanes and down_s > self._grace_s:
            self._lose_session(f"the grace time of {self._grace_s} s is over")
        self.next_attempt_at = None
        self._attempt_at = now
        self._before = frozenset(lane.number for lane in facts.lanes)
        self._decide(Connect())

    def _fail(self, error: UserError, now: float) -> None:
        self._attempts.on_failure()
        self._last_error = error
        self._decide(Failed(self._attempts.failures, error))
        if self._attempts.are_over:
            self._give_up()
            return
        self._needed_person, self._needs_person = self._needs_person, False
        self._move(Input.FAILED)
        self._pause(self._attempts.pause_s(), now)

    def _give_up(self) -> None:
        self._move(Input.EXHAUSTED)
        self._deadline = math.inf
        self._decide(GiveUp(self._attempts.failures, self._last_error))

    # --- the table --------------------------------------------------------------------------------

    def _move(self, what: Input) -> None:
        """Raises RuntimeError if the table does not have it: whoever drives us is wrong, or we."""
        after = TRANSITIONS[self.state].get(what)
        if after is None:
            raise RuntimeError(f"{what.name} in {self.state.name}")
        self.state = after

    def _decide(self, *decisions: Decision) -> None:
        self._decisions += decisions

    def _decided(self) -> list[Decision]:
        decisions, self._decisions = self._decisions, []
        return decisions


def _silence(seconds: float) -> str:
    return f"no answer for {seconds:.1f} s"


def _ended_at_once(why: str = "") -> UserError:
    return UserError(
        f"it ended soon after it was made{f' ({why})' if why else ''}",
        "ask the server's log: it may end what is started there",
        ExitCode.LOST,
    )
