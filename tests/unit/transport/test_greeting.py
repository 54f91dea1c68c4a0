"""The first words on a channel, and how long somebody waits for the answer."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from sshunt.errors import ExitCode, UserError
from sshunt.lab.hosts import is_alive
from sshunt.mux.hello import AGENT, REFUSED_VERSION, Hello, make_hello
from sshunt.transport import greeting
from sshunt.transport.bootstrap import upload
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.channel import Channel, LaneRefusedError
from sshunt.transport.endings import cancelled
from sshunt.transport.greeting import greet
from sshunt.transport.ssh_diagnosis import NO_WORD_AFTER_LOGIN
from tests.unit.transport.programs import (
    OURS,
    THEIRS,
    TOKEN,
    Heard,
    channel_to,
    run,
    saying,
    shell,
)

DEADLINE_S = 20.0


async def greeted(channel: Channel, deadline_s: float = DEADLINE_S) -> list[str]:
    """What was said of the silence."""
    heard = Heard()
    await greet(channel, OURS, heard, deadline_s=deadline_s)
    return heard.silences


async def refused(channel: Channel, deadline_s: float = DEADLINE_S) -> UserError:
    """Why it failed; nothing of the channel is left then."""
    with pytest.raises(UserError) as raised:
        await greeted(channel, deadline_s)
    assert not is_alive(channel.pid)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(channel.read_fd)
    return raised.value


def test_the_answer_is_found_behind_a_login_scripts_chatter_and_what_follows_is_kept() -> None:
    async def conversation() -> None:
        channel = await saying(b"Welcome!\n", 0.05, THEIRS, b"behind")
        assert await greeted(channel) == []
        while len(channel.rest) < len(b"behind"):  # it may come by itself
            await asyncio.sleep(0.01)
            channel.rest += os.read(channel.read_fd, 100)
        assert (channel.hello, channel.rest) == (THEIRS, b"behind")
        await channel.abandon()

    run(conversation)


def test_the_hello_is_not_sent_before_it_may_be(tmp_path: Path) -> None:
    file = tmp_path / "sent"

    async def conversation() -> None:
        ready = asyncio.Event()
        channel = await shell(f"exec cat > {file}")
        working = asyncio.ensure_future(
            greet(channel, OURS, Heard(), ready=ready, deadline_s=DEADLINE_S)
        )
        without = upload(agent_bundle(), None)
        while not (file.exists() and file.stat().st_size == len(without)):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert file.read_bytes() == without
        ready.set()
        while file.stat().st_size == len(without):
            await asyncio.sleep(0.01)
        assert file.read_bytes() == without + OURS.encode()
        await cancelled(working)
        assert not is_alive(channel.pid)

    run(conversation)


def test_somebody_who_waits_to_be_ready_hears_that_the_program_has_ended() -> None:
    async def conversation() -> None:
        channel = await shell("sleep 0.2; exit 3")
        with pytest.raises(UserError, match="status 3"):
            await greet(channel, OURS, Heard(), ready=asyncio.Event(), deadline_s=DEADLINE_S)

    run(conversation)


def test_another_sessions_agent_and_an_echo_are_not_taken_for_ours() -> None:
    async def conversation() -> None:
        stranger = make_hello(AGENT, bytes(32), lane=1)
        for answer in (stranger, OURS):
            error = await refused(await saying(answer))
            assert "not the agent of this session" in error.message

    run(conversation)


def test_a_refusal_is_told_apart_from_a_failure() -> None:
    async def conversation() -> None:
        no = make_hello(AGENT, TOKEN, lane=1, status=REFUSED_VERSION, sentence="too old")
        error = await refused(await saying(no))
        assert isinstance(error, LaneRefusedError)
        assert error.message == "the far side refused: too old"

    run(conversation)


def test_what_was_kept_for_a_diagnosis_is_shown_once_there_is_an_answer() -> None:
    line = "Connection closed by 192.0.2.2 port 22"
    answer = f"printf '{_octal(THEIRS)}'; exec cat > /dev/null"
    script = f"echo {line} >&2; read bundle; sleep 0.1; {answer}"

    async def conversation() -> None:
        shown: list[str] = []
        channel = await channel_to("/bin/sh", "-c", script, on_line=shown.append)
        await greeted(channel)
        assert shown == [f"ssh: {line}"]
        await channel.abandon()

    run(conversation)


def test_what_was_printed_before_the_answer_is_no_last_word() -> None:
    answer = f"printf '{_octal(THEIRS)}'; cat > /dev/null; echo Good bye >&2"
    script = f"echo Welcome >&2; read bundle; sleep 0.1; {answer}"

    async def conversation() -> None:
        channel = await channel_to("/bin/sh", "-c", script)
        await greeted(channel)
        assert channel.last_words() == ""
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        await channel.close()
        assert channel.last_words() == "Good bye"

    run(conversation)


def _octal(hello: Hello) -> str:
    return "".join(f"\\{byte:03o}" for byte in hello.encode())


def test_a_program_that_ends_without_an_answer_is_diagnosed_by_what_it_said() -> None:
    async def conversation() -> None:
        error = await refused(await shell("echo 'a@b: Permission denied (publickey).' >&2; exit 1"))
        assert error.exit_code is ExitCode.AUTH

    run(conversation)


def test_an_answer_of_a_program_that_has_just_ended_counts() -> None:
    async def conversation() -> None:
        channel = await shell("printf '%b' '" + escaped(THEIRS.encode()) + "'")
        await asyncio.wait([channel.ended])
        await greeted(channel)
        assert channel.hello == THEIRS
        await channel.abandon()

    run(conversation)


def escaped(data: bytes) -> str:
    return "".join(f"\\0{byte:03o}" for byte in data)


def test_a_far_side_that_prints_without_end_is_given_up() -> None:
    async def conversation() -> None:
        error = await refused(await shell("exec yes"))
        assert "no agent answered" in error.message

    run(conversation)


def test_silence_after_the_login_is_said_once_and_has_a_deadline_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(greeting, "LOGIN_LOOK_S", 0.01)
    monkeypatch.setattr(greeting, "SILENCE_S", 0.05)
    monkeypatch.setattr(greeting, "LOGGED_IN_DEADLINE_S", 0.5)

    async def conversation() -> None:
        heard = Heard()
        channel = await shell("exec sleep 60")  # nobody logs in here, so it counts from the start
        with pytest.raises(UserError, match="did not start sshunt's program"):
            await greet(channel, OURS, heard, deadline_s=DEADLINE_S)
        assert heard.silences == [NO_WORD_AFTER_LOGIN]

    run(conversation)


def test_a_program_that_reads_nothing_from_a_short_pipe_has_the_same_deadline() -> None:
    async def conversation() -> None:
        channel = await shell("exec sleep 60")
        fcntl.fcntl(channel.write_fd, fcntl.F_SETPIPE_SZ, 4096)
        error = await refused(channel, deadline_s=0.3)
        assert "did not answer" in error.message

    run(conversation)


def test_a_program_that_ends_before_it_has_read_a_short_pipe_is_diagnosed() -> None:
    keeps_it_open = "exec 3<&0; sleep 3 & "
    script = f"{keeps_it_open}echo 'a@b: Permission denied (publickey).' >&2; exit 255"

    async def conversation() -> None:
        channel = await shell(script)
        fcntl.fcntl(channel.write_fd, fcntl.F_SETPIPE_SZ, 4096)
        error = await refused(channel)
        assert error.exit_code is ExitCode.AUTH

    run(conversation)


def test_without_a_login_the_callers_deadline_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "is_logged_in", False)

    async def conversation() -> None:
        error = await refused(await shell("exec sleep 60"), deadline_s=0.3)
        assert error.message == "the far side did not answer within 0 s"

    run(conversation)


def test_who_has_printed_something_has_less_time_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(greeting, "NOISE_DEADLINE_S", 0.3)

    async def conversation() -> None:
        error = await refused(await saying(b"Please wait ...\n"))
        assert "it printed 'Please wait ...'" in error.message

    run(conversation)
