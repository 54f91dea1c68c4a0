"""The client's end of the conversation with the packet process; the other end is the test's."""

import asyncio
import socket

from sshunt.host import packets
from sshunt.host.packets import PacketChannel


def test_each_kind_goes_to_who_wants_it_and_others_to_nobody() -> None:
    async def story() -> None:
        channel = PacketChannel(asyncio.get_running_loop())
        heard: list[tuple[int, bytes]] = []
        channel.subscribe(range(1, 3), lambda kind, body: heard.append((kind, body)))
        for message in (b"\x01one", b"\x05nobody's", b"\x02"):
            channel.theirs.send(message)
        while len(heard) < 2:
            await asyncio.sleep(0)
        assert heard == [(1, b"one"), (2, b"")]
        channel.send(7, b"seven")
        assert channel.theirs.recv(100) == b"\x07seven"
        channel.close()
        channel.close()

    asyncio.run(story())


def test_what_the_socket_does_not_take_waits_in_order_and_what_is_too_much_is_lost() -> None:
    async def story() -> None:
        channel = PacketChannel(asyncio.get_running_loop())
        channel.theirs.setblocking(False)
        sent = 0
        while not channel.lost:
            channel.send(1, sent.to_bytes(4, "big"))
            sent += 1
        assert sent > packets._MOST_WAITING
        arrived: list[int] = []
        while len(arrived) < sent - 1:
            try:
                arrived.append(int.from_bytes(channel.theirs.recv(100)[1:], "big"))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert arrived == list(range(sent - 1))
        channel.send(1, b"there is room again")
        assert channel.theirs.recv(100) == b"\x01there is room again"
        channel.close()

    asyncio.run(story())


def test_a_process_that_is_gone_hears_nothing_and_harms_nobody() -> None:
    async def story() -> None:
        channel = PacketChannel(asyncio.get_running_loop())
        channel.theirs.close()
        for _ in range(3):
            await asyncio.sleep(0)
        channel.send(1, b"?")
        assert channel.lost == 1
        channel.close()

    asyncio.run(story())


def test_it_is_a_socket_of_messages() -> None:
    async def story() -> None:
        channel = PacketChannel(asyncio.get_running_loop())
        assert channel.theirs.type == socket.SOCK_SEQPACKET
        channel.close()

    asyncio.run(story())
