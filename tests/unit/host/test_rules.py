"""The rules of a session follow what is wanted: with a real helper, in a host of the lab's.

The loop's clock can be put forward, for the pauses before something is tried again. A proxy between
client and helper counts the requests, and holds them back where a test says so.
"""

import asyncio
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

import sshunt
from sshunt.capture.plan import Plan, redirects
from sshunt.errors import UserError
from sshunt.host.helper import Helper
from sshunt.host.rules import RETRY_AFTER_S, Rules
from sshunt.host.wanted import Wanted
from sshunt.lab.hosts import Host
from sshunt.lab.world import Lab
from sshunt.model import Action, Route
from sshunt.tell.report import Event, PartLost, Report, RulesRefused
from tests.unit.host.clock import put_forward, run

_SERVE = """
import socket, sys
sys.path.append(sys.argv[1])
from sshunt.helper.server import serve
serve(socket.socket(fileno=0), owner="plain" not in sys.argv)
"""

_OFFICE = ip_network("10.0.0.0/8")


class World:
    """Rules, their helper, and what was asked of it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.session = secrets.token_hex(6)
        self.asked: list[str] = []
        self.answers = 0
        self.optional_failures: list[str] = []
        self.lost: list[str] = []
        self.bugs: list[Exception] = []
        self.may_pass = asyncio.Event()
        self.may_pass.set()

    @asynccontextmanager
    async def rules(self, *words: str) -> AsyncIterator[Rules]:
        """With a helper on that host; all of it is gone at the end. ``plain``: its tables are."""
        ours, near = socket.socketpair()
        far, theirs = socket.socketpair()
        source = str(Path(sshunt.__path__[0]).parent)
        command = [sys.executable, "-I", "-S", "-B", "-c", _SERVE, source, *words]
        with theirs:
            process = self.host.popen(command, stdin=theirs.fileno())
        self.end_helper = process.terminate
        between = asyncio.ensure_future(self._pass_on(near, far))
        helper = Helper(*await asyncio.open_connection(sock=ours))
        await helper.greet(self.session, 10.0)
        self.asked.clear()
        self.answers = 0
        report = Report(self.bugs.append)
        report.subscribe(self._hear)
        rules = Rules(helper, report)
        try:
            yield rules
        finally:
            self.may_pass.set()
            await rules.close()
            await asyncio.wait_for(between, 10.0)
            process.wait(10.0)
            assert not self.table()

    async def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        client = await asyncio.open_connection(sock=near, limit=1 << 22)
        helper = await asyncio.open_connection(sock=far, limit=1 << 22)

        async def requests() -> None:
            while line := await client[0].readline():
                self.asked.append(json.loads(line)["request"])
                await self.may_pass.wait()
                helper[1].write(line)
            helper[1].write_eof()

        async def replies() -> None:
            while line := await helper[0].readline():
                self.answers += 1
                client[1].write(line)
            client[1].close()

        with suppress(ConnectionError):
            await asyncio.gather(requests(), replies())
        for _, writer in (client, helper):
            writer.close()

    def _hear(self, event: Event) -> None:
        if isinstance(event, PartLost):
            self.lost.append(event.part)
            return
        assert isinstance(event, RulesRefused)
        self.optional_failures.append(event.why)

    def table(self) -> str:
        """The rules of the session."""
        shown = self.host.run(["nft", "list", "ruleset"]).stdout
        return shown if self.session in shown else ""

    async def optional_failed(self, times: int) -> None:
        await wait_until(lambda: len(self.optional_failures) == times)

    def plan(self, **fields: Any) -> Plan:
        routes = (Route(_OFFICE, Action.REMOTE),)
        whole = Plan(self.session, redirects([("127.0.0.1", 1)]), routes)
        return replace(whole, **fields)


@pytest.fixture
def world(lab: Lab) -> World:
    return World(lab.target)


async def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about")


def test_a_wanted_plan_is_in_the_kernel_once_it_is_settled_and_gone_once_undone(
    world: World,
) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan()))
            assert not world.table()
            await rules.settled()
            assert "10.0.0.0/8" in world.table()
            assert rules.owner
            await rules.undo()
            assert "10.0.0.0/8" not in world.table()
            assert world.asked == ["guard", "apply", "undo"]
            await rules.undo()
            assert world.asked == ["guard", "apply", "undo"]

    run(story())


def test_a_wish_that_was_withdrawn_is_never_asked_for(world: World) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            world.may_pass.clear()
            rules.want(Wanted())
            await wait_until(lambda: world.asked == ["guard"])
            plan = world.plan()
            for number in range(1, 200):
                rules.want(Wanted(plan=replace(plan, bypass=(("192.0.2.1", number),))))
                await asyncio.sleep(0)
            world.may_pass.set()
            await rules.settled()
            assert world.asked == ["guard", "apply"]
            assert "192.0.2.1 . 199" in world.table()

    run(story())


def test_a_wish_during_a_request_is_carried_out_after_it(world: World) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            world.may_pass.clear()
            rules.want(Wanted(plan=world.plan()))
            await asyncio.sleep(0.01)
            rules.want(Wanted(plan=world.plan(bypass=(("192.0.2.1", 22),))))
            settled = asyncio.ensure_future(rules.settled())
            await asyncio.sleep(0.01)
            assert not settled.done()
            world.may_pass.set()
            await settled
            assert "192.0.2.1 . 22" in world.table()

    run(story())


def test_other_routes_take_the_place_of_those_before_and_addresses_stay_retained(
    world: World,
) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            retained = ("10.55.0.2",)  # it has it, and might be about to lose it
            rules.want(Wanted(plan=world.plan(), retained=retained))
            await wait_until(lambda: world.answers == len(["guard", "apply", "retain"]))
            others = (Route(ip_network("172.16.0.0/12"), Action.REMOTE),)
            rules.want(Wanted(plan=world.plan(routes=others), retained=retained))
            await rules.settled()
            assert "172.16.0.0/12" in world.table()
            assert "10.0.0.0/8" not in world.table()
            local = world.host.run(["ip", "route", "show", "table", "local"]).stdout
            assert "local 10.55.0.2 dev sshunt" in local
            assert world.asked == ["guard", "apply", "retain", "apply"]

    run(story())


def test_a_required_part_that_is_refused_is_a_failure_and_is_asked_for_once(world: World) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(redirects=redirects([("203.0.113.9", 1)]))))
            with pytest.raises(UserError, match="not an address of this host"):
                await rules.settled()
            assert rules.failed.done()
            assert "not an address of this host" in rules.failed.result().message
            await asyncio.sleep(0.05)
            assert world.asked == ["guard", "apply"]
            rules.want(Wanted(plan=world.plan()))  # whatever comes then
            await rules.settled()
            assert "10.0.0.0/8" in world.table()

    run(story())


@pytest.mark.parametrize("before", ["nothing", "another plan"])
def test_what_was_refused_is_not_taken_for_applied(world: World, before: str) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            if before == "another plan":
                rules.want(Wanted(plan=world.plan()))
                await rules.settled()
            refused = world.plan(redirects=redirects([("203.0.113.9", 1)]))
            for number in (1, 2):  # the same but for what could be replaced in it
                rules.want(Wanted(plan=replace(refused, bypass=(("192.0.2.1", number),))))
                with pytest.raises(UserError, match="not an address of this host"):
                    await rules.settled()
            assert ("10.0.0.0/8" in world.table()) == (before == "another plan")
            world.asked.clear()
            rules.want(Wanted(plan=world.plan()))
            await rules.settled()
            assert "10.0.0.0/8" in world.table()
            assert world.asked == ([] if before == "another plan" else ["apply"])

    run(story())


def test_after_a_first_plan_that_was_refused_the_rules_are_undone_all_the_same(
    world: World,
) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(redirects=redirects([("203.0.113.9", 1)]))))
            with pytest.raises(UserError, match="not an address of this host"):
                await rules.settled()
            await rules.undo()
            assert world.asked == ["guard", "apply", "undo"]

    run(story())


def test_an_optional_part_that_is_refused_is_tried_again_after_longer_and_longer_pauses(
    world: World,
) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(), retained=("203.0.113.9",)))
            await rules.settled()  # it does not wait for that
            for tries, pause_s in enumerate(RETRY_AFTER_S, start=1):
                await world.optional_failed(tries)
                await put_forward(pause_s - 0.5)
                await asyncio.sleep(0.02)
                assert world.asked.count("retain") == tries
                await put_forward(0.5)
            await world.optional_failed(len(RETRY_AFTER_S) + 1)
            await put_forward(3600.0)
            await asyncio.sleep(0.02)
            assert world.asked.count("retain") == len(RETRY_AFTER_S) + 1
            assert not rules.failed.done()
            assert "has not been this host's" in world.optional_failures[0]

    run(story())


def test_an_optional_part_is_had_at_last_and_not_asked_for_again(world: World) -> None:
    async def story() -> None:
        address = "192.0.2.209"
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(), retained=(address,)))
            await world.optional_failed(1)
            world.host.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
            await put_forward(RETRY_AFTER_S[0])
            await wait_until(lambda: world.answers == len(["guard", "apply", "retain", "retain"]))
            world.host.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])
            await put_forward(3600.0)
            await asyncio.sleep(0.02)
            assert world.asked.count("retain") == 2
            assert len(world.optional_failures) == 1
            local = world.host.run(["ip", "route", "show", "table", "local"]).stdout
            assert f"local {address} dev sshunt" in local

    run(story())


def test_news_try_an_optional_part_again_at_once_and_are_not_held_up_by_it(world: World) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(), retained=("203.0.113.9",)))
            await world.optional_failed(1)
            plan = world.plan(bypass=(("192.0.2.1", 22),))
            rules.want(Wanted(plan=plan, retained=("203.0.113.9",)))
            await rules.settled()
            assert "192.0.2.1 . 22" in world.table()
            await world.optional_failed(2)
            assert world.asked == ["guard", "apply", "retain", "bypass", "retain"]

    run(story())


def test_a_helper_that_has_gone_is_no_failure_of_the_rules_but_nobody_waits_for_them(
    world: World,
) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted())
            await rules.settled()
            world.may_pass.clear()
            rules.want(Wanted(plan=world.plan()))
            await wait_until(lambda: world.asked == ["guard", "apply"])
            waiting: Awaitable[None] = asyncio.ensure_future(rules.settled())
            await asyncio.sleep(0.01)
            world.end_helper()
            with pytest.raises(UserError, match="helper is gone"):
                await waiting
            assert rules.gone.is_set()
            assert not rules.failed.done()
            await rules.undo()

    run(story())


def test_the_end_waits_for_no_helper_that_is_stuck(world: World) -> None:
    async def story() -> None:
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan()))
            await rules.settled()
            world.may_pass.clear()
            undoing = asyncio.ensure_future(rules.undo())
            await wait_until(lambda: world.asked[-1] == "undo")
            await put_forward(60.0)
            await asyncio.wait_for(undoing, 5.0)

    run(story())


def test_a_mistake_of_ours_ends_the_wait_and_is_heard_of(world: World) -> None:
    async def story() -> None:
        heard: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: heard.append(context["exception"]))
        async with world.rules() as rules:
            rules.want(Wanted(plan=world.plan(), retained=("127.0.0.1",)))  # can't even be said
            await wait_until(lambda: heard)
            with pytest.raises(ValueError, match="not an address that can be retained"):
                await rules.settled()
            await asyncio.wait_for(rules.undo(), 1.0)

    run(story())


@pytest.fixture(autouse=True)
def nothing_left(world: World) -> Iterator[None]:
    yield
    assert not world.table()


def test_rules_that_somebody_flushes_come_again_without_being_wanted_anew(world: World) -> None:
    async def main() -> None:
        async with world.rules("plain") as rules:
            rules.want(Wanted(plan=world.plan()))
            await rules.settled()
            for times in (1, 2):
                world.host.run(["nft", "flush", "ruleset"])
                assert not world.table()
                await wait_until(lambda: len(world.lost) == times)  # noqa: B023
                await rules.settled()
                assert world.table()
            assert world.lost == ["rules", "rules"]
            await rules.undo()

    run(main())
