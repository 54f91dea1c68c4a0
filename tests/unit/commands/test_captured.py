"""What up captures, with real sockets: families, mistakes, and that nothing stays open."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from sshunt.cli import parse
from sshunt.commands.captured import Captured, open_sockets, resolve_routes, served
from sshunt.errors import ExitCode, UserError
from sshunt.helper.protocol import MAX_ROUTES
from sshunt.model import Action
from sshunt.tell.report import Event, OwnAddressSkipped, Report
from tests.descriptors import no_more_descriptors

SESSION = "0123abcd"


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    with no_more_descriptors():
        yield


class Start:
    """A start with these words, and what it has said."""

    def __init__(self, *words: str) -> None:
        self.options = parse(["-r", "gate", *words])
        self.said: list[Event] = []
        self.report = Report(lambda error: pytest.fail(str(error)))
        self.report.subscribe(self.said.append)

    def open(self) -> Captured:
        routes = asyncio.run(resolve_routes(self.options, self.report))
        return open_sockets(self.options, routes, self.report)


def families(captured: Captured) -> list[int]:
    return [sock.family for sock in captured.listeners]


def test_there_is_a_listener_for_each_family_that_has_something_to_capture() -> None:
    both, one = Start("10.0.0.0/8", "fd00::/8").open(), Start("10.0.0.0/8", "-x", "fd00::/8").open()
    assert families(both) == [socket.AF_INET, socket.AF_INET6]
    assert families(one) == [socket.AF_INET]
    assert one.dns_sockets == []
    both.close()
    one.close()
    one.close()


def test_the_plan_has_the_listeners_and_all_routes_but_shows_those_captured() -> None:
    captured = Start("10.0.0.0/8", "-x", "10.1.0.0/16").open()
    plan = captured.plan(SESSION, (("192.0.2.1", 22),))
    assert plan.listener(4) == captured.listeners[0].getsockname()
    assert plan.listener(6) is None
    assert [route.action for route in plan.routes] == [Action.REMOTE, Action.DIRECT]
    assert [str(route.network) for route in captured.remote_routes] == ["10.0.0.0/8"]
    assert plan.bypass == (("192.0.2.1", 22),)
    captured.close()


def test_what_is_only_this_host_itself_is_a_mistake() -> None:
    with pytest.raises(UserError) as caught:
        Start("127.0.0.1").open()
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_target_that_is_this_host_itself_is_left_alone_and_that_is_said() -> None:
    start = Start("127.0.0.1", "10.0.0.0/8")
    start.open().close()
    (said,) = start.said
    assert isinstance(said, OwnAddressSkipped)
    assert str(said.route.network) == "127.0.0.1/32"


def test_a_port_that_is_taken_is_told_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            Start("-l", f"[::1]:0,127.0.0.1:{port}", "10.0.0.0/8", "fd00::/8").open()
    assert caught.value.exit_code == ExitCode.LISTEN


def test_more_routes_than_the_helper_takes_are_told_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured = Start("10.0.0.0/8").open()
    captured.routes *= MAX_ROUTES + 1
    with pytest.raises(UserError, match="are the limit"):
        captured.check()
    captured.close()


def test_a_listener_that_only_this_host_reaches_serves_no_link() -> None:
    start = Start("10.0.0.0/8")
    captured = start.open()
    assert dict(served(captured.plan(SESSION), start.report)) == {4: (), 6: ()}
    assert start.said == []
    captured.close()
