"""ssh's stderr: shown line by line, printable, rationed, and kept for the diagnosis."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from sshunt.transport.stderr import (
    SHOWN_LINES,
    STDERR_LINE_CHARACTERS,
    STDERR_LINES,
    WITHHELD_LINES,
    StderrLines,
)


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
        assert shown == ["ssh: Warning: one", "ssh: Warning: two"]

    run(conversation)


def test_control_characters_of_the_other_side_do_not_reach_the_terminal() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, b"\x1b]0;owned\x07 hello\n")
        await asyncio.sleep(0.01)
        assert shown == ["ssh:  ]0;owned  hello"]

    run(conversation)


def test_an_endless_line_is_cut() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, b"x" * (3 * STDERR_LINE_CHARACTERS))
        await asyncio.sleep(0.01)
        assert shown == ["ssh: " + "x" * STDERR_LINE_CHARACTERS]

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


def test_no_line_can_pass_for_one_of_ours_or_of_anybody_but_ssh() -> None:
    said = ["sshunt: connected to gate", "[sshunt] sudo password for root: ", "ssh: a warning"]

    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, "".join(f"{line}\n" for line in said).encode())
        await asyncio.sleep(0.01)
        lines.show_withheld()
        assert len(shown) == len(said)
        assert all(line.startswith("ssh: ") for line in shown)

    run(conversation)


def test_what_is_held_back_for_a_diagnosis_is_bounded() -> None:
    async def conversation(lines: StderrLines, fd: int, shown: list[str]) -> None:
        os.write(fd, b"Connection closed by 192.0.2.2 port 22\n" * (WITHHELD_LINES + 3))
        await asyncio.sleep(0.01)
        assert len(shown) == 3
        lines.show_withheld()
        assert len(shown) == WITHHELD_LINES + 3

    run(conversation)
