"""Several sessions in one process: one epoll set, one pool of pipes, two timers, one flush each."""

import asyncio
import os
import select
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from sshunt.direct.carrier import Direct
from sshunt.mux import frames
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.incoming import StreamConnection
from sshunt.relay.reactor import AUTO, SPLICE, Pumped, Reactor
from sshunt.relay.tunnel import Tunnel, TunnelOwner
from tests.unit.mux.ends import VOICE
from tests.unit.relay.ends import DEADLINE_S, Hears, accept, listen, read_all, threaded

BULK = os.urandom(3_000_000)


class Remotes:
    """One client with sessions to ``count`` far sides: theirs are in one reactor, too."""

    def __init__(self, count: int, way: int = AUTO) -> None:
        loop = asyncio.get_running_loop()
        self.near, self.far = Reactor(loop, way=way), Reactor(loop, way=way)
        self.clients: list[Tunnel] = []
        self.agents: list[Tunnel] = []
        self.direct = Direct(self.far)
        self.hears: list[Hears] = []
        for _ in range(count):
            hears, serves = Hears(), Hears()
            client = Tunnel(self.near, Session(CLIENT), hears, outlives_lanes=True)
            agent = Tunnel(self.far, Session(AGENT), serves, outlives_lanes=True)
            serves.request = partial(self.serve, agent)
            to_agent, from_client = os.pipe()
            to_client, from_agent = os.pipe()
            client.add_lane(0, to_client, from_client)
            agent.add_lane(0, to_agent, from_agent)
            self.clients.append(client)
            self.agents.append(agent)
            self.hears.append(hears)

    def serve(self, agent: Tunnel, stream: Stream, destination: Destination) -> None:
        self.direct.connect(StreamConnection(agent, stream, destination))

    def connect(self, number: int, destination: tuple[str, int]) -> socket.socket:
        """What a program gets that connects by the remote of this number."""
        program, ours = socket.socketpair()
        ours.setblocking(False)
        client = self.clients[number]
        client.relay(client.open(Destination(TCP, *destination))).start(ours)
        program.settimeout(DEADLINE_S)
        return program

    def close(self) -> None:
        self.direct.close()
        for tunnel in (*self.clients, *self.agents):
            tunnel.close()
        self.near.close()
        self.far.close()


def run(
    conversation: Callable[[Remotes], Awaitable[None]], count: int = 2, way: int = AUTO
) -> None:
    async def whole() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
        remotes = Remotes(count, way)
        try:
            await conversation(remotes)
        finally:
            remotes.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(whole())
    assert len(os.listdir("/proc/self/fd")) == before


def kinds() -> list[str]:
    """What the open descriptors of this process are."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # that of the listing itself
    return found


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), DEADLINE_S)


def test_bulk_of_two_sessions_at_once_reaches_the_right_programs() -> None:
    async def conversation(remotes: Remotes) -> None:
        contents = [BULK, BULK[::-1]]
        with listen() as one, listen() as other:
            listeners = [one, other]
            programs = [
                remotes.connect(number, listener.getsockname())
                for number, listener in enumerate(listeners)
            ]
            hosts = [await threaded(lambda s=listener: accept(s)) for listener in listeners]  # type: ignore[misc]

        sending = [
            threaded(lambda s=sock, d=data: send_all(s, d))  # type: ignore[misc]
            for ends in (programs, hosts)
            for sock, data in zip(ends, contents, strict=True)
        ]
        reading = [
            threaded(lambda s=sock: read_all(s))  # type: ignore[misc]
            for ends in (hosts, programs)
            for sock in ends
        ]
        *_, up_one, up_other, down_one, down_other = await asyncio.gather(*sending, *reading)
        assert [up_one, up_other] == contents
        assert [down_one, down_other] == contents
        await until(lambda: not any(tunnel.relays for tunnel in remotes.agents))
        await until(lambda: not remotes.near.pipes.in_use + remotes.far.pipes.in_use)
        for sock in (*programs, *hosts):
            sock.close()

    run(conversation, way=SPLICE)


def test_a_session_whose_lane_takes_no_pages_leaves_the_others_theirs() -> None:
    """What is in pipes when its lane dies leaves over the next one, which is a socket here."""

    async def conversation(remotes: Remotes) -> None:
        client, agent = remotes.clients[0], remotes.agents[0]
        with listen() as listener:
            programs = [remotes.connect(number, listener.getsockname()) for number in range(2)]
            hosts = [await threaded(lambda: accept(listener)) for _ in range(2)]
        programs[0].sendall(b"which of them are you?")
        heard, _, _ = await threaded(lambda: select.select(hosts, [], [], DEADLINE_S))
        assert heard[0].recv(100)
        hosts.sort(key=lambda host: host not in heard)
        agent.loop.remove_reader(agent.lanes[0]._read_fd)  # it hangs
        sending = asyncio.ensure_future(threaded(lambda: send_all(programs[0], BULK)))
        await until(lambda: remotes.near.pipes.in_use > 0)
        for tunnel in (client, agent):
            tunnel.lane_ended(tunnel.lanes[0], "cut by the test")
        for tunnel, end in zip((client, agent), socket.socketpair(), strict=True):
            number = end.detach()
            tunnel.add_lane(1, number, number)
        assert await threaded(lambda: read_all(hosts[0])) == BULK
        await sending
        sending = asyncio.ensure_future(threaded(lambda: send_all(programs[1], BULK)))
        assert await threaded(lambda: read_all(hosts[1])) == BULK
        await sending
        assert remotes.clients[1].teed_bytes >= len(BULK) // 4
        for sock in (*programs, *hosts):
            sock.close()

    run(conversation, way=SPLICE)


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("piece", [64, 1_000_000], ids=["crumbs", "bulk"])
def test_a_session_that_is_flooded_leaves_the_other_its_turn(piece: int) -> None:
    async def conversation(remotes: Remotes) -> None:
        with listen() as listener:
            flooding = [remotes.connect(0, listener.getsockname()) for _ in range(4)]
            flooded = [await threaded(lambda: accept(listener)) for _ in range(4)]
            asking = remotes.connect(1, listener.getsockname())
            answering = await threaded(lambda: accept(listener))
        moved = [0, 0]  # up and down
        is_over = threading.Event()
        flood = [
            threaded(lambda s=sock: push_until(s, piece, is_over))  # type: ignore[misc]
            for sock in (*flooding, *flooded)
        ] + [
            threaded(lambda s=sock, w=way: count(s, moved, w))  # type: ignore[misc]
            for way, socks in enumerate((flooded, flooding))
            for sock in socks
        ]
        flows = asyncio.gather(*flood)
        await until(lambda: all(each > 10 * piece for each in moved))
        before = list(moved)
        for _ in range(20):
            asking.sendall(b"question")
            assert await threaded(lambda: answering.recv(100)) == b"question"
            answering.sendall(b"answer")
            assert await threaded(lambda: asking.recv(100)) == b"answer"
        await until(lambda: all(now > past for now, past in zip(moved, before, strict=True)))
        is_over.set()
        await flows
        for sock in (*flooding, *flooded, asking, answering):
            sock.close()

    run(conversation)


def push_until(sock: socket.socket, piece: int, is_over: threading.Event) -> None:
    while not is_over.is_set():
        sock.sendall(bytes(piece))
    sock.shutdown(socket.SHUT_WR)


def count(sock: socket.socket, moved: list[int], way: int) -> None:
    while part := sock.recv(1 << 20):
        moved[way] += len(part)


def test_further_sessions_cost_neither_an_epoll_set_nor_a_timer() -> None:
    def made(count: int) -> tuple[int, int]:
        found: list[str] = []

        async def conversation(remotes: Remotes) -> None:
            for number in range(count):
                remotes.clients[number].session.ping(0)
                remotes.clients[number].wake()
            await until(lambda: all(each.session.rtt_s for each in remotes.clients))
            found.extend(kinds())

        run(conversation, count)
        return sum("eventpoll" in kind for kind in found), sum("timerfd" in k for k in found)

    assert made(1) == made(4)


def test_the_end_of_one_session_is_nothing_to_the_other() -> None:
    async def conversation(remotes: Remotes) -> None:
        with listen() as listener:
            programs = [remotes.connect(number, listener.getsockname()) for number in range(2)]
            hosts = [await threaded(lambda: accept(listener)) for _ in range(2)]
            remotes.clients[0].close()
            programs[1].sendall(b"still there?")
            heard, _, _ = await threaded(lambda: select.select(hosts, [], [], DEADLINE_S))
            assert [sock.recv(100) for sock in heard] == [b"still there?"]
            assert await threaded(lambda: programs[0].recv(1)) == b""
        for sock in (*programs, *hosts):
            sock.close()

    run(conversation)


def test_a_batch_flushes_each_session_that_it_touched_once_and_no_other() -> None:
    class Counted(Pumped):
        pumps = 0

        def pump(self) -> None:
            self.pumps += 1

    async def conversation() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        sessions = [Session(CLIENT) for _ in range(3)]
        counted = [Counted() for _ in sessions]
        for session, each in zip(sessions, counted, strict=True):
            reactor.add(session, each)

        def work() -> None:
            for session in (sessions[0], sessions[1], sessions[0]):
                reactor.wake(session)
            assert [each.pumps for each in counted] == [0, 0, 0]

        reactor.batch(work)
        assert [each.pumps for each in counted] == [1, 1, 0]
        reactor.wake(sessions[2])  # outside a batch: at the end of the round
        reactor.wake(sessions[2])
        assert counted[2].pumps == 0
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [each.pumps for each in counted] == [1, 1, 1]
        reactor.wake(sessions[0])
        reactor.remove(sessions[0])
        await asyncio.sleep(0.01)
        assert [each.pumps for each in counted] == [1, 1, 1]
        reactor.close()

    asyncio.run(conversation())


def test_each_session_is_pumped_when_it_is_due_also_when_another_wants_nothing() -> None:
    class Timed(Pumped):
        def __init__(self) -> None:
            self.at: list[float] = []

        def pump(self) -> None:
            self.at.append(asyncio.get_running_loop().time())

    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        reactor = Reactor(loop)
        sessions, timed = [Session(CLIENT) for _ in range(2)], [Timed(), Timed()]
        for session, each in zip(sessions, timed, strict=True):
            reactor.add(session, each)
        begin = loop.time()
        reactor.remind(sessions[0], begin + 0.05)
        reactor.remind(sessions[1], begin + 0.02)
        reactor.remind(sessions[1], None)  # never mind: and still the other one is due
        await asyncio.sleep(0.1)
        assert [len(each.at) for each in timed] == [1, 0]
        assert timed[0].at[0] >= begin + 0.049
        begin = loop.time()
        reactor.remind(sessions[0], begin + 0.03)
        reactor.remind(sessions[1], begin + 0.06)
        reactor.remove(sessions[0])
        reactor.remind(sessions[0], begin + 0.01)  # it is over
        await asyncio.sleep(0.12)
        assert [len(each.at) for each in timed] == [1, 1]
        reactor.close()

    asyncio.run(conversation())


def test_a_session_whose_pump_fails_keeps_no_other_from_being_flushed() -> None:
    class Broken(Pumped):
        def pump(self) -> None:
            raise ZeroDivisionError

    async def conversation(remotes: Remotes) -> None:
        problems: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: problems.append(what["exception"]))
        session = Session(CLIENT)
        remotes.near.add(session, Broken())

        def work() -> None:
            remotes.near.wake(session)
            remotes.clients[0].session.ping(0)
            remotes.clients[0].wake()

        remotes.near.batch(work)
        await until(lambda: remotes.clients[0].session.rtt_s > 0)
        assert [type(problem) for problem in problems] == [ZeroDivisionError]

    run(conversation, 1)


def test_an_owner_who_cares_for_nothing_refuses_streams_and_bears_all_else() -> None:
    async def conversation(remotes: Remotes) -> None:
        agent = Tunnel(remotes.near, Session(CLIENT), TunnelOwner(), outlives_lanes=False)
        to_near, from_far = os.pipe()
        to_far, from_near = os.pipe()
        other = Tunnel(remotes.far, Session(AGENT), TunnelOwner(), outlives_lanes=False)
        agent.add_lane(0, to_near, from_near)
        other.add_lane(0, to_far, from_far)
        now = asyncio.get_running_loop().time()
        flow = agent.session.datagrams.open(VOICE, now)
        agent.session.datagrams.send(flow, b"hello", now)
        agent.session.tell_lane_gone(9)
        stream = agent.open(Destination(TCP, "127.0.0.1", 1))
        await until(lambda: stream.id not in agent.session.streams)
        agent.session.say_goodbye(frames.GOODBYE_DONE, "")
        agent.wake()
        await asyncio.sleep(0.02)
        agent.close()
        other.close()

    run(conversation)
