"""DNS through two tunnels in one event loop: program, forwarder, agent's resolver, resolvers.

program --UDP, TCP-- DnsForwarder == client tunnel ==pipes== agent tunnel == Resolver -- resolvers
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest

from sshunt.direct import exchange, race
from sshunt.direct.resolve import Resolver
from sshunt.front.dns import DnsForwarder
from sshunt.front.dns_sockets import open_dns_sockets
from sshunt.mux import frames
from sshunt.mux.events import DatagramReceived
from sshunt.mux.frames import Destination
from sshunt.mux.streams import Stream
from sshunt.relay import dns as relay_dns
from sshunt.relay.dns import Settings
from sshunt.relay.flow import (
    NO_RESOURCES,
    Asked,
    Carrier,
    Connection,
    Question,
    Relay,
    Relays,
    SocketConnection,
)
from sshunt.relay.incoming import FlowQuestion
from sshunt.relay.tunnel import Tunnel
from sshunt.remote.queries import Queries
from sshunt.tell.report import Report
from tests.unit.front.office import Answer, resolver
from tests.unit.relay.ends import Ends, run, threaded

DEADLINE_S = 20.0


class Carried(Carrier):
    """What a remote does for DNS, over the client's tunnel and nothing else."""

    is_up = True

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.queries = Queries(tunnel.loop)

    def connect(self, connection: Connection) -> Relay:
        assert isinstance(connection, SocketConnection)
        destination = Destination(connection.flow.network, *connection.flow.destination)
        relay = self.tunnel.relay(self.tunnel.open(destination))
        relay.start(connection.take())
        return relay

    def ask(self, question: Question) -> Asked:
        if self.is_up:
            return self.queries.ask(self.tunnel, question)
        question.refused(NO_RESOURCES)
        return Asked()


class Names:
    """Both ends, up. ``asked[n]``: how resolver number n was asked, as it happens."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.carrier = Carried(ends.client)
        ends.agent_hears.datagram = self.at_agent
        ends.agent_hears.request = self._asked_by_tcp
        sockets = open_dns_sockets(4)
        self.address, self.port = sockets.endpoint
        report = Report(lambda error: pytest.fail(str(error)))
        self.forwarder = DnsForwarder(ends.client.loop, report, [sockets], self.carrier, Relays())
        self.forwarder.start()

    def lose_connection(self) -> None:
        """The carrier is down."""
        self.carrier.is_up = False
        self.carrier.queries.fail_all()
        self.forwarder.on_down()

    @property
    def resolver(self) -> Resolver:
        """The agent's."""
        return self.ends.direct._resolver

    def at_agent(self, event: DatagramReceived) -> None:
        question = FlowQuestion(self.ends.agent, event.flow, event.data)
        question.asked = self.ends.direct.ask(question)

    def _asked_by_tcp(self, stream: Stream, destination: Destination) -> None:
        assert destination.network == frames.DNS
        self.ends.serve(stream, destination)

    async def answer(
        self, name: str, *, tcp: bool = False, edns: bool = True
    ) -> dns.message.Message:
        """What is said about a name's addresses."""
        query = dns.message.make_query(name, "A", use_edns=0 if edns else False)
        by = dns.query.tcp if tcp else dns.query.udp
        return await threaded(lambda: by(query, self.address, DEADLINE_S, self.port))

    async def ask(
        self, name: str = "git.corp.example", *, tcp: bool = False, edns: bool = True
    ) -> str:
        """The address, or the name of what went wrong."""
        answer = await self.answer(name, tcp=tcp, edns=edns)
        if answer.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(answer.rcode())
        return str(next(iter(answer.answer[0])))


def talk(
    monkeypatch: pytest.MonkeyPatch,
    there: list[Answer | None],
    conversation: Callable[[Names, list[list[str]]], Awaitable[None]],
    first_s: float = 0.5,
    **options: Any,
) -> None:
    """``there`` are the far side's resolvers, in order; None: nobody listens at that address."""
    with socket.create_server(("127.0.0.20", 0)) as free:
        port = free.getsockname()[1]
    addresses = [f"127.0.0.{20 + number}" for number in range(len(there))]
    monkeypatch.setattr(relay_dns, "PORT", port)
    conf = Settings(tuple(addresses))._replace(**options)
    monkeypatch.setattr(relay_dns, "settings", lambda: conf)
    monkeypatch.setattr(exchange, "RESEND_S", 0.2)
    monkeypatch.setattr(race, "FIRST_S", first_s)
    monkeypatch.setattr(race, "DEADLINE_S", 3 * first_s)

    async def whole(ends: Ends) -> None:
        with ExitStack() as stack:
            asked = [
                stack.enter_context(resolver(address, port, answer))
                for address, answer in zip(addresses, there, strict=True)
                if answer is not None
            ]
            one = Names(ends)
            try:
                await conversation(one, asked)
            finally:
                one.forwarder.close()
                one.carrier.queries.close()
                ends.direct.close()
                await asyncio.sleep(0.05)

    run(whole)
