"""Channels to programs that stand in an agent's place, and say what a test has them say."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from sshunt.mux.hello import AGENT, CLIENT, Hello, make_hello
from sshunt.transport.channel import Channel
from sshunt.transport.process import Signals, spawn

TOKEN = bytes(range(32))
OURS = make_hello(CLIENT, TOKEN, lane=1)
THEIRS = make_hello(AGENT, TOKEN, lane=1)

#: Prints what follows, bytes in hexadecimal or a pause in seconds, and waits for the end of input.
_SAYS = """\
import os, sys, time
for word in sys.argv[1:]:
    if word.startswith("pause"):
        time.sleep(float(word[5:]))
    else:
        os.write(1, bytes.fromhex(word))
while os.read(0, 65536):
    pass
"""


class Heard:
    """Keeps what becomes of an opening."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.lines: list[str] = []
        self.silences: list[str] = []
        self.addresses: list[str] = []

    def on_started(self, channel: Channel) -> None:
        self.channels.append(channel)

    def on_line(self, line: str) -> None:
        self.lines.append(line)

    def on_silence(self, why: str) -> None:
        self.silences.append(why)

    def on_known_address(self, address: str) -> None:
        self.addresses.append(address)


async def channel_to(*argv: str, on_line: Callable[[str], None] = print) -> Channel:
    process, pipes = await spawn(argv, on_line, None, signals=Signals.UNCHANGED)
    return Channel("far", process, pipes)


async def shell(script: str) -> Channel:
    return await channel_to("/bin/sh", "-c", script)


async def saying(*what: bytes | Hello | float) -> Channel:
    """A far side that says these, and pauses between."""
    words = []
    for each in what:
        if isinstance(each, Hello):
            words.append(each.encode().hex())
        else:
            words.append(each.hex() if isinstance(each, bytes) else f"pause{each}")
    return await channel_to(sys.executable, "-c", _SAYS, *words)


def run(conversation: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await conversation()

    asyncio.run(whole())
