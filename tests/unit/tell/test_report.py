"""What is said is heard by all, in one order, whatever one of them does."""

import re
from pathlib import Path
from typing import get_args

import pytest

import sshunt
from sshunt.tell.report import (
    Event,
    FrontPaused,
    FrontResumed,
    LaneClosed,
    LaneOpened,
    RemoteConnected,
    RemoteLost,
    RemoteReconnected,
    Report,
    RulesApplied,
    StreamOpened,
    StreamReset,
)

CONNECTED = RemoteConnected("gate", "gate", 0.02, (), has_dns=False)
LOST = RemoteLost("gate", 0.0, "", 0, are_kept=True)
RECONNECTED = RemoteReconnected("gate", 1.0, 0)


class Ears:
    """Who hears, and the bugs that the report's owner was told of."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.bugs: list[Exception] = []
        self.report = Report(self.bugs.append)

    def fail(self, event: Event) -> None:
        raise ValueError(event)


@pytest.fixture
def ears() -> Ears:
    return Ears()


def test_every_hearer_gets_every_event_in_order(ears: Ears) -> None:
    others: list[Event] = []
    ears.report.subscribe(ears.heard.append)
    ears.report.subscribe(others.append)
    ears.report.say(CONNECTED)
    ears.report.say(LOST)
    assert ears.heard == others == [CONNECTED, LOST]


def test_events_are_remembered_even_if_nobody_listens(ears: Ears) -> None:
    ears.report.say(CONNECTED)
    assert ears.report.latest(RemoteConnected, "gate") == CONNECTED


def test_a_late_hearer_hears_only_what_is_said_from_then_on(ears: Ears) -> None:
    ears.report.say(CONNECTED)
    ears.report.subscribe(ears.heard.append)
    ears.report.say(LOST)
    assert ears.heard == [LOST]


def test_a_hearer_that_raises_harms_no_other_and_its_bug_is_handed_on(ears: Ears) -> None:
    ears.report.subscribe(ears.fail)
    ears.report.subscribe(ears.heard.append)
    ears.report.say(LOST)
    ears.report.say(RECONNECTED)
    assert ears.heard == [LOST, RECONNECTED]
    assert [type(bug) for bug in ears.bugs] == [ValueError, ValueError]


def test_what_a_hearer_says_itself_is_heard_by_all_after_what_it_heard(ears: Ears) -> None:
    def answer(event: Event) -> None:
        if event == LOST:
            ears.report.say(FrontPaused("::1 port 9", "lost"))

    ears.report.subscribe(answer)
    ears.report.subscribe(ears.heard.append)
    ears.report.say(LOST)
    assert ears.heard == [LOST, FrontPaused("::1 port 9", "lost")]


def test_an_owner_that_raises_on_a_bug_does_not_silence_the_report(ears: Ears) -> None:
    def stop(error: Exception) -> None:
        raise error

    report = Report(stop)
    report.subscribe(ears.fail)
    report.subscribe(ears.heard.append)
    with pytest.raises(ValueError, match="RemoteLost"):
        report.say(LOST)
    with pytest.raises(ValueError, match="RemoteReconnected"):
        report.say(RECONNECTED)


def test_what_happens_with_each_stream_is_heard_only_by_who_wants_it(ears: Ears) -> None:
    wanting: list[Event] = []
    ears.report.subscribe(ears.heard.append)
    assert not ears.report.hears_streams
    ears.report.subscribe(wanting.append, streams=True)
    assert ears.report.hears_streams
    said = [StreamOpened("gate", 1, "10.0.0.1", 80), LOST, StreamReset("gate", 1, "refused")]
    for event in said:
        ears.report.say(event)
    assert wanting == said
    assert ears.heard == [LOST]


# --- the latest -----------------------------------------------------------------------------------


def test_the_last_of_each_kind_is_remembered_for_each_remote(ears: Ears) -> None:
    for event in (
        LaneOpened("gate", 1),
        LaneOpened("lab", 7),
        LaneOpened("gate", 2),
        LaneClosed("gate", 1, "idle"),
    ):
        ears.report.say(event)
    assert ears.report.latest(LaneOpened, "gate") == LaneOpened("gate", 2)
    assert ears.report.latest(LaneOpened, "lab") == LaneOpened("lab", 7)
    assert ears.report.latest(LaneClosed, "lab") is None


def test_events_of_no_remote_are_remembered_too(ears: Ears) -> None:
    ears.report.say(RulesApplied(by_kernel=True))
    assert ears.report.latest(RulesApplied) == RulesApplied(by_kernel=True)


def test_the_last_of_each_kind_is_remembered_for_each_front(ears: Ears) -> None:
    ears.report.say(FrontPaused("::1 port 9", "spent"))
    ears.report.say(FrontResumed("127.0.0.1 port 9"))
    assert ears.report.latest(FrontPaused, "::1 port 9") == FrontPaused("::1 port 9", "spent")
    assert ears.report.latest(FrontResumed, "::1 port 9") is None


def test_events_of_streams_are_not_remembered(ears: Ears) -> None:
    ears.report.say(StreamOpened("gate", 1, "10.0.0.1", 80))
    assert ears.report.latest(StreamOpened, "gate") is None


def test_the_state_of_a_remote_is_the_last_that_changed_it(ears: Ears) -> None:
    assert ears.report.state("gate") is None
    for event in (CONNECTED, LOST, RECONNECTED, LOST):
        ears.report.say(event)
        ears.report.say(LaneClosed("gate", 1, "idle"))
        assert ears.report.state("gate") == event
    assert ears.report.state("lab") is None


# --- the vocabulary -------------------------------------------------------------------------------


def test_each_kind_of_event_is_said_by_somebody() -> None:
    package = Path(sshunt.__file__).parent
    speakers = [path for path in package.rglob("*.py") if path.parent.name != "tell"]
    words = set(re.findall(r"\w+", " ".join(path.read_text() for path in speakers)))
    assert {kind.__name__ for kind in get_args(Event)} <= words


def test_what_belongs_to_a_remote_begins_with_its_name() -> None:
    for kind in get_args(Event):
        assert "remote" not in kind._fields[1:], kind
        assert not {"remote", "front"} <= set(kind._fields), kind
