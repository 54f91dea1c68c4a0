"""A program: remotes by ssh in one process, behind real rules, for ``test_two_remotes``.

    two_remotes.py SESSION

Commands come as lines of JSON on standard input, each is answered by one line of JSON:

    ["add", NAME, [NETWORK ...]]    log in to NAME, capture and carry these; null
    ["replace", NAME, [NETWORK..]]  other networks; null
    ["end", NAME]                   null
    ["states"]                      {NAME: is it up?}
    ["shared"]                      {"epoll sets": ..., "pipes": ...} of this process
    ["heard"]                       what has happened to the remotes so far: [[NAME, event] ...]

It is what ``commands.running`` will be once several remotes can be typed: reactor, router, rules
and one front, and remotes that come and go.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

from sshunt.capture.plan import Plan, redirects
from sshunt.config.remotes import parse_remote
from sshunt.front.arrival import Arrivals
from sshunt.front.held import HeldSyns
from sshunt.front.listener import Listener, bind
from sshunt.front.original import OriginalDestinations
from sshunt.front.redirect import Redirected
from sshunt.front.splice import Splices
from sshunt.host.connecting import Connecting
from sshunt.host.helper import start_helper
from sshunt.host.rules import Rules
from sshunt.host.wanted import Facts, Wanted, wanted
from sshunt.model import Action, Endpoint, Route
from sshunt.relay.reactor import Reactor
from sshunt.remote.remote import Remote, RemoteOwner, Terms
from sshunt.route.router import Claim, Router
from sshunt.tell.report import STATES, Event, Report, SessionLost
from sshunt.transport.ssh import SshTransport
from sshunt.transport.ssh_choices import SshConfigQuery


class Process(RemoteOwner):
    """What there is once."""

    def __init__(self, session: str, rules: Rules, report: Report) -> None:
        loop = asyncio.get_running_loop()
        self.session = session
        self.rules = rules
        self.report = report
        self.heard: list[list[str]] = []
        report.subscribe(self.hear)
        self.reactor = Reactor(loop)
        self.router = Router()
        self.sock = bind(("127.0.0.1", 0))
        redirected = Redirected(
            OriginalDestinations(self.sock).of,
            self.router.connect,
            Splices(self.reactor, self.on_freed),
            report,
            Arrivals(),
            HeldSyns(
                loop,
                lambda _kind, _body: None,
                self.router.connect,
                Arrivals(),
                lambda _port, _destination: False,
                Connecting(),
            ),
            lambda _sock, _destination: False,
        )
        self.listener = Listener(self.sock, loop, report, redirected.take)
        self.listener.start()
        self.endpoint = self.sock.getsockname()[:2]
        self.claims: dict[str, Claim] = {}
        self.remotes: dict[str, Remote] = {}
        self.running: dict[str, asyncio.Task[None]] = {}

    def hear(self, event: Event) -> None:
        if isinstance(event, (*STATES, SessionLost)):
            self.heard.append([event.remote, type(event).__name__])

    def on_down(self, remote: Remote) -> None:
        self._capture()

    def on_up(self, remote: Remote) -> None:
        self._capture()

    def on_failed(self, destination: Endpoint) -> None:
        """Nobody was told before."""

    def on_freed(self) -> None:
        self.listener.resume()

    async def add(self, name: str, networks: list[str]) -> None:
        spec = parse_remote(name)
        transport = SshTransport(spec, SshConfigQuery(spec).result())
        terms = Terms(name, lanes=1, grace_s=60, max_retries=None)
        remote = Remote(self.reactor, transport, self.report, self, terms)
        await remote.start()
        self.remotes[name] = remote
        self.running[name] = asyncio.ensure_future(remote.run())
        await self.replace(name, networks)

    async def replace(self, name: str, networks: list[str]) -> None:
        routes = tuple(Route(ip_network(network), Action.REMOTE) for network in networks)
        self.claims[name] = Claim(self.remotes[name], routes)
        await self._route()

    async def end(self, name: str) -> None:
        del self.claims[name]
        await self._route()
        self.running[name].cancel()
        with suppress(asyncio.CancelledError):
            await self.running.pop(name)
        remote = self.remotes.pop(name)
        remote.end_connections()
        await remote.end()
        await remote.close()

    async def close(self) -> None:
        for name in list(self.remotes):
            await self.end(name)
        self.listener.close()
        self.reactor.close()
        await self.rules.close()

    async def _route(self) -> None:
        self.router.replace(self.claims.values())
        self._capture()
        await self.rules.settled()

    def _capture(self) -> None:
        plan = Plan(self.session, redirects([self.endpoint]), self.router.routes)
        peers = tuple(peer for remote in self.remotes.values() for peer in remote.peers())
        self.rules.want(wanted(Facts(plan=plan, peers=peers)))


def shared() -> dict[str, int]:
    kinds = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            kinds.append(os.readlink(f"/proc/self/fd/{number}").partition(":[")[0])
    return {"epoll sets": kinds.count("anon_inode"), "pipes": kinds.count("pipe")}


async def obey(process: Process, command: list[Any]) -> Any:
    match command:
        case ["add", name, networks]:
            return await process.add(name, networks)
        case ["replace", name, networks]:
            return await process.replace(name, networks)
        case ["end", name]:
            return await process.end(name)
        case ["states"]:
            return {name: remote.is_up for name, remote in process.remotes.items()}
        case ["shared"]:
            return shared()
        case ["heard"]:
            return process.heard
    raise ValueError(f"unknown command: {command}")


def _raise(error: Exception) -> None:
    raise error


async def main() -> None:
    session = sys.argv[1]
    report = Report(_raise)
    rules = Rules(await start_helper(session=session), report)
    rules.want(Wanted())
    await rules.settled()
    process = Process(session, rules, report)
    loop = asyncio.get_running_loop()
    print(json.dumps("ready"), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await obey(process, json.loads(line))), flush=True)
    await process.close()


asyncio.run(main())
