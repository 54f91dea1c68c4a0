"""A host with resolvers of its own, and something that asks them: no tunnel.

``there`` are the resolvers, in the order of resolv.conf; None: nobody listens at that address.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import dns.message
import pytest

from sshunt.direct import exchange
from sshunt.relay import dns as relay_dns
from sshunt.relay.dns import Settings
from sshunt.relay.reactor import Reactor
from tests.unit.front.office import Answer, resolver

#: More than anything here takes.
DEADLINE_S = 20.0

RESEND_S = 0.1


class Host:
    """Its reactor, its resolvers' addresses, and how each of them was asked, as it happens."""

    def __init__(self, reactor: Reactor, addresses: list[str], asked: list[list[str]]) -> None:
        self.reactor = reactor
        self.addresses = addresses
        self.asked = asked

    @property
    def deadline(self) -> float:
        return self.reactor.loop.time() + DEADLINE_S


def query(name: str = "git.corp.example") -> bytes:
    return dns.message.make_query(name, "A").to_wire()


def address_in(message: bytes) -> str:
    return str(next(iter(dns.message.from_wire(message).answer[0])))


def ask(
    monkeypatch: pytest.MonkeyPatch,
    there: list[Answer | None],
    conversation: Callable[[Host], Awaitable[None]],
    **options: Any,
) -> None:
    """Run one conversation with such a host; ``options`` are those of its resolv.conf."""
    with socket.create_server(("127.0.0.40", 0)) as free:
        port = free.getsockname()[1]
    addresses = [f"127.0.0.{40 + number}" for number in range(len(there))]
    settings = Settings(tuple(addresses))._replace(**options)
    monkeypatch.setattr(relay_dns, "PORT", port)
    monkeypatch.setattr(relay_dns, "settings", lambda: settings)
    monkeypatch.setattr(exchange, "RESEND_S", RESEND_S)

    async def whole() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        with ExitStack() as stack:
            asked: list[list[str]] = [
                stack.enter_context(resolver(address, port, answer)) if answer is not None else []
                for address, answer in zip(addresses, there, strict=True)
            ]
            try:
                await asyncio.wait_for(conversation(Host(reactor, addresses, asked)), 60)
            finally:
                reactor.close()
                await asyncio.sleep(0)

    asyncio.run(whole())
