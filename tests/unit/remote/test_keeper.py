"""The machine that keeps a link up, under a virtual clock.

``Story`` is the driver, the network and the far side in one: it tells the link what happens, does
what it decides, and notes what that was. Times are seconds since the link came up.
"""

import ast
import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.remote import decisions as decided
from sshunt.remote import keeper
from sshunt.remote.attempts import (
    DENSE_S,
    FIRST_PAUSE_S,
    FRESH_EVERY_S,
    JITTER,
    LIVED_S,
    LONGEST_PAUSE_S,
    MOST_ELSEWHERE,
    PROBE_EVERY_S,
    SILENT_S,
)
from sshunt.remote.decisions import Decision, LaneFacts, LinkFacts
from sshunt.remote.keeper import (
    CHECK_EVERY_S,
    FAST_POLLING_S,
    LAST_WORDS_S,
    LEAST_ATTEMPT_S,
    PERSON_PAUSE_S,
    PING_EVERY_S,
    POLL_EVERY_S,
    QUICK_S,
    QUIET_S,
    SUSPECT_RTTS,
    SUSPECT_S,
    TRANSITIONS,
    Input,
    Link,
    State,
)

PAGE = Path(__file__).parents[3] / "docs" / "reconnecting.md"

#: Rows of the table that a test of this module has gone through.
exercised: set[tuple[State, Input]] = set()

REFUSED = UserError("Connection refused", "is it on?", ExitCode.CONNECT)
NO_PASSWORD = UserError("the server wants a password", "start sshunt at a terminal", ExitCode.AUTH)
GONE = UserError("no such session", "start again", ExitCode.LOST)


class Recorded(Link):
    """Notes which rows of the table it goes through."""

    def _move(self, what: Input) -> None:
        before = self.state
        super()._move(what)
        exercised.add((before, what))


@dataclass
class Lane:
    """One that the tunnel has. ``owes_since``: an acknowledgement is due from then on."""

    heard_at: float
    owes_since: float | None = None
    is_dead: bool = False  # whatever it is asked, it does not answer
    rtt_s: float = 0.02


class Story:
    """A link that came up at 0 with lane 0, and the clock."""

    def __init__(
        self, *, grace_s: int = 3600, max_retries: int | None = None, chance: float = 0.0
    ) -> None:
        self.now = 0.0
        self.link = Recorded(0.0, grace_s=grace_s, max_retries=max_retries, chance=lambda: chance)
        self.lanes = {0: Lane(0.0)}
        self.facts = LinkFacts()  # but for the lanes
        self.heard: list[tuple[float, Decision]] = []
        self.busy: str | None = None  # what is under way
        self.needs_person = False  # the transport says so of each failure
        self.has_reached = False  # the attempt under way has
        self._next = 1

    # --- what happens -------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Time passes."""
        end = self.now + seconds
        while self.link.next_deadline() <= end:
            self.step()
        self.now = end

    def step(self) -> None:
        """Time passes until the link wants to be called, and is."""
        self.now = max(self.now, self.link.next_deadline())
        self._do(self.link.on_time(self._seen(), self.now))

    def lane_ends(self, number: int, why: str = "") -> None:
        del self.lanes[number]
        self._do(self.link.on_lane_ended(why, self._seen(), self.now))

    def falls_silent(self, number: int) -> None:
        """Something was sent, and from now on nothing is answered."""
        self.lanes[number].is_dead = True
        self.lanes[number].owes_since = self.now

    def answers_again(self, number: int) -> None:
        self.lanes[number] = Lane(self.now)

    def news(self, *, asked: bool = False) -> None:
        self._do(self.link.on_news("news", self._seen(), self.now, asked=asked))

    def goodbye(self, why: str) -> None:
        self._do(self.link.on_session_ended(why, self.now))

    def program_ends(self, *, agent_died: bool = False) -> None:
        """The program of the lane that ended last."""
        self._is_over("AwaitEnding")
        self._do(self.link.on_ending(agent_died, self._seen(), self.now))

    def connects(self, *, ends_at_once: bool = False) -> None:
        self._is_over("Connect")
        if not ends_at_once:
            self.lanes[self._next] = Lane(self.now)
        if not self.facts.is_held:  # then it has made a new session
            self.facts = self.facts._replace(is_held=True)
        self._next += 1
        self._do(self.link.on_connected(self._seen(), self.now))

    def fails(self, error: UserError = REFUSED, *, gone_at: bytes | None = None) -> None:
        self._is_over("Connect")
        self._do(self.link.on_failed(error, self._seen(), self.now, gone_at=gone_at))

    def probe_ends(self, *, is_answered: bool) -> None:
        self._is_over("Probe")
        self._do(self.link.on_probed(is_answered, self._seen(), self.now))

    # --- shortcuts ----------------------------------------------------------------------------

    def is_lost(self, *, after_s: float = LIVED_S) -> None:
        """The only lane ends, and its program: an attempt is under way."""
        self.wait(after_s)
        self.lane_ends(min(self.lanes))
        self.program_ends()

    def fails_often(self, times: int) -> None:
        """Each time the server's address answers, and the login fails."""
        for _ in range(times):
            self.fails()
            self.attempt_comes()

    def attempt_comes(self) -> float:
        """Wait until the next attempt begins, whatever is probed meanwhile; the pause."""
        before = self.now
        while self.is_busy() != "Connect":
            self.probe_ends(is_answered=True)
        return self.now - before

    def is_busy(self) -> str:
        """Wait until something is under way; what."""
        while self.busy is None:
            self.step()
        return self.busy

    # --- what is decided ----------------------------------------------------------------------

    def decided(self) -> list[str]:
        """The kinds of all decisions since this was called last."""
        kinds = [type(decision).__name__ for _, decision in self.heard]
        self.heard.clear()
        return kinds

    def last(self, kind: type) -> Decision:
        return [decision for _, decision in self.heard if type(decision) is kind][-1]

    def state(self) -> State:
        return self.link.state

    def _seen(self) -> LinkFacts:
        return self.facts._replace(lanes=tuple(self._lanes_seen()))

    def _lanes_seen(self) -> Iterator[LaneFacts]:
        for number, lane in self.lanes.items():
            owes = lane.owes_since is not None
            unanswered_s = self.now - (lane.owes_since or 0.0) if owes else 0.0
            yield LaneFacts(number, unanswered_s, owes, self.now - lane.heard_at, lane.rtt_s)

    def _is_over(self, kind: str) -> None:
        assert self.busy == kind
        self.busy = None

    def _do(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.heard.append((self.now, decision))
            self._do_one(decision)

    def _do_one(self, decision: Decision) -> None:
        match decision:
            case decided.Connect() | decided.Probe() | decided.AwaitEnding():
                assert self.busy is None, "at most one thing at a time"
                self.busy = type(decision).__name__
            case decided.Stop():
                assert self.busy is not None
                self.busy = None
            case decided.AbandonUnlessReached():
                assert self.busy == "Connect"
                if not self.has_reached:
                    self.busy = None
                    self._do(self.link.on_abandoned(self._seen(), self.now))
            case decided.Ping(number):
                lane = self.lanes[number]
                if not lane.is_dead:
                    lane.heard_at = self.now
                elif lane.owes_since is None:
                    lane.owes_since = self.now
            case decided.Drop(number, why):
                if number in self.lanes:
                    self.lane_ends(number, why)
            case decided.SayGoodbye():
                self.facts = self.facts._replace(breaks_protocol=False)
            case decided.LoseSession():
                self.facts = self.facts._replace(is_held=False)
                for number in list(self.lanes):
                    self.lane_ends(number, "the session is over")
            case decided.Failed():
                if self.needs_person:
                    self._do(self.link.on_person_needed(self.now))


# --- liveness -------------------------------------------------------------------------------------


def test_a_lane_that_answers_is_left_alone() -> None:
    story = Story()
    story.wait(PING_EVERY_S)
    assert story.decided() == []


def test_an_idle_lane_is_asked_now_and_then() -> None:
    story = Story()
    story.wait(5 * PING_EVERY_S)
    times = [0.0, *(when for when, _ in story.heard)]
    assert story.decided() == ["Ping"] * (len(times) - 1)
    assert all(
        PING_EVERY_S <= later - sooner <= PING_EVERY_S + 2 * POLL_EVERY_S
        for sooner, later in itertools.pairwise(times)
    )


def test_a_lane_that_owes_an_answer_is_not_asked_again() -> None:
    story = Story()
    story.lanes[0].owes_since = 0.0
    story.lanes[0].rtt_s = 10.0
    story.wait(2 * PING_EVERY_S - 1)
    assert story.decided() == []


def test_the_only_lane_that_falls_silent_is_kept_and_another_one_is_tried() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.falls_silent(0)
    story.wait(SUSPECT_S)
    assert story.state() is State.UP
    story.wait(2 * POLL_EVERY_S)
    assert story.decided()[-2:] == ["Lost", "Connect"]
    assert story.state() is State.CONNECTING
    assert 0 in story.lanes


def test_the_outage_begins_with_the_last_sign_of_life() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.falls_silent(0)
    story.wait(SUSPECT_S + POLL_EVERY_S)
    assert story.link.down_since == LIVED_S
    lost = story.last(decided.Lost)
    assert isinstance(lost, decided.Lost)
    assert SUSPECT_S < lost.silent_s <= SUSPECT_S + POLL_EVERY_S
    assert lost.why == f"no answer for {lost.silent_s:.1f} s"


def test_a_slow_path_may_take_its_round_trips() -> None:
    story = Story()
    story.lanes[0].rtt_s = 5.0
    story.falls_silent(0)
    story.wait(SUSPECT_RTTS * 5.0)
    assert story.state() is State.UP
    story.wait(POLL_EVERY_S)
    assert story.state() is State.CONNECTING


def test_after_news_a_silent_lane_is_suspect_sooner() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lanes[0].is_dead = True
    story.news()
    assert story.decided()[-2:] == ["Checked", "Ping"]
    story.wait(QUIET_S)
    assert story.state() is State.UP
    story.wait(0.2)
    assert story.state() is State.CONNECTING


def test_the_fast_polling_after_news_passes() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.news()
    story.wait(FAST_POLLING_S + POLL_EVERY_S)
    story.falls_silent(0)
    story.wait(QUIET_S + POLL_EVERY_S)
    assert story.state() is State.UP


def test_a_network_that_never_comes_to_rest_does_not_have_the_lanes_asked_each_time() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.decided()
    for _ in range(100):
        story.news()
        story.wait(CHECK_EVERY_S / 10)
    assert story.decided().count("Checked") <= 10


def test_while_another_lane_works_a_silent_one_is_dropped() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lanes[1] = Lane(story.now)
    story.falls_silent(0)
    story.wait(SUSPECT_S + POLL_EVERY_S)
    assert "Drop" in story.decided()
    assert list(story.lanes) == [1]
    assert story.state() is State.UP


def test_the_link_is_lost_with_the_last_of_several_lanes() -> None:
    story = Story()
    story.lanes[1] = Lane(0.0)
    story.lane_ends(1)
    assert story.state() is State.UP
    story.lane_ends(0)
    assert story.state() is State.JUDGING


def test_a_link_without_lanes_is_lost_though_nobody_said_that_one_ended() -> None:
    story = Story()
    story.lanes.clear()
    story.step()
    assert story.state() is State.JUDGING


# --- recovery -------------------------------------------------------------------------------------


def lost_by_silence() -> Story:
    """The lane has fallen silent, and another attempt is under way."""
    story = Story()
    story.wait(LIVED_S)
    story.falls_silent(0)
    story.wait(SUSPECT_S + 2 * POLL_EVERY_S)
    story.decided()
    return story


def test_when_the_old_lane_answers_again_the_attempt_is_stopped() -> None:
    story = lost_by_silence()
    story.answers_again(0)
    story.wait(POLL_EVERY_S)
    assert story.decided() == ["Stop", "Restored"]
    assert story.state() is State.UP
    assert story.link.down_since is None
    assert story.link.next_attempt_at is None


def test_what_is_restored_says_how_long_it_took_and_that_the_session_is_the_same() -> None:
    story = Story()
    story.is_lost()
    story.wait(7.0)
    story.connects()
    assert story.last(decided.Restored) == decided.Restored(7.0, is_same_session=True)


def test_the_old_lane_may_answer_again_in_a_pause() -> None:
    story = lost_by_silence()
    story.fails()
    story.decided()
    story.answers_again(0)
    story.wait(POLL_EVERY_S)
    assert story.decided()[-1] == "Restored"


@pytest.mark.parametrize("state", [State.PROBING, State.RESTING, State.NEEDS_PERSON])
def test_the_old_lane_may_answer_again_whatever_is_done(state: State) -> None:
    story = lost_by_silence()
    story.needs_person = state is State.NEEDS_PERSON
    story.fails()
    if state is not State.NEEDS_PERSON:
        story.wait(FIRST_PAUSE_S)
        if state is State.RESTING:
            story.probe_ends(is_answered=False)
    assert story.state() is state
    story.answers_again(0)
    story.wait(POLL_EVERY_S)
    assert story.state() is State.UP
    assert story.busy is None


def test_a_further_lane_that_comes_up_meanwhile_is_as_good() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lane_ends(0)
    story.lanes[9] = Lane(story.now)
    story.wait(0.1)
    assert story.state() is State.UP
    assert story.busy is None


def test_a_new_lane_replaces_those_that_had_fallen_silent() -> None:
    story = lost_by_silence()
    story.connects()
    assert story.decided() == ["Drop", "Restored"]
    assert list(story.lanes) == [1]


def test_a_lane_that_came_during_the_attempt_is_not_replaced() -> None:
    story = lost_by_silence()
    story.lanes[7] = Lane(story.now)
    story.connects()
    assert sorted(story.lanes) == [1, 7]


# --- attempts -------------------------------------------------------------------------------------


def test_the_first_attempt_comes_at_once() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lane_ends(0)
    assert story.decided()[-2:] == ["Lost", "AwaitEnding"]
    story.program_ends()
    assert story.decided() == ["Connect"]
    assert story.link.next_attempt_at is None


def test_the_end_of_the_last_lane_s_program_is_not_waited_for_for_long() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lane_ends(0)
    story.wait(LAST_WORDS_S)
    assert story.decided()[-2:] == ["Stop", "Connect"]


def test_the_pauses_after_failures_are_doubled_and_the_server_is_not_probed_if_it_refused() -> None:
    story = Story()
    story.is_lost()
    pauses = []
    for _ in range(10):
        story.fails()
        pauses.append(story.attempt_comes())
    doubled = [FIRST_PAUSE_S * 2**number for number in range(10)]
    assert pauses == pytest.approx([min(pause, LONGEST_PAUSE_S) for pause in doubled])
    assert story.decided().count("Probe") == 1  # the first; it answered, and then refused quickly


def test_pauses_are_shortened_by_chance_so_that_clients_do_not_come_in_step() -> None:
    story = Story(chance=1.0)
    story.is_lost()
    story.fails()
    assert story.attempt_comes() == pytest.approx(FIRST_PAUSE_S * (1 - JITTER))


def test_the_end_of_a_pause_is_known_for_the_status_line() -> None:
    story = Story()
    story.is_lost()
    story.fails()
    assert story.link.next_attempt_at == story.now + FIRST_PAUSE_S


def test_lanes_that_end_soon_count_as_failures_but_for_the_first() -> None:
    story = Story()
    pauses = []
    for _ in range(4):
        story.wait(0.1)
        story.lane_ends(min(story.lanes))
        story.program_ends()
        pauses.append(story.attempt_comes())
        story.connects()
    assert pauses == pytest.approx([0.0, FIRST_PAUSE_S, FIRST_PAUSE_S * 2, FIRST_PAUSE_S * 4])


def test_a_lane_that_ends_of_what_came_with_its_hello_is_a_failure() -> None:
    story = Story()
    story.is_lost()
    story.connects(ends_at_once=True)
    failed = story.last(decided.Failed)
    assert isinstance(failed, decided.Failed)
    assert failed.error.message == "it ended soon after it was made"
    assert story.state() is State.WAITING


def test_attempts_end_when_there_were_more_failures_than_wanted() -> None:
    story = Story(max_retries=2)
    story.is_lost()
    story.fails_often(2)
    story.fails()
    assert story.last(decided.GiveUp) == decided.GiveUp(3, REFUSED)
    assert story.state() is State.OVER
    assert story.link.is_down
    assert story.link.next_deadline() == math.inf


def test_lanes_that_end_soon_count_towards_max_retries() -> None:
    story = Story(max_retries=0)
    story.is_lost(after_s=1.0)
    story.connects()
    story.wait(1.0)
    story.lane_ends(min(story.lanes), "sshd is stopped")
    story.program_ends()
    gave_up = story.last(decided.GiveUp)
    assert isinstance(gave_up, decided.GiveUp)
    assert gave_up.error.message == "it ended soon after it was made (sshd is stopped)"


def test_a_link_that_is_over_decides_nothing_any_more() -> None:
    story = Story(max_retries=0)
    story.needs_person = True  # so says the transport, but that is of no interest any more
    story.lanes[3] = Lane(0.0)
    story.wait(LIVED_S)
    story.falls_silent(0)
    story.falls_silent(3)
    story.wait(SUSPECT_S + 2 * POLL_EVERY_S)
    story.fails()
    assert story.decided()[-2:] == ["Failed", "GiveUp"]
    story.news(asked=True)
    story.lane_ends(0)
    story.goodbye("bye")
    story.wait(100.0)
    assert story.decided() == []


# --- probes ---------------------------------------------------------------------------------------


def probing() -> Story:
    """A login took long and failed: the server's address is probed."""
    story = Story()
    story.is_lost()
    story.wait(QUICK_S)
    story.fails()
    story.wait(FIRST_PAUSE_S)
    assert story.decided()[-1] == "Probe"
    return story


def fails_slowly(story: Story) -> None:
    """An attempt fails, and after the pause the server's address is probed."""
    story.has_reached = True
    assert story.is_busy() == "Connect"
    story.wait(QUICK_S)
    story.fails()
    assert story.is_busy() == "Probe"


def test_an_attempt_is_made_as_soon_as_the_server_s_address_answers() -> None:
    story = probing()
    story.probe_ends(is_answered=True)
    assert story.decided() == ["Connect"]


def test_a_silent_server_is_probed_again_and_again() -> None:
    story = probing()
    begin = story.now
    for _ in range(5):
        story.wait(0.2)  # that long it takes
        story.probe_ends(is_answered=False)
        assert story.state() is State.RESTING
        assert story.is_busy() == "Probe"
    assert story.decided() == ["Probe"] * 5
    assert story.now - begin == pytest.approx(5 * PROBE_EVERY_S)


def test_ssh_itself_has_its_turn_though_nothing_answers() -> None:
    story = probing()
    begin = story.now
    while story.is_busy() == "Probe":
        story.probe_ends(is_answered=False)
    assert story.now - begin < 60


def test_without_an_address_there_is_nothing_to_probe() -> None:
    story = Story()
    story.facts = story.facts._replace(can_probe=False)
    story.is_lost()
    story.fails()
    story.wait(FIRST_PAUSE_S)
    assert story.decided()[-1] == "Connect"


def test_a_login_that_failed_slowly_is_no_proof_that_the_server_is_there() -> None:
    story = probing()
    story.probe_ends(is_answered=True)
    story.wait(QUICK_S)
    story.fails()
    story.wait(FIRST_PAUSE_S * 2)
    assert story.state() is State.PROBING


# --- news while it is down ------------------------------------------------------------------------


def test_news_end_a_pause() -> None:
    story = Story()
    story.is_lost()
    story.fails_often(5)
    story.fails()
    story.decided()
    story.news()
    assert story.decided() == ["Checked", "Connect"]


def test_news_end_a_rest_between_probes() -> None:
    story = probing()
    story.probe_ends(is_answered=False)
    story.news()
    assert story.decided()[-1] == "Connect"


def test_after_news_probes_are_dense_again() -> None:
    story = probing()
    while story.is_busy() == "Probe":
        story.probe_ends(is_answered=False)
    fails_slowly(story)
    story.probe_ends(is_answered=False)
    assert story.link.next_attempt_at is not None
    assert story.link.next_attempt_at > story.now + DENSE_S
    story.wait(FRESH_EVERY_S)
    story.probe_ends(is_answered=False)
    story.news()
    fails_slowly(story)
    story.probe_ends(is_answered=False)
    assert story.link.next_attempt_at <= story.now + PROBE_EVERY_S


def test_news_end_an_attempt_that_has_reached_nobody_and_another_one_begins() -> None:
    story = Story()
    story.is_lost()
    story.wait(LEAST_ATTEMPT_S + 0.1)
    story.decided()
    story.news()
    assert story.decided() == ["Checked", "AbandonUnlessReached", "Connect"]


def test_news_do_not_end_an_attempt_that_has_reached_somebody() -> None:
    story = Story()
    story.is_lost()
    story.wait(LEAST_ATTEMPT_S + 0.1)
    story.has_reached = True
    story.news()
    assert story.decided()[-1] == "AbandonUnlessReached"
    assert story.busy == "Connect"


def test_on_a_flapping_network_a_young_attempt_is_not_given_up() -> None:
    story = Story()
    story.is_lost()
    story.decided()
    while story.now < LIVED_S + LEAST_ATTEMPT_S:
        story.news()
        story.wait(0.3)
    assert "AbandonUnlessReached" not in story.decided()


def test_an_attempt_given_up_after_failures_is_made_again_without_their_pause() -> None:
    story = Story()
    story.is_lost()
    story.fails_often(2)
    story.wait(LEAST_ATTEMPT_S + 0.1)
    story.news()
    assert story.decided()[-2:] == ["AbandonUnlessReached", "Connect"]


def test_news_end_a_probe_that_waits_for_an_answer() -> None:
    story = probing()
    story.wait(0.5)
    story.news()
    assert story.decided() == ["Checked", "Stop", "Connect"]


# --- a person is needed ---------------------------------------------------------------------------


def needs_person() -> Story:
    story = Story()
    story.is_lost()
    story.needs_person = True
    story.fails(NO_PASSWORD)
    return story


def test_what_only_a_person_can_mend_is_said_and_tried_again_much_later() -> None:
    story = needs_person()
    assert story.decided()[-2:] == ["Failed", "PersonNeeded"]
    assert story.state() is State.NEEDS_PERSON
    assert story.attempt_comes() == PERSON_PAUSE_S


def test_the_need_for_a_person_is_said_once() -> None:
    story = needs_person()
    for _ in range(3):
        story.attempt_comes()
        story.fails(NO_PASSWORD)
    assert story.decided().count("PersonNeeded") == 1


def test_the_need_for_a_person_is_said_again_after_another_kind_of_failure() -> None:
    story = needs_person()
    story.attempt_comes()
    story.needs_person = False
    story.fails()
    story.attempt_comes()
    story.needs_person = True
    story.fails(NO_PASSWORD)
    assert story.decided().count("PersonNeeded") == 2


def test_only_a_person_who_asks_ends_a_wait_for_a_person() -> None:
    story = needs_person()
    story.news()
    assert story.state() is State.NEEDS_PERSON
    story.news(asked=True)
    assert story.state() is State.CONNECTING
    story.wait(LEAST_ATTEMPT_S + 0.1)
    story.decided()
    story.news()
    assert "AbandonUnlessReached" not in story.decided()


def test_a_person_who_asks_twice_does_not_wait_longer() -> None:
    story = needs_person()
    story.news(asked=True)
    story.wait(LEAST_ATTEMPT_S + 0.1)
    story.news(asked=True)
    assert story.state() is State.CONNECTING


def test_after_the_link_was_up_news_end_a_pause_again() -> None:
    story = needs_person()
    story.news(asked=True)
    story.connects()
    story.needs_person = False
    story.is_lost()
    story.fails()
    story.news()
    assert story.state() is State.CONNECTING


# --- the session ----------------------------------------------------------------------------------


def test_an_agent_that_died_has_lost_the_session() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lane_ends(0)
    story.decided()
    story.program_ends(agent_died=True)
    assert story.decided() == ["LoseSession", "Connect"]
    story.connects()
    assert story.last(decided.Restored) == decided.Restored(0.0, is_same_session=False)


def test_a_session_that_could_not_outlive_its_lanes_is_given_up_silently() -> None:
    story = Story()
    story.facts = story.facts._replace(outlives_lanes=False)
    story.is_lost()
    assert story.last(decided.LoseSession) == decided.LoseSession("")


def test_a_session_that_is_over_anyway_can_not_be_lost_again() -> None:
    story = Story()
    story.facts = story.facts._replace(is_held=False)
    story.wait(LIVED_S)
    story.lane_ends(0)
    story.program_ends(agent_died=True)
    assert "LoseSession" not in story.decided()


def test_after_the_grace_time_the_session_is_over() -> None:
    story = Story(grace_s=60)
    story.is_lost()
    story.wait(61.0)
    story.fails()
    story.attempt_comes()
    assert story.last(decided.LoseSession) == decided.LoseSession("the grace time of 60 s is over")
    assert story.decided().count("LoseSession") == 1


def test_a_goodbye_ends_the_session_and_all_its_lanes() -> None:
    story = Story()
    story.lanes[1] = Lane(0.0)
    story.wait(LIVED_S)
    story.decided()
    story.goodbye("out of memory")
    assert story.decided() == ["LoseSession", "Lost", "AwaitEnding"]


def test_what_breaks_the_protocol_on_lane_after_lane_is_given_up() -> None:
    story = Story()
    story.wait(LIVED_S)
    story.lanes[1] = Lane(story.now)
    story.facts = story.facts._replace(breaks_protocol=True)
    story.decided()
    story.lane_ends(1)
    assert story.decided() == ["SayGoodbye", "LoseSession", "Lost", "AwaitEnding"]
    story.program_ends()
    story.connects()
    assert story.last(decided.Restored) == decided.Restored(0.0, is_same_session=False)


def test_a_far_side_that_says_the_session_is_gone_is_believed_and_a_new_one_begins_at_once() -> (
    None
):
    story = Story()
    story.is_lost()
    story.decided()
    story.fails(GONE, gone_at=b"")
    assert story.decided() == ["LoseSession", "Connect"]


def test_gone_is_not_believed_while_a_silent_lane_may_yet_answer() -> None:
    story = lost_by_silence()
    story.fails(GONE, gone_at=b"")
    assert story.decided() == ["Failed"]
    story.wait(SILENT_S)
    story.attempt_comes()
    story.fails(GONE, gone_at=b"")
    assert story.last(decided.LoseSession) == decided.LoseSession("no such session")


def test_another_machine_is_not_believed_at_once_and_mentioned_once() -> None:
    story = Story()
    story.facts = story.facts._replace(agent_host=b"one")
    story.is_lost()
    for _ in range(MOST_ELSEWHERE - 1):
        story.fails(GONE, gone_at=b"two")
        story.attempt_comes()
    decided = story.decided()
    assert decided.count("ElsewhereAnswered") == 1
    assert "LoseSession" not in decided
    story.fails(GONE, gone_at=b"two")
    assert story.decided() == ["LoseSession", "Connect"]


def test_a_session_that_is_over_is_no_news_from_whoever_says_so() -> None:
    story = Story()
    story.facts = story.facts._replace(is_held=False)
    story.is_lost()
    story.decided()
    story.fails(GONE, gone_at=b"")
    assert story.decided() == ["Failed"]


# --- the table ------------------------------------------------------------------------------------


def test_what_the_table_does_not_have_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="CONNECTED in UP"):
        Story().link.on_connected(LinkFacts((LaneFacts(1, 0.0, False, 0.0, 0.0),)), 1.0)


def test_every_state_but_the_end_leads_back_up() -> None:
    for state in set(State) - {State.UP, State.OVER}:
        assert TRANSITIONS[state][Input.RECOVERED] is State.UP


def test_the_table_has_every_state_and_every_input() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {what for row in TRANSITIONS.values() for what in row} == set(Input)


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    page = PAGE.read_text()
    drawn = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| ([A-Z_]+) \|", page, re.MULTILINE)
    rows = [
        (a.name, what.name, b.name) for a, row in TRANSITIONS.items() for what, b in row.items()
    ]
    assert sorted(drawn) == sorted(rows)
    assert re.findall(r"^\| ([A-Z_]+) \| [^A-Z]", page, re.MULTILINE) == [s.name for s in State]


def test_the_module_knows_no_input_no_output_and_no_clock() -> None:
    tree = ast.parse(Path(keeper.__file__).read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not names & {"asyncio", "socket", "time", "os"}


# --- whatever happens -----------------------------------------------------------------------------


def things_that_may_happen(story: Story) -> list[str]:
    """By name, as often as they are likely."""
    things = ["wait"] * 3 + ["news", "asked", "goodbye"]
    if story.lanes:
        things += ["lane ends", "silence", "answer"]
    match story.busy:
        case "Connect":
            things += ["connects", "ends at once", "fails", "fails", "gone", "elsewhere"]
        case "Probe":
            things += ["probe answers", "probe fails", "probe fails"]
        case "AwaitEnding":
            things += ["program ends", "agent died"]
        case _:
            things += ["further lane"]
    return things


def happens(story: Story, thing: str, chance: random.Random) -> None:
    match thing:
        case "wait":
            story.wait(chance.choice([0.05, 1.0, 5.0, 40.0, 400.0]))
        case "news":
            story.news()
        case "asked":
            story.news(asked=True)
        case "goodbye":
            story.goodbye("bye")
        case "lane ends":
            story.facts = story.facts._replace(breaks_protocol=chance.random() < 0.2)
            story.lane_ends(chance.choice(list(story.lanes)))
        case "silence":
            story.falls_silent(chance.choice(list(story.lanes)))
        case "answer":
            story.answers_again(chance.choice(list(story.lanes)))
        case "further lane":
            story.lanes[1000 + len(story.heard)] = Lane(story.now)
        case "connects" | "ends at once":
            story.connects(ends_at_once=thing == "ends at once")
        case "fails":
            story.needs_person = chance.random() < 0.3
            story.fails()
        case "gone" | "elsewhere":
            story.fails(GONE, gone_at=b"" if thing == "gone" else b"two")
        case "probe answers" | "probe fails":
            story.probe_ends(is_answered=thing == "probe answers")
        case "program ends" | "agent died":
            story.program_ends(agent_died=thing == "agent died")


@pytest.mark.parametrize("seed", range(200))
def test_any_sequence_of_inputs_leaves_one_thing_under_way_or_a_deadline(seed: int) -> None:
    """No illegal transition, and at most one thing under way: ``Link`` and ``Story`` see to it."""
    chance = random.Random(seed)
    story = Story(grace_s=600, max_retries=chance.choice([None, 5]), chance=chance.random())
    story.facts = LinkFacts(
        agent_host=b"one",
        outlives_lanes=chance.random() < 0.8,
        can_probe=chance.random() < 0.8,
    )
    for _ in range(150):
        happens(story, chance.choice(things_that_may_happen(story)), chance)
        state = story.state()
        is_busy = state in (State.JUDGING, State.CONNECTING, State.PROBING)
        assert (story.busy is not None) == is_busy
        assert story.link.is_down == (state is not State.UP)
        if state is State.OVER:
            return
        assert story.now < story.link.next_deadline() + 1e-9 < math.inf
        if state in (State.WAITING, State.NEEDS_PERSON, State.RESTING):
            assert story.link.next_attempt_at is not None
            assert story.now <= story.link.next_attempt_at <= story.now + PERSON_PAUSE_S


# --- last: all that the tests above have gone through ---------------------------------------------


def test_every_row_of_the_table_was_gone_through_by_the_tests_above() -> None:
    rows = {(state, what) for state, row in TRANSITIONS.items() for what in row}
    assert exercised == rows
