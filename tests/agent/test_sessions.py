"""Whole sessions with the real agent under every Python found, driven as the client drives them."""

import asyncio
import os
import socket

import pytest

from tests.agent.far_side import VERSIONS, eventually, interpreters, marked
from tests.unit.remote.far_sessions import Far, Session, connection, run
from tests.unit.remote.test_demand import WINDOW, believed

INTERPRETERS = interpreters()

BULK_BYTES = 2_000_000


@pytest.fixture(params=[version for version in VERSIONS if version in INTERPRETERS])
def python(request: pytest.FixtureRequest) -> str:
    return INTERPRETERS[str(request.param)]


async def both_ways(program: socket.socket, host: socket.socket) -> None:
    """Bulk from each to the other arrives whole."""
    loop = asyncio.get_running_loop()
    payload = os.urandom(BULK_BYTES)
    for sender, receiver in ((program, host), (host, program)):
        sending = asyncio.ensure_future(loop.sock_sendall(sender, payload))
        received = bytearray()
        while len(received) < BULK_BYTES:
            received += await loop.sock_recv(receiver, 1 << 16)
        await sending
        assert received == payload


def test_a_connection_goes_on_over_further_lanes_and_after_all_of_them_were_cut(
    python: str,
) -> None:
    mark = os.urandom(8).hex()

    async def conversation(session: Session) -> None:
        await session.connect()
        program, host = await connection(session)
        with program, host:
            await both_ways(program, host)
            session.pool.look(believed(WINDOW))
            await session.until(lambda: len(session.lanes) == 3, "further lanes")
            await both_ways(program, host)
            for lane in list(session.tunnel.lanes.values()):
                session.tunnel.lane_ended(lane, "cut")
            await session.connect(resumes=True)
            await both_ways(program, host)

    run(Far(mark, python), conversation)
    eventually(lambda: marked(mark) == [], "the agent's end")
