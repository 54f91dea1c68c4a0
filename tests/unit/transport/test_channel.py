"""A channel: a program's pipes, its last words, its end."""

import asyncio
import os
import signal

import pytest

from sshunt.errors import ExitCode
from sshunt.lab.hosts import is_alive
from sshunt.mux.hello import AGENT, REFUSED_SESSION_GONE, REFUSED_VERSION, make_hello
from sshunt.transport.bootstrap import EXIT_AGENT_DIED
from sshunt.transport.channel import Channel, LaneRefusedError
from tests.unit.transport.programs import run, shell


async def ended(channel: Channel) -> None:
    """Wait until the program has ended, and let go of its channel."""
    await asyncio.wait([channel.ended])
    os.close(channel.read_fd)
    os.close(channel.write_fd)
    await channel.close()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", ""),
        ("exit 3", "far ended with status 3"),
        ("kill -KILL $$", "far was killed by signal 9"),
        ("echo one >&2; echo two >&2; exit 3", "two"),
    ],
)
def test_the_last_words_are_what_was_printed_last_or_what_the_status_says(
    script: str, words: str
) -> None:
    async def conversation() -> None:
        channel = await shell(script)
        await ended(channel)
        assert channel.last_words() == words

    run(conversation)


def test_a_program_that_lives_has_no_last_words() -> None:
    async def conversation() -> None:
        channel = await shell("exec sleep 60")
        assert channel.last_words() == ""
        await channel.abandon()

    run(conversation)


@pytest.mark.parametrize(("status", "died"), [(0, False), (1, False), (EXIT_AGENT_DIED, True)])
def test_an_ending_says_whether_the_agent_has_died(status: int, died: bool) -> None:
    async def conversation() -> None:
        channel = await shell(f"exit {status}")
        await ended(channel)
        assert channel.ended.result() == (status, died)

    run(conversation)


def test_a_program_that_does_not_end_by_itself_is_killed() -> None:
    async def conversation() -> None:
        channel = await shell("trap '' TERM; echo up; while :; do sleep 60; done")
        while True:
            try:
                assert os.read(channel.read_fd, 100) == b"up\n"
                break
            except BlockingIOError:
                await asyncio.sleep(0.01)
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        await channel.close(0.05)
        assert channel.ended.result().code == -signal.SIGKILL
        assert not is_alive(channel.pid)

    run(conversation)


def test_a_cancelled_close_ends_the_program_all_the_same() -> None:
    async def conversation() -> None:
        channel = await shell("exec sleep 60")
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        closing = asyncio.ensure_future(channel.close(60.0))
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not is_alive(channel.pid)

    run(conversation)


def test_an_abandoned_channel_leaves_no_process_and_no_descriptor() -> None:
    async def conversation() -> None:
        await ended(await shell("exit 0"))  # the loop's own descriptors
        before = sorted(os.listdir("/proc/self/fd"))
        channel = await shell("exec sleep 60")
        await channel.abandon()
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert not is_alive(channel.pid)

    run(conversation)


@pytest.mark.parametrize(
    ("status", "is_gone", "exit_code"),
    [(REFUSED_SESSION_GONE, True, ExitCode.LOST), (REFUSED_VERSION, False, ExitCode.REMOTE)],
)
def test_a_refusal_says_whether_the_session_is_gone(
    status: int, is_gone: bool, exit_code: ExitCode
) -> None:
    error = LaneRefusedError(make_hello(AGENT, bytes(32), status=status, host=b"machine."))
    assert error.is_session_gone is is_gone
    assert error.exit_code is exit_code
    assert error.host == b"machine."
    assert error.message == f"the far side refused: status {status}"
