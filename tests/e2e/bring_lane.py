"""A program: bring up a lane as the client does, say what came of it in one line of JSON, and end.

    bring_lane.py DESTINATION SSH_COMMAND [--python NAME] [--resume] [--interrupt-ssh] [--stay]
                  [--share] [--only-on-path] [--hasty] [--deadline SECONDS]

It runs on a host of the lab, and is what an end-to-end test of the bootstrap watches.

    --resume         kill ssh once the lane is up, and find the agent again with another one
    --interrupt-ssh  send ssh what Ctrl-C would send it, and see whether it lives
    --stay           say "up" once the lane is up, and wait to be killed
    --only-on-path   as on a server whose system has no Python of its own
    --hasty          with less patience for a login shell that hangs
    --share          say how further channels are had, and who bound the socket that they go through
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from sshunt.config.remotes import RemoteSpec, parse_remote
from sshunt.errors import UserError
from sshunt.mux.hello import CLIENT, FEATURE_CREATE, Hello, make_hello
from sshunt.mux.session import Session
from sshunt.transport import bootstrap, greeting
from sshunt.transport.channel import Channel
from sshunt.transport.ssh import SshTransport
from sshunt.transport.ssh_choices import NOTHING, Sharing, SshConfigQuery

TOKEN = os.urandom(32)


def hello(lane: int, *, create: bool) -> Hello:
    features = FEATURE_CREATE if create else 0
    return make_hello(CLIENT, TOKEN, lane=lane, features=features, grace_s=20)


async def bring(arguments: argparse.Namespace) -> dict[str, object]:
    remote = parse_remote(arguments.destination, ssh_command=arguments.ssh, python=arguments.python)
    choices = SshConfigQuery(remote).result()
    shares = Sharing.OURS if arguments.share else Sharing.NONE
    transport = SshTransport(remote, choices._replace(sharing=shares, control_path=""))
    lane = await connect(transport, hello(1, create=True), arguments.deadline)
    result: dict[str, object] = {"features": lane.hello.features, "cipher": choices.cipher}
    if arguments.share:
        result["channel_options"] = words = transport.sharing_options()
        result["socket_of"] = os.stat(words[1].partition("=")[2]).st_uid if words else None
        result["master"] = await master_behind(words) if words else None
    if arguments.stay:
        await confirm(lane)
        print("up", flush=True)
        await asyncio.sleep(60)
    if arguments.resume:
        lane = await resume(remote, lane)
    if arguments.interrupt_ssh:
        os.kill(lane.pid, signal.SIGINT)
        await asyncio.sleep(0.3)
        result["survived"] = not lane.ended.done()
    result["exit_status"] = await say_goodbye(lane)
    return result


async def connect(transport: SshTransport, hello: Hello, deadline_s: float) -> Channel:
    return await transport.open(hello, Telling(), deadline_s=deadline_s)


class Telling:
    """Says on stderr what becomes of it."""

    def on_started(self, _channel: Channel) -> None:
        pass

    def on_line(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    on_silence = on_known_address = on_line


async def master_behind(channel_options: Sequence[str]) -> int:
    """The exit status of ``ssh -O check``: 0 if an ssh answers behind the control socket."""
    command = ("ssh", *channel_options, "-O", "check", "nowhere")
    return await (await asyncio.create_subprocess_exec(*command)).wait()


async def resume(remote: RemoteSpec, lane: Channel) -> Channel:
    await confirm(lane)
    os.kill(lane.pid, signal.SIGKILL)
    await lane.ended
    os.close(lane.read_fd)
    os.close(lane.write_fd)
    await lane.close()
    again = SshTransport(remote, NOTHING)
    return await connect(again, hello(2, create=False), greeting.HELLO_DEADLINE_S)


async def confirm(lane: Channel) -> None:
    """Say something and wait for an answer: the session would not outlive its lane before that."""
    session = Session(CLIENT)
    session.add_lane(lane.hello.lane, 0.0)
    session.ping(lane.hello.lane)
    send(session, lane)
    while not lane.rest:
        await asyncio.sleep(0.01)
        with suppress(BlockingIOError):
            lane.rest = os.read(lane.read_fd, 65536)


async def say_goodbye(lane: Channel) -> int:
    session = Session(CLIENT)
    session.add_lane(lane.hello.lane, 0.0)
    session.say_goodbye(0, "")
    send(session, lane)
    status = await asyncio.wait_for(asyncio.shield(lane.ended), 10)
    os.close(lane.read_fd)
    os.close(lane.write_fd)
    await lane.close()
    return status.code


def send(session: Session, lane: Channel) -> None:
    for piece in session.transmit(lane.hello.lane, 0.0):
        os.write(lane.write_fd, bytes(piece) if isinstance(piece, bytes) else bytes(piece.view))


async def until_interrupted(arguments: argparse.Namespace) -> dict[str, object]:
    bringing = asyncio.ensure_future(bring(arguments))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, bringing.cancel)
    try:
        return await bringing
    except asyncio.CancelledError:
        return {"interrupted": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("destination")
    parser.add_argument("ssh")
    parser.add_argument("--python")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--interrupt-ssh", action="store_true")
    parser.add_argument("--stay", action="store_true")
    parser.add_argument("--deadline", type=float, default=greeting.HELLO_DEADLINE_S)
    parser.add_argument("--only-on-path", action="store_true")
    parser.add_argument("--hasty", action="store_true")
    parser.add_argument("--share", action="store_true")
    arguments = parser.parse_args()
    if arguments.only_on_path:
        bootstrap.CANDIDATES = ("python3", "python")
    if arguments.hasty:
        greeting.SILENCE_S, greeting.LOGGED_IN_DEADLINE_S = 0.5, 2.0
    started = time.monotonic()
    result: dict[str, object]
    try:
        result = asyncio.run(until_interrupted(arguments))
    except UserError as error:
        result = {"error": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
    result["seconds"] = round(time.monotonic() - started, 3)
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")


main()
