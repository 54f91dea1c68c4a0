"""The agent's half of the hand-over: lanes brought by stubs, taken in inside the event loop.

Whoever connects must be this user (where the kernel tells), must prove the session token, and only
then may send a lane: a HELLO and two descriptors. All of it within ATTACH_DEADLINE_S, and no more
than PENDING_ATTACHES at once; anything else is hung up on. A bad caller harms only itself.

    PROVING --token--> SENDING --HELLO and descriptors--> a lane, handed to ``on_lane``

At an abstract socket anybody may call, as often as he likes: other users are strangers there
(accepting). No caller can end the agent, and none can make it spin.

Not here: what becomes of the lane, versions included (server).
"""

import array
import asyncio
import hmac
import os
import socket
from typing import Callable, Dict, List, Optional

from sshunt.agent.rendezvous import (
    ATTACH_BACKLOG,
    ATTACH_DEADLINE_S,
    GO,
    PROOF_BYTES,
    PROOF_MAGIC,
    same_user,
)
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import HEAD_BYTES, Hello, body_bytes_untrusted, decode_body_untrusted
from sshunt.mux.limits import HELLO_BODY_BYTES
from sshunt.relay.accepting import Acceptor

#: Stubs that may be proving themselves at once; see ATTACH_BACKLOG for how many come in real life.
PENDING_ATTACHES = 16

#: How long accepting pauses when it fails: out of descriptors, mostly.
ACCEPT_PAUSE_S = 1.0

#: A lane has two: one to read from, one to write to.
LANE_DESCRIPTORS = 2


class AttachedLane:
    """A lane that has reached the agent. Whoever takes it owns its descriptors.

    ``control`` is the stub's end of the story: what is sent there appears on the stub's stderr,
    closing it ends the stub and with it the ssh command. None if the stub is the agent.
    """

    __slots__ = ("control", "hello", "read_fd", "write_fd")

    def __init__(
        self, read_fd: int, write_fd: int, hello: Hello, control: Optional[socket.socket]
    ) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.hello = hello
        self.control = control


OnLane = Callable[[AttachedLane], None]


class AttachListener:
    """Takes in lanes from ``listeners`` and calls ``on_lane`` for each, until ``close``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: List[socket.socket],
        token: bytes,
        on_lane: OnLane,
    ) -> None:
        self._loop = loop
        self._token = token
        self._on_lane = on_lane
        self._pending: Dict[socket.socket, _Attach] = {}
        self._acceptors: Dict[socket.socket, Acceptor] = {}  # by their listening socket
        for listener in listeners:
            self.add(listener)

    def add(self, listener: socket.socket) -> None:
        """Listen to ``listener``, which is ours now."""
        acceptor = self._acceptors[listener] = Acceptor(
            self._loop,
            listener,
            self._let_in,
            per_round=ATTACH_BACKLOG,
            pause_s=ACCEPT_PAUSE_S,
            is_welcome=same_user,
        )
        acceptor.start()

    def remove(self, listener: socket.socket) -> None:
        """Listen to it no more, and close it."""
        self._acceptors.pop(listener).close()

    def close(self) -> None:
        """Stop listening and hang up on whoever has not become a lane. May be called twice."""
        for listener in list(self._acceptors):
            self.remove(listener)
        for peer in list(self._pending):
            self._hang_up(peer)

    def _let_in(self, peer: socket.socket) -> None:
        if len(self._pending) >= PENDING_ATTACHES:
            peer.close()
            return
        deadline = self._loop.call_later(ATTACH_DEADLINE_S, self._hang_up, peer)
        self._pending[peer] = _Attach(peer, self._token, deadline)
        self._loop.add_reader(peer.fileno(), self._readable, peer)

    def _readable(self, peer: socket.socket) -> None:
        try:
            lane = self._pending[peer].read()
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, RemoteProtocolError):
            self._hang_up(peer)
            return
        if lane is not None:
            self._loop.remove_reader(peer.fileno())
            self._pending.pop(peer).deadline.cancel()
            self._on_lane(lane)

    def _hang_up(self, peer: socket.socket) -> None:
        self._loop.remove_reader(peer.fileno())
        self._pending.pop(peer).drop()


class _Attach:
    """One caller on its way to become a lane."""

    __slots__ = ("_buffer", "_fds", "_peer", "_proven", "_token", "deadline")

    def __init__(self, peer: socket.socket, token: bytes, deadline: asyncio.TimerHandle) -> None:
        self._peer = peer
        self._token = token
        self.deadline = deadline
        self._buffer = b""
        self._fds: List[int] = []
        self._proven = False

    def read(self) -> Optional[AttachedLane]:
        """Take in what has come; the lane once it is complete.

        Raises RemoteProtocolError, or OSError, for anything but a step on the way.
        """
        if not self._proven:
            self._read_proof()
            return None
        self._read_lane()
        hello = decode_lane_untrusted(self._buffer)
        if hello is None:
            return None
        if len(self._fds) != LANE_DESCRIPTORS or not hmac.compare_digest(hello.token, self._token):
            raise RemoteProtocolError("a lane without its descriptors, or of another session")
        read_fd, write_fd = self._fds
        self._fds = []
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return AttachedLane(read_fd, write_fd, hello, self._peer)

    def drop(self) -> None:
        """Close everything this caller brought."""
        self.deadline.cancel()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._peer.close()

    def _read_proof(self) -> None:
        # recv, not recvmsg: the kernel throws away descriptors that nobody asked for.
        data = self._peer.recv(PROOF_BYTES - len(self._buffer))
        self._buffer += data
        if not data:
            raise RemoteProtocolError("hung up before the proof")
        if len(self._buffer) == PROOF_BYTES:
            if not hmac.compare_digest(self._buffer, PROOF_MAGIC + self._token):
                raise RemoteProtocolError("not the token of this session")
            self._proven = True
            self._buffer = b""
            self._peer.send(GO)

    def _read_lane(self) -> None:
        room = HEAD_BYTES + HELLO_BODY_BYTES + 1 - len(self._buffer)
        space = socket.CMSG_SPACE(LANE_DESCRIPTORS * array.array("i").itemsize)
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        data, ancillary, message_flags, _address = self._peer.recvmsg(room, space, flags)
        self._buffer += data
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        if not data:
            raise RemoteProtocolError("hung up before the lane")
        if message_flags & socket.MSG_CTRUNC or len(self._fds) > LANE_DESCRIPTORS:
            raise RemoteProtocolError("more descriptors than a lane has")


def decode_lane_untrusted(data: bytes) -> Optional[Hello]:
    """The HELLO that ``data`` is, or None while it is incomplete; raises RemoteProtocolError."""
    if len(data) < HEAD_BYTES:
        return None
    end = HEAD_BYTES + body_bytes_untrusted(data[:HEAD_BYTES])
    if len(data) > end:
        raise RemoteProtocolError("bytes behind the HELLO")
    return decode_body_untrusted(data[HEAD_BYTES:]) if len(data) == end else None
