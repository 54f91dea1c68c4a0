"""The entry of the remote program: read the client's HELLO, decide who answers the lane.

    HELLO says             an agent for the token lives     none does
    nobody need be there   (FEATURE_CREATE)  hand over      start one; without a place: be it
    somebody must be       hand over                        REFUSED_SESSION_GONE, a sentence
    no common version      REFUSED_VERSION, a sentence      the same

Exactly the HELLO is read: the bytes behind it are the lane's and belong to whoever takes it. The
answer to a lane that is taken comes from the agent (server), every refusal from here.

Speed matters: this runs between login and first byte. What only the agent needs (asyncio: 50 ms)
is imported in the agent's process.
"""

import os
import signal
import socket
import sys
import time
import traceback
from typing import Optional

from sshunt.agent import stub
from sshunt.agent.rendezvous import Doorstep, find, host_id, meeting_name
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import (
    AGENT,
    FEATURE_CREATE,
    HEAD_BYTES,
    REFUSED_OTHER,
    REFUSED_SESSION_GONE,
    REFUSED_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    Hello,
    body_bytes_untrusted,
    common_version,
    decode_body_untrusted,
    make_hello,
)

#: The deadline for an agent that another stub is starting: until it listens lie a few system calls.
START_DEADLINE_S = 2.0


def main() -> None:
    """Serve the lane on descriptors 0 and 1, one way or the other; ends the process."""
    os.umask(0o077)
    if sys.stderr is None:  # closed by a start file of the login: no socket must take its place
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: 2
        sys.stderr = os.fdopen(2, "w")
    try:
        hello = read_hello(0)
    except RemoteProtocolError as error:
        sys.stderr.write("sshunt: the client did not introduce itself: %s\n" % error)
        sys.exit(stub.EXIT_FAILED)
    sys.exit(_answer(hello))


def read_hello(fd: int) -> Hello:
    """The HELLO that begins right here, and not a byte more; raises RemoteProtocolError."""
    head = _read_exactly(fd, HEAD_BYTES)
    return decode_body_untrusted(_read_exactly(fd, body_bytes_untrusted(head)))


def _read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(fd, count - len(data))
        if not more:
            raise RemoteProtocolError("it hung up after %d bytes" % len(data))
        data += more
    return data


def _answer(hello: Hello) -> int:
    if common_version(make_hello(AGENT, hello.token), hello) is None:
        return _refuse(
            hello,
            REFUSED_VERSION,
            "this agent speaks protocol versions %d to %d, the client %d to %d"
            % (VERSION_MIN, VERSION_MAX, hello.version_min, hello.version_max),
        )
    name = meeting_name(hello.token)
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            return _bring(hello, find(name))
        except (FileNotFoundError, ConnectionRefusedError):
            if not _may_create(hello):
                return _gone(hello)
        except OSError as error:
            return _refuse(hello, REFUSED_OTHER, "the agent can't be reached: %s" % error)
        try:
            doorstep = Doorstep(name)
        except FileExistsError as error:  # another stub is just starting it
            if time.monotonic() > deadline:
                return _refuse(hello, REFUSED_OTHER, "the agent does not start: %s" % error)
            time.sleep(0.01)
        except OSError:
            return _without_a_place(hello)
        else:
            return _start(hello, doorstep)


def _bring(hello: Hello, peer: socket.socket) -> int:
    """Bring the lane to the agent that lives behind ``peer``."""
    try:
        stub.hand_over(peer, hello)
    except (OSError, stub.NotWelcomeError) as error:
        peer.close()
        return _refuse(hello, REFUSED_OTHER, "the agent did not take the lane: %s" % error)
    return stub.wait(peer, hello.token)


def _start(hello: Hello, doorstep: Doorstep) -> int:
    """Start the agent with this lane as its first; where that is impossible, be the agent."""

    def life(read_fd: int, write_fd: int, control: socket.socket) -> None:
        try:
            _serve(hello, read_fd, write_fd, control, doorstep)
        finally:
            doorstep.remove()

    try:
        control = stub.start_agent(life)
    except OSError:  # no process to be had
        doorstep.remove()
        return _without_a_place(hello)
    doorstep.release()
    return stub.wait(control, hello.token)


def _without_a_place(hello: Hello) -> int:
    """No place to meet, no second process: this process is the agent, while its lane lives."""
    read_fd, write_fd = stub.take_pipes()
    try:
        _serve(hello, read_fd, write_fd, None, None)
    finally:
        sys.stderr.flush()
        os._exit(0)  # sys.exit waits for threads, and a name's look-up may sit in one


def _serve(
    hello: Hello,
    read_fd: int,
    write_fd: int,
    control: Optional[socket.socket],
    doorstep: Optional[Doorstep],
) -> None:
    """The agent's life. What it has to say in the end, if anything, goes to the first stub."""
    # asyncio does without ssl where there is none: a tenth of a start is not spent on what nobody
    # here uses.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    try:
        from sshunt.agent.attach import AttachedLane
        from sshunt.agent.server import serve
        from sshunt.relay.sockets import raise_descriptor_limit

        signal.signal(signal.SIGTERM, _exit_in_order)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise_descriptor_limit()
        if control is not None:
            stub.let_go_of_stderr()
        serve([AttachedLane(read_fd, write_fd, hello, control)], doorstep, hello.token)
    except Exception:  # noqa: BLE001 (the top of this process: say it where it may be seen, end)
        _report(control, traceback.format_exc())


def _exit_in_order(_signal: int, _frame: object) -> None:
    sys.exit(0)


def _report(control: Optional[socket.socket], text: str) -> None:
    if control is None:
        sys.stderr.write(text)
        return
    try:
        control.setblocking(False)
        control.send(text.encode("utf-8", "replace"))
    except OSError:
        pass  # its stub is gone, and with it everybody who could read this


def _may_create(hello: Hello) -> bool:
    return bool(hello.features & FEATURE_CREATE)


def _gone(hello: Hello) -> int:
    return _refuse(hello, REFUSED_SESSION_GONE, "the session's agent is gone from here")


def _refuse(hello: Hello, status: int, sentence: str) -> int:
    reply = make_hello(
        AGENT, hello.token, lane=hello.lane, status=status, sentence=sentence, host=host_id()
    )
    stub.write_all(1, reply.encode())
    return 0
