"""The relay, with real sockets and pipes: bytes, ends, errors, and who waits for whom."""

import asyncio
import errno
import fcntl
import os
import random
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from sshunt.mux import frames
from sshunt.mux.frames import TCP, Destination
from sshunt.mux.limits import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES, SEND_QUEUE_BYTES
from sshunt.relay import lane, linux, piped
from sshunt.relay.reactor import AUTO, COPY, SPLICE
from sshunt.relay.sockets import without_delay
from sshunt.relay.tcp import ROOM
from tests.unit.relay.ends import DEADLINE_S, Ends, accept, listen, read_all, run, threaded

BULK = os.urandom(5_000_000)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly(sock: socket.socket, count: int) -> None:
    while count:
        count -= len(sock.recv(min(count, 65536)))


def push_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"more")
        time.sleep(0.005)


def push_until_stuck(sock: socket.socket) -> int:
    """How many bytes ``sock`` took before it took no more for its timeout."""
    pushed = 0
    try:
        while True:
            pushed += sock.send(bytes(65536))
    except TimeoutError:
        return pushed


async def settle(ends: Ends) -> None:
    """Wait until no relay is left at either end, and no pipe holds anything."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while ends.client.relays or ends.agent.relays:
        assert asyncio.get_running_loop().time() < deadline, "a relay never ended"
        await asyncio.sleep(0.005)
    while ends.client.reactor.pipes.in_use or ends.agent.reactor.pipes.in_use:
        assert asyncio.get_running_loop().time() < deadline, "a pipe was never given back"
        await asyncio.sleep(0.005)


def test_bytes_arrive_in_order_and_whole_in_both_directions_at_once(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))

            results = await asyncio.gather(
                threaded(lambda: push_all(program)),
                threaded(lambda: push_all(host)),
                threaded(lambda: read_all(program)),
                threaded(lambda: read_all(host)),
            )
            assert results[2] == BULK
            assert results[3] == BULK
            await settle(ends)
            program.close()
            host.close()

    run(conversation, way=way)


def test_data_written_before_the_far_connection_is_up_is_delivered(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            program.sendall(b"at once")
            host = await threaded(lambda: accept(listener))
            assert await threaded(lambda: host.recv(100)) == b"at once"
            program.close()
            host.close()
            await settle(ends)

    run(conversation, way=way)


def test_a_half_closed_connection_still_carries_the_answer(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
            program.sendall(b"question")
            program.shutdown(socket.SHUT_WR)
            assert await threaded(lambda: read_all(host)) == b"question"
            host.sendall(b"answer")
            host.close()
            assert await threaded(lambda: read_all(program)) == b"answer"
            program.close()
            await settle(ends)

    run(conversation, way=way)


def test_a_reset_of_the_far_host_ends_the_local_connection_at_once(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
            reset(host)
            # The local end is a Unix socket here; it has no RST, an end is what it can show.
            assert await threaded(lambda: program.recv(1)) == b""
            await settle(ends)
            program.close()

    run(conversation, way=way)


def test_a_local_end_that_vanishes_resets_the_far_connection(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
            await threaded(lambda: host.sendall(b"unread"))
            await asyncio.sleep(0.1)
            program.close()  # with unread data: the relay's next write fails
            with pytest.raises(ConnectionError):
                await threaded(lambda: push_for_ever(host))
            await settle(ends)
            host.close()

    run(conversation, way=way)


def test_a_refused_connection_ends_the_local_one(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            address = listener.getsockname()
        program = ends.connect(*address)
        assert await threaded(lambda: program.recv(1)) == b""
        await settle(ends)
        program.close()

    run(conversation, way=way)


def test_a_name_is_looked_up_over_there_and_all_its_addresses_are_tried(
    way: int,
) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect("localhost", listener.getsockname()[1])
            program.sendall(b"early")
            host = await threaded(lambda: accept(listener))
            assert await threaded(lambda: host.recv(100)) == b"early"
            program.close()
            host.close()
            await settle(ends)

    run(conversation, way=way)


def test_a_name_that_nobody_knows_ends_the_local_connection(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        program = ends.connect("no-such-host.invalid", 80)
        assert await threaded(lambda: program.recv(1)) == b""
        await settle(ends)
        program.close()

    run(conversation, way=way)


def test_a_reader_that_stops_bounds_what_both_ends_hold_and_stalls_nobody_else(
    way: int,
) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            stopped = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
            host.settimeout(0.5)
            pushed = await threaded(lambda: push_until_stuck(host))
            # Window and queues of ours, and the kernel's socket buffers on the way.
            assert pushed < MAX_WINDOW_BYTES + SEND_QUEUE_BYTES + 16_000_000
            [relay] = ends.client.relays
            held = len(relay._backlog or ())
            assert INITIAL_WINDOW_BYTES // 4 < held <= MAX_WINDOW_BYTES

            program = ends.connect(*listener.getsockname())
            other = await threaded(lambda: accept(listener))
            await asyncio.gather(
                threaded(lambda: other.sendall(BULK)),
                threaded(lambda: read_exactly(program, len(BULK))),
            )
            for sock in (stopped, host, program, other):
                sock.close()

    run(conversation, way=way)


def test_what_a_dead_lane_swallowed_arrives_over_the_next_one(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program = ends.connect(*listener.getsockname())
            host = await threaded(lambda: accept(listener))
            received = asyncio.ensure_future(threaded(lambda: read_all(host)))
            sending = asyncio.ensure_future(threaded(lambda: program.sendall(BULK)))
            for lane in range(8):
                await asyncio.sleep(0.002)
                ends.client.lane_ended(ends.client.lanes[lane], "cut by the test")
                while ends.agent.lanes:
                    await asyncio.sleep(0.001)
                ends.join(lane + 1)
            await sending
            program.shutdown(socket.SHUT_WR)
            assert await received == BULK
            program.close()
            host.close()
            await settle(ends)

    run(conversation, way=way)


def test_bytes_that_are_not_the_protocol_end_the_lane_with_a_reason(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        lane = ends.agent.lanes[0]
        os.write(lane._write_fd, b"\xff" * 64)
        while not ends.ended:
            await asyncio.sleep(0.001)
        assert "protocol" in ends.ended[0]
        assert "type 255" in ends.ended[0]

    run(conversation, way=way)


@pytest.mark.parametrize("who", ["program", "host"])
def test_a_reset_is_noticed_while_the_other_side_does_not_read(who: str, way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            pushing, silent = (program, host) if who == "program" else (host, program)
            pushing.settimeout(0.5)
            await threaded(lambda: push_until_stuck(pushing))
            reset(pushing)
            silent.settimeout(10)
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: read_exactly(silent, 1 << 40))
            await settle(ends)
            silent.close()

    run(conversation, way=way)


def unacknowledged(sock: socket.socket) -> int:
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]  # type: ignore[no-any-return]


def test_data_sent_before_a_hang_up_is_delivered_however_late_it_is_read(way: int) -> None:
    """A kernel forgets a connection that was closed a minute ago, and answers with a reset what
    comes for it then; so it does at once where something was left unread.
    """

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
        [far] = ends.agent.relays
        await threaded(lambda: program.sendall(b"never read"))
        said = 0
        host.setblocking(False)
        while far._reading != ROOM:
            if not unacknowledged(host):
                said += host.send(bytes(65_536))
            await asyncio.sleep(0)
        said += host.send(b"the end")
        while unacknowledged(host):
            await asyncio.sleep(0.005)
        host.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.1)
        host.close()
        await asyncio.sleep(0.3)
        assert len(await threaded(lambda: read_all(program))) == said
        program.close()
        await settle(ends)

    run(conversation, way=way)


def test_where_the_session_ends_with_its_lane_so_do_its_connections() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            await threaded(lambda: program.sendall(BULK[:1000]))
            await threaded(lambda: read_exactly(host, 1000))
            ends.client.lane_ended(ends.client.lanes[0], "cut by the test")
            for sock in (program, host):
                with pytest.raises(ConnectionResetError):
                    await threaded(lambda sock=sock: read_exactly(sock, 1))  # type: ignore[misc]
                sock.close()
            await settle(ends)

    run(conversation, outlives_lanes=False)


@pytest.mark.parametrize("seed", range(6))
def test_a_reset_in_the_middle_of_bulk_never_delivers_a_byte_that_was_not_sent(
    seed: int, way: int
) -> None:
    rng = random.Random(seed)

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            pairs = []
            for _ in range(3):
                pairs.append(await joined(ends, listener))
            received = [bytearray() for _ in pairs]
            jobs = []
            for (program, host), store in zip(pairs, received, strict=True):
                sender, reader = (program, host) if rng.random() < 0.5 else (host, program)
                cut = rng.randrange(len(BULK))
                jobs.append(threaded(lambda s=sender, n=cut: send_and_reset(s, n)))  # type: ignore[misc]
                jobs.append(threaded(lambda r=reader, b=store: read_slowly(r, b, seed)))  # type: ignore[misc]
            await asyncio.gather(*jobs)
            for store in received:
                assert BULK.startswith(store)
            for pair in pairs:
                for sock in pair:
                    sock.close()
            await settle(ends)

    run(conversation, way=way)


def send_and_reset(sock: socket.socket, count: int) -> None:
    with suppress(OSError):
        sock.sendall(BULK[:count])
    reset(sock)


def read_slowly(sock: socket.socket, store: bytearray, seed: int) -> None:
    rng = random.Random(seed)
    with suppress(ConnectionError):
        while part := sock.recv(rng.choice((1000, 100_000, 1_000_000))):
            store += part
            if rng.random() < 0.05:
                time.sleep(0.003)


async def joined(ends: Ends, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A program, and the host that it has reached through the tunnel, where ``listener`` is."""
    program = await through_tcp(ends, listener.getsockname())
    return program, await threaded(lambda: accept(listener))


async def through_tcp(ends: Ends, destination: tuple[str, int]) -> socket.socket:
    """What a program gets that connects through the tunnel, over real TCP at this end, too."""
    with listen() as door:
        without_delay(door)
        program = await threaded(lambda: socket.create_connection(door.getsockname()))
        ours = await threaded(lambda: door.accept()[0])
    ours.setblocking(False)
    ends.client.relay(ends.client.open(Destination(TCP, *destination))).start(ours)
    program.settimeout(DEADLINE_S)
    return program


def test_with_zero_copy_always_bulk_never_enters_memory(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            # Also where it is always to be so: the first windows are small, each piece takes a pipe
            # until it is acknowledged, and where pipes run out, one is read into memory.
            least = len(BULK) * 9 // 10 if way == SPLICE else len(BULK) // 4
            for _ in range(20):  # until the pacer knows the link its frames are small
                await asyncio.gather(
                    threaded(lambda: program.sendall(BULK)),
                    threaded(lambda: read_exactly(host, len(BULK))),
                )
                if min(ends.client.teed_bytes, ends.agent.spliced_bytes) >= least or way != AUTO:
                    break
            program.close()
            host.close()
            await settle(ends)
            if way == COPY:
                assert ends.client.teed_bytes == ends.agent.spliced_bytes == 0
            else:
                assert ends.client.teed_bytes >= least
                assert ends.agent.spliced_bytes >= len(BULK) // 4

    run(conversation, way=way)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EPERM], ids=["memory", "forbidden"])
def test_refused_splices_fall_back_to_copying(
    error: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    refused: list[str] = []

    def unreliable(name: str, operation: Callable[..., int]) -> Callable[..., int]:
        def attempt(*arguments: int) -> int:
            if rng.random() < 0.2:
                refused.append(name)
                raise OSError(error, os.strerror(error))
            return operation(*arguments)

        return attempt

    monkeypatch.setattr(piped, "splice", unreliable("in", linux.splice))
    monkeypatch.setattr(piped, "tee", unreliable("tee", linux.tee))
    monkeypatch.setattr(lane, "splice", unreliable("out", linux.splice))

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            pairs = ((program, host), (host, program))
            got = [threaded(lambda to=to: read_all(to)) for _, to in pairs]  # type: ignore[misc]
            put = [threaded(lambda by=by: push_all(by)) for by, _ in pairs]  # type: ignore[misc]
            assert (await asyncio.gather(*got, *put))[:2] == [BULK, BULK]
            for sock in (program, host):
                sock.close()
            await settle(ends)

    run(conversation, way=SPLICE)
    if error == errno.ENOMEM:  # for the other is asked only once
        assert set(refused) == {"in", "tee", "out"}


def push_all(sock: socket.socket) -> None:
    sock.sendall(BULK)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("who", ["program", "host"])
def test_urgent_bytes_keep_their_place_in_the_stream(who: str, way: int) -> None:
    """tcp(7), MSG_OOB; splice(2) stops before such a byte as if there were no more."""
    urgent_at = (0, 1, 70_000, 2_000_000, len(BULK))

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            sender, reader = (program, host) if who == "program" else (host, program)
            parts = [BULK[a:b] for a, b in zip((0, *urgent_at), (*urgent_at, None), strict=True)]

            def push() -> None:
                sender.sendall(parts[0])
                for part in parts[1:]:
                    sender.send(b"!", socket.MSG_OOB)
                    sender.sendall(part)
                sender.shutdown(socket.SHUT_WR)

            _, received = await asyncio.gather(threaded(push), threaded(lambda: read_all(reader)))
            assert received == b"!".join(parts)
            program.close()
            host.close()
            await settle(ends)

    run(conversation, way=way)


def test_many_small_segments_at_once_arrive_without_another_event(way: int) -> None:
    """A pipe holds so many pieces, however small: what is spliced short need not be all."""

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            program, host = await joined(ends, listener)
            other = await threaded(lambda: socket.create_connection(listener.getsockname()))
            for sock in (host, other):
                without_delay(sock)
            for _ in range(3):
                for _ in range(1000):  # the loop does not see them one by one
                    host.send(b"a few bytes")
                    other.send(b"so that the kernel can't join them")
                await threaded(lambda: read_exactly(program, 11_000))
            for sock in (program, host, other):
                sock.close()
            await settle(ends)

    run(conversation, way=way)


@pytest.mark.parametrize("upload", [100, 300_000])
def test_an_answer_sent_before_hanging_up_on_an_upload_arrives(upload: int, way: int) -> None:
    """As web servers refuse a large upload: an answer, and close() with bytes unread, a reset."""

    async def conversation(ends: Ends) -> None:
        for _ in range(5):
            with listen() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                program, host = await joined(ends, listener)
            program.setblocking(False)
            with suppress(BlockingIOError):
                program.send(bytes(upload))
            await asyncio.sleep(0.05)
            host.sendall(b"413 Content Too Large")
            host.close()
            program.settimeout(DEADLINE_S)
            assert await threaded(partial(program.recv, 100)) == b"413 Content Too Large"
            program.close()
            await settle(ends)

    run(conversation, way=way)


def test_a_connection_that_is_over_takes_nobody_elses_events_with_it(way: int) -> None:
    """Its last bytes are written and it is closed in the middle of what it is told."""

    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            program, host = await joined(ends, listener)
            [far] = ends.agent.relays
            far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            other, other_host = await joined(ends, listener)
        host.shutdown(socket.SHUT_WR)
        assert await threaded(lambda: program.recv(1)) == b""
        program.setblocking(False)
        while far._backlog is None:
            with suppress(BlockingIOError):
                program.send(bytes(4096))
            await asyncio.sleep(0.002)
        program.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.1)
        host.setblocking(False)
        with suppress(BlockingIOError):
            while host.recv(1 << 20):
                pass
        other_host.sendall(b"answer")  # before the loop has seen anything of it
        await threaded(lambda: read_exactly(other, 6))
        host.setblocking(True)
        await threaded(lambda: read_all(host))
        for sock in (program, host, other, other_host):
            sock.close()
        await settle(ends)

    run(conversation, way=way)


def test_a_reset_behind_unread_data_is_noticed_though_the_stream_is_full() -> None:
    async def conversation(ends: Ends) -> None:
        with listen() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            program, host = await joined(ends, listener)
        [near], [far] = ends.client.relays, ends.agent.relays
        near.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        program.setblocking(False)
        with suppress(BlockingIOError):  # more than a window, at once
            while True:
                program.send(bytes(65536))
        reset(program)
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while ends.client.relays:
            assert asyncio.get_running_loop().time() < deadline, "the reset was not noticed"
            await asyncio.sleep(0.01)
        host.close()
        await settle(ends)

    run(conversation)


def test_a_reset_that_is_met_while_the_program_hangs_up_is_told_as_one(way: int) -> None:
    """The FIN is passed on to a socket that is not connected any more (shutdown(2), ENOTCONN)."""

    async def conversation(ends: Ends) -> None:
        codes: asyncio.Queue[int] = asyncio.Queue()
        ends.client_hears.reset = lambda _, code: codes.put_nowait(code)
        with listen() as listener:
            program, host = await joined(ends, listener)
        [near], [far] = ends.client.relays, ends.agent.relays
        host.setblocking(False)
        while far._reading != ROOM:
            with suppress(BlockingIOError):
                host.send(bytes(65_536))
            await asyncio.sleep(0)
        # In one round of the loop: the program's end is on its way, and then the host is gone.
        ends.client.session.finish(near.stream, ends.client.loop.time())
        ends.client.pump()
        reset(host)
        assert await asyncio.wait_for(codes.get(), DEADLINE_S) == frames.RESET_ABORTED
        program.close()
        await settle(ends)

    run(conversation, way=way)


def test_a_socket_that_cannot_be_watched_is_refused_and_the_next_one_served(way: int) -> None:
    async def conversation(ends: Ends) -> None:
        add = ends.agent.reactor.readiness.add
        left = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

        def short(*arguments: object) -> None:
            if left:
                raise left.pop()
            add(*arguments)  # type: ignore[arg-type]

        ends.agent.reactor.readiness.add = short  # type: ignore[assignment, method-assign]
        with listen() as listener:
            programs = [await through_tcp(ends, listener.getsockname()) for _ in range(2)]
            with pytest.raises(ConnectionResetError):
                await threaded(lambda: read_exactly(programs[0], 1))
            hosts = [await threaded(lambda: accept(listener)) for _ in range(2)]
            hosts[1].sendall(b"answer")
            await threaded(lambda: read_exactly(programs[1], 6))
        for sock in (*programs, *hosts):
            sock.close()
        await settle(ends)

    run(conversation, way=way)
