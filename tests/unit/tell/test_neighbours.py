"""Whom other sessions are connected to: asked of real ones, and never believed blindly."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from sshunt.tell import neighbours, session_name
from sshunt.tell.control import MOST_ENDPOINTS, ControlServer
from sshunt.tell.neighbours import ways_of_others, ways_untrusted


@pytest.mark.parametrize(
    "said",
    [
        None,
        "ways",
        7,
        {"203.0.113.7": 22},
        [["gate.example", 22], ["203.0.113.7", 0], ["203.0.113.7", 70000]],
        [["203.0.113.7", True], ["203.0.113.7", "22"], ["203.0.113.7"], [22, "203.0.113.7"], None],
        [["fe80::1%eth0", 22], ["203.0.113.7; flush ruleset", 22]],
    ],
)
def test_what_is_no_endpoint_is_passed_over(said: object) -> None:
    assert ways_untrusted(said) == []


def test_endpoints_are_taken_as_they_are_and_not_without_end() -> None:
    assert ways_untrusted([["203.0.113.7", 22], 0, ["2001:db8::7", 2222]]) == [
        ("203.0.113.7", 22),
        ("2001:db8::7", 2222),
    ]
    many = [["203.0.113.7", port] for port in range(1, 10 * MOST_ENDPOINTS)]
    assert len(ways_untrusted(many)) == MOST_ENDPOINTS


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def says(ways: object) -> Callable[[str], dict[str, object]]:
    return lambda verb: {"host": "gate", "says": verb, "ways": ways}


def test_sessions_are_asked_and_one_that_is_stopped_is_not_waited_for(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ANSWER_S", 0.5)
    with ExitStack() as stack:
        names = []
        for ways in ([["203.0.113.7", 22]], [["203.0.113.7", 22], ["2001:db8::7", 22]], []):
            name, place = session_name.draw()
            assert place is not None
            stack.callback(ControlServer(loop, place, says(ways)).close)
            names.append(name)
        name, stopped = session_name.draw()
        assert stopped is not None
        stopped.listen(1)
        stack.callback(stopped.close)
        monkeypatch.setattr(neighbours, "sessions", lambda: [*names, name])
        asked = loop.run_in_executor(None, ways_of_others)
        assert loop.run_until_complete(asked) == (("203.0.113.7", 22), ("2001:db8::7", 22))


def test_sessions_that_are_stopped_are_not_waited_for_one_after_the_other(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ASKING_S", 0.5)
    with ExitStack() as stack:
        stopped, its_place = session_name.draw()
        running, place = session_name.draw()
        assert its_place is not None
        assert place is not None
        its_place.listen(1)
        stack.callback(its_place.close)
        stack.callback(ControlServer(loop, place, says([["203.0.113.7", 22]])).close)
        for names, found in (
            ([running, stopped], (("203.0.113.7", 22),)),
            ([stopped, running], ()),
        ):
            monkeypatch.setattr(neighbours, "sessions", lambda asked=names: asked)
            asked = loop.run_in_executor(None, ways_of_others)
            assert loop.run_until_complete(asked) == found
