"""A loop whose clock can be put forward, for pauses and deadlines that no test waits for."""

import asyncio
from collections.abc import Coroutine


class Clock(asyncio.SelectorEventLoop):
    """The loop. Its timers are late by nothing but what it is put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


async def put_forward(seconds: float) -> None:
    """Let what has happened be dealt with, and then this time have passed."""
    await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.ahead_s += seconds
    await asyncio.sleep(0.01)


def run(story: Coroutine[None, None, None]) -> None:
    """Run it in such a loop, and let what it has closed say so."""

    async def whole() -> None:
        await story
        await asyncio.sleep(0.01)

    loop = Clock()
    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()
