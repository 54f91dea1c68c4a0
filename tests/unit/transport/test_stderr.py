"""ssh's stderr: shown line by line, printable, rationed, and kept for the diagnosis."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from sshunt.transport.stderr import SHOWN_LINES, STDERR_LINE_CHARACTERS, STDERR_LINES, StderrLines


def run(conversation: Callable[[StderrLines, int, list[str]], Awaitable[None]]) -> None:
    async def whole() -> None:
        shown: list[str] = []
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        lines = StderrLines(read_end, shown.append)
        await conversation(lines, write_end, shown)
        lines.close()
        os.close(write_end)

    asyncio.run(whole())


def test_lines_are_shown_as_they_come_whatever_pieces_they_come_in() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        for piece in (b"Warn", b"ing: one\n\nWarning: ", b"two\n"):
            os.write(fd, piece)
            await asyncio.sleep(0.01)
        assert shown == ["Warning: one", "Warning: two"]

    run(conversation)


def test_control_characters_of_the_other_side_do_not_reach_the_terminal() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, b"\x1b]0;owned\x07 hello\n")
        await asyncio.sleep(0.01)
        assert shown == [" ]0;owned  hello"]

    run(conversation)


def test_an_endless_line_is_cut() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, b"x" * (3 * STDERR_LINE_CHARACTERS))
        await asyncio.sleep(0.01)
        assert shown == ["x" * STDERR_LINE_CHARACTERS]

    run(conversation)


def test_a_flood_is_rationed_its_end_is_kept_and_the_loop_stays_free() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        loop = asyncio.get_running_loop()
        rounds = 0
        for block in range(100):
            text = b"".join(b"noise %d\n" % (block * 100 + number) for number in range(100))
            await loop.run_in_executor(None, os.write, fd, text)
            rounds += 1
        await asyncio.sleep(0.05)
        assert rounds == 100
        assert len(shown) == SHOWN_LINES
        assert list(lines.lines) == [f"noise {n}" for n in range(10_000 - STDERR_LINES, 10_000)]

    run(conversation)
