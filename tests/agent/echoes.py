"""The agent's echo requests, to its own host, in any Python from 3.6 on.

Run by ``test_interpreters``; says what came back: replies to requests that might have gone further,
and to such as might not, of each family; and what ping(8) is taken for.
"""

import asyncio

from sshunt.direct import echo
from sshunt.direct.echo import Echoes
from sshunt.relay.echo import ANSWER, REQUEST, VALUE
from sshunt.relay.flow import ECHO, Association, Flow
from sshunt.relay.reactor import Reactor

DEADLINE_S = 20.0


class Asks(Association):
    def __init__(self, echoes: Echoes, destination: str) -> None:
        super().__init__(Flow(ECHO, (destination, 0)), 60.0)
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.outlet = echoes.associate(self)

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        self.heard.put_nowait(datagram)

    def failed(self, code: int, value: int = 0) -> None:
        print("failed", code, value, end=" ")

    def ended(self, code: int) -> None:
        print("ended", code, end=" ")

    async def ask(self, hops: int, data: bytes) -> None:
        self.outlet.send(REQUEST.pack(hops, 0, 7) + data)
        answer = await asyncio.wait_for(self.heard.get(), DEADLINE_S)
        what, _, hops, sequence = ANSWER.unpack_from(answer)
        rest = answer[ANSWER.size :]
        print(what, hops, sequence, rest[VALUE.size :] if what in (3, 11) else rest, end=" ")


async def conversation(echoes: Echoes) -> None:
    for address in ("127.0.0.1", "::1"):
        await Asks(echoes, address).ask(40, b"data")
    for address in ("127.0.0.1", "::1"):
        await Asks(echoes, address).ask(1, b"")

    def forbidden(family: object) -> object:
        raise PermissionError(1, "no")

    echo._opened = forbidden  # type: ignore[assignment]
    await Asks(echoes, "127.0.0.1").ask(40, b"data")
    print("left", len(echoes.children))


def main() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    reactor = Reactor(loop)
    echoes = Echoes(reactor)
    loop.run_until_complete(conversation(echoes))
    echoes.close()
    reactor.close()
    loop.close()


main()
