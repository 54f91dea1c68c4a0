"""The client's end of the conversation with the packet process: messages to and from its parts.

Whoever serves a kind of packets (front) says which kinds of messages he wants to hear, and sends
his own. Messages are like packets: what the socket does not take at once waits in a short queue,
and what finds that full is lost.

The end of the process is the end of the helper, too; who waits for that knows what to say.

Not here: what messages mean (helper.packet_protocol).
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from sshunt.helper.packet_protocol import MAX_MESSAGE_BYTES

#: Messages that are taken in one round of the event loop.
_MESSAGES_A_ROUND = 64

#: Messages that wait for the socket, at most: a burst of look-ups. The socket's own buffer holds
#: some two hundred small ones.
_MOST_WAITING = 1024

Hearer = Callable[[int, bytes], None]


class PacketChannel:
    """Owns the client's end until ``close``. ``theirs`` is the other one, for the helper."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._hearers: dict[int, Hearer] = {}
        self._waiting: deque[bytes] = deque()
        self.lost = 0  # messages that found the queue full
        loop.add_reader(self._sock.fileno(), self._on_readable)

    def subscribe(self, kinds: range, hearer: Hearer) -> None:
        """Hear the messages of these kinds: ``hearer(kind, body)``."""
        for kind in kinds:
            self._hearers[kind] = hearer

    def send(self, kind: int, body: bytes) -> None:
        """Say something; it may be lost."""
        message = bytes((kind,)) + body
        if self._waiting:
            self._wait(message)
            return
        try:
            self._sock.send(message)
        except BlockingIOError:
            self._wait(message)
        except OSError:
            self.lost += 1  # it is gone

    def close(self) -> None:
        """Hear nothing more. May be called twice."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self.theirs.close()

    def _wait(self, message: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self.lost += 1
            return
        if not self._waiting:
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        self._waiting.append(message)

    def _on_writable(self) -> None:
        try:
            while self._waiting:
                self._sock.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.lost += len(self._waiting)
            self._waiting.clear()
        self._loop.remove_writer(self._sock.fileno())

    def _on_readable(self) -> None:
        for _ in range(_MESSAGES_A_ROUND):
            try:
                message = self._sock.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._loop.remove_reader(self._sock.fileno())
                return
            hearer = self._hearers.get(message[0])
            if hearer is not None:
                hearer(message[0], message[1:])
